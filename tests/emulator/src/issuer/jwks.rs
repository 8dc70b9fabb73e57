//! Verifies a token's signature by a JWKS document, as a service that trusts the issuer does.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

use crate::Error;

/// Why a token's signature does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRefused {
    /// It is not a JWT of RS256.
    Malformed,
    /// The document has no key of that id.
    UnknownKey,
    /// The signature is another key's or of another text.
    Signature,
}

/// The keys of a JWKS document.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Jwks {
    keys: Vec<Key>,
}

#[derive(Debug, Clone, Deserialize)]
struct Key {
    kid: String,
    n: String,
    e: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

impl Jwks {
    pub fn parse(document: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(document).map_err(|error| Error::invalid("JWKS document", error))
    }

    /// The claims of a token whose signature holds; its audience, issuer and times are the caller's to judge.
    pub fn verify(&self, token: &str) -> Result<Value, TokenRefused> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenRefused::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenRefused::Malformed)?;
        let header: Header = part(header)?;
        if header.alg != "RS256" {
            return Err(TokenRefused::Malformed);
        }
        let key = self.keys.iter().find(|key| key.kid == header.kid);
        let key = key.ok_or(TokenRefused::UnknownKey)?;
        let public = RsaPublicKeyComponents { n: bytes(&key.n)?, e: bytes(&key.e)? };
        let signature = bytes(signature)?;
        public
            .verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &signature)
            .map_err(|_| TokenRefused::Signature)?;
        part(claims)
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, TokenRefused> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenRefused::Malformed)
}

fn part<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, TokenRefused> {
    serde_json::from_slice(&bytes(text)?).map_err(|_| TokenRefused::Malformed)
}
