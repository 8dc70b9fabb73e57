//! One request's way: logged, struck by faults, answered.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tokio::time::sleep;

use super::body::{Body, Ended, Sending, full};
use super::connection::Link;
use super::{BoxError, json_response};
use crate::fault::{Callback, Faults, Instead, Reply};
use crate::log::{Ending, Entry, Log, Record};

/// What a service answers when no fault strikes.
pub(crate) trait Handler: Send + Sync + 'static {
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        record: Arc<Record>,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// Adds to an answer what the service puts on every one of them, made up by a fault or not.
    fn mark(&self, _response: &mut Response<Body>) {}
}

/// A handler with its log and its faults.
pub(crate) struct Service<H> {
    handler: Arc<H>,
    log: Log,
    faults: Faults,
}

impl<H: Handler> Service<H> {
    pub(crate) fn new(handler: H, log: &Log, faults: &Faults) -> Arc<Self> {
        Arc::new(Self { handler: Arc::new(handler), log: log.clone(), faults: faults.clone() })
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        link: Arc<Link>,
        (peer, local): (SocketAddr, SocketAddr),
    ) -> Result<Response<Body>, BoxError> {
        let (record, entry) = Record::new(&self.log, &request, peer, local);
        let record = Arc::new(record);
        let mut plan = self.faults.plan(&entry);
        if let Some(delay) = plan.delay {
            sleep(delay).await;
        }
        if let Some(callback) = plan.call.take() {
            plan.answer = call(callback, entry).await.or(plan.answer);
        }
        if plan.hang {
            self.faults.hold(&record).await;
        }
        let mut response = match plan.answer.take() {
            Some(Instead::Reset) => return Err(reset(&record, &link)),
            Some(Instead::Reply(reply)) => {
                // A client that is still sending its body would see a reset instead of the answer.
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                response(reply)
            }
            None => {
                let handler = Arc::clone(&self.handler);
                handler.answer(request, Arc::clone(&record)).await
            }
        };
        self.handler.mark(&mut response);
        record.note(|entry| {
            entry.status = Some(response.status().as_u16());
            let id = response.headers().get("x-ms-request-id");
            entry.request_id = id.and_then(|id| Some(id.to_str().ok()?.to_owned()));
        });
        if plan.lose {
            return Err(reset(&record, &link));
        }
        let faults = self.faults.clone();
        Ok(response.map(|body| Sending::body(body, &plan, record, link, faults)))
    }
}

fn reset(record: &Record, link: &Link) -> BoxError {
    record.end(Ending::Reset);
    link.reset();
    Ended.into()
}

/// Runs a test's code where it may block. Should it panic, the client is told, for the test to notice.
async fn call(callback: Callback, entry: Entry) -> Option<Instead> {
    let ran = tokio::task::spawn_blocking(move || callback(&entry)).await;
    let panicked = |_| Instead::Reply(Reply::new(500).body("the callback panicked"));
    ran.err().map(panicked)
}

fn response(reply: Reply) -> Response<Body> {
    let Ok(status) = StatusCode::from_u16(reply.status) else {
        let wrong = serde_json::json!({"error": format!("no HTTP status: {}", reply.status)});
        return json_response(StatusCode::INTERNAL_SERVER_ERROR, &wrong);
    };
    let mut response = Response::new(full(reply.body));
    *response.status_mut() = status;
    for (name, value) in &reply.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}
