//! Reading a secret: `GET {vault}/secrets/{name}[/{version}]`.

use serde_json::Value;
use zeroize::Zeroizing;

use super::access::{VaultAccess, is_object_name};
use crate::http::failure::{Failure, Kind, answered, code};
use crate::http::request::{Answer, Request};

/// Stable for keys and secrets; the data plane knows no default.
const API_VERSION: &str = "2025-07-01";

/// The request, without its credential. Name and version are checked here, so that neither can add a
/// path or a query: 22023 otherwise.
pub fn request(access: &VaultAccess, name: &str, version: Option<&str>) -> Result<Request, Failure> {
    if !is_object_name(name) {
        return Err(Failure::new(Kind::InvalidValue, "invalid name of a secret")
            .detail("A name has 1 to 127 letters, digits and hyphens."));
    }
    if version.is_some_and(|version| version.len() != 32 || !version.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Err(Failure::new(Kind::InvalidValue, "invalid version of a secret")
            .detail("A version has 32 hexadecimal digits."));
    }
    let mut url = access.destination.base().clone();
    url.set_path(&match version {
        Some(version) => format!("/secrets/{name}/{version}"),
        None => format!("/secrets/{name}"),
    });
    url.query_pairs_mut().append_pair("api-version", API_VERSION);
    Ok(Request::get(url))
}

/// Reads the answer: the secret's value, or why there is none.
pub fn read(answer: &Answer, name: &str) -> Result<Zeroizing<String>, Failure> {
    if answer.status != 200 {
        return Err(refused(answer, name));
    }
    let unexpected = || Failure::new(Kind::Protocol, "the vault did not answer as it should");
    let mut body: Value = serde_json::from_slice(&answer.body).map_err(|_| unexpected())?;
    match body.get_mut("value").map(Value::take) {
        Some(Value::String(text)) => Ok(Zeroizing::new(text)),
        _ => Err(unexpected()),
    }
}

/// Whether another try may help.
pub fn is_worth_a_retry(status: u16) -> bool {
    matches!(status, 408 | 429) || status >= 500
}

fn refused(answer: &Answer, name: &str) -> Failure {
    let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let error = body.as_ref().and_then(|body| body.get("error"));
    let code_of = |value: Option<&Value>| value?.get("code")?.as_str().and_then(code).map(str::to_owned);
    // The inner code is the one that tells causes apart: SecretDisabled, ForbiddenByRbac, …
    let error_code = code_of(error.and_then(|error| error.get("innererror"))).or_else(|| code_of(error));
    let detail = answered("The vault", answer.status, error_code.as_deref(), answer.header("x-ms-request-id"));
    let (kind, message) = match answer.status {
        401 | 403 => (Kind::NotAuthorized, "the vault refused the identity".to_owned()),
        404 => (Kind::NotFound, format!("secret \"{name}\" does not exist")),
        409 | 412 => (Kind::Conflict, "the vault reports a conflict".to_owned()),
        429 => (Kind::Throttled, "the vault is throttling".to_owned()),
        408 | 500.. => (Kind::Unavailable, "the vault failed".to_owned()),
        _ => (Kind::Protocol, "the vault did not answer as it should".to_owned()),
    };
    let failure = Failure::new(kind, message).detail(detail);
    match (answer.status, error_code.as_deref()) {
        (403, Some("SecretDisabled")) => failure.hint("The secret is disabled in the vault."),
        (403, Some("ForbiddenByFirewall" | "ForbiddenByConnection")) => {
            failure.hint("The vault's network rules do not let this machine in.")
        }
        (403, _) => failure.hint("Give the identity the role \"Key Vault Secrets User\" on the vault or secret."),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Cloud, hosts::Hosts};
    use serde_json::json;

    fn access() -> VaultAccess {
        let options = [("vault_uri", "https://payroll.vault.azure.net")];
        VaultAccess::from_options(options, Cloud::Public, &Hosts::default()).expect("a vault")
    }

    fn answer(status: u16, body: Value) -> Answer {
        Answer { status, headers: Default::default(), body: Zeroizing::new(body.to_string().into_bytes()) }
    }

    #[test]
    fn the_request_names_the_secret_and_nothing_else() {
        let url = |version| request(&access(), "db-password", version).expect("a request").url.to_string();
        assert_eq!(url(None), "https://payroll.vault.azure.net/secrets/db-password?api-version=2025-07-01");
        let version = "0123456789abcdef0123456789abcdef";
        assert!(url(Some(version)).contains(&format!("/secrets/db-password/{version}?")));
        for name in ["", "a/b", "..", "a?b", "a%2f", "é"] {
            request(&access(), name, None).expect_err(name);
        }
        request(&access(), "a", Some("../keys")).expect_err("a version");
    }

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(read(&answer(200, json!({"value": "s3"})), "a").expect("a value").as_str(), "s3");
        for (status, body, kind) in [
            (200, json!({}), Kind::Protocol),
            (401, json!({"error": {"code": "Unauthorized"}}), Kind::NotAuthorized),
            (
                403,
                json!({"error": {"code": "Forbidden", "innererror": {"code": "SecretDisabled"}}}),
                Kind::NotAuthorized,
            ),
            (404, json!({"error": {"code": "SecretNotFound"}}), Kind::NotFound),
            (429, json!(null), Kind::Throttled),
            (503, json!(null), Kind::Unavailable),
            (302, json!(null), Kind::Protocol),
        ] {
            assert_eq!(read(&answer(status, body), "a").expect_err("refused").kind, kind, "{status}");
        }
        let disabled = answer(403, json!({"error": {"code": "Forbidden", "innererror": {"code": "SecretDisabled"}}}));
        let refused = read(&disabled, "a").expect_err("refused");
        assert_eq!(refused.detail.as_deref(), Some("The vault answered 403, error code SecretDisabled."));
        for inner in ["", "not a code"] {
            let refused = answer(403, json!({"error": {"code": "Forbidden", "innererror": {"code": inner}}}));
            let refused = read(&refused, "a").expect_err("refused");
            assert_eq!(refused.detail.as_deref(), Some("The vault answered 403, error code Forbidden."), "{inner:?}");
        }
    }
}
