//! One request to a vault: who asks, whether it may be, and what it says.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HOST, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::authenticate::Trust;
use super::keys::Keys;
use super::operation::VaultOperation;
use super::policy::Policy;
use super::refusal::Refusal;
use super::route::{Target, api_version, parameter};
use super::secrets::Secrets;
use crate::error::lock;
use crate::http::{Body, Handler, json_response};
use crate::log::Record;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
const LARGEST_REQUEST: usize = 1 << 20;
const LARGEST_PAGE: usize = 25;

/// What a vault has and whom it lets to it.
#[derive(Default)]
pub(super) struct Content {
    pub secrets: Mutex<Secrets>,
    pub keys: Mutex<Keys>,
    pub policy: Mutex<Policy>,
}

pub(super) struct Vault {
    trust: Trust,
    content: Arc<Content>,
}

/// The body of an operation with a key.
#[derive(Deserialize)]
struct Parameters {
    alg: String,
    value: String,
    digest: Option<String>,
}

impl Vault {
    pub(super) fn new(trust: Trust, content: Arc<Content>) -> Self {
        Self { trust, content }
    }

    async fn object(&self, request: Request<Incoming>, local: &str) -> Result<Value, Refusal> {
        // Before all else, as the real one: a client's first request has no token and wants the challenge.
        let caller = self.trust.check(&request).await?;
        let uri = request.uri().clone();
        let api_version = api_version(&uri)?;
        let host = request.headers().get(HOST);
        let host = host.and_then(|host| host.to_str().ok()).unwrap_or(local).to_owned();
        let target = Target::of(request.method(), uri.path())?;
        lock(&self.content.policy).check(&caller, target.operation, &target.object())?;
        match target.operation {
            VaultOperation::GetSecret => lock(&self.content.secrets).get(&host, target.name, target.version),
            VaultOperation::ReadKey if target.versions => self.versions(&uri, &host, &api_version, target.name),
            VaultOperation::ReadKey => self.key(&host, &target),
            _ => {
                let body = Limited::new(request.into_body(), LARGEST_REQUEST).collect().await;
                let body = body.map_err(|error| Refusal::bad_parameter(error.to_string()))?.to_bytes();
                self.operate(&host, &target, &body)
            }
        }
    }

    fn key(&self, host: &str, target: &Target<'_>) -> Result<Value, Refusal> {
        let keys = lock(&self.content.keys);
        let shows_disabled = !lock(&self.content.policy).refuses_to_show_disabled_keys;
        if !shows_disabled && !keys.is_enabled(target.name, target.version)? {
            return Err(Refusal::key_disabled(target.operation));
        }
        keys.bundle(host, target.name, target.version)
    }

    fn versions(&self, uri: &Uri, host: &str, api_version: &str, name: &str) -> Result<Value, Refusal> {
        let number = |parameter_name: &str, least, most, default| match parameter(uri, parameter_name) {
            None => Ok(default),
            Some(text) => text.parse().ok().filter(|number| (least..=most).contains(number)).ok_or_else(|| {
                Refusal::bad_parameter(format!("{parameter_name} is not between {least} and {most}: {text}"))
            }),
        };
        let most = number("maxresults", 1, LARGEST_PAGE, LARGEST_PAGE)?;
        let from = number("$skiptoken", 0, usize::MAX, 0)?;
        let page = lock(&self.content.keys).page(host, name, from, most);
        // The real vault writes its port out even where it is the scheme's own.
        let port = if host.contains(':') { "" } else { ":443" };
        let next = page.next.map(|next| {
            format!(
                "https://{host}{port}/keys/{name}/versions?api-version={api_version}&$skiptoken={next}&maxresults={most}"
            )
        });
        Ok(json!({"value": page.items, "nextLink": next}))
    }

    fn operate(&self, host: &str, target: &Target<'_>, body: &[u8]) -> Result<Value, Refusal> {
        let found = lock(&self.content.keys).usable(host, target.name, target.version, target.operation);
        let (kid, material) = found?;
        let parameters: Parameters = serde_json::from_slice(body)
            .map_err(|error| Refusal::bad_parameter(format!("The request's body is not as it should be: {error}")))?;
        let alg = parameters.alg.as_str();
        let value = bytes("value", &parameters.value)?;
        let done = match target.operation {
            VaultOperation::Verify => {
                let digest = parameters.digest.as_deref();
                let digest = digest.ok_or_else(|| Refusal::bad_parameter("Property digest is required."))?;
                let holds = material.verify(alg, &bytes("digest", digest)?, &value)?;
                return Ok(json!({"value": holds}));
            }
            VaultOperation::Sign => material.sign(alg, &value)?,
            operation => material.transform(operation, alg, &value)?,
        };
        Ok(json!({"kid": kid, "value": URL_SAFE_NO_PAD.encode(done)}))
    }
}

fn bytes(property: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    let decoded = URL_SAFE_NO_PAD.decode(text);
    decoded.map_err(|_| Refusal::bad_parameter(format!("Property {property} is not base64url without padding.")))
}

impl Handler for Vault {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, record: Arc<Record>) -> Response<Body> {
        let client = HeaderName::from_static("x-ms-client-request-id");
        let client_request_id = request.headers().get(&client).cloned();
        let object = self.object(request, &record.local().to_string()).await;
        let mut response = match &object {
            Ok(object) => json_response(StatusCode::OK, object),
            Err(refusal) => json_response(refusal.status, &refusal.body()),
        };
        let headers = response.headers_mut();
        if let Err(refusal) = &object
            && refusal.status == StatusCode::UNAUTHORIZED
            && let Ok(challenge) = HeaderValue::from_str(&self.trust.challenge(refusal.claims.as_deref()))
        {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(id) = client_request_id {
            headers.insert(client, id);
        }
        headers.insert(HeaderName::from_static("x-ms-keyvault-region"), HeaderValue::from_static("emulator"));
        response
    }

    fn mark(&self, response: &mut Response<Body>) {
        if let Ok(id) = HeaderValue::from_str(&Uuid::new_v4().to_string()) {
            response.headers_mut().entry(REQUEST_ID).or_insert(id);
        }
    }
}
