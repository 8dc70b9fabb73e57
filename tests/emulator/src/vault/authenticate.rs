//! Who a vault believes: a token of its tenant, for its audience, in its time, signed by a published key,
//! and not taken back meanwhile.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::header::AUTHORIZATION;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::VaultConfig;
use super::policy::Caller;
use super::refusal::Refusal;
use crate::Error;
use crate::error::lock;
use crate::issuer::{Jwks, TokenRefused, unix_now};

/// The issuer, the audience, and the keys as far as they were fetched.
pub(super) struct Trust {
    tenant: String,
    audience: String,
    jwks_uri: String,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    keys: Mutex<Jwks>,
    revoked: Revoked,
}

/// Tokens that a vault takes no more; cheap to clone, all clones are one set.
#[derive(Clone, Default)]
pub(super) struct Revoked(Arc<Mutex<BTreeSet<String>>>);

impl Revoked {
    pub(super) fn add(&self, tokens: Vec<String>) {
        lock(&self.0).extend(tokens);
    }
}

impl Trust {
    pub(super) fn new(config: &VaultConfig, revoked: Revoked) -> Result<Self, Error> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config.pki.client_config()?)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            tenant: config.tenant.clone(),
            audience: config.audience.clone(),
            jwks_uri: config.jwks_uri.clone(),
            client: Client::builder(TokioExecutor::new())
                // Fetches are rare; a kept connection would be found closed.
                .pool_max_idle_per_host(0)
                .build(connector),
            keys: Mutex::default(),
            revoked,
        })
    }

    /// The header that tells a client where to get which token, or what a newer one must say.
    pub(super) fn challenge(&self, claims: Option<&str>) -> String {
        let Self { tenant, audience, .. } = self;
        if let Some(claims) = claims {
            let uri = "https://login.microsoftonline.com/common/oauth2/authorize";
            let claims = STANDARD.encode(claims);
            return format!(
                r#"Bearer realm="", authorization_uri="{uri}", error="insufficient_claims", claims="{claims}""#
            );
        }
        format!(r#"Bearer authorization="https://login.windows.net/{tenant}", resource="{audience}""#)
    }

    /// Accepts the request's token and says whose it is, or why not.
    pub(super) async fn check<B>(&self, request: &Request<B>) -> Result<Caller, Refusal> {
        let header = request.headers().get(AUTHORIZATION);
        let token = header
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .ok_or_else(|| Refusal::unauthorized("AKV10000: Request is missing a Bearer or PoP token."))?;
        let claims = self.verify(token).await?;
        let text = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
        let issuer = format!("https://sts.windows.net/{}/", self.tenant);
        if text("iss") != issuer {
            return Err(Refusal::unauthorized(format!(
                "AKV10032: Invalid issuer. Expected one of {issuer}, found {}.",
                text("iss")
            )));
        }
        if text("aud") != self.audience {
            return Err(Refusal::unauthorized(format!(
                "AKV10022: Invalid audience. Expected {}, found: {}",
                self.audience,
                text("aud")
            )));
        }
        let time = |name: &str| claims[name].as_i64();
        let now = unix_now();
        match (time("nbf"), time("exp")) {
            (Some(from), Some(until)) if (from..until).contains(&now) => {}
            (Some(from), _) if now < from => {
                let why = "[TokenNotYetValid] Error validating token: the token is not valid yet.";
                return Err(Refusal::unauthorized(why));
            }
            _ => {
                return Err(Refusal::unauthorized("[TokenExpired] Error validating token: the token is expired."));
            }
        }
        if lock(&self.revoked.0).contains(token) {
            let mut refusal = Refusal::unauthorized("[TokenRevoked] A token that was issued later is required.");
            let nbf = json!({"essential": true, "value": now.to_string()});
            refusal.claims = Some(json!({"access_token": {"nbf": nbf}}).to_string());
            return Err(refusal);
        }
        Ok(Caller { appid: text("appid"), oid: text("oid"), iss: text("iss") })
    }

    async fn verify(&self, token: &str) -> Result<Value, Refusal> {
        let known = lock(&self.keys).verify(token);
        let verified = match known {
            // A key that the issuer published since the last fetch, or the first fetch at all.
            Err(TokenRefused::UnknownKey) => {
                let keys = self
                    .fetch()
                    .await
                    .map_err(|error| Refusal::unauthorized(format!("the issuer's keys cannot be fetched: {error}")))?;
                *lock(&self.keys) = keys.clone();
                keys.verify(token)
            }
            verified => verified,
        };
        verified.map_err(|why| {
            Refusal::unauthorized(match why {
                TokenRefused::Malformed => "AKV10001: The token is not a signed JWT.",
                TokenRefused::UnknownKey => "AKV10046: Unable to resolve the key used for signature validation.",
                TokenRefused::Signature => "AKV10046: The token's signature does not hold.",
            })
        })
    }

    async fn fetch(&self) -> Result<Jwks, Box<dyn std::error::Error + Send + Sync>> {
        let response = self.client.get(self.jwks_uri.parse()?).await?;
        if !response.status().is_success() {
            return Err(response.status().to_string().into());
        }
        let document = response.into_body().collect().await?.to_bytes();
        Ok(Jwks::parse(&document)?)
    }
}
