//! What the functions of schema `azure_key_vault` do: who may, one call, what came of it.

use std::ffi::CStr;

use super::access_log;
use super::error::OrRaise;
use super::stats::Operation;
use super::text::SqlText;
use super::vault::usable;
use crate::http::request::Answer;
use crate::vault::algorithm::Use;
use crate::vault::key::{self, Key};
use crate::vault::kid::Kid;
use crate::vault::operation::{self, Done, KeyOperation};
use crate::vault::secret::{self, Properties};
use crate::vault::versions::{self, Version, Versions};

/// The words of option `allow` that are no use of a key's.
const SECRETS: &str = "secrets";
const KEYS: &str = "keys";

fn request_id(answer: &Answer) -> Option<String> {
    answer.header("x-ms-request-id").map(str::to_owned)
}

/// A secret's value as SQL text, in the database's encoding: JSON is UTF-8, the database need not be.
pub fn secret(vault: &CStr, name: &str, version: Option<&str>) -> SqlText {
    let vault = usable(vault).allowing(SECRETS, name);
    let request = secret::request(&vault.access, name, version).or_raise();
    let (value, id) = vault
        .ask(Operation::Secret, request, |answer| Ok((secret::read(&vault.access, answer, name)?, request_id(answer))));
    let value = SqlText::from_utf8(&value);
    access_log::secret(&vault.name, name, id.as_deref());
    value
}

/// What there is to know of a secret without its value, which the vault sends along and nobody reads.
pub fn secret_properties(vault: &CStr, name: &str, version: Option<&str>) -> Properties {
    let vault = usable(vault).allowing(SECRETS, name);
    let request = secret::request(&vault.access, name, version).or_raise();
    vault.ask(Operation::Secret, request, |answer| secret::read_properties(&vault.access, answer, name))
}

pub fn key(vault: &CStr, name: &str, version: Option<&str>) -> Key {
    let vault = usable(vault).allowing(KEYS, name);
    let request = key::request(&vault.access, name, version).or_raise();
    vault.ask(Operation::Key, request, |answer| key::read(&vault.access, answer, name))
}

pub fn key_versions(vault: &CStr, name: &str) -> Vec<Version> {
    let vault = usable(vault).allowing(KEYS, name);
    let mut versions = Versions::default();
    let mut next = Some(versions::request(&vault.access, name).or_raise());
    while let Some(request) = next {
        vault.ask(Operation::KeyVersions, request, |answer| versions.add(&vault.access, answer, name));
        next = versions.next_page();
    }
    versions.found
}

/// What a key does: vault, key or identifier, algorithm, value.
pub type KeyCall = fn(&CStr, &str, &str, &[u8]) -> Done;

pub fn wrap(vault: &CStr, key: &str, algorithm: &str, value: &[u8]) -> Done {
    with_newest(vault, KeyOperation::Wrap, key, algorithm, value)
}

pub fn unwrap(vault: &CStr, kid: &str, algorithm: &str, value: &[u8]) -> Done {
    with_version(vault, KeyOperation::Unwrap, kid, algorithm, value)
}

pub fn encrypt(vault: &CStr, key: &str, algorithm: &str, value: &[u8]) -> Done {
    with_newest(vault, KeyOperation::Encrypt, key, algorithm, value)
}

pub fn decrypt(vault: &CStr, kid: &str, algorithm: &str, value: &[u8]) -> Done {
    with_version(vault, KeyOperation::Decrypt, kid, algorithm, value)
}

pub fn sign(vault: &CStr, key: &str, algorithm: &str, digest: &[u8]) -> Done {
    with_newest(vault, KeyOperation::Sign, key, algorithm, digest)
}

/// Wraps, encrypts or signs with the newest version of a key.
fn with_newest(vault: &CStr, operation: KeyOperation, name: &str, algorithm: &str, value: &[u8]) -> Done {
    let vault = usable(vault).allowing(operation.usage().word(), name);
    let request = operation::request(&vault.access, operation, name, None, algorithm, value).or_raise();
    vault.ask(counted(operation.usage()), request, |answer| operation::read(&vault.access, operation, answer, name))
}

/// Unwraps or decrypts with the version that the identifier names.
fn with_version(vault: &CStr, operation: KeyOperation, kid: &str, algorithm: &str, value: &[u8]) -> Done {
    let usable = usable(vault);
    let kid = Kid::parse(kid, &usable.access).or_raise();
    let vault = usable.allowing(operation.usage().word(), kid.name());
    let (name, version) = (kid.name(), Some(kid.version()));
    let request = operation::request(&vault.access, operation, name, version, algorithm, value).or_raise();
    let (done, id) = vault.ask(counted(operation.usage()), request, |answer| {
        Ok((operation::read(&vault.access, operation, answer, name)?, request_id(answer)))
    });
    access_log::key(&vault.name, operation.usage().word(), name, id.as_deref());
    done
}

/// Whether a signature of a digest is that of the version that the identifier names.
pub fn verify(vault: &CStr, kid: &str, digest: &[u8], signature: &[u8], algorithm: &str) -> bool {
    let usable = usable(vault);
    let kid = Kid::parse(kid, &usable.access).or_raise();
    let vault = usable.allowing(Use::Verify.word(), kid.name());
    let (name, version) = (kid.name(), Some(kid.version()));
    let request = operation::verify_request(&vault.access, name, version, algorithm, digest, signature).or_raise();
    vault.ask(counted(Use::Verify), request, |answer| operation::read_verified(&vault.access, answer, name))
}

fn counted(usage: Use) -> Operation {
    match usage {
        Use::Wrap => Operation::Wrap,
        Use::Unwrap => Operation::Unwrap,
        Use::Encrypt => Operation::Encrypt,
        Use::Decrypt => Operation::Decrypt,
        Use::Sign => Operation::Sign,
        Use::Verify => Operation::Verify,
    }
}
