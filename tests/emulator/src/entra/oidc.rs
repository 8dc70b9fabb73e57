//! The issuer of federated tokens: a Kubernetes cluster, or a CI service.

use serde_json::{Value, json};
use uuid::Uuid;

use super::EXCHANGE;
use crate::Error;
use crate::issuer::{Issuer, Jwks, unix_now};

/// As kubelet asks for it.
const LIFE: i64 = 3600;

/// An OIDC issuer with a key of its own; cheap to clone.
#[derive(Clone)]
pub struct OidcIssuer {
    url: String,
    signer: Issuer,
}

impl OidcIssuer {
    /// `url` becomes `iss` to the letter.
    pub fn new(url: &str) -> Result<Self, Error> {
        // The signer is used for its key alone: it has no tenant.
        Ok(Self { url: url.to_owned(), signer: Issuer::new("")? })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// What a service account's token says; each differs from every other by its `jti`.
    pub fn claims(&self, subject: &str) -> Value {
        let now = unix_now();
        json!({
            "aud": [EXCHANGE],
            "exp": now + LIFE,
            "iat": now,
            "iss": self.url,
            "jti": Uuid::new_v4().to_string(),
            "nbf": now,
            "sub": subject,
        })
    }

    pub fn sign(&self, claims: &Value) -> Result<String, Error> {
        self.signer.sign_claims(claims)
    }

    /// A federated token as a pod of this service account gets it.
    pub fn token(&self, subject: &str) -> Result<String, Error> {
        self.sign(&self.claims(subject))
    }

    /// The published keys.
    pub(super) fn jwks(&self) -> Result<Jwks, Error> {
        Jwks::parse(self.signer.jwks().to_string().as_bytes())
    }
}
