//! The instance metadata service as a virtual machine has it, with the identities that a test assigns.

mod assigned;
mod imds;
mod selector;

use std::sync::{Arc, Mutex};

pub use assigned::{Identity, IdentityKind};

use crate::Error;
use crate::error::lock;
use crate::fault::Faults;
use crate::http::{Server, Service};
use crate::issuer::Issuer;
use crate::log::Log;

/// A running instance metadata service.
pub struct IdentityService {
    server: Server,
    settings: Arc<Mutex<Settings>>,
    issuer: Issuer,
    log: Log,
    faults: Faults,
}

/// What can be changed while it runs.
#[derive(Default)]
struct Settings {
    assigned: Vec<Identity>,
    refresh_in: Option<i64>,
    token_size: Option<usize>,
    container_instances: bool,
}

impl IdentityService {
    /// Listens on loopback; port 0 is any free one.
    pub fn start(issuer: Issuer, identities: Vec<Identity>, port: u16) -> Result<Self, Error> {
        let settings = Arc::new(Mutex::new(Settings::default()));
        let (log, faults) = (Log::new("identity"), Faults::default());
        let handler = imds::Imds::new(issuer.clone(), Arc::clone(&settings));
        let server = Server::start(port, None, Service::new(handler, &log, &faults))?;
        let service = Self { server, settings, issuer, log, faults };
        service.assign(identities)?;
        Ok(service)
    }

    /// What goes before `/metadata/identity/oauth2/token`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Replaces all identities. At most one may be system-assigned.
    pub fn assign(&self, identities: Vec<Identity>) -> Result<(), Error> {
        let system = |identity: &&Identity| identity.kind == IdentityKind::SystemAssigned;
        if identities.iter().filter(system).count() > 1 {
            return Err(Error::invalid("identities", "two are system-assigned"));
        }
        lock(&self.settings).assigned = identities;
        Ok(())
    }

    pub fn identities(&self) -> Vec<Identity> {
        lock(&self.settings).assigned.clone()
    }

    /// Seconds that tokens live from now on.
    pub fn set_token_life(&self, seconds: i64) {
        self.issuer.set_token_life(seconds);
    }

    /// Adds `refresh_in` to the answers, as some endpoints do.
    pub fn set_refresh_in(&self, seconds: Option<i64>) {
        lock(&self.settings).refresh_in = seconds;
    }

    /// Pads tokens to exactly this many bytes from now on.
    pub fn set_token_size(&self, bytes: Option<usize>) {
        lock(&self.settings).token_size = bytes;
    }

    /// Answers as Container Instances do, which know one spelling of a resource id's parameter, ignore the other, and
    /// refuse a request without the header in plain text.
    pub fn set_container_instances(&self, on: bool) {
        lock(&self.settings).container_instances = on;
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}
