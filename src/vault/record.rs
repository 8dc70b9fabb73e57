//! A wrapped data key as the database keeps it, and what is signed of it.
//!
//! RSA-OAEP says nothing about who wrapped: whoever can write the table could wrap a key he knows with the public key,
//! put one row's wrap into another, or bring back a row of another database. So the vault signs each row, and each
//! row's every use begins with the signature, checked with the key that the vault gives, never with one of the row.

use aws_lc_rs::digest::{SHA256, digest};

use super::envelope::KeyId;

/// How data keys are wrapped; part of what is signed.
pub const WRAPPING: &str = "RSA-OAEP-256";
/// How rows are signed.
pub const SIGNING: &str = "PS256";

const FORMAT: &[u8] = b"managed_identity data key 1";

/// One generation of a data key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub id: KeyId,
    pub name: String,
    pub generation: i32,
    /// The vault server that made it, by name, as a dump keeps it.
    pub server: String,
    /// The vault key's full URL with the version that wrapped.
    pub kid: String,
    pub wrapped: Vec<u8>,
    pub check: Vec<u8>,
    /// None where the identity may not sign.
    pub signature: Option<Vec<u8>>,
}

impl Record {
    /// What is signed. Each field stands behind its length, so that no two rows are the same text; `database` is the
    /// id of the database that the row is of.
    pub fn message(&self, database: &[u8; 16]) -> Vec<u8> {
        let mut text = FORMAT.to_vec();
        let generation = self.generation.to_be_bytes();
        let fields: [&[u8]; 8] = [
            database,
            &self.id,
            self.name.as_bytes(),
            &generation,
            self.server.as_bytes(),
            self.kid.as_bytes(),
            &self.wrapped,
            &self.check,
        ];
        for field in fields {
            text.extend_from_slice(&(field.len() as u64).to_be_bytes());
            text.extend_from_slice(field);
        }
        text
    }
}

/// The SHA-256 digest of a message, which is what the vault is sent to sign.
pub fn digest_of(message: &[u8]) -> [u8; 32] {
    let mut signed = [0; 32];
    signed.copy_from_slice(digest(&SHA256, message).as_ref());
    signed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_signed_and_none_flows_into_the_next() {
        let record = Record {
            id: [1; 16],
            name: "payroll".into(),
            generation: 1,
            server: "vault".into(),
            kid: "https://v/keys/kek/1".into(),
            wrapped: vec![1, 2],
            check: vec![3],
            signature: None,
        };
        let changes: [fn(&mut Record); 9] = [
            |record| record.id = [2; 16],
            |record| record.name = "payrol".into(),
            |record| record.generation = 2,
            |record| record.server = "vault2".into(),
            |record| record.kid.push('2'),
            |record| record.wrapped = vec![1],
            |record| record.check = vec![],
            |record| (record.wrapped, record.check) = (vec![1], vec![2, 3]),
            |record| (record.name, record.server) = ("payrollv".into(), "ault".into()),
        ];
        let signed = record.message(&[0; 16]);
        assert_ne!(signed, record.message(&[1; 16]), "another database");
        for (at, change) in changes.into_iter().enumerate() {
            let mut changed = record.clone();
            change(&mut changed);
            assert_ne!(changed.message(&[0; 16]), signed, "change {at}");
        }
        assert_eq!(Record { signature: Some(vec![1]), ..record.clone() }.message(&[0; 16]), signed);
    }
}
