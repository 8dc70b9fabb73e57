//! An encrypted value: XAES-256-GCM (C2SP) under a data key, with the key's id in front.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `AKV` and the format's number, 1 |
//! | 16 | the data key's id |
//! | 24 | the nonce, random |
//! | n | the ciphertext, as long as the plaintext |
//! | 16 | the tag |
//!
//! Authenticated beside the plaintext: the first 20 bytes and the caller's context. `docs/encryption-format.md` has
//! it with vectors for whoever reads values elsewhere. Of the 24 bytes of nonce 12 make a key for this message
//! alone, so that no count of messages is needed: random nonces of 24 bytes do not meet.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{self, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::{constant_time, hmac, rand};
use zeroize::Zeroizing;

use crate::http::failure::{Failure, Kind};

/// Bytes of a data key.
pub const KEY_LENGTH: usize = 32;
/// Bytes of the proof that a data key is the one that was wrapped.
pub const CHECK_LENGTH: usize = 32;

/// Names a data key: one generation of one name.
pub type KeyId = [u8; 16];

const FORMAT: [u8; 4] = *b"AKV\x01";
const HEADER: usize = FORMAT.len() + size_of::<KeyId>();
const NONCE: usize = 24;
const TAG: usize = 16;
/// What an encrypted value is longer than its plaintext.
pub const OVERHEAD: usize = HEADER + NONCE + TAG;

/// A data key as it was made or unwrapped. Boxed, because a move of the bytes would leave them behind.
pub type Secret = Box<Zeroizing<[u8; KEY_LENGTH]>>;

/// A place for a data key.
pub fn no_secret() -> Secret {
    Box::new(Zeroizing::new([0; KEY_LENGTH]))
}

/// The data key that was unwrapped; None where that is none.
pub fn secret_of(unwrapped: &[u8]) -> Option<Secret> {
    let mut secret = no_secret();
    (unwrapped.len() == secret.len()).then(|| {
        secret.copy_from_slice(unwrapped);
        secret
    })
}

/// 256 bits of the operating system's randomness.
pub fn new_secret() -> Result<Secret, Failure> {
    let mut secret = no_secret();
    rand::fill(&mut **secret).map_err(|_| no_randomness())?;
    Ok(secret)
}

/// A new id for a data key.
pub fn new_id() -> Result<KeyId, Failure> {
    let mut id = KeyId::default();
    rand::fill(&mut id).map_err(|_| no_randomness())?;
    Ok(id)
}

fn no_randomness() -> Failure {
    Failure::new(Kind::Local, "could not generate random bytes")
}

/// What is kept beside a wrapped key: an unwrapped key that does not give the same is another key.
pub fn check_value(secret: &Secret) -> [u8; CHECK_LENGTH] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &***secret);
    let mut value = [0; CHECK_LENGTH];
    value.copy_from_slice(hmac::sign(&key, b"managed_identity data key check").as_ref());
    value
}

/// Whether this is the key that `check` was made of; a shortened `check` is of none.
pub fn is_key_of(secret: &Secret, check: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(&check_value(secret), check).is_ok()
}

/// The id of the key that a value was encrypted under. 22000 for what is no encrypted value.
pub fn key_id(value: &[u8]) -> Result<KeyId, Failure> {
    let mut id = KeyId::default();
    if value.len() < OVERHEAD || !value.starts_with(&FORMAT) {
        return Err(not_authentic());
    }
    id.copy_from_slice(&value[FORMAT.len()..HEADER]);
    Ok(id)
}

/// The one text for all that can be wrong with a value: what exactly it is helps who forges.
pub fn not_authentic() -> Failure {
    Failure::new(Kind::NotAuthentic, "the encrypted value or its context is not authentic")
}

/// A data key, ready for use. It has no pointers: where it lies the key lies.
pub struct DataKey {
    id: KeyId,
    block: EncryptingKey,
}

