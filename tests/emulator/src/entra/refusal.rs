//! Entra's refusals: a number that tells the cause, and a description that clients must not rely on.

use hyper::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

/// An answer other than a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub status: StatusCode,
    error: &'static str,
    number: u32,
    text: &'static str,
}

const fn refusal(status: StatusCode, error: &'static str, number: u32, text: &'static str) -> Refusal {
    Refusal { status, error, number, text }
}

const BAD: StatusCode = StatusCode::BAD_REQUEST;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;

pub(super) const NO_TENANT: Refusal =
    refusal(BAD, "invalid_request", 90002, "Tenant not found. Check to make sure you have the correct tenant ID.");
pub(super) const NO_PARAMETER: Refusal = refusal(
    BAD,
    "invalid_request",
    900_144,
    "The request body must contain the parameters grant_type, client_id, scope, client_assertion_type and client_assertion.",
);
pub(super) const GRANT: Refusal =
    refusal(BAD, "unsupported_grant_type", 70003, "The app requested an unsupported grant type.");
pub(super) const SCOPE: Refusal = refusal(
    BAD,
    "invalid_scope",
    1_002_012,
    "The provided value for scope is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier.",
);
pub(super) const NO_RESOURCE: Refusal =
    refusal(BAD, "invalid_resource", 500_011, "The resource principal was not found in the tenant.");
pub(super) const NO_CLIENT: Refusal =
    refusal(BAD, "unauthorized_client", 700_016, "Application with identifier was not found in the directory.");
pub(super) const MALFORMED: Refusal =
    refusal(UNAUTHORIZED, "invalid_client", 50027, "JWT token is invalid or malformed.");
pub(super) const SIGNATURE: Refusal =
    refusal(UNAUTHORIZED, "invalid_client", 700_027, "Client assertion failed signature validation.");
pub(super) const TIME: Refusal =
    refusal(UNAUTHORIZED, "invalid_client", 700_024, "Client assertion is not within its valid time range.");
pub(super) const ISSUER: Refusal = refusal(
    UNAUTHORIZED,
    "invalid_client",
    700_211,
    "No matching federated identity record found for presented assertion issuer.",
);
pub(super) const AUDIENCE: Refusal = refusal(
    UNAUTHORIZED,
    "invalid_client",
    700_212,
    "No matching federated identity record found for presented assertion audience.",
);
pub(super) const SUBJECT: Refusal = refusal(
    UNAUTHORIZED,
    "invalid_client",
    700_213,
    "No matching federated identity record found for presented assertion subject.",
);

impl Refusal {
    pub(super) fn body(&self) -> Value {
        let [trace, correlation] = [Uuid::new_v4(), Uuid::new_v4()].map(|id| id.to_string());
        let Self { error, number, text, .. } = self;
        json!({
            "error": error,
            "error_description": format!("AADSTS{number}: {text} Trace ID: {trace} Correlation ID: {correlation}"),
            "error_codes": [number],
            "timestamp": "2026-01-01 00:00:00Z",
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": format!("https://login.microsoftonline.com/error?code={number}"),
        })
    }
}
