//! Wrapping a data key with the newest version of a vault key: wrapped, unwrapped again, compared, signed. Nothing here
//! needs a transaction.

use super::load;
use super::watching::{Place, place_of};
use crate::http::failure::{Failure, Kind};
use crate::pg::stats::Operation;
use crate::pg::vault::Vault;
use crate::vault::envelope::{self, Secret};
use crate::vault::key::unusable;
use crate::vault::kid::Kid;
use crate::vault::operation::{self, KeyOperation};
use crate::vault::record::{Record, SIGNING, WRAPPING, digest_of};

/// The newest version of a vault key, to wrap with.
pub struct Target {
    name: String,
    /// The version and its place; None where the identity may not read the key: then the vault wraps, and says which
    /// version it took.
    known: Option<(Kid, Place)>,
}

impl Target {
    pub fn of(vault: &Vault, name: &str) -> Result<Self, Failure> {
        let known = match load::read_key(vault, name, None) {
            Ok((key, now)) => {
                if let Some(failure) = unusable(&key, now) {
                    return Err(failure);
                }
                let public = load::require_rsa(&key)?;
                let place = place_of(vault, &key.kid);
                place.know(&public);
                Some((key.kid, place))
            }
            Err(failure) if failure.kind == Kind::NotAuthorized => None,
            Err(failure) => return Err(failure),
        };
        Ok(Self { name: name.to_owned(), known })
    }

    /// Whether a row is as it should be: wrapped by this version and signed.
    pub fn has_wrapped(&self, record: &Record, vault: &Vault) -> bool {
        self.known.as_ref().is_some_and(|(known, _)| known.to_string() == record.kid)
            && (record.signature.is_some() || vault.access.unsigned_keys)
    }

    /// Wraps the secret, has the vault unwrap it again and compares, and has the row signed. `database` is the id that
    /// rows are signed with.
    pub fn wrap(
        &self,
        vault: &Vault,
        record: &mut Record,
        secret: &Secret,
        database: &[u8; 16],
    ) -> Result<Place, Failure> {
        let (kid, place) = match &self.known {
            Some((kid, place)) => {
                let gone = || Failure::new(Kind::Protocol, "the vault's key is gone");
                let public = load::public_key(vault, kid, place)?.ok_or_else(gone)?;
                record.wrapped = public.wrap_oaep_sha256(&secret[..])?;
                (kid.clone(), place_of(vault, kid))
            }
            None => {
                let done = self.operate(vault, KeyOperation::Wrap, Operation::Wrap, None, WRAPPING, &secret[..])?;
                record.wrapped = done.value.to_vec();
                let place = place_of(vault, &done.kid);
                (done.kid, place)
            }
        };
        record.kid = kid.to_string();
        let back = load::unwrapped(vault, &kid, &record.wrapped)?;
        if !envelope::is_key_of(&back, &record.check) {
            return Err(Failure::new(Kind::Protocol, "the vault did not unwrap what was wrapped")
                .detail("The data key was not changed."));
        }
        let digest = digest_of(&record.message(database));
        let public = load::public_key(vault, &kid, &place)?;
        let signed = self.operate(vault, KeyOperation::Sign, Operation::Sign, Some(kid.version()), SIGNING, &digest);
        record.signature = match signed {
            // Or no restart would read what is encrypted under it.
            Ok(done) if public.is_none_or(|public| public.verify_ps256(&digest, &done.value)) => {
                Some(done.value.to_vec())
            }
            Ok(_) => {
                return Err(Failure::new(Kind::Protocol, "the vault's signature is not its key's")
                    .detail("The data key was not changed."));
            }
            Err(failure) if failure.kind == Kind::NotAuthorized && vault.access.unsigned_keys => None,
            Err(failure) if failure.kind == Kind::NotAuthorized => {
                return Err(failure.hint(
                    "A data key's row is signed, which takes the role \"Key Vault Crypto User\"; a superuser can set \
                     option unsigned_keys 'allow' on the server to do without.",
                ));
            }
            Err(failure) => return Err(failure),
        };
        Ok(place)
    }

    fn operate(
        &self,
        vault: &Vault,
        what: KeyOperation,
        counted: Operation,
        version: Option<&str>,
        algorithm: &str,
        value: &[u8],
    ) -> Result<operation::Done, Failure> {
        let access = &vault.access;
        let request = operation::request(access, what, &self.name, version, algorithm, value)?;
        vault.answered(counted, request, |answer| operation::read(access, what, answer, &self.name))
    }
}
