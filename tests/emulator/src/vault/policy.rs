//! What a vault's owner allows: to whom, and from where.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::operation::VaultOperation;
use super::refusal::Refusal;

/// Stands for every identity in [`super::VaultService::deny`].
pub const ANYONE: &str = "*";

const RESOURCE: &str = "/subscriptions/5ad5d2c1-5b1f-4a3e-9f5e-2f0f6f1a7c11/resourcegroups/emulator/providers/microsoft.keyvault/vaults/emulator";

/// Which machines the vault serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    #[default]
    Open,
    /// Other addresses than the client's.
    Firewall,
    /// Private endpoints only.
    Private,
}

/// Who asks, as the token says.
pub(super) struct Caller {
    pub appid: String,
    pub oid: String,
    pub iss: String,
}

#[derive(Default)]
pub(super) struct Policy {
    pub network: Network,
    pub refuses_to_show_disabled_keys: bool,
    denied: BTreeSet<(String, VaultOperation)>,
}

impl Policy {
    pub(super) fn deny(&mut self, identity: &str, operation: VaultOperation) {
        self.denied.insert((identity.to_owned(), operation));
    }

    pub(super) fn allow_again(&mut self, identity: &str, operation: VaultOperation) {
        self.denied.remove(&(identity.to_owned(), operation));
    }

    /// `object` is its path below the vault.
    pub(super) fn check(&self, caller: &Caller, operation: VaultOperation, object: &str) -> Result<(), Refusal> {
        let Caller { appid, oid, iss } = caller;
        let from = "Client address: 127.0.0.1";
        let caller = format!("Caller: appid={appid};oid={oid};iss={iss}");
        let vault = "Vault: emulator;location=emulator";
        match self.network {
            Network::Open => {}
            Network::Firewall => {
                let what = "Client address is not authorized and caller is not a trusted service.";
                let message = format!("{what}\r\n{from}\r\n{caller}\r\n{vault}");
                return Err(Refusal::forbidden("ForbiddenByFirewall", message));
            }
            Network::Private => {
                let what = "Public network access is disabled and request is not from a trusted service nor via an approved private link.";
                let message = format!("{what}\r\n{caller}\r\n{vault}");
                return Err(Refusal::forbidden("ForbiddenByConnection", message));
            }
        }
        let denied = |identity: &str| self.denied.contains(&(identity.to_owned(), operation));
        if ![ANYONE, appid, oid].into_iter().any(denied) {
            return Ok(());
        }
        let what = "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role definitions were changed recently, please observe propagation time.";
        let action = operation.action();
        let reason = "Assignment: (not found)\r\nDenyAssignmentId: null\r\nDecisionReason: 'DeniedWithNoValidRBAC' ";
        let message = format!(
            "{what}\r\n{caller}\r\nAction: '{action}'\r\nResource: '{RESOURCE}/{object}'\r\n{reason}\r\n{vault}\r\n"
        );
        Err(Refusal::forbidden("ForbiddenByRbac", message))
    }
}