impl DataKey {
    pub fn new(id: KeyId, secret: &Secret) -> Result<Self, Failure> {
        let key = UnboundCipherKey::new(&cipher::AES_256, &***secret).and_then(EncryptingKey::ecb);
        Ok(Self { id, block: key.map_err(|_| Failure::new(Kind::Local, "could not set up a data key"))? })
    }

    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Writes the encrypted value, which is [`OVERHEAD`] bytes longer than the plaintext, to `out`.
    pub fn seal(&self, plaintext: &[u8], context: &[u8], out: &mut [u8]) -> Result<(), Failure> {
        let mut nonce = [0; NONCE];
        rand::fill(&mut nonce).map_err(|_| no_randomness())?;
        self.seal_with(nonce, plaintext, context, out)
    }

    fn seal_with(&self, nonce: [u8; NONCE], plaintext: &[u8], context: &[u8], out: &mut [u8]) -> Result<(), Failure> {
        let failed = |_| Failure::new(Kind::Local, "could not encrypt");
        let (header, rest) = out.split_at_mut(HEADER);
        let (nonce_place, body) = rest.split_at_mut(NONCE);
        let (ciphertext, tag_place) = body.split_at_mut(plaintext.len());
        header[..FORMAT.len()].copy_from_slice(&FORMAT);
        header[FORMAT.len()..].copy_from_slice(&self.id);
        nonce_place.copy_from_slice(&nonce);
        ciphertext.copy_from_slice(plaintext);
        let (key, rest) = self.message_key(&nonce)?;
        let tag = key.seal_in_place_separate_tag(rest, self.aad(context)?, ciphertext).map_err(failed)?;
        tag_place.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// The plaintext of a value whose [`key_id`] is this key's, in `out`. 22000 unless value and context are as they
    /// were encrypted.
    pub fn open(&self, value: &[u8], context: &[u8], out: &mut [u8]) -> Result<(), Failure> {
        if key_id(value)? != self.id || out.len() != value.len() - OVERHEAD {
            return Err(not_authentic());
        }
        let (head, body) = value.split_at(HEADER + NONCE);
        let (ciphertext, tag) = body.split_at(body.len() - TAG);
        let (key, rest) = self.message_key(&head[HEADER..])?;
        let opened = key.open_separate_gather(rest, self.aad(context)?, ciphertext, tag, out);
        opened.map_err(|_| not_authentic())
    }

    /// Format and id have one length, so that no context can be taken for a part of them.
    fn aad(&self, context: &[u8]) -> Result<Aad<Vec<u8>>, Failure> {
        let mut aad = Vec::new();
        // A context may be as large as a value: too little memory is an error, not the process's end.
        aad.try_reserve_exact(HEADER + context.len())
            .map_err(|_| Failure::new(Kind::TooLarge, "the context is too large"))?;
        aad.extend_from_slice(&FORMAT);
        aad.extend_from_slice(&self.id);
        aad.extend_from_slice(context);
        Ok(Aad::from(aad))
    }

    /// The AES-256-GCM key that the first half of the nonce makes, and the rest, which is that key's nonce: CMAC as a
    /// key derivation in counter mode, as C2SP's XAES-256-GCM says.
    fn message_key(&self, nonce: &[u8]) -> Result<(LessSafeKey, Nonce), Failure> {
        let failed = |_| Failure::new(Kind::Local, "could not derive a key");
        let mut subkey = Zeroizing::new([0u8; 16]);
        self.block.less_safe_encrypt(&mut *subkey, EncryptionContext::None).map_err(failed)?;
        let shifted = Zeroizing::new(u128::from_be_bytes(*subkey));
        let subkey = Zeroizing::new((*shifted << 1) ^ (if *shifted >> 127 == 1 { 0x87 } else { 0 }));
        let mut derived = Zeroizing::new([0u8; KEY_LENGTH]);
        for (counter, half) in (1..).zip(derived.chunks_exact_mut(16)) {
            half[..4].copy_from_slice(&[0, counter, b'X', 0]);
            half[4..].copy_from_slice(&nonce[..12]);
            half.iter_mut().zip(subkey.to_be_bytes()).for_each(|(byte, mask)| *byte ^= mask);
        }
        self.block.less_safe_encrypt(&mut *derived, EncryptionContext::None).map_err(failed)?;
        let key = UnboundKey::new(&AES_256_GCM, &*derived).map_err(failed)?;
        let mut rest = [0; NONCE_LEN];
        rest.copy_from_slice(&nonce[12..]);
        Ok((LessSafeKey::new(key), Nonce::assume_unique_for_key(rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8, id: KeyId) -> DataKey {
        DataKey::new(id, &Box::new(Zeroizing::new([byte; KEY_LENGTH]))).expect("a key")
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The two vectors of C2SP's document (github.com/C2SP/C2SP, XAES-256-GCM.md).
    #[test]
    fn messages_are_those_of_xaes_256_gcm() {
        for (byte, aad, expected) in [
            (1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
            (3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
        ] {
            let (message, nonce) =
                key(byte, KeyId::default()).message_key(b"ABCDEFGHIJKLMNOPQRSTUVWX").expect("a message's key");
            let mut text = b"XAES-256-GCM".to_vec();
            message.seal_in_place_append_tag(nonce, Aad::from(aad.as_bytes()), &mut text).expect("sealed");
            assert_eq!(hex(&text), expected);
        }
    }

    fn sealed(key: &DataKey, plaintext: &[u8], context: &[u8]) -> Vec<u8> {
        let mut value = vec![0; plaintext.len() + OVERHEAD];
        key.seal(plaintext, context, &mut value).expect("sealed");
        value
    }

    fn opened(key: &DataKey, value: &[u8], context: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut out = vec![0; value.len().saturating_sub(OVERHEAD)];
        key.open(value, context, &mut out).map(|()| out)
    }

    #[test]
    fn what_was_sealed_is_opened_and_nothing_else() {
        let key = key(7, [9; 16]);
        for plaintext in [&b""[..], b"x", &[0; 10_000]] {
            let value = sealed(&key, plaintext, b"payroll.salary");
            assert_eq!((value.len(), key_id(&value)), (plaintext.len() + OVERHEAD, Ok([9; 16])));
            assert_ne!(value, sealed(&key, plaintext, b"payroll.salary"), "nonces are random");
            assert_eq!(opened(&key, &value, b"payroll.salary").as_deref(), Ok(plaintext));
            assert_eq!(opened(&key, &value, b"payroll.bonus"), Err(not_authentic()));
            assert_eq!(opened(&key, &value[..value.len() - 1], b"payroll.salary"), Err(not_authentic()));
            for at in 0..value.len().min(100) {
                let mut forged = value.clone();
                forged[at] ^= 1;
                assert_eq!(opened(&key, &forged, b"payroll.salary"), Err(not_authentic()), "byte {at}");
            }
        }
        // A byte moved between the context and what stands before it makes no other message the same.
        assert!(opened(&key, &sealed(&key, b"a", b"bc"), b"b").is_err());
        for short in [&b""[..], b"AKV\x01", &[0; 100], &[b'A'; 60]] {
            assert_eq!(key_id(short), Err(not_authentic()));
        }
    }

    #[test]
    fn a_check_value_is_of_one_key_and_of_its_whole_length() {
        let secret = Box::new(Zeroizing::new([5; KEY_LENGTH]));
        let check = check_value(&secret);
        assert!(is_key_of(&secret, &check));
        assert!(!is_key_of(&Box::new(Zeroizing::new([6; KEY_LENGTH])), &check));
        assert!(!is_key_of(&secret, &check[..16]) && !is_key_of(&secret, b""));
    }

    /// The vector that `docs/encryption-format.md` gives.
    #[test]
    fn the_documented_vector() {
        let key = key(1, *b"0123456789abcdef");
        let mut value = vec![0; b"salary".len() + OVERHEAD];
        key.seal_with(*b"ABCDEFGHIJKLMNOPQRSTUVWX", b"salary", b"hr", &mut value).expect("sealed");
        assert_eq!(opened(&key, &value, b"hr").as_deref(), Ok(&b"salary"[..]));
        assert_eq!(hex(&value), DOCUMENTED);
        assert_eq!(hex(&check_value(&Box::new(Zeroizing::new([1; KEY_LENGTH])))), DOCUMENTED_CHECK);
    }

    const DOCUMENTED: &str = "414b5601303132333435363738396162636465664142434445464748494a4b4c4d4e4f50515253545556\
                              5758e57447c463d76e4d10f20a589802ee820612c8ee13da";
    const DOCUMENTED_CHECK: &str = "5520380fb8fa9f875f1c6e26b0c008420094d9ee00321e94346138a8b748c33c";
}
