//! From a path to the object that it names.

use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HOST, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde_json::Value;
use uuid::Uuid;

use super::authenticate::Trust;
use super::refusal::Refusal;
use super::secrets::Secrets;
use crate::error::lock;
use crate::http::{Body, Handler, json_response};
use crate::log::Record;

const API_VERSIONS: [&str; 11] = [
    "7.0",
    "7.1",
    "7.2",
    "7.3",
    "7.4",
    "7.5",
    "7.6",
    "2025-06-01-preview",
    "2025-07-01",
    "2026-03-01-preview",
    "2026-04-01",
];

pub(super) struct Vault {
    trust: Trust,
    secrets: Arc<Mutex<Secrets>>,
}

impl Vault {
    pub(super) fn new(trust: Trust, secrets: Arc<Mutex<Secrets>>) -> Self {
        Self { trust, secrets }
    }

    async fn object(&self, request: &Request<Incoming>, local: &str) -> Result<Value, Refusal> {
        // Before all else, as the real one: a client's first request has no token and wants the challenge.
        self.trust.check(request).await?;
        check_version(request.uri())?;
        let host = request.headers().get(HOST);
        let host = host.and_then(|host| host.to_str().ok()).unwrap_or(local);
        let path = request.uri().path();
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        match segments[..] {
            ["secrets", name] => self.secret(request, host, name, None),
            ["secrets", name, version] => self.secret(request, host, name, Some(version)),
            _ => Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "ResourceNotFound",
                format!("The path {path} names nothing that this vault has."),
            )),
        }
    }

    fn secret(
        &self,
        request: &Request<Incoming>,
        host: &str,
        name: &str,
        version: Option<&str>,
    ) -> Result<Value, Refusal> {
        if request.method() != Method::GET {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                format!("The method {} is not allowed here.", request.method()),
            ));
        }
        lock(&self.secrets).get(host, name, version)
    }
}

impl Handler for Vault {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, record: Arc<Record>) -> Response<Body> {
        let object = self.object(&request, &record.local().to_string()).await;
        let mut response = match &object {
            Ok(object) => json_response(StatusCode::OK, object),
            Err(refusal) => json_response(refusal.status, &refusal.body()),
        };
        let status = response.status();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED
            && let Ok(challenge) = HeaderValue::from_str(&self.trust.challenge())
        {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Ok(id) = HeaderValue::from_str(&Uuid::new_v4().to_string()) {
            headers.insert(HeaderName::from_static("x-ms-request-id"), id);
        }
        let client = HeaderName::from_static("x-ms-client-request-id");
        if let Some(id) = request.headers().get(&client) {
            headers.insert(client, id.clone());
        }
        headers.insert(HeaderName::from_static("x-ms-keyvault-region"), HeaderValue::from_static("emulator"));
        response
    }
}

fn check_version(uri: &Uri) -> Result<(), Refusal> {
    let query = uri.query().unwrap_or_default();
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let version = pairs.find(|(name, _)| name == "api-version");
    let Some((_, version)) = version else {
        return Err(Refusal::bad_parameter("The request must specify the query parameter api-version."));
    };
    if !API_VERSIONS.contains(&version.as_ref()) {
        let newest = API_VERSIONS[API_VERSIONS.len() - 1];
        return Err(Refusal::bad_parameter(format!(
            "The specified version ({version}) is not recognized. Consider using the latest supported version ({newest})."
        )));
    }
    Ok(())
}
