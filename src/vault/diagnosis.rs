//! What a diagnosis tells of a vault, once there is a token for it: name, connection, clock, and what the vault lets
//! the identity do. Only what a server allows is tried, and nothing is changed.

use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use url::Url;

use super::access::VaultAccess;
use super::key::{self, Key};
use super::operation::{self, KeyOperation};
use super::refusal::{self, Asked, Object, Refusal, Role};
use crate::http::client;
use crate::http::failure::{Failure, Kind, answered};
use crate::http::request::{Answer, Request};
use crate::http::unanswered::{Obstacle, Unanswered};
use crate::identity::diagnosis::{Step, clock, ending};

/// The vault's server itself: its options.
pub const SERVER: &str = "server";
/// The identity that the server borrows from its owner.
pub const IDENTITY: &str = "identity";
const DNS: &str = "dns";
const CONNECTION: &str = "connection";
const CLOCK: &str = "vault clock";
const SECRETS: &str = "secrets";
const KEYS: &str = "keys";
const KEY: &str = "key";
const UNWRAP: &str = "unwrap";
const SIGN: &str = "sign";

/// An object that is not there: whoever may read is told so, and nobody else.
const ABSENT: &str = "managed-identity-diagnosis";

/// The words of option `allow` that are about keys.
const ABOUT_KEYS: [&str; 8] = ["keys", "wrap", "unwrap", "encrypt", "decrypt", "sign", "verify", "data-keys"];
/// Those of them that the lesser of the two roles does not cover; data keys are signed.
const FOR_CRYPTO_USER: [&str; 5] = ["encrypt", "decrypt", "sign", "verify", "data-keys"];

/// Something that the vault is asked, to see whether it lets the identity.
pub struct Trial {
    step: &'static str,
    object: Object,
    name: String,
    pub request: Request,
    tried: Tried,
}

enum Tried {
    /// To read something that is not there.
    Absent,
    Key,
    /// To unwrap what was wrapped here.
    Unwrap {
        plaintext: [u8; 32],
    },
    Sign,
}

/// What is tried first: the key, where one is named, else whatever the server allows. 42501 where it allows nothing.
pub fn trials(access: &VaultAccess, key: Option<&str>) -> Result<Vec<Trial>, Failure> {
    let about_keys = ABOUT_KEYS.iter().find(|word| access.allows(word)).copied();
    if let Some(name) = key {
        access.check(about_keys.unwrap_or(KEYS), name)?;
        let request = key::request(access, name, None)?;
        return Ok(vec![Trial { step: KEY, object: Object::Key, name: name.into(), request, tried: Tried::Key }]);
    }
    let absent = |step, object, collection| {
        let request = Request::get(access.url(&[collection, ABSENT]));
        Trial { step, object, name: ABSENT.into(), request, tried: Tried::Absent }
    };
    let secrets = access.allows(SECRETS).then(|| absent(SECRETS, Object::Secret, "secrets"));
    let keys = about_keys.map(|_| absent(KEYS, Object::Key, "keys"));
    Ok(secrets.into_iter().chain(keys).collect())
}

