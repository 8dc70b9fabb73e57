//! A key vault's data plane: secrets, behind the checks of the token that a real vault makes.

mod authenticate;
mod refusal;
mod route;
mod secrets;

use std::sync::{Arc, Mutex};

pub use secrets::{Secret, SecretAttributes};

use crate::fault::Faults;
use crate::http::{Server, Service};
use crate::log::Log;
use crate::{Error, Pki};
use authenticate::Trust;
use secrets::Secrets;

/// The audience of every vault of the public cloud.
pub const AUDIENCE: &str = "https://vault.azure.net";

/// What a vault is started with.
pub struct VaultConfig {
    pub pki: Pki,
    /// The tenant whose tokens it accepts.
    pub tenant: String,
    /// Where the issuer's keys are fetched from.
    pub jwks_uri: String,
    pub audience: String,
    pub secrets: Vec<Secret>,
    /// 0 is any free one.
    pub port: u16,
}

/// A running vault.
pub struct VaultService {
    server: Server,
    secrets: Arc<Mutex<Secrets>>,
    log: Log,
    faults: Faults,
}

impl VaultService {
    pub fn start(config: VaultConfig) -> Result<Self, Error> {
        let secrets = Arc::new(Mutex::new(Secrets::default()));
        let (log, faults) = (Log::new("vault"), Faults::default());
        let trust = Trust::new(&config)?;
        let handler = route::Vault::new(trust, Arc::clone(&secrets));
        let service = Service::new(handler, &log, &faults);
        let server = Server::start(config.port, Some(config.pki.server_config()?), service)?;
        let vault = Self { server, secrets, log, faults };
        for secret in config.secrets {
            vault.put(secret)?;
        }
        Ok(vault)
    }

    pub fn uri(&self) -> String {
        format!("https://{}", self.server.address())
    }

    /// Adds a secret, or a newer version of it; returns the version.
    pub fn put(&self, secret: Secret) -> Result<String, Error> {
        crate::error::lock(&self.secrets).put(secret)
    }

    /// Removes a secret with all its versions.
    pub fn remove(&self, name: &str) {
        crate::error::lock(&self.secrets).remove(name);
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}
