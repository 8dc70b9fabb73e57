//! Microsoft Entra's token endpoint for federated credentials: a token of an OIDC issuer that an identity
//! trusts is exchanged for an access token.

mod exchange;
mod oidc;
mod refusal;

use std::sync::{Arc, Mutex};

pub use oidc::OidcIssuer;

use crate::error::lock;
use crate::fault::Faults;
use crate::http::{Server, Service};
use crate::issuer::Issuer;
use crate::log::Log;
use crate::{Error, Identity, Pki};

/// The audience that Azure recommends for federated tokens.
pub const EXCHANGE: &str = "api://AzureADTokenExchange";

/// A running authority, over https on loopback.
pub struct EntraService {
    server: Server,
    directory: Arc<Mutex<Directory>>,
    log: Log,
    faults: Faults,
}

#[derive(Default)]
struct Directory {
    tenants: Vec<Tenant>,
    refresh_in: Option<i64>,
}

/// A tenant, and the federated credentials of its identities.
struct Tenant {
    issuer: Issuer,
    credentials: Vec<Credential>,
}

struct Credential {
    identity: Identity,
    issuer: OidcIssuer,
    subject: String,
}

impl EntraService {
    /// An authority without tenants; port 0 is any free one.
    pub fn start(pki: &Pki, port: u16) -> Result<Self, Error> {
        let directory = Arc::new(Mutex::new(Directory::default()));
        let (log, faults) = (Log::new("entra"), Faults::default());
        let handler = exchange::Exchange::new(Arc::clone(&directory));
        let server = Server::start(port, Some(pki.server_config()?), Service::new(handler, &log, &faults))?;
        Ok(Self { server, directory, log, faults })
    }

    /// `https://127.0.0.1:PORT`
    pub fn authority(&self) -> String {
        format!("https://{}", self.server.address())
    }

    /// Adds a tenant, whose tokens `issuer` signs.
    pub fn add_tenant(&self, issuer: Issuer) {
        lock(&self.directory).tenants.push(Tenant { issuer, credentials: Vec::new() });
    }

    /// Gives an identity of a tenant a federated credential: it trusts this subject of this issuer.
    pub fn trust(&self, tenant: &str, identity: &Identity, issuer: &OidcIssuer, subject: &str) -> Result<(), Error> {
        let mut directory = lock(&self.directory);
        let found = directory.tenants.iter_mut().find(|known| known.issuer.tenant() == tenant);
        let found = found.ok_or_else(|| Error::invalid("tenant", "it was not added"))?;
        found.credentials.push(Credential {
            identity: identity.clone(),
            issuer: issuer.clone(),
            subject: subject.to_owned(),
        });
        Ok(())
    }

    /// Adds `refresh_in` to the answers.
    pub fn set_refresh_in(&self, seconds: Option<i64>) {
        lock(&self.directory).refresh_in = seconds;
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}
