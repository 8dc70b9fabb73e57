//! A key's public part and attributes: `GET {vault}/keys/{name}[/{version}]`.

use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents};
use aws_lc_rs::signature::RSA_PSS_2048_8192_SHA256;
use serde::Deserialize;
use serde_json::Value;

use super::access::{VaultAccess, check_object};
use super::answer::{Attributes, decoded, document, unexpected};
use super::kid::Kid;
use super::refusal::{Asked, Object, Role};
use crate::http::failure::{Failure, Kind, code};
use crate::http::request::{Answer, Request};

/// One version of a key, as the vault tells of it. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub kid: Kid,
    /// `RSA`, `RSA-HSM`, `EC`, … as the vault writes it.
    pub key_type: String,
    pub key_ops: Vec<String>,
    pub enabled: bool,
    pub not_before: Option<i64>,
    pub expires_at: Option<i64>,
    pub created_at: Option<i64>,
    pub updated_at: Option<i64>,
    /// The public key as the vault writes it: a JSON Web Key.
    pub jwk: Value,
}

#[derive(Deserialize)]
struct Bundle {
    key: Value,
    #[serde(default)]
    attributes: Attributes,
}

/// The request, without its credential. 22023 for what cannot be a name or a version.
pub fn request(access: &VaultAccess, name: &str, version: Option<&str>) -> Result<Request, Failure> {
    check_object("key", name, version)?;
    let segments: Vec<&str> = ["keys", name].into_iter().chain(version).collect();
    Ok(Request::get(access.url(&segments)))
}

/// What reading a key takes, for its refusal.
pub fn asked(name: &str) -> Asked<'_> {
    Asked { object: Object::Key, name, role: Role::CryptoServiceEncryptionUser }
}

/// Reads the answer: the key, or why there is none.
pub fn read(access: &VaultAccess, answer: &Answer, name: &str) -> Result<Key, Failure> {
    let Bundle { key: jwk, attributes } = document(answer, access, &asked(name))?;
    let text = |member: &str| jwk.get(member).and_then(Value::as_str).ok_or_else(|| unexpected(answer));
    let kid = Kid::answered(text("kid")?, access)?;
    if !kid.name().eq_ignore_ascii_case(name) {
        return Err(unexpected(answer));
    }
    let operations = jwk.get("key_ops").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let Attributes { enabled, not_before, expires_at, created_at, updated_at } = attributes;
    Ok(Key {
        kid,
        key_type: code(text("kty")?).ok_or_else(|| unexpected(answer))?.to_owned(),
        key_ops: operations.iter().filter_map(|operation| code(operation.as_str()?)).map(str::to_owned).collect(),
        enabled,
        not_before,
        expires_at,
        created_at,
        updated_at,
        jwk,
    })
}

impl Key {
    /// The public key, where it is an RSA key.
    pub fn rsa(&self) -> Option<RsaPublic> {
        if !["RSA", "RSA-HSM"].iter().any(|kind| self.key_type.eq_ignore_ascii_case(kind)) {
            return None;
        }
        let number = |member| {
            let bytes = decoded(self.jwk.get(member)?.as_str()?)?;
            // A number may be written with zeros in front; aws-lc-rs wants none.
            let first = bytes.iter().position(|byte| *byte != 0)?;
            Some(bytes.get(first..)?.to_vec())
        };
        Some(RsaPublic { n: number("n")?, e: number("e")? })
    }
}

/// Why a key may not be used at a time (Unix seconds): the vault itself still unwraps with one that has expired.
pub fn unusable(key: &Key, now: i64) -> Option<Failure> {
    let refused = |why: &str| Some(Failure::new(Kind::NotAuthorized, format!("key \"{}\" {why}", key.kid.name())));
    if !key.enabled {
        return refused("is disabled");
    }
    if key.expires_at.is_some_and(|end| end <= now) {
        return refused("has expired");
    }
    if key.not_before.is_some_and(|start| now < start) {
        return refused("is not valid yet");
    }
    None
}

/// An RSA public key: modulus and exponent, big-endian, without leading zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RsaPublic {
    pub n: Vec<u8>,
    pub e: Vec<u8>,
}

