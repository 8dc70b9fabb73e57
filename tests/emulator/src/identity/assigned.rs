//! Managed identities: who the machine can be.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

const SUBSCRIPTION: &str = "5ad5d2c1-5b1f-4a3e-9f5e-2f0f6f1a7c11";
const RESOURCE_GROUP: &str = "emulator";

/// How an identity comes to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityKind {
    SystemAssigned,
    UserAssigned,
}

/// A managed identity. Its ids follow from its name, so that they stay the same from run to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub kind: IdentityKind,
    /// As the log and the counters call it.
    pub name: String,
    pub client_id: String,
    pub object_id: String,
    pub resource_id: String,
}

impl Identity {
    /// The machine's own; the log calls it `system`.
    pub fn system() -> Self {
        Self::named(IdentityKind::SystemAssigned, "system", "Microsoft.Compute/virtualMachines/emulator")
    }

    /// A user-assigned one.
    pub fn user(name: &str) -> Self {
        let provider = format!("Microsoft.ManagedIdentity/userAssignedIdentities/{name}");
        Self::named(IdentityKind::UserAssigned, name, &provider)
    }

    fn named(kind: IdentityKind, name: &str, provider: &str) -> Self {
        let id = |what: &str| {
            let seed = format!("{what}/{provider}");
            Uuid::new_v5(&Uuid::NAMESPACE_URL, seed.as_bytes()).to_string()
        };
        Self {
            kind,
            name: name.to_owned(),
            client_id: id("client"),
            object_id: id("object"),
            resource_id: format!("/subscriptions/{SUBSCRIPTION}/resourcegroups/{RESOURCE_GROUP}/providers/{provider}"),
        }
    }
}
