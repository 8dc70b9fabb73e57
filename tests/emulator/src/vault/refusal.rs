//! A vault's refusals, in its own words.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::operation::VaultOperation;

/// An answer other than the object asked for.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    pub inner: Option<&'static str>,
    pub message: String,
    /// What the challenge of a 401 asks a newer token for.
    pub claims: Option<String>,
}

impl Refusal {
    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    pub(super) fn bad_parameter(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadParameter", message)
    }

    pub(super) fn forbidden(inner: &'static str, message: impl Into<String>) -> Self {
        let mut refusal = Self::new(StatusCode::FORBIDDEN, "Forbidden", message);
        refusal.inner = Some(inner);
        refusal
    }

    pub(super) fn secret_disabled() -> Self {
        Self::forbidden("SecretDisabled", "Operation get is not allowed on a disabled secret.")
    }

    pub(super) fn key_disabled(operation: VaultOperation) -> Self {
        let name = operation.name();
        Self::forbidden("KeyDisabled", format!("Operation {name} is not allowed on a disabled key."))
    }

    /// `kind` is `secret` or `key`.
    pub(super) fn not_found(kind: &str, name: &str) -> Self {
        let code = if kind == "key" { "KeyNotFound" } else { "SecretNotFound" };
        let message = format!(
            "A {kind} with (name/id) {name} was not found in this key vault. If you recently deleted this {kind} you may be able to recover it using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182"
        );
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, inner: None, message: message.into(), claims: None }
    }

    pub(super) fn body(&self) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(inner) = self.inner {
            error["innererror"] = json!({"code": inner});
        }
        json!({"error": error})
    }
}
