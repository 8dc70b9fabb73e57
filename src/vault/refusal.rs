//! What a vault's refusal means. Its message names the caller's application, object and tenant: only its codes are
//! read.

use serde_json::Value;
use url::Url;

use super::access::VaultAccess;
use crate::http::failure::{Failure, Kind, answered, code};
use crate::http::request::Answer;
use crate::identity::resource::is_guid;

/// What was asked of a vault, as its refusal is told to the user.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'n> {
    pub object: Object,
    /// The object's name.
    pub name: &'n str,
    /// The role that allows it on a vault.
    pub role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    Secret,
    Key,
}

impl Object {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Key => "key",
        }
    }
}

/// The least of Azure's roles that allows something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads the values of secrets.
    SecretsUser,
    /// Reads, wraps and unwraps: what a database needs of a key.
    CryptoServiceEncryptionUser,
    /// Does all that a key can do, encrypting and signing too.
    CryptoUser,
}

impl Role {
    /// As the vault's kind calls it.
    pub fn name(self, access: &VaultAccess) -> &'static str {
        match (self, access.is_hsm()) {
            (Self::SecretsUser, _) => "Key Vault Secrets User",
            (Self::CryptoServiceEncryptionUser, false) => "Key Vault Crypto Service Encryption User",
            (Self::CryptoServiceEncryptionUser, true) => "Managed HSM Crypto Service Encryption User",
            (Self::CryptoUser, false) => "Key Vault Crypto User",
            (Self::CryptoUser, true) => "Managed HSM Crypto User",
        }
    }
}

/// What a refusal says of the key's use in time: see [`Refusal::class`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The vault or the way to it fails, or has too much to do: the same request may succeed later.
    Transient,
    /// The vault was asked and says no to this identity, key or version.
    Revoked,
    /// The request is at fault, or the answer is not what the protocol says.
    Other,
}

/// An answer that is not 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    /// The inner code where there is one, for it tells causes apart: KeyDisabled, ForbiddenByRbac, …
    pub code: Option<String>,
    pub request_id: Option<String>,
}

impl Refusal {
    pub fn of(answer: &Answer) -> Self {
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let error = body.as_ref().and_then(|body| body.get("error"));
        let code_of = |value: Option<&Value>| value?.get("code")?.as_str().and_then(code).map(str::to_owned);
        Self {
            status: answer.status,
            code: code_of(error.and_then(|error| error.get("innererror"))).or_else(|| code_of(error)),
            request_id: answer.request_id().map(str::to_owned),
        }
    }

    pub fn class(&self) -> Class {
        match self.status {
            status if is_worth_a_retry(status) => Class::Transient,
            401 | 403 | 404 => Class::Revoked,
            _ => Class::Other,
        }
    }

