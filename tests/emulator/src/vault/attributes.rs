//! What a vault says of one version of a secret or of a key.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::issuer::unix_now;

/// Times are Unix times. Of a secret they are told; of a key `nbf` and `exp` are enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attributes {
    pub enabled: bool,
    pub nbf: Option<i64>,
    pub exp: Option<i64>,
    pub created: i64,
    pub updated: i64,
}

impl Default for Attributes {
    fn default() -> Self {
        let now = unix_now();
        Self { enabled: true, nbf: None, exp: None, created: now, updated: now }
    }
}

impl Attributes {
    /// As answers have it.
    pub(super) fn told(&self) -> Value {
        let mut attributes = json!({
            "enabled": self.enabled,
            "created": self.created,
            "updated": self.updated,
            "recoveryLevel": "Recoverable+Purgeable",
            "recoverableDays": 90,
        });
        for (name, time) in [("nbf", self.nbf), ("exp", self.exp)] {
            if let Some(time) = time {
                attributes[name] = time.into();
            }
        }
        attributes
    }
}
