//! What a key does in its vault: `POST {vault}/keys/{name}/[{version}]/{operation}`.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::access::{VaultAccess, check_object};
use super::algorithm::{Use, check_digest};
use super::answer::{decoded, document, encoded, unexpected};
use super::kid::Kid;
use super::refusal::{Asked, Object, Role};
use crate::http::failure::{Failure, Kind};
use crate::http::request::{Answer, Request};

/// The longest value that is sent, in bytes: an RSA key of 8192 bits makes 1024, a wrapped symmetric key is shorter.
const LONGEST: usize = 8192;

/// What a key does with a value; the answer is a value as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOperation {
    Wrap,
    Unwrap,
    Encrypt,
    Decrypt,
    Sign,
}

impl KeyOperation {
    pub fn usage(self) -> Use {
        match self {
            Self::Wrap => Use::Wrap,
            Self::Unwrap => Use::Unwrap,
            Self::Encrypt => Use::Encrypt,
            Self::Decrypt => Use::Decrypt,
            Self::Sign => Use::Sign,
        }
    }

    fn segment(self) -> &'static str {
        match self {
            Self::Wrap => "wrapkey",
            Self::Unwrap => "unwrapkey",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Sign => "sign",
        }
    }

    /// What it takes, for its refusal.
    pub fn asked(self, name: &str) -> Asked<'_> {
        let role = match self {
            Self::Wrap | Self::Unwrap => Role::CryptoServiceEncryptionUser,
            Self::Encrypt | Self::Decrypt | Self::Sign => Role::CryptoUser,
        };
        Asked { object: Object::Key, name, role }
    }
}

/// What came of an operation: the version of the key that did it, and the value, which `Debug` does not show.
#[derive(PartialEq, Eq)]
pub struct Done {
    pub kid: Kid,
    pub value: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// What is posted; all of it needs no escape in JSON.
#[derive(Serialize)]
struct Parameters<'v> {
    alg: &'v str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'v str>,
    value: &'v str,
}

/// The request, without its credential. 22023 for what cannot be a name, a version, an algorithm for this or a value
/// for the algorithm. Without a version the vault takes the newest.
pub fn request(
    access: &VaultAccess,
    operation: KeyOperation,
    name: &str,
    version: Option<&str>,
    algorithm: &str,
    value: &[u8],
) -> Result<Request, Failure> {
    let algorithm = operation.usage().algorithm(algorithm)?;
    if operation == KeyOperation::Sign {
        check_digest(algorithm, value)?;
    }
    post(access, name, version, operation.segment(), algorithm, None, value)
}

/// Reads the answer: what the operation gave, or why it gave nothing.
pub fn read(access: &VaultAccess, operation: KeyOperation, answer: &Answer, name: &str) -> Result<Done, Failure> {
    #[derive(Deserialize)]
    struct Result<'a> {
        #[serde(borrow)]
        kid: Cow<'a, str>,
        // Borrowed, so that no copy of a key is left; base64 needs no escape.
        value: &'a str,
    }
    let result: Result = document(answer, access, &operation.asked(name))?;
    let kid = Kid::answered(&result.kid, access)?;
    match decoded(result.value) {
        Some(value) if kid.name().eq_ignore_ascii_case(name) => Ok(Done { kid, value }),
        _ => Err(unexpected(answer)),
    }
}

/// The request that has the vault verify a signature of a digest.
pub fn verify_request(
    access: &VaultAccess,
    name: &str,
    version: Option<&str>,
    algorithm: &str,
    digest: &[u8],
    signature: &[u8],
) -> Result<Request, Failure> {
    let algorithm = Use::Verify.algorithm(algorithm)?;
    check_digest(algorithm, digest)?;
    post(access, name, version, "verify", algorithm, Some(digest), signature)
}

/// Whether the signature is the key's; or why nobody knows.
pub fn read_verified(access: &VaultAccess, answer: &Answer, name: &str) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Verified {
        value: bool,
    }
    let asked = Asked { object: Object::Key, name, role: Role::CryptoUser };
    document(answer, access, &asked).map(|Verified { value }| value)
}

