//! What is asked of a vault.

use managed_identity::http::failure::Failure;
use managed_identity::http::request::{Answer, Request};
use managed_identity::identity::hosts::Hosts;
use managed_identity::vault::access::VaultAccess;
use managed_identity::vault::kid::Kid;
use managed_identity::vault::operation::{self, Done, KeyOperation};
use managed_identity::vault::{ask, refusal, secret};
use zeroize::Zeroizing;

use crate::arguments::{Asking as GivenAsking, GetSecret, UnwrapKey, Vault};
use crate::identity::Asking;

/// A request to a vault, and how its answer is read.
pub struct Asked<T> {
    access: VaultAccess,
    request: Request,
    name: String,
    read: fn(&VaultAccess, &Answer, &str) -> Result<T, Failure>,
}

impl<T> Asked<T> {
    pub async fn answered(mut self, asking: &Asking) -> Result<T, Failure> {
        let mut answer = self.sent(asking).await?;
        // It asks for a newer one after a change at the identity.
        if refusal::wants_a_new_token(&answer) {
            answer = self.sent(asking).await?;
        }
        (self.read)(&self.access, &answer, &self.name)
    }

    async fn sent(&mut self, asking: &Asking) -> Result<Answer, Failure> {
        let token = asking.token(&self.access.resource).await?;
        asking.whom.set("the vault");
        ask::ask(&self.access, &asking.options, &mut self.request, &token, asking.timeout, &asking.traffic).await
    }
}

/// The vault, if it is one of the cloud or of the hosts that are named beside.
fn access(vault: &Vault, asking: &GivenAsking, allow: &str) -> Result<VaultAccess, Failure> {
    let hosts = Hosts::parse(&vault.vault_host.join(","))?;
    let version = vault.api_version.as_deref().map(|version| ("api_version", version));
    let options = [("vault_uri", vault.vault.as_str()), ("allow", allow)].into_iter().chain(version);
    VaultAccess::from_options(options, asking.cloud(), &hosts)
}

pub fn secret(given: &GetSecret) -> Result<Asked<Zeroizing<String>>, Failure> {
    let access = access(&given.vault, &given.asking, "secrets")?;
    let request = secret::request(&access, &given.name, given.version.as_deref())?;
    Ok(Asked { access, request, name: given.name.clone(), read: secret::read })
}

/// A key of a vault that is to unwrap another one.
pub struct Unwrapping<'g> {
    access: VaultAccess,
    name: String,
    version: Option<String>,
    algorithm: &'g str,
}

impl<'g> Unwrapping<'g> {
    pub fn new(given: &'g UnwrapKey) -> Result<Self, Failure> {
        let access = access(&given.vault, &given.asking, "unwrap")?;
        let (name, version) = match &given.kid {
            Some(kid) => {
                let kid = Kid::parse(kid, &access)?;
                (kid.name().to_owned(), Some(kid.version().to_owned()))
            }
            None => (given.key.clone().unwrap_or_default(), given.version.clone()),
        };
        let unwrapping = Self { access, name, version, algorithm: &given.algorithm };
        unwrapping.request(&[])?;
        Ok(unwrapping)
    }

    fn request(&self, wrapped: &[u8]) -> Result<Request, Failure> {
        let (name, version) = (&self.name, self.version.as_deref());
        operation::request(&self.access, KeyOperation::Unwrap, name, version, self.algorithm, wrapped)
    }

    /// The request to unwrap this.
    pub fn of(self, wrapped: &[u8]) -> Result<Asked<Done>, Failure> {
        let request = self.request(wrapped)?;
        let read = |access: &VaultAccess, answer: &Answer, name: &str| {
            operation::read(access, KeyOperation::Unwrap, answer, name)
        };
        Ok(Asked { access: self.access, request, name: self.name, read })
    }
}
