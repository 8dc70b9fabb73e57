//! The keys themselves, and a pool of those that take long to make.

use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::key::{Key, KeyType};
use crate::Error;
use crate::error::lock;

/// Bytes of a coordinate of P-256.
const COORDINATE: usize = 32;

/// What a vault never tells.
pub(super) enum Material {
    Rsa(Leased),
    Ec(EcdsaKeyPair),
    Oct([u8; 32]),
}

/// One RSA key for both of its uses, which the library keeps apart.
pub(super) struct RsaPair {
    pub decrypting: PrivateDecryptingKey,
    pub signing: RsaKeyPair,
}

impl Material {
    /// Makes the key that `key` describes.
    pub(super) fn new(key: &Key) -> Result<Self, Error> {
        let unsuited = |bits| Err(Error::invalid("key_size", format!("{bits} of a key of type {:?}", key.kty)));
        match (key.kty, key.key_size) {
            (KeyType::Rsa | KeyType::RsaHsm, bits) => {
                let size = match bits.unwrap_or(2048) {
                    2048 => KeySize::Rsa2048,
                    3072 => KeySize::Rsa3072,
                    4096 => KeySize::Rsa4096,
                    bits => return unsuited(bits),
                };
                Ok(Self::Rsa(Leased::take(size)?))
            }
            (KeyType::Ec | KeyType::EcHsm, None | Some(256)) => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
                Ok(Self::Ec(pair.map_err(|_| Error::Crypto("EC key"))?))
            }
            (KeyType::OctHsm, None | Some(256)) => {
                let mut bytes = [0; 32];
                rand::fill(&mut bytes).map_err(|_| Error::Crypto("random bytes"))?;
                Ok(Self::Oct(bytes))
            }
            (_, Some(bits)) => unsuited(bits),
        }
    }

    /// The members of its JSON web key that are public.
    pub(super) fn jwk(&self) -> Value {
        match self {
            Self::Rsa(leased) => {
                let public = leased.pair().signing.public_key();
                let [n, e] = [public.modulus(), public.exponent()]
                    .map(|number| URL_SAFE_NO_PAD.encode(number.big_endian_without_leading_zero()));
                json!({"n": n, "e": e})
            }
            Self::Ec(pair) => {
                // SEC 1: a byte that says uncompressed, then x and y.
                let (x, y) = pair.public_key().as_ref()[1..].split_at(COORDINATE);
                json!({"crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
            }
            Self::Oct(_) => json!({}),
        }
    }

    /// PKCS #8 in DER, or the bytes of a symmetric key.
    pub(super) fn private_key(&self) -> Result<Vec<u8>, Error> {
        match self {
            Self::Rsa(leased) => {
                let document = leased.pair().decrypting.as_der();
                document.map(|document| document.as_ref().to_vec()).map_err(|_| Error::Crypto("PKCS #8"))
            }
            Self::Ec(pair) => {
                let document = pair.to_pkcs8v1();
                document.map(|document| document.as_ref().to_vec()).map_err(|_| Error::Crypto("PKCS #8"))
            }
            Self::Oct(bytes) => Ok(bytes.to_vec()),
        }
    }
}

/// RSA keys of vaults that are gone, for those to come in this process.
static POOL: Mutex<Vec<Arc<RsaPair>>> = Mutex::new(Vec::new());

/// An RSA key that no other vault has meanwhile.
pub(super) struct Leased(Arc<RsaPair>);

impl Leased {
    fn take(size: KeySize) -> Result<Self, Error> {
        let of_size = |pair: &Arc<RsaPair>| pair.signing.public_modulus_len() == size.len();
        let mut pool = lock(&POOL);
        if let Some(at) = pool.iter().position(of_size) {
            return Ok(Self(pool.remove(at)));
        }
        drop(pool);
        Ok(Self(Arc::new(RsaPair::generate(size)?)))
    }

    pub(super) fn pair(&self) -> &RsaPair {
        &self.0
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        lock(&POOL).push(Arc::clone(&self.0));
    }
}

impl RsaPair {
    fn generate(size: KeySize) -> Result<Self, Error> {
        let why = Error::Crypto("RSA key");
        let Ok(decrypting) = PrivateDecryptingKey::generate(size) else {
            return Err(why);
        };
        let document = decrypting.as_der().map_err(|_| Error::Crypto("PKCS #8"))?;
        let Ok(signing) = RsaKeyPair::from_pkcs8(document.as_ref()) else {
            return Err(why);
        };
        Ok(Self { decrypting, signing })
    }
}
