//! The answers of the token endpoint, and the checks before them.
//!
//! Source: Microsoft's "How to use managed identities to acquire a token on a VM" and "Azure Instance
//! Metadata Service": parameters, refusals, and the shape of both kinds of answer.

use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::selector::{NotChosen, choose};
use super::{Identity, Settings};
use crate::error::lock;
use crate::http::{Body, Handler, dated, full, json_response};
use crate::issuer::{Issuer, TokenRequest};
use crate::log::Record;

const PATH: &str = "/metadata/identity/oauth2/token";
/// The first with managed identities; a version is a date, and every later one of the service is accepted.
const OLDEST_VERSION: &str = "2018-02-01";
const NEWEST_VERSIONS: [&str; 3] = ["2025-04-07", "2024-07-17", "2024-03-15"];

/// The code of a refusal for want of the header.
const NO_HEADER: &str = "bad_request_102";

pub(super) struct Imds {
    issuer: Issuer,
    settings: Arc<Mutex<Settings>>,
}

/// An answer other than a token.
struct Refusal(StatusCode, Value);

impl Imds {
    pub(super) fn new(issuer: Issuer, settings: Arc<Mutex<Settings>>) -> Self {
        Self { issuer, settings }
    }

    fn token(&self, request: &Request<Incoming>, record: &Record) -> Result<Value, Refusal> {
        check_headers(request)?;
        let query = request.uri().query().unwrap_or_default();
        let query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        check_query(&query)?;
        let resource = value(&query, "resource").filter(|resource| !resource.is_empty());
        let resource =
            resource.ok_or_else(|| refuse("invalid_request", "Required query variable 'resource' is missing"))?;
        if !self.issuer.knows(resource) {
            let description = format!(
                "AADSTS500011: The resource principal named {resource} was not found in the tenant named {}.",
                self.issuer.tenant()
            );
            return Err(refuse("invalid_resource", &description));
        }
        let (identity, selector, refresh_in, size) = {
            let settings = lock(&self.settings);
            let mut query = query.clone();
            query.retain(|(name, _)| !(settings.container_instances && name == "mi_res_id"));
            let (identity, selector) = choose(&settings.assigned, &query)
                .map_err(|why: NotChosen| refuse("invalid_request", why.description()))?;
            let identity = identity.clone();
            (identity, selector, settings.refresh_in, settings.token_size)
        };
        let mut wanted = TokenRequest::new(resource).identity(&identity);
        if let Some(size) = size {
            wanted = wanted.size(size);
        }
        let token = self.issuer.issue(&wanted).map_err(|error| {
            let description = json!({"error": "unknown", "error_description": error.to_string()});
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, description)
        })?;
        record.note(|entry| {
            entry.identity = Some(identity.name.clone());
            entry.resource = Some(resource.to_owned());
            entry.token = Some(token.text.clone());
        });
        // Every value is a string, numbers too.
        let mut answer = json!({
            "access_token": token.text,
            "client_id": identity.client_id,
            "expires_in": (token.expires_on - token.issued_at).to_string(),
            "expires_on": token.expires_on.to_string(),
            "ext_expires_in": (token.expires_on - token.issued_at).to_string(),
            "not_before": token.issued_at.to_string(),
            "refresh_token": "",
            "resource": resource,
            "token_type": "Bearer",
        });
        echo(&mut answer, &identity, selector);
        if let Some(seconds) = refresh_in {
            answer["refresh_in"] = seconds.to_string().into();
        }
        Ok(answer)
    }
}

impl Handler for Imds {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, record: Arc<Record>) -> Response<Body> {
        let token = self.token(&request, &record);
        let mut response = match token {
            Ok(token) => json_response(StatusCode::OK, &token),
            Err(Refusal(status, body)) => {
                let in_plain_text = lock(&self.settings).container_instances && body["error"] == NO_HEADER;
                let mut response = match body["error_description"].as_str() {
                    Some(text) if in_plain_text => plain_response(status, text),
                    _ => json_response(status, &body),
                };
                if status == StatusCode::METHOD_NOT_ALLOWED {
                    let headers = response.headers_mut();
                    headers.insert(ALLOW, HeaderValue::from_static("GET"));
                }
                response
            }
        };
        dated(&mut response, &self.issuer);
        response
    }
}

fn plain_response(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(text.to_owned()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn check_headers(request: &Request<Incoming>) -> Result<(), Refusal> {
    // SDKs that were told another host append a slash.
    if request.uri().path().trim_end_matches('/') != PATH {
        return Err(Refusal(StatusCode::NOT_FOUND, json!({"error": "Not found"})));
    }
    if request.method() != Method::GET {
        let body = json!({"error": "Method not allowed"});
        return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, body));
    }
    let header = |name| request.headers().get(name);
    if header("metadata").is_none_or(|value| value.as_bytes() != b"true") {
        return Err(refuse(NO_HEADER, "Required metadata header not specified"));
    }
    // It tells of a proxy in between, that is of a request that a stranger may have caused.
    if header("x-forwarded-for").is_some() {
        return Err(refuse("bad_request_102", "The X-Forwarded-For header is not allowed"));
    }
    Ok(())
}

fn check_query(query: &[(String, String)]) -> Result<(), Refusal> {
    for (index, (name, _)) in query.iter().enumerate() {
        if query[..index].iter().any(|(earlier, _)| earlier == name) {
            let description = format!("Query parameter '{name}' is repeated");
            return Err(refuse("invalid_request", &description));
        }
    }
    let version = value(query, "api-version").unwrap_or_default();
    let known = is_date(version) && (OLDEST_VERSION..=NEWEST_VERSIONS[0]).contains(&version);
    if !known {
        let body = json!({
            "error": "Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds",
            "newest-versions": NEWEST_VERSIONS,
        });
        return Err(Refusal(StatusCode::BAD_REQUEST, body));
    }
    Ok(())
}

fn is_date(version: &str) -> bool {
    let shape = |(index, byte): (usize, u8)| match index {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    version.len() == 10 && version.bytes().enumerate().all(shape)
}

/// The real service repeats the id that was asked by; the client id is there always.
fn echo(answer: &mut Value, identity: &Identity, selector: Option<&'static str>) {
    match selector {
        Some("object_id") => answer["object_id"] = identity.object_id.clone().into(),
        Some(name @ ("msi_res_id" | "mi_res_id")) => {
            answer[name] = identity.resource_id.clone().into();
        }
        _ => {}
    }
}

fn value<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let pair = query.iter().find(|(key, _)| key == name);
    pair.map(|(_, value)| value.as_str())
}

fn refuse(error: &str, description: &str) -> Refusal {
    let body = json!({"error": error, "error_description": description});
    Refusal(StatusCode::BAD_REQUEST, body)
}
