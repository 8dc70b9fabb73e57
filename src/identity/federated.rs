//! Workload identity: a federated token, which Kubernetes or another issuer writes to a file, is
//! exchanged for an access token.
//!
//! Source: the OAuth 2.0 client credentials flow of the Microsoft identity platform (federated
//! credential), Microsoft Entra's list of error codes, and the AKS webhook's constants.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::answer;
use super::assertion::Assertion;
use super::authority::Authority;
use super::resource::{Resource, is_guid};
use crate::http::client::Purpose;
use crate::http::failure::{Failure, Kind, answered};
use crate::http::request::{Answer, Request};
use crate::http::unanswered::{Obstacle, Unanswered};
use crate::token::AccessToken;

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What to change where somebody else answers than Entra.
const NO_AUTHORITY: &str = "Correct the authority's host: the server's option authority, managed_identity.authority_host, or AZURE_AUTHORITY_HOST.";
/// What to change where the federated token has ended.
pub const STALE: &str = "Whatever writes the federated token file no longer does (a subPath mount is never renewed), or this machine's clock is wrong.";

/// An identity that is proved by a federated token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Federated {
    pub client_id: String,
    tenant_id: String,
    token_file: PathBuf,
    authority: Authority,
}

/// A value, and what it is called in an error.
pub struct Given<'v> {
    pub value: &'v str,
    pub called: &'v str,
}

impl Federated {
    /// Checks the values, 22023 otherwise. Client and tenant are lower-cased: Azure compares them without
    /// regard to case, and equal identities share a cached token.
    pub fn new(
        client_id: Given<'_>,
        tenant_id: Given<'_>,
        token_file: Given<'_>,
        authority: Authority,
    ) -> Result<Self, Failure> {
        Ok(Self {
            client_id: check_client_id(&client_id)?,
            tenant_id: check_tenant_id(&tenant_id)?,
            token_file: check_token_file(&token_file)?,
            authority,
        })
    }

    /// What distinguishes this identity from all others.
    pub fn identity_key(&self) -> String {
        let Self { client_id, tenant_id, token_file, authority } = self;
        // The file last, as only it may hold a line end.
        format!("workload_identity\n{}\n{tenant_id}\n{client_id}\n{}", authority.as_str(), token_file.display())
    }

    pub fn token_file(&self) -> &Path {
        &self.token_file
    }

    /// What the file holds now.
    pub fn assertion(&self) -> Result<Assertion, Failure> {
        Assertion::read(&self.token_file)
    }

    /// The request for a token, with this federated token.
    pub fn request(&self, assertion: &Assertion, resource: &Resource) -> Request {
        // A resource that ends with a slash keeps it: the scope then has two.
        let scope = format!("{}/.default", resource.as_str());
        Request::post(
            self.authority.token_url(&self.tenant_id),
            &[
                ("grant_type", "client_credentials"),
                ("client_id", &self.client_id),
                ("scope", &scope),
                ("client_assertion_type", ASSERTION_TYPE),
                ("client_assertion", assertion.expose()),
            ],
        )
    }

    pub fn purpose(&self) -> Purpose {
        self.authority.purpose()
    }

    pub fn is_worth_a_retry(status: u16) -> bool {
        matches!(status, 408 | 429) || status >= 500
    }

    /// Reads an answer at Unix time `now`; `jitter` as [`crate::token::expiry::refresh_at`] takes it.
    pub fn read(answer: &Answer, now: i64, jitter: f64) -> Result<AccessToken, Failure> {
        let read = match answer.status {
            200 => answer::token(answer, "the authority", now, jitter).map(|(token, _)| token),
            _ => Err(refused(answer)),
        };
        read.map_err(|failure| {
            if answer::came_by_proxy(answer) {
                return Failure { message: "a proxy answered, not the authority".into(), ..failure }.hint(
                    "Have the proxy pass the authority's host, or correct HTTPS_PROXY and NO_PROXY in the environment that PostgreSQL is started with.",
                );
            }
            match failure.hint {
                None if failure.kind == Kind::Protocol => failure.hint(NO_AUTHORITY),
                _ => failure,
            }
        })
    }