fn post(
    access: &VaultAccess,
    name: &str,
    version: Option<&str>,
    segment: &str,
    algorithm: &str,
    digest: Option<&[u8]>,
    value: &[u8],
) -> Result<Request, Failure> {
    check_object("key", name, version)?;
    if value.len() > LONGEST {
        return Err(Failure::new(Kind::InvalidValue, "the value is too long for a key of a vault")
            .detail(format!("At most {LONGEST} bytes are sent."))
            .hint("Have the key wrap a key, and let that one encrypt the value."));
    }
    // Without a version its segment stays, empty: so Microsoft's own clients ask.
    let url = access.url(&["keys", name, version.unwrap_or_default(), segment]);
    let (value, digest) = (encoded(value), digest.map(encoded));
    let digest = digest.as_ref().map(|digest| digest.as_str());
    // With room for the rest of the document: a moved buffer leaves a copy unwiped.
    let room = value.len() + digest.map_or(0, str::len) + algorithm.len() + 64;
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *body, &Parameters { alg: algorithm, digest, value: &value })
        .map_err(|_| Failure::new(Kind::Local, "could not write the request to the vault"))?;
    Ok(Request::post_json(url, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::answer::tests::{access, answer};
    use serde_json::json;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";
    const BASE: &str = "https://payroll.vault.azure.net";

    #[test]
    fn each_operation_is_posted_as_microsofts_clients_post_it() {
        for (operation, segment, algorithm) in [
            (KeyOperation::Wrap, "wrapkey", "RSA-OAEP-256"),
            (KeyOperation::Unwrap, "unwrapkey", "RSA-OAEP"),
            (KeyOperation::Encrypt, "encrypt", "RSA-OAEP-256"),
            (KeyOperation::Decrypt, "decrypt", "RSA-OAEP-256"),
            (KeyOperation::Sign, "sign", "PS256"),
        ] {
            let value = [0xfb; 32];
            let asked = |version| request(&access(), operation, "kek", version, algorithm, &value).expect("a request");
            let unversioned = asked(None);
            assert_eq!(unversioned.url.as_str(), format!("{BASE}/keys/kek//{segment}?api-version=2025-07-01"));
            let versioned = asked(Some(VERSION));
            assert_eq!(versioned.url.as_str(), format!("{BASE}/keys/kek/{VERSION}/{segment}?api-version=2025-07-01"));
            let document = versioned.body.as_ref().expect("a body").document();
            assert_eq!(document, json!({"alg": algorithm, "value": *encoded(&value)}));
            assert!(!format!("{versioned:?}").contains("-_v7"));
            access().destination.remainder(&unversioned.url).expect("within the vault");
        }
        let verify = verify_request(&access(), "kek", None, "ES256", &[1; 32], &[2; 64]).expect("a request");
        assert_eq!(verify.url.path(), "/keys/kek//verify");
        let document = verify.body.as_ref().expect("a body").document();
        assert_eq!(document, json!({"alg": "ES256", "digest": *encoded(&[1; 32]), "value": *encoded(&[2; 64])}));
    }

    #[test]
    fn what_cannot_be_right_is_not_sent() {
        use KeyOperation::*;
        let long = vec![0; LONGEST + 1];
        type Case<'c> = (KeyOperation, &'c str, Option<&'c str>, &'c str, &'c [u8]);
        let cases: [Case; 9] = [
            (Wrap, "k/k", None, "RSA-OAEP-256", b"x"),
            (Wrap, "..", None, "RSA-OAEP-256", b"x"),
            (Wrap, "kek", Some("latest"), "RSA-OAEP-256", b"x"),
            (Wrap, "kek", None, "RSA-OAEP", b"x"),
            (Unwrap, "kek", None, "RSA1_5", b"x"),
            (Encrypt, "kek", None, "A256GCM", b"x"),
            (Encrypt, "kek", None, "RSA-OAEP-256", &long),
            (Sign, "kek", None, "PS256", b"the message itself"),
            (Sign, "kek", None, "HS256", &[0; 32]),
        ];
        for (operation, name, version, algorithm, value) in cases {
            let failure = request(&access(), operation, name, version, algorithm, value).expect_err(algorithm);
            assert_eq!(failure.kind, Kind::InvalidValue, "{name} {algorithm}");
        }
        let verify = |algorithm, digest: &[u8], signature: &[u8]| {
            verify_request(&access(), "kek", None, algorithm, digest, signature).expect_err(algorithm).kind
        };
        assert_eq!(verify("PS384", &[0; 32], b"x"), Kind::InvalidValue);
        assert_eq!(verify("none", &[0; 32], b"x"), Kind::InvalidValue);
        assert_eq!(verify("PS256", &[0; 32], &long), Kind::InvalidValue);
    }

    #[test]
    fn what_was_done_is_read_and_not_shown() {
        let kid = format!("{BASE}:443/keys/kek/{VERSION}");
        let read = |body| read(&access(), KeyOperation::Unwrap, &answer(200, body), "KEK");
        let done = read(json!({"kid": kid, "value": *encoded(b"canary"), "x": 1})).expect("done");
        assert_eq!((done.kid.version(), done.value.as_slice()), (VERSION, b"canary".as_slice()));
        assert!(!format!("{done:?}").contains("99"), "{done:?}");
        for body in [
            json!(null),
            json!({"kid": kid}),
            json!({"value": "eA"}),
            json!({"kid": kid, "value": 1}),
            json!({"kid": kid, "value": "not base64!"}),
            json!({"kid": kid, "value": "e\nA"}),
            json!({"kid": kid.replace("/kek/", "/other/"), "value": "eA"}),
            json!({"kid": kid.replace("payroll", "evil"), "value": "eA"}),
        ] {
            assert_eq!(read(body.clone()).expect_err("refused").kind, Kind::Protocol, "{body}");
        }
        let verified = |body| read_verified(&access(), &answer(200, body), "kek");
        assert!(verified(json!({"value": true})).expect("an answer"));
        assert!(!verified(json!({"value": false})).expect("an answer"));
        assert_eq!(verified(json!({"value": "true"})).expect_err("no answer").kind, Kind::Protocol);
    }

    #[test]
    fn a_refusal_names_the_role_that_is_missing() {
        let denied = json!({"error": {"code": "Forbidden", "innererror": {"code": "ForbiddenByRbac"}}});
        for (operation, role) in [
            (KeyOperation::Unwrap, "Key Vault Crypto Service Encryption User"),
            (KeyOperation::Sign, "Key Vault Crypto User"),
        ] {
            let failure = read(&access(), operation, &answer(403, denied.clone()), "kek").expect_err("denied");
            assert_eq!(failure.kind, Kind::NotAuthorized);
            assert!(failure.hint.expect("a hint").contains(role));
        }
    }
}
