//! The one HTTP server beneath all services: listening, TLS, the log and the faults around each answer.

mod body;
mod connection;
mod server;
mod service;

pub(crate) use body::{Body, BoxError, full};
pub(crate) use server::Server;
pub(crate) use service::{Handler, Service};

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;

pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    response
}