    /// A request that got no answer, as a failure.
    pub fn unanswered(unanswered: Unanswered) -> Failure {
        let hint = match unanswered.obstacle {
            Obstacle::Name => {
                "Correct the authority (the server's option authority, managed_identity.authority_host, AZURE_AUTHORITY_HOST), or how this machine resolves names."
            }
            Obstacle::Refused | Obstacle::NoWay => {
                "Let a firewall pass the authority's host, or name a proxy by HTTPS_PROXY in the environment that PostgreSQL is started with."
            }
            _ => return unanswered.failure,
        };
        unanswered.failure.hint(hint)
    }
}

pub fn check_client_id(given: &Given<'_>) -> Result<String, Failure> {
    if !is_guid(given.value) {
        return Err(invalid(given, "It is a GUID, such as 11111111-2222-3333-4444-555555555555."));
    }
    Ok(given.value.to_ascii_lowercase())
}

/// The tenant becomes a part of a path, so its alphabet is that of GUIDs and domains.
pub fn check_tenant_id(given: &Given<'_>) -> Result<String, Failure> {
    let tenant = given.value;
    let fine = tenant.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    if !fine || tenant.len() > 253 || !tenant.bytes().any(|byte| byte.is_ascii_alphanumeric()) {
        return Err(invalid(given, "It is the tenant's id, a GUID, or one of its domains."));
    }
    Ok(tenant.to_ascii_lowercase())
}

pub fn check_token_file(given: &Given<'_>) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(given.value);
    if !path.is_absolute() {
        return Err(invalid(given, "It is an absolute path on the server."));
    }
    Ok(path)
}

fn invalid(given: &Given<'_>, hint: &str) -> Failure {
    Failure::new(Kind::InvalidValue, format!("invalid value for {}", given.called)).hint(hint)
}

/// An answer that is not 200, as a failure in our words.
fn refused(answer: &Answer) -> Failure {
    let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let number = body.as_ref().and_then(aadsts);
    let text = |field: &str| body.as_ref().and_then(|body| body.get(field)).and_then(Value::as_str);
    let named = number.map(|number| format!("AADSTS{number}"));
    let code = named.as_deref().or_else(|| text("error"));
    let id = text("trace_id").or_else(|| answer.header("x-ms-request-id"));
    let detail = answered("The authority", answer.status, code, id);
    let (kind, message, hint) = match answer.status {
        // Each refusal of Entra's has a number.
        400 | 401 | 403 if number.is_none() => (Kind::NotAuthorized, "the authority refused the request", NO_AUTHORITY),
        400 | 401 | 403 => {
            let (message, hint) = number.and_then(meaning).unwrap_or((
                "the authority refused the federated token",
                "Microsoft Entra's sign-in logs of the identity's tenant tell more.",
            ));
            (Kind::NotAuthorized, message, hint)
        }
        429 => (Kind::Throttled, "the authority is throttling", "Try again in a minute."),
        408 | 500.. => (Kind::Unavailable, "the authority failed", "Try again in a minute."),
        _ => (Kind::Protocol, "the authority did not answer as it should", NO_AUTHORITY),
    };
    Failure::new(kind, message).detail(detail).hint(hint)
}

/// The number of Entra's error, from the list of codes or from the description's start. Nothing else of
/// the service's text is used.
fn aadsts(body: &Value) -> Option<u64> {
    let listed = || body.get("error_codes")?.get(0)?.as_u64();
    let described = || {
        let rest = body.get("error_description")?.as_str()?.strip_prefix("AADSTS")?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[..digits].parse().ok()
    };
    listed().or_else(described).filter(|number| (10_000..100_000_000).contains(number))
}

