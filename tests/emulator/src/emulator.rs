//! All services together, as tests start them.

use crate::entra::EntraService;
use crate::identity::{Identity, IdentityService};
use crate::issuer::{Issuer, IssuerService};
use crate::proxy::Proxy;
use crate::vault::{AUDIENCE, Key, Secret, VaultConfig, VaultService};
use crate::{Error, Pki};

/// The tenant of a [`Config`] that names none.
pub const TENANT: &str = "3f1b2c4d-0d7a-4b55-8f6e-6a1f0c9d2e10";

/// What an emulator is started with.
pub struct Config {
    pub pki: Pki,
    pub tenant: String,
    pub identities: Vec<Identity>,
    pub secrets: Vec<Secret>,
    pub keys: Vec<Key>,
    pub ports: Ports,
}

/// Ports on loopback; 0 is any free one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ports {
    pub identity: u16,
    pub issuer: u16,
    pub vault: u16,
}

impl Config {
    /// A machine with a system-assigned identity and no other, an empty vault, free ports.
    pub fn new(pki: Pki) -> Self {
        Self {
            pki,
            tenant: TENANT.to_owned(),
            identities: vec![Identity::system()],
            secrets: Vec::new(),
            keys: Vec::new(),
            ports: Ports::default(),
        }
    }
}

/// An issuer, the instance metadata service and a vault. They end when it is dropped, held connections too.
pub struct Emulator {
    pki: Pki,
    issuer: Issuer,
    documents: IssuerService,
    identity: IdentityService,
    vault: VaultService,
}

impl Emulator {
    pub fn start(config: Config) -> Result<Self, Error> {
        let issuer = Issuer::new(&config.tenant)?;
        let documents = IssuerService::start(issuer.clone(), config.ports.issuer)?;
        let identity = IdentityService::start(issuer.clone(), config.identities, config.ports.identity)?;
        let vault = VaultService::start(VaultConfig {
            pki: config.pki.clone(),
            tenant: config.tenant,
            jwks_uri: documents.jwks_uri(),
            audience: AUDIENCE.to_owned(),
            secrets: config.secrets,
            keys: config.keys,
            port: config.ports.vault,
        })?;
        Ok(Self { pki: config.pki, issuer, documents, identity, vault })
    }

    /// `http://127.0.0.1:PORT`, what the instance metadata service's address is replaced by.
    pub fn imds_endpoint(&self) -> String {
        self.identity.endpoint()
    }

    /// `https://127.0.0.1:PORT`
    pub fn vault_uri(&self) -> String {
        self.vault.uri()
    }

    pub fn jwks_uri(&self) -> String {
        self.documents.jwks_uri()
    }

    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// The service of the issuer's documents.
    pub fn documents(&self) -> &IssuerService {
        &self.documents
    }

    pub fn identity(&self) -> &IdentityService {
        &self.identity
    }

    pub fn vault(&self) -> &VaultService {
        &self.vault
    }

    /// One more vault of the same tenant, empty; with [`crate::HSM_AUDIENCE`] it takes a managed HSM's tokens.
    pub fn another_vault(&self, audience: &str) -> Result<VaultService, Error> {
        VaultService::start(VaultConfig {
            pki: self.pki.clone(),
            tenant: self.issuer.tenant().to_owned(),
            jwks_uri: self.documents.jwks_uri(),
            audience: audience.to_owned(),
            secrets: Vec::new(),
            keys: Vec::new(),
            port: 0,
        })
    }

    /// From now on the vault answers every token that was issued so far with a challenge for a newer one.
    pub fn require_new_tokens(&self) {
        self.vault.revoke_tokens(self.issuer.issued_tokens());
    }

    /// A proxy before `upstream` (`https://host:port`), trusting this emulator's authority alone.
    pub fn proxy(&self, upstream: &str) -> Result<Proxy, Error> {
        Proxy::start(&self.pki, upstream, 0)
    }

    /// An authority, with this emulator's tenant in it.
    pub fn entra(&self) -> Result<EntraService, Error> {
        let entra = EntraService::start(&self.pki, 0)?;
        entra.add_tenant(self.issuer.clone());
        Ok(entra)
    }

    /// Every token ever issued, for a search in what must not hold one.
    pub fn issued_tokens(&self) -> Vec<String> {
        self.issuer.issued_tokens()
    }
}
