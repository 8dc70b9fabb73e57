//! What each algorithm does with a key, and what a vault says where it does not fit.

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    Pkcs1PrivateDecryptingKey, Pkcs1PublicEncryptingKey,
};
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED, KeyPair, RsaEncoding, UnparsedPublicKey, VerificationAlgorithm,
};

use super::material::{Material, RsaPair};
use super::operation::VaultOperation;
use super::refusal::Refusal;

const UNDECRYPTABLE: &str = "Unable to decrypt specified value with this key.";

impl Material {
    /// Wraps or encrypts, unwraps or decrypts.
    pub(super) fn transform(
        &self,
        operation: VaultOperation,
        algorithm: &str,
        value: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let forwards = matches!(operation, VaultOperation::WrapKey | VaultOperation::Encrypt);
        let of_a_key = matches!(operation, VaultOperation::WrapKey | VaultOperation::UnwrapKey);
        let done = match (self, algorithm) {
            (Self::Rsa(leased), "RSA-OAEP-256") => leased.pair().oaep(&OAEP_SHA256_MGF1SHA256, forwards, value),
            (Self::Rsa(leased), "RSA-OAEP") => leased.pair().oaep(&OAEP_SHA1_MGF1SHA1, forwards, value),
            (Self::Rsa(leased), "RSA1_5") => leased.pair().pkcs1(forwards, value),
            (Self::Oct(bytes), "A256KW") if of_a_key => aes_key_wrap(bytes, forwards, value),
            _ => return Err(self.incompatible("encryption", algorithm)),
        };
        let why = if forwards { "The parameter is incorrect." } else { UNDECRYPTABLE };
        done.ok_or_else(|| Refusal::bad_parameter(why))
    }

    pub(super) fn sign(&self, algorithm: &str, digest: &[u8]) -> Result<Vec<u8>, Refusal> {
        let found = Signing::named(algorithm).ok_or_else(|| self.incompatible("signing", algorithm))?;
        let digest = found.digest(algorithm, digest)?;
        let signed = match (self, found.rsa) {
            (Self::Rsa(leased), Some((encoding, _))) => {
                let key = &leased.pair().signing;
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign_digest(encoding, &digest, &mut signature).map(|()| signature)
            }
            (Self::Ec(pair), None) => pair.sign_digest(&digest).map(|signature| signature.as_ref().to_vec()),
            _ => return Err(self.incompatible("signing", algorithm)),
        };
        signed.map_err(|_| Refusal::bad_parameter("The parameter is incorrect."))
    }

    pub(super) fn verify(&self, algorithm: &str, digest: &[u8], signature: &[u8]) -> Result<bool, Refusal> {
        let found = Signing::named(algorithm).ok_or_else(|| self.incompatible("signing", algorithm))?;
        let digest = found.digest(algorithm, digest)?;
        let verified = match (self, found.rsa) {
            (Self::Rsa(leased), Some((_, verification))) => {
                let public = leased.pair().signing.public_key();
                UnparsedPublicKey::new(verification, public).verify_digest(&digest, signature)
            }
            (Self::Ec(pair), None) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key()).verify_digest(&digest, signature)
            }
            _ => return Err(self.incompatible("signing", algorithm)),
        };
        Ok(verified.is_ok())
    }

    fn incompatible(&self, purpose: &str, algorithm: &str) -> Refusal {
        let kind = match self {
            Self::Rsa(_) => "RSA",
            Self::Ec(_) => "EC",
            Self::Oct(_) => "oct",
        };
        Refusal::bad_parameter(format!(
            "Key and {purpose} algorithm are incompatible. Key is of type '{kind}', and algorithm '{algorithm}' cannot be used with it."
        ))
    }
}

impl RsaPair {
    fn oaep(&self, algorithm: &'static OaepAlgorithm, forwards: bool, value: &[u8]) -> Option<Vec<u8>> {
        let mut output = vec![0; self.decrypting.key_size_bytes()];
        let done = if forwards {
            let key = OaepPublicEncryptingKey::new(self.decrypting.public_key()).ok()?;
            key.encrypt(algorithm, value, &mut output, None).ok()?.len()
        } else {
            let key = OaepPrivateDecryptingKey::new(self.decrypting.clone()).ok()?;
            key.decrypt(algorithm, value, &mut output, None).ok()?.len()
        };
        output.truncate(done);
        Some(output)
    }

    fn pkcs1(&self, forwards: bool, value: &[u8]) -> Option<Vec<u8>> {
        let mut output = vec![0; self.decrypting.key_size_bytes()];
        let done = if forwards {
            let key = Pkcs1PublicEncryptingKey::new(self.decrypting.public_key()).ok()?;
            key.encrypt(value, &mut output).ok()?.len()
        } else {
            let key = Pkcs1PrivateDecryptingKey::new(self.decrypting.clone()).ok()?;
            key.decrypt(value, &mut output).ok()?.len()
        };
        output.truncate(done);
        Some(output)
    }
}

/// RFC 3394.
fn aes_key_wrap(key: &[u8], forwards: bool, value: &[u8]) -> Option<Vec<u8>> {
    let kek = AesKek::new(&AES_256, key).ok()?;
    let mut output = vec![0; value.len() + 8];
    let done =
        if forwards { kek.wrap(value, &mut output).ok()?.len() } else { kek.unwrap(value, &mut output).ok()?.len() };
    output.truncate(done);
    Some(output)
}

/// A signature algorithm; without `rsa` it is ES256.
struct Signing {
    digest: &'static digest::Algorithm,
    rsa: Option<(&'static dyn RsaEncoding, &'static dyn VerificationAlgorithm)>,
}

impl Signing {
    fn named(algorithm: &str) -> Option<Self> {
        let (digest, rsa): (_, Option<(&'static dyn RsaEncoding, &'static dyn VerificationAlgorithm)>) = match algorithm
        {
            "RS256" => (&digest::SHA256, Some((&signature::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_2048_8192_SHA256))),
            "RS384" => (&digest::SHA384, Some((&signature::RSA_PKCS1_SHA384, &signature::RSA_PKCS1_2048_8192_SHA384))),
            "RS512" => (&digest::SHA512, Some((&signature::RSA_PKCS1_SHA512, &signature::RSA_PKCS1_2048_8192_SHA512))),
            "PS256" => (&digest::SHA256, Some((&signature::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256))),
            "PS384" => (&digest::SHA384, Some((&signature::RSA_PSS_SHA384, &signature::RSA_PSS_2048_8192_SHA384))),
            "PS512" => (&digest::SHA512, Some((&signature::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512))),
            "ES256" => (&digest::SHA256, None),
            _ => return None,
        };
        Some(Self { digest, rsa })
    }

    fn digest(&self, algorithm: &str, bytes: &[u8]) -> Result<Digest, Refusal> {
        Digest::import_less_safe(bytes, self.digest).map_err(|_| {
            Refusal::bad_parameter(format!(
                "Invalid length of 'value': {} bytes. {algorithm} requires {} bytes, encoded with base64url.",
                bytes.len(),
                self.digest.output_len()
            ))
        })
    }
}
