//! The one HTTP server beneath all services: listening, TLS, the log and the faults around each answer.

mod body;
mod connection;
mod server;
mod service;

pub(crate) use body::{Body, BoxError, full};
pub(crate) use server::Server;
pub(crate) use service::{Handler, Service};

use hyper::header::{CONTENT_TYPE, DATE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;

use crate::issuer::Issuer;

/// Dates an answer by the issuer's clock; without it hyper takes this machine's.
pub(crate) fn dated(response: &mut Response<Body>, issuer: &Issuer) {
    if let Ok(date) = HeaderValue::from_str(&issuer.date()) {
        response.headers_mut().insert(DATE, date);
    }
}

pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    response
}