    /// The refusal as an error.
    pub fn failure(&self, access: &VaultAccess, asked: &Asked) -> Failure {
        let code = self.code.as_deref();
        let object = asked.object.as_str();
        let (kind, message) = match (self.status, code) {
            (403, Some("KeyDisabled" | "KeyExpired" | "KeyNotYetValid" | "KeyOperationForbidden")) => {
                (Kind::NotAuthorized, format!("the vault refused to use key \"{}\"", asked.name))
            }
            (401 | 403, _) => (Kind::NotAuthorized, "the vault refused the identity".to_owned()),
            (404, _) => (Kind::NotFound, format!("{object} \"{}\" does not exist", asked.name)),
            (409 | 412, _) => (Kind::Conflict, "the vault reports a conflict".to_owned()),
            (429, _) => (Kind::Throttled, "the vault is throttling".to_owned()),
            (408 | 500.., _) => (Kind::Unavailable, "the vault failed".to_owned()),
            // Names and versions are checked before they are sent: what a user can get wrong is what a key is to do.
            (400, Some("BadParameter")) if asked.object == Object::Key => {
                (Kind::InvalidValue, format!("key \"{}\" cannot do this with the value", asked.name))
            }
            _ => (Kind::Protocol, "the vault did not answer as it should".to_owned()),
        };
        let detail = answered("The vault", self.status, code, self.request_id.as_deref());
        let failure = Failure::new(kind, message).detail(detail);
        match (self.status, code) {
            (400, _) if kind == Kind::InvalidValue => failure.hint(
                "The value may be of another key or version or too long for this one, or the algorithm not for a key of this type.",
            ),
            (401, _) => failure.hint("The vault does not take the token; azure_key_vault.diagnose may tell why."),
            (403, Some("SecretDisabled" | "KeyDisabled")) => failure.hint(format!("The {object} is disabled in the vault.")),
            (403, Some("KeyExpired" | "KeyNotYetValid")) => {
                failure.hint("The key is outside the time that its attributes allow: look at nbf and exp in the vault.")
            }
            (403, Some("KeyOperationForbidden")) => failure.hint("The key's own list of operations, key_ops, has not this one."),
            (403, Some("ForbiddenByFirewall" | "ForbiddenByConnection")) => {
                failure.hint("The vault's network rules do not let this machine in.")
            }
            (403, _) => failure.hint(format!(
                "Give the identity the role \"{}\" on the vault or {object}.",
                asked.role.name(access)
            )),
            (404, _) if asked.object == Object::Key => {
                failure.hint("Look at its name and version; a deleted key can be recovered while the vault retains it.")
            }
            _ => failure,
        }
    }
}

/// Whether another try may help.
pub fn is_worth_a_retry(status: u16) -> bool {
    matches!(status, 408 | 429) || status >= 500
}

/// Whether the vault wants a newer token: a 401 whose challenge carries `claims`, as continuous access evaluation
/// asks after a change at the identity. Nothing else of a challenge is believed.
pub fn wants_a_new_token(answer: &Answer) -> bool {
    let names_claims = |challenge: &str| {
        // Outside of quotes, so that no value can pretend to be a parameter.
        challenge.split('"').step_by(2).any(|text| {
            let name = text.trim_end().strip_suffix('=').unwrap_or_default().trim_end();
            name.rsplit([',', ' ']).next().is_some_and(|name| name.eq_ignore_ascii_case("claims"))
        })
    };
    answer.status == 401
        && answer.headers.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok()).any(names_claims)
}

