//! What a token says: the claims of an Entra v1.0 access token for a managed identity.

use serde_json::{Map, Value, json};
use uuid::Uuid;

/// Entra sets `nbf` back by this much, so that a verifier whose clock is behind accepts the token.
const CLOCK_SKEW: i64 = 300;

/// What to issue.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    pub(super) audience: String,
    client_id: String,
    object_id: String,
    resource_id: String,
    pub(super) life: Option<i64>,
    pub(super) size: Option<usize>,
    overrides: Map<String, Value>,
}

impl TokenRequest {
    /// For `audience`, which becomes `aud` to the letter, and an identity that is made up.
    pub fn new(audience: impl Into<String>) -> Self {
        Self {
            audience: audience.into(),
            client_id: Uuid::new_v4().to_string(),
            object_id: Uuid::new_v4().to_string(),
            resource_id: String::new(),
            life: None,
            size: None,
            overrides: Map::new(),
        }
    }

    /// For this identity.
    #[must_use]
    pub fn identity(mut self, identity: &crate::Identity) -> Self {
        self.client_id.clone_from(&identity.client_id);
        self.object_id.clone_from(&identity.object_id);
        self.resource_id.clone_from(&identity.resource_id);
        self
    }

    /// Seconds until it expires, instead of the issuer's.
    #[must_use]
    pub fn life(mut self, seconds: i64) -> Self {
        self.life = Some(seconds);
        self
    }

    /// Pads the token to exactly this many bytes.
    #[must_use]
    pub fn size(mut self, bytes: usize) -> Self {
        self.size = Some(bytes);
        self
    }

    /// Sets a claim, or replaces one: the way to a token with a foreign issuer or none of its times.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.overrides.insert(name.to_owned(), value.into());
        self
    }

    pub(super) fn claims(&self, issuer: &str, tenant: &str, now: i64, expires_on: i64) -> Value {
        let start = now.min(expires_on) - CLOCK_SKEW;
        let uti = Uuid::new_v4().simple().to_string();
        let mut claims = json!({
            "aud": self.audience,
            "iss": issuer,
            "iat": start,
            "nbf": start,
            "exp": expires_on,
            "appid": self.client_id,
            "appidacr": "2",
            "idp": issuer,
            "idtyp": "app",
            "oid": self.object_id,
            "sub": self.object_id,
            "tid": tenant,
            "uti": uti,
            "ver": "1.0",
            "xms_mirid": self.resource_id,
        });
        for (name, value) in &self.overrides {
            claims[name] = value.clone();
        }
        claims
    }
}
