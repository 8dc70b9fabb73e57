//! Reading a secret: `GET {vault}/secrets/{name}[/{version}]`.

use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::access::{VaultAccess, check_object};
use super::answer::{Attributes, document, unexpected};
use super::kid;
use super::refusal::{Asked, Object, Role};
use crate::http::failure::Failure;
use crate::http::request::{Answer, Request};

/// The request, without its credential. Name and version are checked here, so that neither can add a
/// path or a query: 22023 otherwise.
pub fn request(access: &VaultAccess, name: &str, version: Option<&str>) -> Result<Request, Failure> {
    check_object("secret", name, version)?;
    let segments: Vec<&str> = ["secrets", name].into_iter().chain(version).collect();
    Ok(Request::get(access.url(&segments)))
}

fn asked(name: &str) -> Asked<'_> {
    Asked { object: Object::Secret, name, role: Role::SecretsUser }
}

/// Reads the answer: the secret's value, or why there is none.
pub fn read(access: &VaultAccess, answer: &Answer, name: &str) -> Result<Zeroizing<String>, Failure> {
    // Taken out and not borrowed: a value may be written with escapes.
    let mut body: Value = document(answer, access, &asked(name))?;
    match body.get_mut("value").map(Value::take) {
        Some(Value::String(text)) => Ok(Zeroizing::new(text)),
        _ => Err(unexpected(answer)),
    }
}

/// What a vault tells of a secret beside its value.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Properties {
    pub id: String,
    #[serde(rename = "contentType")]
    pub content_type: Option<String>,
    #[serde(default)]
    pub attributes: Attributes,
    #[serde(default)]
    pub tags: Map<String, Value>,
}

/// Reads the same answer without the value, of which no copy is made.
pub fn read_properties(access: &VaultAccess, answer: &Answer, name: &str) -> Result<Properties, Failure> {
    let properties: Properties = document(answer, access, &asked(name))?;
    match kid::object(&properties.id, access, "secrets") {
        Some((found, _)) if found.eq_ignore_ascii_case(name) => Ok(properties),
        _ => Err(unexpected(answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::failure::Kind;
    use crate::vault::answer::tests::{access, answer};
    use serde_json::json;

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
        assert_eq!(read(&access(), &answer(200, json!({"value": "s3"})), "a").expect("a value").as_str(), "s3");
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
            assert_eq!(read(&access(), &answer(status, body), "a").expect_err("refused").kind, kind, "{status}");
        }
        let disabled = answer(403, json!({"error": {"code": "Forbidden", "innererror": {"code": "SecretDisabled"}}}));
        let refused = read(&access(), &disabled, "a").expect_err("refused");
        assert_eq!(refused.detail.as_deref(), Some("The vault answered 403, error code SecretDisabled."));
        for inner in ["", "not a code"] {
            let refused = answer(403, json!({"error": {"code": "Forbidden", "innererror": {"code": inner}}}));
            let refused = read(&access(), &refused, "a").expect_err("refused");
            assert_eq!(refused.detail.as_deref(), Some("The vault answered 403, error code Forbidden."), "{inner:?}");
        }
    }
    #[test]
    fn properties_are_read_without_the_value() {
        let id = "https://payroll.vault.azure.net/secrets/a/0123456789abcdef0123456789abcdef";
        let body = json!({"value": "canary", "id": id, "contentType": "text/plain", "tags": {"k": "v"},
                          "attributes": {"enabled": true, "exp": 5, "created": 1, "updated": 2}});
        let found = read_properties(&access(), &answer(200, body), "A").expect("properties");
        assert_eq!((found.id.as_str(), found.content_type.as_deref()), (id, Some("text/plain")));
        assert_eq!((found.attributes.expires_at, found.attributes.not_before), (Some(5), None));
        assert_eq!(found.tags["k"], "v");
        assert!(!format!("{found:?}").contains("canary"));
        let other = id.replace("/a/", "/b/");
        for body in [json!({}), json!({"id": 1}), json!({"id": other}), json!({"id": id.replace("payroll", "evil")})] {
            let failure = read_properties(&access(), &answer(200, body), "a").expect_err("refused");
            assert_eq!(failure.kind, Kind::Protocol);
        }
    }
}
