//! A vault's refusals, in its own words.

use hyper::StatusCode;
use serde_json::{Value, json};

/// An answer other than the object asked for.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    pub inner: Option<&'static str>,
    pub message: String,
}

impl Refusal {
    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    pub(super) fn bad_parameter(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadParameter", message)
    }

    pub(super) fn disabled() -> Self {
        let message = "Operation get is not allowed on a disabled secret.";
        let mut refusal = Self::new(StatusCode::FORBIDDEN, "Forbidden", message);
        refusal.inner = Some("SecretDisabled");
        refusal
    }

    pub(super) fn not_found(name: &str) -> Self {
        let message = format!(
            "A secret with (name/id) {name} was not found in this key vault. If you recently deleted this secret you may be able to recover it using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182"
        );
        Self::new(StatusCode::NOT_FOUND, "SecretNotFound", message)
    }

    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, inner: None, message: message.into() }
    }

    pub(super) fn body(&self) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(inner) = self.inner {
            error["innererror"] = json!({"code": inner});
        }
        json!({"error": error})
    }
}
