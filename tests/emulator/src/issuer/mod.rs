//! Issues the access tokens, as Microsoft Entra does for managed identities: v1.0, RS256, one audience.

mod claims;
mod jwks;
mod service;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, KeyPair, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub use claims::TokenRequest;
pub use jwks::{Jwks, TokenRefused};
pub use service::IssuerService;

use crate::Error;
use crate::error::lock;

const DEFAULT_LIFE: i64 = 86_400;

/// A tenant's signing key, and every token that it signed; cheap to clone.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    tenant: String,
    key: RsaKeyPair,
    jwk: Jwk,
    life: AtomicI64,
    ahead: AtomicI64,
    resources: Mutex<Option<Vec<String>>>,
    issued: Mutex<Vec<Token>>,
}

/// The public half: base64url numbers and their thumbprint.
struct Jwk {
    kid: String,
    n: String,
    e: String,
}

/// A token that was issued.
#[derive(Debug, Clone)]
pub struct Token {
    pub text: String,
    pub audience: String,
    pub issued_at: i64,
    pub expires_on: i64,
}

impl Issuer {
    /// An issuer for `tenant` (a GUID) with a new 2048-bit key.
    pub fn new(tenant: &str) -> Result<Self, Error> {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| Error::Crypto("RSA key"))?;
        let jwk = Jwk::of(&key);
        Ok(Self(Arc::new(Inner {
            tenant: tenant.to_owned(),
            key,
            jwk,
            life: AtomicI64::new(DEFAULT_LIFE),
            ahead: AtomicI64::new(0),
            resources: Mutex::default(),
            issued: Mutex::default(),
        })))
    }

    pub fn tenant(&self) -> &str {
        &self.0.tenant
    }

    /// The `iss` claim.
    pub fn issuer(&self) -> String {
        format!("https://sts.windows.net/{}/", self.0.tenant)
    }

    /// Seconds that tokens live from now on; 0 or less issues tokens that are expired already.
    pub fn set_token_life(&self, seconds: i64) {
        self.0.life.store(seconds, Ordering::Relaxed);
    }

    pub fn token_life(&self) -> i64 {
        self.0.life.load(Ordering::Relaxed)
    }

    /// Sets the clock of everything that issues this tenant's tokens ahead of this machine's, or behind.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.0.ahead.store(seconds, Ordering::Relaxed);
    }

    /// Unix time by that clock.
    pub(crate) fn now(&self) -> i64 {
        unix_now() + self.0.ahead.load(Ordering::Relaxed)
    }

    /// The same as an answer's `Date`.
    pub(crate) fn date(&self) -> String {
        let since = Duration::from_secs(u64::try_from(self.now()).unwrap_or_default());
        httpdate::fmt_http_date(UNIX_EPOCH + since)
    }

    /// Names the resources that the tenant knows; `None` is any.
    pub fn set_resources(&self, known: Option<&[&str]>) {
        *lock(&self.0.resources) = known.map(|known| known.iter().map(|&resource| resource.to_owned()).collect());
    }

    /// Whether a token can be for this resource.
    pub(crate) fn knows(&self, resource: &str) -> bool {
        lock(&self.0.resources).as_ref().is_none_or(|known| known.iter().any(|known| known == resource))
    }

    /// Signs a token; each differs from every other by its `uti`.
    pub fn issue(&self, request: &TokenRequest) -> Result<Token, Error> {
        let now = self.now();
        let expires_on = now + request.life.unwrap_or_else(|| self.token_life());
        let claims = request.claims(&self.issuer(), self.tenant(), now, expires_on);
        let unsigned = match request.size {
            None => self.unsigned(&claims, 0, 0),
            Some(size) => self.unsigned_for(&claims, size)?,
        };
        let token =
            Token { text: self.sign(unsigned)?, audience: request.audience.clone(), issued_at: now, expires_on };
        lock(&self.0.issued).push(token.clone());
        Ok(token)
    }

    /// Every token of this issuer's life, for a search in what must not hold one.
    pub fn issued_tokens(&self) -> Vec<String> {
        let issued = lock(&self.0.issued);
        issued.iter().map(|token| token.text.clone()).collect()
    }

    /// The document that a verifier fetches.
    pub fn jwks(&self) -> Value {
        let Jwk { kid, n, e } = &self.0.jwk;
        json!({"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "x5t": kid, "n": n, "e": e}]})
    }

    /// Signs any claims; the token is no access token, and not kept.
    pub(crate) fn sign_claims(&self, claims: &Value) -> Result<String, Error> {
        self.sign(self.unsigned(claims, 0, 0))
    }

    fn unsigned(&self, claims: &Value, header_pad: usize, pad: usize) -> String {
        let kid = &self.0.jwk.kid;
        let mut header = json!({"typ": "JWT", "alg": "RS256", "x5t": kid, "kid": kid});
        if header_pad > 0 {
            header["pad"] = Value::String("A".repeat(header_pad));
        }
        let mut claims = claims.clone();
        if pad > 0 {
            claims["padding"] = Value::String("A".repeat(pad));
        }
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        format!("{header}.{claims}")
    }

    /// What makes a token of exactly `size` bytes. Base64 skips every fourth length, so the header is padded too.
    fn unsigned_for(&self, claims: &Value, size: usize) -> Result<String, Error> {
        let signature = 1 + (self.0.key.public_modulus_len() * 4).div_ceil(3);
        let smallest = self.unsigned(claims, 1, 1).len() + signature;
        let missing = size
            .checked_sub(smallest)
            .ok_or_else(|| Error::invalid("token size", format!("{size} is less than {smallest}")))?;
        let guess = missing / 4 * 3 + 1;
        (1..=3)
            .flat_map(|header| (guess.saturating_sub(4).max(1)..guess + 4).map(move |pad| (header, pad)))
            .map(|(header, pad)| self.unsigned(claims, header, pad))
            .find(|unsigned| unsigned.len() + signature == size)
            .ok_or_else(|| Error::invalid("token size", "no padding reaches it"))
    }

    fn sign(&self, mut token: String) -> Result<String, Error> {
        let key = &self.0.key;
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature)
            .map_err(|_| Error::Crypto("RS256 signature"))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

impl Jwk {
    fn of(key: &RsaKeyPair) -> Self {
        let public = key.public_key();
        let n = URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero());
        let e = URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero());
        // RFC 7638: these members in this order.
        let thumbprint = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
        let kid = URL_SAFE_NO_PAD.encode(digest(&SHA256, thumbprint.as_bytes()));
        Self { kid, n, e }
    }
}

pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "00000000-0000-0000-0000-000000000001";

    #[test]
    fn a_token_verifies_by_the_jwks_document() {
        let issuer = Issuer::new(TENANT).unwrap();
        let request = TokenRequest::new("https://storage.azure.com/");
        let token = issuer.issue(&request).unwrap();
        let jwks = Jwks::parse(issuer.jwks().to_string().as_bytes()).unwrap();
        let claims = jwks.verify(&token.text).unwrap();
        assert_eq!(claims["aud"], "https://storage.azure.com/");
        assert_eq!(claims["iss"], format!("https://sts.windows.net/{TENANT}/"));
        assert_eq!(claims["ver"], "1.0");
        assert_eq!(claims["exp"], token.expires_on);
        let other = issuer.issue(&request).unwrap();
        assert_ne!(token.text, other.text);
        assert_eq!(issuer.issued_tokens(), [token.text, other.text]);
    }

    #[test]
    fn another_key_or_a_changed_claim_is_refused() {
        let issuer = Issuer::new(TENANT).unwrap();
        let jwks = Jwks::parse(issuer.jwks().to_string().as_bytes()).unwrap();
        let foreign = Issuer::new(TENANT).unwrap();
        let token = foreign.issue(&TokenRequest::new("a")).unwrap();
        assert!(matches!(jwks.verify(&token.text), Err(TokenRefused::UnknownKey)));

        let token = issuer.issue(&TokenRequest::new("a")).unwrap().text;
        let other = issuer.issue(&TokenRequest::new("b")).unwrap().text;
        let parts: Vec<&str> = token.split('.').collect();
        let others: Vec<&str> = other.split('.').collect();
        let forged = format!("{}.{}.{}", parts[0], others[1], parts[2]);
        assert!(matches!(jwks.verify(&forged), Err(TokenRefused::Signature)));
        assert!(matches!(jwks.verify("no token"), Err(TokenRefused::Malformed)));
    }

    #[test]
    fn a_token_has_the_size_asked_for() {
        let issuer = Issuer::new(TENANT).unwrap();
        for size in [2000, 2001, 2002, 2003, 16_384, 16_385] {
            let request = TokenRequest::new("a").size(size);
            assert_eq!(issuer.issue(&request).unwrap().text.len(), size);
        }
        assert!(issuer.issue(&TokenRequest::new("a").size(100)).is_err());
    }

    #[test]
    fn life_is_settable_and_a_claim_can_be_anything() {
        let issuer = Issuer::new(TENANT).unwrap();
        issuer.set_token_life(-5);
        let request = TokenRequest::new("a").claim("appid", "x");
        let token = issuer.issue(&request).unwrap();
        assert!(token.expires_on < unix_now());
        let jwks = Jwks::parse(issuer.jwks().to_string().as_bytes()).unwrap();
        assert_eq!(jwks.verify(&token.text).unwrap()["appid"], "x");
        let request = request.life(60);
        assert!(issuer.issue(&request).unwrap().expires_on > unix_now());
    }
}
