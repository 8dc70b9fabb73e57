//! A reverse proxy over https before a blob service or a vault: it logs, and applies faults, but changes nothing,
//! unless an upstream needs it: see [`Proxy::join_slashes`].

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, EXPECT, HeaderMap, HeaderName, TRANSFER_ENCODING, UPGRADE};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::fault::Faults;
use crate::http::{Body, BoxError, Handler, Server, Service, full};
use crate::log::{Log, Record};
use crate::{Error, Pki};

/// Less than the 5 seconds after which a Node server such as Azurite closes an idle connection.
const IDLE: Duration = Duration::from_secs(2);
/// Headers that are about one connection, not about the message.
const HOP_BY_HOP: [HeaderName; 5] =
    [CONNECTION, EXPECT, TRANSFER_ENCODING, UPGRADE, HeaderName::from_static("keep-alive")];

/// A running proxy.
pub struct Proxy {
    server: Server,
    log: Log,
    faults: Faults,
    joins_slashes: Arc<AtomicBool>,
}

impl Proxy {
    /// Listens with the leaf of `pki`, and trusts it in the upstream. Port 0 is any free one.
    pub fn start(pki: &Pki, upstream: &str, port: u16) -> Result<Self, Error> {
        let uri: Uri = upstream.parse().map_err(|error| Error::invalid("upstream", error))?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(Error::invalid("upstream", "it is not https://host:port"));
        };
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(pki.client_config()?).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        let (log, faults) = (Log::new("proxy"), Faults::default());
        let joins_slashes = Arc::new(AtomicBool::new(false));
        let upstream = Upstream { scheme, authority, client, joins_slashes: Arc::clone(&joins_slashes) };
        let service = Service::new(upstream, &log, &faults);
        let server = Server::start(port, Some(pki.server_config()?), service)?;
        Ok(Self { server, log, faults, joins_slashes })
    }

    /// From now on `//` in a path arrives as `/`: for an upstream that redirects where a segment is empty, as no vault
    /// of Azure's does.
    pub fn join_slashes(&self) {
        self.joins_slashes.store(true, Ordering::Relaxed);
    }

    /// `https://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("https://{}", self.server.address())
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

struct Upstream {
    scheme: Scheme,
    authority: Authority,
    client: Client<HttpsConnector<HttpConnector>, Received>,
    joins_slashes: Arc<AtomicBool>,
}

impl Upstream {
    async fn forward(&self, request: Request<Incoming>, record: Arc<Record>) -> Result<Response<Body>, BoxError> {
        let (mut parts, body) = request.into_parts();
        let mut path = parts.uri.path_and_query().cloned();
        if self.joins_slashes.load(Ordering::Relaxed) {
            // A query that holds two of them has them escaped.
            path = path.map(|path| path.as_str().replace("//", "/").parse()).transpose()?;
        }
        // The Host header stays the client's: answers may repeat it in links.
        parts.uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path.unwrap_or(PathAndQuery::from_static("/")))
            .build()?;
        parts.version = Version::HTTP_11;
        drop_hop_by_hop(&mut parts.headers);
        let received = Received { body, record };
        let request = Request::from_parts(parts, received);
        let mut response = self.client.request(request).await?;
        drop_hop_by_hop(response.headers_mut());
        Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }
}

impl Handler for Upstream {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, record: Arc<Record>) -> Response<Body> {
        match self.forward(request, record).await {
            Ok(response) => response,
            Err(error) => {
                let mut response = Response::new(full(format!("upstream: {error:?}")));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }
        }
    }
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The client's body, counted while it passes.
struct Received {
    body: Incoming,
    record: Arc<Record>,
}

impl hyper::body::Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.len() as u64;
            self.record.note(|entry| entry.bytes_received += bytes);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
