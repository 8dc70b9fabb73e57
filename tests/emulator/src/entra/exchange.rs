//! The exchange itself, with the checks that Entra makes before it.
//!
//! Source: Microsoft's "Get a token with a federated credential" (OAuth 2.0 client credentials flow) and the
//! reference of AADSTS error codes.

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::refusal::{
    AUDIENCE, GRANT, ISSUER, MALFORMED, NO_CLIENT, NO_PARAMETER, NO_RESOURCE, NO_TENANT, Refusal, SCOPE, SIGNATURE,
    SUBJECT, TIME,
};
use super::{Credential, Directory, EXCHANGE, Tenant};
use crate::Identity;
use crate::error::lock;
use crate::http::{Body, Handler, dated, json_response};
use crate::issuer::{TokenRefused, TokenRequest};
use crate::log::Record;

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const FORM: &str = "application/x-www-form-urlencoded";
const CONFIGURATION: &str = "/v2.0/.well-known/openid-configuration";

type Fields = Vec<(String, String)>;

pub(super) struct Exchange {
    directory: Arc<Mutex<Directory>>,
}

impl Exchange {
    pub(super) fn new(directory: Arc<Mutex<Directory>>) -> Self {
        Self { directory }
    }

    /// Where a client that asks first is told to exchange.
    fn configuration(&self, tenant: &str, record: &Record) -> Result<Value, Refusal> {
        let directory = lock(&self.directory);
        let tenant = directory.tenant(tenant)?.issuer.tenant();
        let authority = format!("https://{}/{tenant}", record.local());
        Ok(json!({
            "issuer": format!("https://login.microsoftonline.com/{tenant}/v2.0"),
            "authorization_endpoint": format!("{authority}/oauth2/v2.0/authorize"),
            "token_endpoint": format!("{authority}/oauth2/v2.0/token"),
            "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        }))
    }

    fn token(&self, tenant: &str, form: &Fields, record: &Record) -> Result<Value, Refusal> {
        let directory = lock(&self.directory);
        let tenant = directory.tenant(tenant)?;
        let [grant, client, scope, kind, assertion] =
            ["grant_type", "client_id", "scope", "client_assertion_type", "client_assertion"]
                .map(|name| value(form, name));
        let (grant, client, scope) = (grant?, client?, scope?);
        if grant != "client_credentials" || kind? != ASSERTION_TYPE {
            return Err(GRANT);
        }
        let resource = scope.strip_suffix("/.default").filter(|resource| !resource.contains(' ')).ok_or(SCOPE)?;
        let of_client = |credential: &&Credential| credential.identity.client_id.eq_ignore_ascii_case(client);
        let credentials: Vec<_> = tenant.credentials.iter().filter(of_client).collect();
        if credentials.is_empty() {
            return Err(NO_CLIENT);
        }
        let identity = believed(&credentials, assertion?, tenant.issuer.now())?;
        if !tenant.issuer.knows(resource) {
            return Err(NO_RESOURCE);
        }
        let token = tenant.issuer.issue(&TokenRequest::new(resource).identity(identity)).map_err(|_| SCOPE)?;
        record.note(|entry| {
            entry.identity = Some(identity.name.clone());
            entry.resource = Some(resource.to_owned());
            entry.token = Some(token.text.clone());
        });
        let life = token.expires_on - token.issued_at;
        let mut answer =
            json!({"token_type": "Bearer", "expires_in": life, "ext_expires_in": life, "access_token": token.text});
        if let Some(seconds) = directory.refresh_in {
            answer["refresh_in"] = seconds.into();
        }
        Ok(answer)
    }
}

impl Directory {
    fn tenant(&self, id: &str) -> Result<&Tenant, Refusal> {
        let mut tenants = self.tenants.iter();
        tenants.find(|known| known.issuer.tenant().eq_ignore_ascii_case(id)).ok_or(NO_TENANT)
    }
}

impl Handler for Exchange {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, record: Arc<Record>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if let Some(tenant) = path.strip_prefix('/').and_then(|path| path.strip_suffix(CONFIGURATION)) {
            return match self.configuration(tenant, &record) {
                Ok(document) => json_response(StatusCode::OK, &document),
                Err(refusal) => json_response(refusal.status, &refusal.body()),
            };
        }
        let tenant = path.strip_prefix('/').and_then(|path| path.strip_suffix("/oauth2/v2.0/token"));
        let Some(tenant) = tenant.filter(|tenant| !tenant.contains('/')) else {
            return json_response(StatusCode::NOT_FOUND, &json!({"error": "not_found"}));
        };
        if request.method() != Method::POST {
            return json_response(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "method_not_allowed"}));
        }
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_form = kind.is_some_and(|kind| kind.split(';').next() == Some(FORM));
        let Ok(body) = request.into_body().collect().await else {
            return json_response(StatusCode::BAD_REQUEST, &json!({"error": "invalid_request"}));
        };
        let body = if is_form { body.to_bytes() } else { Default::default() };
        let form: Fields = form_urlencoded::parse(&body).into_owned().collect();
        record.note(|entry| entry.form.clone_from(&form));
        let mut response = match self.token(tenant, &form, &record) {
            Ok(token) => json_response(StatusCode::OK, &token),
            Err(refusal) => json_response(refusal.status, &refusal.body()),
        };
        // One clock for all tenants, as at the real one.
        if let Some(tenant) = lock(&self.directory).tenants.first() {
            dated(&mut response, &tenant.issuer);
        }
        response
    }
}

/// The identity that trusts this assertion.
fn believed<'c>(credentials: &[&'c Credential], assertion: &str, now: i64) -> Result<&'c Identity, Refusal> {
    let mut claims = Err(ISSUER);
    let mut trusting = Vec::new();
    for credential in credentials {
        let verified = credential.issuer.jwks().map_err(|_| SIGNATURE)?.verify(assertion);
        match verified {
            Ok(verified) if verified["iss"] == credential.issuer.url() => {
                claims = Ok(verified);
                trusting.push(credential);
            }
            Ok(_) | Err(TokenRefused::UnknownKey) => {}
            Err(TokenRefused::Malformed) => return Err(MALFORMED),
            Err(TokenRefused::Signature) => return Err(SIGNATURE),
        }
    }
    let claims = claims?;
    let time = |name: &str| claims[name].as_i64().unwrap_or_default();
    if !(time("nbf")..time("exp")).contains(&now) {
        return Err(TIME);
    }
    // Kubernetes writes a list, GitHub a text.
    let audience = &claims["aud"];
    if *audience != EXCHANGE && *audience != json!([EXCHANGE]) {
        return Err(AUDIENCE);
    }
    let subject = trusting.into_iter().find(|credential| claims["sub"] == credential.subject.as_str());
    subject.map(|credential| &credential.identity).ok_or(SUBJECT)
}

fn value<'f>(form: &'f Fields, name: &str) -> Result<&'f str, Refusal> {
    let field = form.iter().find(|(field, _)| field == name);
    field.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty()).ok_or(NO_PARAMETER)
}