/// What the vault is called here, and where that is. A proxy that resolves for us is found by the answer that came.
pub fn resolved(host: &str, found: Result<Vec<IpAddr>, String>, is_answered: bool) -> Step {
    match found {
        Ok(addresses) => {
            let kind = |address: &IpAddr| if is_private(*address) { "private" } else { "public" };
            let told: Vec<_> = addresses.iter().map(|address| format!("{address} ({})", kind(address))).collect();
            Step::ok(DNS, format!("\"{host}\" is {}.", told.join(", ")))
        }
        Err(why) if is_answered => Step::ok(DNS, format!("\"{host}\" is resolved by a proxy; here it is not: {why}.")),
        Err(why) => {
            let failure = Failure::new(Kind::Unreachable, format!("\"{host}\" does not resolve")).detail(why);
            Step::failed(
                DNS,
                failure.hint(
                    "Correct the vault's name, or the private DNS zone of its private endpoint; the name of a deleted vault is gone.",
                ),
            )
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private() || address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_loopback() || address.is_unicast_link_local(),
    }
}

/// TCP and TLS, and the two clocks; at Unix time `now`.
pub fn connected(url: &Url, outcome: &Result<Answer, Unanswered>, now: i64) -> Vec<Step> {
    let authority = client::authority(url);
    match outcome {
        Ok(answer) => {
            let told = format!("\"{authority}\" answers, by a certificate that is trusted.");
            vec![Step::ok(CONNECTION, told), clock(CLOCK, answer.sent_at(), now)]
        }
        Err(Unanswered { failure, obstacle, .. }) => {
            let failure = failure.clone();
            let failure = match obstacle {
                Obstacle::Refused | Obstacle::NoWay => failure.hint(format!(
                    "Let firewall and routes pass \"{authority}\", or name a proxy by HTTPS_PROXY in the environment that PostgreSQL is started with."
                )),
                _ => failure,
            };
            vec![Step::failed(CONNECTION, failure)]
        }
    }
}

impl Trial {
    /// What was found, at Unix time `now`, and what to try next. `tenant` is the token's own.
    pub fn told(self, access: &VaultAccess, answer: &Answer, tenant: Option<&str>, now: i64) -> (Step, Vec<Self>) {
        let role = match self.object {
            Object::Secret => Role::SecretsUser,
            Object::Key if FOR_CRYPTO_USER.iter().any(|word| access.allows(word)) => Role::CryptoUser,
            Object::Key => Role::CryptoServiceEncryptionUser,
        };
        let asked = Asked { object: self.object, name: &self.name, role };
        let refused = || Refusal::of(answer).failure(access, &asked);
        let mut next = Vec::new();
        let told = match &self.tried {
            Tried::Absent => absent(answer).unwrap_or_else(|| Err(refused())).map(|()| match self.object {
                Object::Secret => "The vault lets the identity read secrets.".into(),
                Object::Key => "The vault lets the identity read keys.".into(),
            }),
            Tried::Key if answer.status != 200 => Err(refused()),
            Tried::Key => key::read(access, answer, &self.name).and_then(|key| {
                let told = state(&key, now)?;
                next = further(access, &key)?;
                Ok(told)
            }),
            Tried::Unwrap { plaintext } => {
                operation::read(access, KeyOperation::Unwrap, answer, &self.name).and_then(|done| {
                    if *done.value == *plaintext {
                        return Ok("The vault unwraps what was wrapped here with its public key.".into());
                    }
                    Err(Failure::new(Kind::Protocol, "the vault unwraps something else than was wrapped"))
                })
            }
            Tried::Sign => operation::read(access, KeyOperation::Sign, answer, &self.name)
                .map(|_| "The vault signs with the key.".into()),
        };
        let step = match told {
            Ok(told) => Step::ok(self.step, told),
            Err(failure) => Step::failed(self.step, with_tenants(failure, answer, tenant)),
        };
        (step, next)
    }
}

/// Whether it may read what is not there; None where the vault refuses.
fn absent(answer: &Answer) -> Option<Result<(), Failure>> {
    match (answer.status, Refusal::of(answer).code.as_deref()) {
        (200, _) | (404, Some("KeyNotFound" | "SecretNotFound")) => Some(Ok(())),
        (404, _) => Some(Err(Failure::new(Kind::Protocol, "what answers is no vault")
            .detail(answered("The server", 404, None, None))
            .hint("Correct the server's option vault_uri."))),
        _ => None,
    }
}

/// Whether a key can be used now. What has expired still unwraps, decrypts and verifies; nothing new can be made.
fn state(key: &Key, now: i64) -> Result<String, Failure> {
    let unusable = |message: &str, detail: String, hint: &str| {
        Err(Failure::new(Kind::NotAuthorized, format!("key \"{}\" {message}", key.kid.name()))
            .detail(detail)
            .hint(hint))
    };
    if !key.enabled {
        let detail = format!("Its newest version is {}.", key.kid.version());
        return unusable("is disabled", detail, "Enable the key in the vault, or create a new version of it.");
    }
    if let Some(ends) = key.expires_at.filter(|ends| *ends <= now) {
        let hint =
            "Create a new version of the key or move its expiry; until then it only unwraps, decrypts and verifies.";
        return unusable("has expired", format!("It {}.", ending(ends, now)), hint);
    }
    if let Some(begins) = key.not_before.filter(|begins| *begins > now) {
        let detail = format!("Its attribute nbf is {} s ahead of this machine's clock.", begins - now);
        return unusable("is not valid yet", detail, "Wait, or move the key's activation date in the vault.");
    }
    let ends = key.expires_at.map_or_else(|| "does not expire".into(), |ends| ending(ends, now));
    Ok(format!(
        "\"{}\" is a key of type {}, enabled, its newest version {}; it {ends}.",
        key.kid.name(),
        key.key_type,
        key.kid.version()
    ))
}

/// What else the server allows to do with the key and can be tried without anybody's data.
fn further(access: &VaultAccess, key: &Key) -> Result<Vec<Trial>, Failure> {
    let (name, version) = (key.kid.name(), Some(key.kid.version()));
    let trial = |step, request, tried| Trial { step, object: Object::Key, name: name.into(), request, tried };
    let data_keys = access.allows("data-keys");
    let Some(public) = key.rsa() else {
        return Ok(Vec::new());
    };
    let mut plaintext = [0; 32];
    rand::fill(&mut plaintext).map_err(|_| Failure::new(Kind::Local, "there is no randomness"))?;
    let mut trials = Vec::new();
    if data_keys || access.allows("unwrap") {
        let wrapped = public.wrap_oaep_sha256(&plaintext)?;
        let unwrap = KeyOperation::Unwrap;
        let request = operation::request(access, unwrap, name, version, "RSA-OAEP-256", &wrapped)?;
        trials.push(trial(UNWRAP, request, Tried::Unwrap { plaintext }));
    }
    if data_keys || access.allows("sign") {
        let request = operation::request(
            access,
            KeyOperation::Sign,
            name,
            version,
            "PS256",
            digest(&SHA256, &plaintext).as_ref(),
        )?;
        trials.push(trial(SIGN, request, Tried::Sign));
    }
    Ok(trials)
}

/// A vault trusts the tokens of its own tenant; its challenge says which that is, and is believed in nothing else.
fn with_tenants(failure: Failure, answer: &Answer, tenant: Option<&str>) -> Failure {
    match (refusal::challenging_tenant(answer), tenant) {
        (Some(theirs), Some(ours)) if answer.status == 401 && !theirs.eq_ignore_ascii_case(ours) => {
            failure.hint(format!(
                "The vault is of tenant {theirs} and the token of tenant {ours}: use an identity of the vault's tenant."
            ))
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::diagnosis::Status;
    use crate::identity::{Cloud, hosts::Hosts};
    use crate::vault::answer::tests::answer;
    use serde_json::{Value, json};

    const NOW: i64 = 784_111_777;
    const KID: &str = "https://payroll.vault.azure.net/keys/kek/0123456789abcdef0123456789abcdef";

    fn access(allow: &str) -> VaultAccess {
        let options = [("vault_uri", "https://payroll.vault.azure.net"), ("allow", allow), ("names", "k*")];
        VaultAccess::from_options(options, Cloud::Public, &Hosts::default()).expect("a vault")
    }

    fn paths(trials: &[Trial]) -> Vec<&str> {
        trials.iter().map(|trial| trial.request.url.path()).collect()
    }

    fn told(allow: &str, key: Option<&str>, status: u16, body: Value) -> (Step, Vec<Trial>) {
        let access = access(allow);
        let trial = trials(&access, key).expect("trials").remove(0);
        trial.told(&access, &answer(status, body), None, NOW)
    }

    #[test]
    fn only_what_the_server_allows_is_tried() {
        let keys = format!("/keys/{ABSENT}");
        let secrets = format!("/secrets/{ABSENT}");
        assert_eq!(paths(&trials(&access("keys"), None).expect("trials")), [&keys]);
        assert_eq!(paths(&trials(&access("verify"), None).expect("trials")), [&keys]);
        assert_eq!(paths(&trials(&access("secrets"), None).expect("trials")), [&secrets]);
        assert_eq!(paths(&trials(&access("unwrap,secrets"), None).expect("trials")), [&secrets, &keys]);
        assert_eq!(paths(&trials(&access("sign"), Some("kek")).expect("trials")), ["/keys/kek"]);
        for (allow, key) in [("secrets", "kek"), ("keys", "other")] {
            let refused = trials(&access(allow), Some(key)).err().expect("refused");
            assert_eq!(refused.kind, Kind::Forbidden, "{allow} {key}");
        }
    }

    #[test]
    fn what_is_not_there_is_good_news_and_what_is_no_vault_is_not() {
        let error = |code: &str| json!({"error": {"code": code, "message": "canary"}});
        for (status, body, expected, hint) in [
            (404, error("KeyNotFound"), Status::Ok, ""),
            (200, json!({}), Status::Ok, ""),
            (404, json!("canary"), Status::Error, "vault_uri"),
            (404, error("NotFound"), Status::Error, "vault_uri"),
            (403, error("Forbidden"), Status::Error, "Key Vault Crypto Service Encryption User"),
            (500, json!(null), Status::Error, ""),
        ] {
            let (step, next) = told("keys", None, status, body);
            assert_eq!((step.name, step.status, next.len()), (KEYS, expected, 0), "{step:?}");
            assert!(step.hint.as_deref().unwrap_or_default().contains(hint), "{step:?}");
            assert!(!format!("{step:?}").contains("canary"), "{step:?}");
        }
    }

    #[test]
    fn a_key_is_told_by_its_state_and_what_it_cannot_do_is_not_tried() {
        let key = |attributes: Value| json!({"key": {"kid": KID, "kty": "EC-HSM"}, "attributes": attributes});
        for (attributes, status, words) in [
            (json!({"enabled": true}), Status::Ok, "does not expire"),
            (json!({"enabled": true, "nbf": NOW, "exp": NOW + 1}), Status::Ok, "in 1 s"),
            (json!({"enabled": false, "exp": 1}), Status::Error, "is disabled"),
            (json!({"enabled": true, "exp": NOW}), Status::Error, "has expired"),
            (json!({"enabled": true, "nbf": NOW + 1}), Status::Error, "is not valid yet"),
        ] {
            let (step, next) = told("keys,unwrap,sign,data-keys", Some("kek"), 200, key(attributes));
            assert_eq!((step.name, step.status, next.len()), (KEY, status, 0), "{step:?}");
            assert!(step.detail.contains(words) && step.hint.is_some() == (status == Status::Error), "{step:?}");
        }
    }

    #[test]
    fn a_name_leads_to_an_address_or_nowhere_or_a_proxy_knows_it() {
        let found = || Ok(vec!["10.1.2.3".parse().expect("v4"), "2603:1030::1".parse().expect("v6")]);
        let step = resolved("a.test", found(), false);
        assert_eq!(step.detail, "\"a.test\" is 10.1.2.3 (private), 2603:1030::1 (public).");
        for address in ["127.0.0.1", "169.254.1.1", "192.168.0.1", "172.16.0.1", "::1", "fd00::1", "fe80::1"] {
            assert!(is_private(address.parse().expect(address)), "{address}");
        }
        assert!(!is_private("20.1.2.3".parse().expect("v4")));
        assert_eq!(resolved("a.test", Err("no".into()), true).status, Status::Ok);
        let lost = resolved("a.test", Err("no".into()), false);
        assert!(lost.status == Status::Error && lost.hint.is_some(), "{lost:?}");
    }
}
