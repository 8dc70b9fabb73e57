//! The transport under object_store: attaches the credential to each request, watches its progress,
//! and turns a refusal into a [`Failure`] while the answer's headers are still at hand.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use reqwest::{Client, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::commit;
use super::credential::Bearer;
use super::refusal::Refusal;
use crate::http::client::{innermost, unreachable};
use crate::http::destination::Destination;
use crate::http::failure::{Failure, Kind};
use crate::http::traffic::Traffic;
use crate::token::AccessToken;

/// 416 for the first range: the blob is empty.
#[derive(Debug, thiserror::Error)]
#[error("the blob has no such range")]
pub struct NoSuchRange;

/// What object_store sends its requests through.
#[derive(Debug, Clone)]
pub struct Service {
    pub client: Client,
    pub destination: Destination,
    pub bearer: Bearer,
    /// The longest wait for a request's next bytes to be taken, or for its answer.
    pub patience: Duration,
    /// The last answer that was worth another try; its headers explain the failure if the tries end.
    pub last: Arc<Mutex<Option<Refusal>>>,
    pub traffic: Arc<Traffic>,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let url = Url::parse(&request.uri().to_string())
            .map_err(|_| stop(Failure::new(Kind::Local, "a request's URL could not be built")))?;
        let token = self.bearer.usable().await;
        let mut answer = self.send(&request, &url, &token).await?;
        if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            && let Some(token) = self.bearer.instead_of(&token).await
        {
            self.traffic.will_be_repeated();
            answer = self.send(&request, &url, &token).await?;
        }
        if commit::is_refused(&request, &answer) {
            return self.committed_before(&request, &url, answer).await;
        }
        self.judged(answer)
    }
}

impl Service {
    async fn send(&self, request: &HttpRequest, url: &Url, token: &AccessToken) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.clone().into_parts();
        let mut headers = parts.headers;
        let credential = token.bearer().map_err(stop)?;
        self.destination.attach(url, &mut headers, credential).map_err(stop)?;
        let mut outgoing = reqwest::Request::new(parts.method, url.clone());
        *outgoing.headers_mut() = headers;
        let progress = Progress::default();
        if body.content_length() > 0 {
            *outgoing.body_mut() = Some(reqwest::Body::wrap(Watched {
                body,
                rest: Bytes::new(),
                progress: progress.clone(),
                traffic: self.traffic.clone(),
            }));
        }
        self.traffic.request();
        let answer = self.watched(outgoing, &progress).await.inspect_err(|_| self.traffic.will_be_repeated())?;
        let answer: http::Response<reqwest::Body> = answer.into();
        let (parts, body) = answer.into_parts();
        let authority = authority(url);
        let (came, cut) = (self.traffic.clone(), self.traffic.clone());
        let body = body
            .map_frame(move |frame| {
                came.received(frame.data_ref().map_or(0, Bytes::len));
                frame
            })
            .map_err(move |error| {
                cut.will_be_repeated();
                transport(&authority, error)
            });
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }

    /// The refusal of a block list, or the answer that an earlier try would have brought.
    async fn committed_before(
        &self,
        request: &HttpRequest,
        url: &Url,
        refusal: HttpResponse,
    ) -> Result<HttpResponse, HttpError> {
        let (question, url) = commit::question(request, url);
        let token = self.bearer.usable().await;
        let blocks = self.send(&question, &url, &token).await?;
        if !blocks.status().is_success() {
            // No blob, or no right to look: the refusal stands. A state that passes is asked about again.
            return self.judged(if blocks.status().is_server_error() { blocks } else { refusal });
        }
        let headers = blocks.headers().clone();
        if !commit::is_done(request, blocks).await {
            return self.judged(refusal);
        }
        let mut answer = HttpResponse::new(Bytes::new().into());
        *answer.status_mut() = StatusCode::CREATED;
        *answer.headers_mut() = headers;
        Ok(answer)
    }

    /// Waits for the answer's headers as long as the request moves.
    async fn watched(&self, request: reqwest::Request, progress: &Progress) -> Result<reqwest::Response, HttpError> {
        let authority = authority(request.url());
        let mut answer = std::pin::pin!(self.client.execute(request));
        loop {
            let until = progress.last() + self.patience;
            tokio::select! {
                biased;
                answer = &mut answer => return answer.map_err(|error| transport(&authority, error)),
                () = tokio::time::sleep_until(until) => {}
            }
            if progress.last() + self.patience <= Instant::now() {
                let stalled = Failure::new(Kind::Unreachable, format!("could not reach \"{authority}\""))
                    .detail("The time for it has passed.")
                    .hint("The wait is bounded by managed_identity.request_timeout.");
                return Err(HttpError::new(HttpErrorKind::Timeout, stalled));
            }
        }
    }

    /// A success goes on; what is worth another try goes to object_store's retry, without its body,
    /// which nobody needs and which might never end; everything else ends here.
    fn judged(&self, answer: HttpResponse) -> Result<HttpResponse, HttpError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let refusal = Refusal::read(status, answer.headers());
        if refusal.is_throttling() {
            self.traffic.throttled();
        }
        if refusal.is_worth_another_try() {
            self.traffic.will_be_repeated();
            // Poisoned only by a panic while holding it, which leaves a valid value.
            *self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(refusal);
            let (parts, _) = answer.into_parts();
            return Ok(HttpResponse::from_parts(parts, Bytes::new().into()));
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(HttpError::new(HttpErrorKind::Unknown, NoSuchRange));
        }
        Err(HttpError::new(HttpErrorKind::Unknown, refusal))
    }
}

/// An end that object_store does not retry.
fn stop(failure: Failure) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, failure)
}

/// A transport error. All our requests may be repeated, so all but an untrusted certificate is worth
/// another try, also what object_store's own client would call unknown.
fn transport(authority: &str, error: reqwest::Error) -> HttpError {
    let untrusted = innermost(&error).to_ascii_lowercase().contains("certificate");
    let kind = match () {
        () if untrusted => HttpErrorKind::Unknown,
        () if error.is_connect() => HttpErrorKind::Connect,
        () if error.is_timeout() => HttpErrorKind::Timeout,
        () => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, unreachable(authority, &error))
}

fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port_or_known_default().map_or_else(|| host.into(), |port| format!("{host}:{port}"))
}

/// When a request's body was last taken from.
#[derive(Debug, Clone)]
struct Progress(Arc<Mutex<Instant>>);

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Progress {
    fn made(&self) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A request's body in pieces small enough that a slow network shows progress. The client's own limit
/// counts from the request's start and would end a large block that is merely slow.
struct Watched {
    body: HttpRequestBody,
    rest: Bytes,
    progress: Progress,
    traffic: Arc<Traffic>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        const PIECE: usize = 64 << 10;
        while self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.rest = frame.into_data().unwrap_or_default(),
                other => return other,
            }
        }
        self.progress.made();
        let piece = PIECE.min(self.rest.len());
        self.traffic.sent(piece);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let queued = self.body.size_hint().exact().unwrap_or_default();
        SizeHint::with_exact(queued + self.rest.len() as u64)
    }
}

/// Hands object_store the one service that was made for it.
#[derive(Debug)]
pub struct Connector(pub Service);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}
