//! Which algorithms a key may be used with, and for what.

use crate::http::failure::{Failure, Kind};

/// What an algorithm is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Wrap,
    Unwrap,
    Encrypt,
    Decrypt,
    Sign,
    Verify,
}

/// What is there to sign: `RS` is kept for the signatures of others, `PS` is the better one of an RSA key.
const SIGNATURES: [(&str, usize); 9] = [
    ("PS256", 32),
    ("PS384", 48),
    ("PS512", 64),
    ("RS256", 32),
    ("RS384", 48),
    ("RS512", 64),
    ("ES256", 32),
    ("ES384", 48),
    ("ES512", 64),
];

impl Use {
    /// The algorithms, the default first. `RSA-OAEP` takes SHA-1 and is there to read what others have made; `RSA1_5`
    /// gives its plaintext away to whoever may ask often, and is not there.
    fn algorithms(self) -> Vec<&'static str> {
        match self {
            Self::Wrap => vec!["RSA-OAEP-256", "A256KW", "A192KW", "A128KW"],
            Self::Unwrap => vec!["RSA-OAEP-256", "A256KW", "A192KW", "A128KW", "RSA-OAEP"],
            Self::Encrypt => vec!["RSA-OAEP-256"],
            Self::Decrypt => vec!["RSA-OAEP-256", "RSA-OAEP"],
            Self::Sign | Self::Verify => SIGNATURES.map(|(algorithm, _)| algorithm).to_vec(),
        }
    }

    /// The word of option `allow`, and what a user is told.
    pub fn word(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Sign => "sign",
            Self::Verify => "verify",
        }
    }

    /// The algorithm by its name; 22023 with the list of them otherwise.
    pub fn algorithm(self, name: &str) -> Result<&'static str, Failure> {
        let algorithms = self.algorithms();
        algorithms.iter().find(|known| **known == name).copied().ok_or_else(|| {
            Failure::new(Kind::InvalidValue, format!("invalid algorithm to {} with", self.word()))
                .hint(format!("It is one of {}.", algorithms.join(", ")))
        })
    }
}

/// 22023 unless the digest is as long as the algorithm's.
pub fn check_digest(algorithm: &str, digest: &[u8]) -> Result<(), Failure> {
    match SIGNATURES.iter().find(|(known, _)| *known == algorithm) {
        Some((_, length)) if *length != digest.len() => {
            Err(Failure::new(Kind::InvalidValue, format!("the digest does not fit algorithm {algorithm}"))
                .detail(format!("It has {} bytes and must have {length}.", digest.len()))
                .hint(format!("Give the SHA-{} digest of the message, not the message.", length * 8)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_use_has_its_algorithms() {
        use Use::*;
        for (usage, name, known) in [
            (Wrap, "RSA-OAEP-256", true),
            (Wrap, "A256KW", true),
            (Wrap, "RSA-OAEP", false),
            (Unwrap, "RSA-OAEP", true),
            (Unwrap, "A128KW", true),
            (Encrypt, "RSA-OAEP", false),
            (Encrypt, "A256KW", false),
            (Encrypt, "A256GCM", false),
            (Decrypt, "RSA-OAEP", true),
            (Decrypt, "PS256", false),
            (Sign, "PS256", true),
            (Sign, "ES256K", false),
            (Sign, "HS256", false),
            (Verify, "RS512", true),
            (Wrap, "rsa-oaep-256", false),
            (Wrap, "", false),
            (Wrap, "\",\"x\":\"", false),
        ] {
            assert_eq!(usage.algorithm(name).is_ok(), known, "{usage:?} {name}");
        }
        for usage in [Wrap, Unwrap, Encrypt, Decrypt, Sign, Verify] {
            let failure = usage.algorithm("RSA1_5").expect_err("not even to unwrap");
            assert_eq!(failure.kind, Kind::InvalidValue);
            assert!(failure.hint.expect("the list").contains(usage.algorithms()[0]));
        }
    }

    #[test]
    fn a_digest_is_as_long_as_its_algorithm_says() {
        for (algorithm, length) in SIGNATURES {
            check_digest(algorithm, &vec![0; length]).expect(algorithm);
            for other in [0, length - 1, length + 1] {
                assert_eq!(check_digest(algorithm, &vec![0; other]).expect_err(algorithm).kind, Kind::InvalidValue);
            }
        }
    }
}