impl RsaPublic {
    fn components(&self) -> PublicKeyComponents<&[u8]> {
        PublicKeyComponents { n: &self.n, e: &self.e }
    }

    /// What the vault's `wrapkey` with RSA-OAEP-256 would give, without asking it. 08P01 where the key is none that
    /// can be used (2048 to 8192 bits), 22023 where the plaintext is too long for it.
    pub fn wrap_oaep_sha256(&self, plaintext: &[u8]) -> Result<Vec<u8>, Failure> {
        let key: Result<PublicEncryptingKey, _> = self.components().try_into();
        let key = key.and_then(OaepPublicEncryptingKey::new).map_err(|_| {
            Failure::new(Kind::Protocol, "the vault's RSA key cannot be used").detail("Keys of 2048 to 8192 bits can.")
        })?;
        let longest = key.max_plaintext_size(&OAEP_SHA256_MGF1SHA256);
        if plaintext.len() > longest {
            return Err(Failure::new(Kind::InvalidValue, "the value is too long to be wrapped by this key")
                .detail(format!("It can wrap {longest} bytes.")));
        }
        let mut wrapped = vec![0; key.ciphertext_size()];
        let length = key
            .encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut wrapped, None)
            .map_err(|_| Failure::new(Kind::Local, "could not wrap with the vault's RSA key"))?
            .len();
        wrapped.truncate(length);
        Ok(wrapped)
    }

    /// Whether the signature (PS256, a salt of 32 bytes) is this key's, of the message with this SHA-256 digest.
    pub fn verify_ps256(&self, message_digest: &[u8; 32], signature: &[u8]) -> bool {
        let Ok(digest) = Digest::import_less_safe(message_digest, &SHA256) else {
            return false;
        };
        let key = self.components().to_parsed_public_key(&RSA_PSS_2048_8192_SHA256);
        key.is_ok_and(|key| key.verify_digest_sig(&digest, signature).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::answer::encoded;
    use crate::vault::answer::tests::{access, answer, hsm};
    use aws_lc_rs::digest::digest;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::{KeyPair, KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use aws_lc_rs::signature::{KeyPair as _, RSA_PSS_SHA256};
    use serde_json::json;

    const KID: &str = "https://payroll.vault.azure.net/keys/kek/0123456789abcdef0123456789abcdef";

    fn bundle(key: Value) -> Value {
        json!({"key": key, "attributes": {"enabled": false, "nbf": 1, "exp": 2, "created": 3, "recoveryLevel": "x"}})
    }

    fn key(key: Value) -> Result<Key, Failure> {
        read(&access(), &answer(200, bundle(key)), "kek")
    }

    #[test]
    fn the_request_names_the_key_and_nothing_else() {
        let url = |version| request(&access(), "kek", version).expect("a request").url.to_string();
        assert_eq!(url(None), "https://payroll.vault.azure.net/keys/kek?api-version=2025-07-01");
        let version = "0123456789abcdef0123456789abcdef";
        assert_eq!(url(Some(version)), format!("{KID}?api-version=2025-07-01"));
        for name in ["", "a/b", "..", "a?b", "a%2f", "a#", "\u{e9}", &"a".repeat(128)] {
            assert_eq!(request(&access(), name, None).expect_err(name).kind, Kind::InvalidValue);
        }
        for version in ["", "latest", "..", &version[1..], "0123456789abcdef0123456789abcdeg"] {
            assert_eq!(request(&access(), "kek", Some(version)).expect_err(version).kind, Kind::InvalidValue);
        }
    }

    #[test]
    fn a_key_is_read_with_its_attributes() {
        let jwk =
            json!({"kid": KID, "kty": "rsa-hsm", "key_ops": ["wrapKey", 1, "unwrapKey"], "n": "AAH_", "e": "AQAB"});
        let key = key(jwk.clone()).expect("a key");
        assert_eq!((key.kid.to_string().as_str(), key.key_type.as_str(), &key.jwk), (KID, "rsa-hsm", &jwk));
        assert_eq!(key.key_ops, ["wrapKey", "unwrapKey"]);
        let times = (key.not_before, key.expires_at, key.created_at, key.updated_at);
        assert_eq!((key.enabled, times), (false, (Some(1), Some(2), Some(3), None)));
        assert_eq!(key.rsa(), Some(RsaPublic { n: vec![1, 255], e: vec![1, 0, 1] }));
        let plain = json!({"key": {"kid": KID, "kty": "EC"}});
        let plain = read(&access(), &answer(200, plain), "KEK").expect("names know no case");
        assert_eq!((plain.enabled, plain.rsa()), (true, None));
    }

    #[test]
    fn what_is_no_answer_about_the_key_is_refused() {
        let other = KID.replace("kek", "other");
        let elsewhere = KID.replace("payroll", "evil");
        for jwk in [
            json!(null),
            json!([]),
            json!({"kty": "RSA"}),
            json!({"kid": KID}),
            json!({"kid": 1, "kty": "RSA"}),
            json!({"kid": KID, "kty": "canary canary"}),
            json!({"kid": other, "kty": "RSA"}),
            json!({"kid": elsewhere, "kty": "RSA"}),
        ] {
            let failure = key(jwk.clone()).expect_err("refused");
            assert_eq!(failure.kind, Kind::Protocol, "{jwk}");
        }
        assert_eq!(
            read(&hsm(), &answer(200, bundle(json!({"kid": KID, "kty": "RSA"}))), "kek")
                .expect_err("of another vault")
                .kind,
            Kind::Protocol
        );
        assert_eq!(read(&access(), &answer(404, json!(null)), "kek").expect_err("none").kind, Kind::NotFound);
        for (n, e) in [("", "AQAB"), ("AAAA", "AQAB"), ("!", "AQAB"), ("AQAB", "")] {
            let key = key(json!({"kid": KID, "kty": "RSA", "n": n, "e": e})).expect("a key of sorts");
            assert_eq!(key.rsa(), None, "{n} {e}");
        }
    }

    #[test]
    fn what_is_wrapped_here_is_unwrapped_there_and_what_is_signed_there_is_verified_here() {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key pair");
        let private = pair.as_der().expect("its document");
        let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
        let number = |bytes: &[u8]| encoded(bytes).to_string();
        let jwk = json!({"kid": KID, "kty": "RSA", "n": number(n.big_endian_without_leading_zero()),
                         "e": number(e.big_endian_without_leading_zero())});
        let public = key(jwk).expect("a key").rsa().expect("of RSA");

        let wrapped = public.wrap_oaep_sha256(&[7; 32]).expect("wrapped");
        let private = PrivateDecryptingKey::from_pkcs8(private.as_ref()).expect("the private key");
        let private = OaepPrivateDecryptingKey::new(private).expect("the private key");
        let mut unwrapped = [0; 256];
        let unwrapped = private.decrypt(&OAEP_SHA256_MGF1SHA256, &wrapped, &mut unwrapped, None).expect("unwrapped");
        assert_eq!(unwrapped, [7; 32]);
        assert_eq!(public.wrap_oaep_sha256(&[7; 190]).expect("wrapped").len(), 256);
        assert_eq!(public.wrap_oaep_sha256(&[7; 191]).expect_err("too long").kind, Kind::InvalidValue);
        let small = RsaPublic { n: vec![255; 64], e: vec![1, 0, 1] };
        assert_eq!(small.wrap_oaep_sha256(&[7; 8]).expect_err("too small").kind, Kind::Protocol);

        let mut signature = [0; 256];
        pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), b"message", &mut signature).expect("signed");
        let sha256 = |message: &[u8]| <[u8; 32]>::try_from(digest(&SHA256, message).as_ref()).expect("32 bytes");
        assert!(public.verify_ps256(&sha256(b"message"), &signature));
        assert!(!public.verify_ps256(&sha256(b"other"), &signature));
        assert!(!public.verify_ps256(&sha256(b"message"), &signature[1..]));
        assert!(!public.verify_ps256(&sha256(b"message"), b""));
        assert!(!small.verify_ps256(&sha256(b"message"), &signature));
    }
}