/// What the error numbers that a DBA meets mean, and what to change.
fn meaning(number: u64) -> Option<(&'static str, &'static str)> {
    Some(match number {
        90_002 | 900_023 => (
            "the authority knows no such tenant",
            "Correct the server's option tenant_id, or AZURE_TENANT_ID; another cloud's tenants are at another authority (managed_identity.cloud).",
        ),
        700_016 => (
            "the tenant has no identity of this client id",
            "Correct the server's option client_id, or AZURE_CLIENT_ID, and check that the identity is in the tenant that is asked.",
        ),
        700_213 => (
            "the identity does not trust the federated token's subject",
            "Give the identity a federated credential whose subject is the token's \"sub\"; on AKS system:serviceaccount:<namespace>:<service account>.",
        ),
        700_211 => (
            "the identity does not trust the federated token's issuer",
            "Give the identity a federated credential whose issuer is the token's \"iss\" to the letter; a cluster that was made again has another one.",
        ),
        700_212 => (
            "the identity does not accept the federated token's audience",
            "The token must be issued for api://AzureADTokenExchange, or the federated credential name its audience.",
        ),
        70_021 => (
            "the identity has no federated credential for this federated token",
            "Issuer, subject and audience of one of its federated credentials must equal the token's to the letter; a new one works after some minutes.",
        ),
        700_024 => ("the federated token has ended or is not valid yet", STALE),
        50_013 | 50_027 | 700_027 => (
            "the authority could not verify the federated token",
            "Its issuer must publish its keys where Azure can read them; check that the federated token file holds the token of that issuer.",
        ),
        50_001 | 70_011 | 500_011 | 1_002_012 => ("the tenant knows no such resource", answer::RESOURCE),
        53_003 => (
            "a Conditional Access policy forbids this identity to sign in from here",
            "Ask the tenant's administrator; the policy must include this server's public address.",
        ),
        7_000_112 => ("the identity is disabled", "Enable it in its tenant."),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Cloud;
    use serde_json::json;
    use zeroize::Zeroizing;

    const CLIENT: &str = "AAAAAAAA-2222-3333-4444-555555555555";
    const NOW: i64 = 1_700_000_000;

    fn given<'v>(value: &'v str, called: &'v str) -> Given<'v> {
        Given { value, called }
    }

    fn federated(client: &str, tenant: &str, file: &str) -> Result<Federated, Failure> {
        let authority = Authority::of(Cloud::Public).expect("an authority");
        Federated::new(given(client, "client"), given(tenant, "tenant"), given(file, "file"), authority)
    }

    fn answer(status: u16, body: Value) -> Answer {
        Answer { status, headers: Default::default(), body: Zeroizing::new(body.to_string().into_bytes()) }
    }

    #[test]
    fn the_request_is_the_documented_one_with_what_the_file_holds() {
        let file = std::env::temp_dir().join(format!("federated-{}", std::process::id()));
        std::fs::write(&file, "canary\n").expect("a file");
        let identity = federated(CLIENT, "Contoso.onmicrosoft.com", file.to_str().expect("a path")).expect("checked");
        let resource = Resource::parse("storage", Cloud::Public).expect("an alias");
        let request = identity.request(&identity.assertion().expect("a token"), &resource);
        std::fs::remove_file(&file).expect("the file");
        assert_eq!(request.method.as_str(), "POST");
        assert_eq!(request.url.as_str(), "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token");
        assert_eq!(request.headers["content-type"], "application/x-www-form-urlencoded");
        for (name, value) in [
            ("grant_type", "client_credentials"),
            ("client_id", &CLIENT.to_ascii_lowercase()),
            ("scope", "https://storage.azure.com//.default"),
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", "canary"),
        ] {
            assert_eq!(request.body.as_ref().and_then(|form| form.field(name)).as_deref(), Some(value), "{name}");
        }
        assert!(!format!("{request:?}").contains("canary"));
        assert_eq!(identity.assertion().expect_err("no file").kind, Kind::Local);
    }

    #[test]
    fn values_that_cannot_be_right_are_refused_by_their_name() {
        for (client, tenant, file, called) in [
            ("", "t", "/f", "client"),
            ("x", "t", "/f", "client"),
            (CLIENT, "", "/f", "tenant"),
            (CLIENT, "../evil", "/f", "tenant"),
            (CLIENT, "..", "/f", "tenant"),
            (CLIENT, "a/b", "/f", "tenant"),
            (CLIENT, "a%2fb", "/f", "tenant"),
            (CLIENT, "t", "", "file"),
            (CLIENT, "t", "relative", "file"),
        ] {
            let refused = federated(client, tenant, file).expect_err(called);
            assert_eq!(refused.kind, Kind::InvalidValue);
            assert!(refused.message.ends_with(called), "{refused:?}");
        }
    }

    #[test]
    fn everything_that_shapes_the_request_is_in_the_key() {
        let one = federated(CLIENT, "t", "/f").expect("checked");
        let same = federated(&CLIENT.to_ascii_lowercase(), "T", "/f").expect("checked");
        assert_eq!(one.identity_key(), same.identity_key());
        let other = "bbbbbbbb-2222-3333-4444-555555555555";
        let mut keys = vec![one.identity_key()];
        for (client, tenant, file) in [(other, "t", "/f"), (CLIENT, "u", "/f"), (CLIENT, "t", "/g")] {
            keys.push(federated(client, tenant, file).expect("checked").identity_key());
        }
        let china = Authority::of(Cloud::China).expect("an authority");
        keys.push(Federated { authority: china, ..one }.identity_key());
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 5);
    }

    #[test]
    fn a_token_and_its_times_are_read() {
        for (body, refresh_at) in [
            (json!({"access_token": "t", "expires_in": 3600}), NOW + 3300),
            (json!({"access_token": "t", "expires_in": 86_400}), NOW + 43_200),
            (json!({"access_token": "t", "expires_in": 3600, "refresh_in": 600}), NOW + 600),
        ] {
            let token = Federated::read(&answer(200, body), NOW, 0.0).expect("a token");
            assert_eq!((token.expose(), token.refresh_at), ("t", refresh_at));
        }
        for body in [
            json!({"access_token": "t"}),
            json!({"expires_in": 1}),
            json!([]),
            json!({"access_token": "t", "expires_in": i64::MAX}),
        ] {
            assert_eq!(Federated::read(&answer(200, body), NOW, 0.0).expect_err("refused").kind, Kind::Protocol);
        }
    }

    #[test]
    fn refusals_say_what_to_change_name_the_number_and_quote_nobody() {
        for (number, word) in [
            (90_002, "tenant_id"),
            (700_016, "client_id"),
            (700_213, "subject"),
            (700_211, "issuer"),
            (700_212, "audience"),
            (70_021, "federated credential"),
            (700_024, "clock"),
            (700_027, "issuer"),
            (500_011, "resource"),
            (53_003, "policy"),
            (7_000_112, "Enable"),
            (123_456, "sign-in logs"),
        ] {
            let description = format!("AADSTS{number}: canary 'canary'");
            let listed = json!({"error": "canary canary", "error_description": "canary", "error_codes": [number]});
            for body in [listed, json!({"error": "invalid_client", "error_description": description})] {
                let refused = Federated::read(&answer(401, body), NOW, 0.0).expect_err("refused");
                assert_eq!(refused.kind, Kind::NotAuthorized);
                let (detail, hint) = (refused.detail.as_deref().unwrap_or(""), refused.hint.as_deref().unwrap_or(""));
                assert!(detail.contains(&format!("AADSTS{number}")), "{detail}");
                assert!(hint.contains(word), "{number}: {hint}");
                // What waits for another session's fetch reads it from the cache, which has this much room.
                assert!(refused.message.len() <= 160 && hint.len() <= 240, "{number}");
                assert!(!format!("{refused:?}").contains("canary"), "{refused:?}");
            }
        }
        for (status, kind) in
            [(429, Kind::Throttled), (503, Kind::Unavailable), (404, Kind::Protocol), (302, Kind::Protocol)]
        {
            let refused = Federated::read(&answer(status, json!("canary")), NOW, 0.0).expect_err("refused");
            assert_eq!(refused.kind, kind, "{status}");
            assert!(!format!("{refused:?}").contains("canary"), "{refused:?}");
        }
        let nobody = Federated::read(&answer(401, json!({"error": "unauthorized"})), NOW, 0.0).expect_err("refused");
        assert!(nobody.hint.is_some_and(|hint| hint.contains("authority_host")), "Entra's refusals have numbers");
        for (obstacle, word) in [(Obstacle::Name, "resolves"), (Obstacle::NoWay, "HTTPS_PROXY")] {
            let failure = Failure::new(Kind::Unreachable, "unreachable");
            let told = Federated::unanswered(Unanswered { obstacle, ..failure.into() });
            assert!(told.hint.is_some_and(|hint| hint.contains(word) && hint.len() <= 240), "{obstacle:?}");
        }
        let number = json!({"error_codes": ["700024; canary"], "error_description": "AADSTSé"});
        assert_eq!(aadsts(&number), None);
    }
}