/// The tenant whose tokens the vault takes, as the challenge of a 401 names it; to be told, not to be followed.
pub fn challenging_tenant(answer: &Answer) -> Option<String> {
    let values = answer.headers.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok());
    // Every second piece stands in quotes.
    let urls = values.flat_map(|value| value.split('"').skip(1).step_by(2)).filter_map(|text| Url::parse(text).ok());
    urls.filter_map(|url| url.path_segments()?.next().map(str::to_owned)).find(|segment| is_guid(segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::answer::tests::{access, answer, challenged, hsm};
    use serde_json::json;

    fn refused(status: u16, outer: &str, inner: &str) -> Refusal {
        let error = json!({"error": {"code": outer, "message": "canary", "innererror": {"code": inner}}});
        Refusal::of(&answer(status, error))
    }

    #[test]
    fn the_inner_code_counts_and_only_where_it_is_one() {
        assert_eq!(refused(403, "Forbidden", "KeyDisabled").code.as_deref(), Some("KeyDisabled"));
        for inner in ["", "not a code"] {
            assert_eq!(refused(403, "Forbidden", inner).code.as_deref(), Some("Forbidden"), "{inner:?}");
        }
        assert_eq!(Refusal::of(&answer(500, json!("<html>"))).code, None);
    }

    #[test]
    fn a_refusal_is_told_by_its_status_and_code() {
        let asked = Asked { object: Object::Key, name: "kek", role: Role::CryptoServiceEncryptionUser };
        for (status, inner, kind, class, hint) in [
            (400, "BadParameter", Kind::InvalidValue, Class::Other, "another key or version"),
            (400, "BadAnything", Kind::Protocol, Class::Other, ""),
            (401, "Unauthorized", Kind::NotAuthorized, Class::Revoked, "azure_key_vault.diagnose"),
            (403, "KeyDisabled", Kind::NotAuthorized, Class::Revoked, "disabled"),
            (403, "KeyOperationForbidden", Kind::NotAuthorized, Class::Revoked, "key_ops"),
            (403, "KeyExpired", Kind::NotAuthorized, Class::Revoked, "nbf and exp"),
            (403, "ForbiddenByRbac", Kind::NotAuthorized, Class::Revoked, "Key Vault Crypto Service Encryption User"),
            (403, "ForbiddenByFirewall", Kind::NotAuthorized, Class::Revoked, "network"),
            (404, "KeyNotFound", Kind::NotFound, Class::Revoked, "recovered"),
            (408, "", Kind::Unavailable, Class::Transient, ""),
            (409, "ObjectIsDeletedButRecoverable", Kind::Conflict, Class::Other, ""),
            (429, "Throttled", Kind::Throttled, Class::Transient, ""),
            (503, "", Kind::Unavailable, Class::Transient, ""),
            (302, "", Kind::Protocol, Class::Other, ""),
        ] {
            let refusal = refused(status, "Outer", inner);
            let failure = refusal.failure(&access(), &asked);
            assert_eq!((failure.kind, refusal.class()), (kind, class), "{status} {inner}");
            assert!(failure.hint.as_deref().unwrap_or_default().contains(hint), "{failure:?}");
            assert_eq!(failure.hint.is_none(), hint.is_empty(), "{failure:?}");
            assert!(failure.detail.as_deref().unwrap_or_default().contains(&status.to_string()), "{failure:?}");
            assert!(!format!("{failure:?}").contains("canary"), "{failure:?}");
        }
        let denied = refused(403, "Forbidden", "ForbiddenByRbac");
        let role = |role| denied.failure(&hsm(), &Asked { role, ..asked }).hint.unwrap_or_default();
        assert!(role(Role::CryptoUser).contains("Managed HSM Crypto User"));
        assert!(role(Role::CryptoServiceEncryptionUser).contains("Managed HSM Crypto Service Encryption User"));
    }

    #[test]
    fn only_a_challenge_with_claims_asks_for_a_new_token() {
        let asks = |status, challenge| wants_a_new_token(&challenged(status, challenge));
        let head = r#"Bearer authorization="https://login.windows.net/t", resource="https://vault.azure.net""#;
        let claims = r#"Bearer realm="", error="insufficient_claims", claims="eyJhY2Nlc3NfdG9rZW4iOnt9fQ==""#;
        assert!(asks(401, claims));
        assert!(asks(401, r#"Bearer Claims = "e30=""#));
        for (status, challenge) in [
            (401, head),
            (403, claims),
            (200, claims),
            (401, r#"Bearer error_description="no claims="#),
            (401, r#"Bearer error="claims=", resource="x""#),
            (401, r#"Bearer noclaims="x""#),
            (401, ""),
        ] {
            assert!(!asks(status, challenge), "{status} {challenge}");
        }
    }

    #[test]
    fn the_challenge_names_the_vaults_tenant() {
        let guid = "3f1b2c4d-0d7a-4b55-8f6e-6a1f0c9d2e10";
        for (challenge, tenant) in [
            (
                r#"Bearer authorization="https://login.windows.net/3f1b2c4d-0d7a-4b55-8f6e-6a1f0c9d2e10", resource="https://vault.azure.net""#,
                Some(guid),
            ),
            (r#"Bearer authorization="https://login.windows.net/common", resource="https://vault.azure.net""#, None),
            (r#"Bearer authorization="3f1b2c4d-0d7a-4b55-8f6e-6a1f0c9d2e10""#, None),
            ("Bearer", None),
        ] {
            assert_eq!(challenging_tenant(&challenged(401, challenge)).as_deref(), tenant, "{challenge}");
        }
    }
}
