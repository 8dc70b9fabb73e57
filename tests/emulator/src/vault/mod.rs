//! A key vault's data plane: secrets and keys, behind the checks of the token that a real vault makes.

mod algorithms;
mod answer;
mod attributes;
mod authenticate;
mod key;
mod keys;
mod material;
mod operation;
mod policy;
mod refusal;
mod route;
mod secrets;

use std::sync::{Arc, MutexGuard};

pub use attributes::Attributes;
pub use key::{Key, KeyType};
pub use operation::VaultOperation;
pub use policy::{ANYONE, Network};
pub use secrets::Secret;

use crate::error::lock;
use crate::fault::Faults;
use crate::http::{Server, Service};
use crate::log::Log;
use crate::{Error, Pki};
use answer::{Content, Vault};
use authenticate::{Revoked, Trust};
use keys::Keys;
use material::Material;

/// The audience of every vault of the public cloud.
pub const AUDIENCE: &str = "https://vault.azure.net";
/// The audience of every managed HSM of the public cloud.
pub const HSM_AUDIENCE: &str = "https://managedhsm.azure.net";

/// What a vault is started with.
pub struct VaultConfig {
    pub pki: Pki,
    /// The tenant whose tokens it accepts.
    pub tenant: String,
    /// Where the issuer's keys are fetched from.
    pub jwks_uri: String,
    pub audience: String,
    pub secrets: Vec<Secret>,
    pub keys: Vec<Key>,
    /// 0 is any free one.
    pub port: u16,
}

/// A running vault. Its RSA keys are none of another vault's that is alive in this process.
pub struct VaultService {
    server: Server,
    content: Arc<Content>,
    revoked: Revoked,
    log: Log,
    faults: Faults,
}

impl VaultService {
    pub fn start(config: VaultConfig) -> Result<Self, Error> {
        let content = Arc::new(Content::default());
        let (log, faults) = (Log::new("vault"), Faults::default());
        let revoked = Revoked::default();
        let trust = Trust::new(&config, revoked.clone())?;
        let handler = Vault::new(trust, Arc::clone(&content));
        let service = Service::new(handler, &log, &faults);
        let server = Server::start(config.port, Some(config.pki.server_config()?), service)?;
        let vault = Self { server, content, revoked, log, faults };
        for secret in config.secrets {
            vault.put(secret)?;
        }
        for key in config.keys {
            vault.put_key(key)?;
        }
        Ok(vault)
    }

    pub fn uri(&self) -> String {
        format!("https://{}", self.server.address())
    }

    /// Adds a secret, or a newer version of it; returns the version.
    pub fn put(&self, secret: Secret) -> Result<String, Error> {
        lock(&self.content.secrets).put(secret)
    }

    /// Removes a secret with all its versions.
    pub fn remove(&self, name: &str) {
        lock(&self.content.secrets).remove(name);
    }

    /// Makes a key, or a newer version of it; returns the version.
    pub fn put_key(&self, key: Key) -> Result<String, Error> {
        // Before the lock: it may take a second.
        let material = Material::new(&key)?;
        self.keys().put(key, material)
    }

    /// The versions of a key, from old to new; none if there is no such key.
    pub fn key_versions(&self, name: &str) -> Vec<String> {
        self.keys().versions(name)
    }

    /// A version of a key as it is described now; without a version, the newest.
    pub fn key(&self, name: &str, version: Option<&str>) -> Option<Key> {
        self.keys().described(name, version)
    }

    /// Changes the state and the times of a version, or of the newest.
    pub fn change_key(
        &self,
        name: &str,
        version: Option<&str>,
        change: impl FnOnce(&mut Attributes),
    ) -> Result<(), Error> {
        self.keys().change(name, version, change)
    }

    /// What a real vault never gives out: PKCS #8 in DER, or the bytes of a symmetric key.
    pub fn private_key(&self, name: &str, version: Option<&str>) -> Result<Vec<u8>, Error> {
        self.keys().private_key(name, version)
    }

    /// Deletes a key softly, with all its versions: it is not found, and its name is not free.
    pub fn delete_key(&self, name: &str) -> Result<(), Error> {
        self.keys().delete(name)
    }

    /// Brings a deleted key back.
    pub fn recover_key(&self, name: &str) -> Result<(), Error> {
        self.keys().recover(name)
    }

    /// Ends a deleted key for good, and frees its name.
    pub fn purge_key(&self, name: &str) -> Result<(), Error> {
        self.keys().purge(name)
    }

    /// Refuses the operation to an identity, by its client or object id or [`ANYONE`], as a missing role does.
    pub fn deny(&self, identity: &str, operation: VaultOperation) {
        lock(&self.content.policy).deny(identity, operation);
    }

    /// Takes a [`VaultService::deny`] with the same words back.
    pub fn allow_again(&self, identity: &str, operation: VaultOperation) {
        lock(&self.content.policy).allow_again(identity, operation);
    }

    /// Says from where the vault may be reached.
    pub fn set_network(&self, network: Network) {
        lock(&self.content.policy).network = network;
    }

    /// Whether a disabled key can still be read; both are reported of the real vault, and this one lets it be read.
    pub fn set_shows_disabled_keys(&self, shows: bool) {
        lock(&self.content.policy).refuses_to_show_disabled_keys = !shows;
    }

    /// Answers these tokens with a challenge for claims, as continuous access evaluation does.
    pub fn revoke_tokens(&self, tokens: Vec<String>) {
        self.revoked.add(tokens);
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        lock(&self.content.keys)
    }
}
