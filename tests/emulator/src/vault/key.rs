//! A key as a test describes it, in the words of the request that creates one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::attributes::Attributes;

/// One version of a key. The key itself is made when it is put into a vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    pub name: String,
    #[serde(default)]
    pub kty: KeyType,
    /// Bits; none is 2048 of an RSA key and 256 of an `oct-HSM` one, which knows no other here.
    #[serde(default)]
    pub key_size: Option<u16>,
    /// What it may be used for; none is all that its type can do.
    #[serde(default)]
    pub key_ops: Option<Vec<String>>,
    #[serde(default)]
    pub attributes: Attributes,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The `kty` of its JSON web key; an EC key is one of P-256.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyType {
    #[default]
    #[serde(rename = "RSA")]
    Rsa,
    #[serde(rename = "RSA-HSM")]
    RsaHsm,
    #[serde(rename = "EC")]
    Ec,
    #[serde(rename = "EC-HSM")]
    EcHsm,
    #[serde(rename = "oct-HSM")]
    OctHsm,
}

impl Key {
    /// 2048, 3072 or 4096 bits.
    pub fn rsa(name: &str, bits: u16) -> Self {
        Self { key_size: Some(bits), ..Self::new(name, KeyType::Rsa) }
    }

    /// On the curve P-256.
    pub fn ec(name: &str) -> Self {
        Self::new(name, KeyType::Ec)
    }

    /// A symmetric one of 256 bits, as a managed HSM has them.
    pub fn oct_hsm(name: &str) -> Self {
        Self::new(name, KeyType::OctHsm)
    }

    fn new(name: &str, kty: KeyType) -> Self {
        Self {
            name: name.to_owned(),
            kty,
            key_size: None,
            key_ops: None,
            attributes: Attributes::default(),
            tags: BTreeMap::new(),
        }
    }

    /// Says that it is kept in hardware.
    #[must_use]
    pub fn hsm(mut self) -> Self {
        self.kty = match self.kty {
            KeyType::Rsa => KeyType::RsaHsm,
            KeyType::Ec => KeyType::EcHsm,
            hsm => hsm,
        };
        self
    }

    #[must_use]
    pub fn disabled(mut self) -> Self {
        self.attributes.enabled = false;
        self
    }

    /// The times before and after which it only decrypts, unwraps and verifies.
    #[must_use]
    pub fn valid(mut self, nbf: Option<i64>, exp: Option<i64>) -> Self {
        (self.attributes.nbf, self.attributes.exp) = (nbf, exp);
        self
    }

    /// What it may be used for, as `wrapKey` and `unwrapKey`.
    #[must_use]
    pub fn key_ops(mut self, operations: &[&str]) -> Self {
        self.key_ops = Some(operations.iter().map(|&operation| operation.to_owned()).collect());
        self
    }

    #[must_use]
    pub fn tag(mut self, name: &str, value: &str) -> Self {
        self.tags.insert(name.to_owned(), value.to_owned());
        self
    }

    /// What it may be used for after all.
    pub(super) fn operations(&self) -> Vec<String> {
        let all: &[&str] = match self.kty {
            KeyType::Rsa | KeyType::RsaHsm => &["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"],
            KeyType::Ec | KeyType::EcHsm => &["sign", "verify"],
            KeyType::OctHsm => &["encrypt", "decrypt", "wrapKey", "unwrapKey"],
        };
        self.key_ops.clone().unwrap_or_else(|| all.iter().map(|&operation| operation.to_owned()).collect())
    }
}
