//! The bodies of control commands.

use serde::{Deserialize, Deserializer};

use crate::fault::Rule;
use crate::identity::Identity;
use crate::vault::{Attributes, Network, VaultOperation};

/// `{"service": "identity", "fault": {"kind": "status", "status": 503}, "times": 3, "filter": {"query": "..."}}`
#[derive(Deserialize)]
pub(super) struct AddFault {
    pub service: String,
    #[serde(flatten)]
    pub rule: Rule,
}

/// `{"service": "proxy"}`; none is all of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Selection {
    #[serde(default)]
    pub service: Option<String>,
}

/// `{"system_assigned": true, "user_assigned": ["keys"]}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Assign {
    #[serde(default)]
    system_assigned: bool,
    #[serde(default)]
    user_assigned: Vec<String>,
}

impl Assign {
    pub(super) fn identities(&self) -> Vec<Identity> {
        let system = self.system_assigned.then(Identity::system);
        let user = self.user_assigned.iter().map(|name| Identity::user(name));
        system.into_iter().chain(user).collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenLife {
    pub seconds: i64,
}

/// `{"name": "kek"}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    pub name: String,
}

/// `{"name": "kek", "enabled": false, "exp": null}`; what is not named stays, and no version is the newest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeKey {
    pub name: String,
    #[serde(default)]
    pub version: Option<String>,
    #[serde(default)]
    enabled: Option<bool>,
    #[serde(default, deserialize_with = "named")]
    nbf: Option<Option<i64>>,
    #[serde(default, deserialize_with = "named")]
    exp: Option<Option<i64>>,
}

impl ChangeKey {
    pub(super) fn apply(&self, attributes: &mut Attributes) {
        attributes.enabled = self.enabled.unwrap_or(attributes.enabled);
        attributes.nbf = self.nbf.unwrap_or(attributes.nbf);
        attributes.exp = self.exp.unwrap_or(attributes.exp);
    }
}

/// Tells a null from a field that is not there.
fn named<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Option<i64>>, D::Error> {
    Option::deserialize(field).map(Some)
}

/// `{"identity": "<client or object id>", "operations": ["unwrapKey"]}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Permission {
    pub identity: String,
    pub operations: Vec<VaultOperation>,
}

/// `{"network": "firewall"}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetNetwork {
    pub network: Network,
}

/// `{"show": false}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowDisabledKeys {
    pub show: bool,
}

/// One object, or an array of them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore<T> {
    More(Vec<T>),
    One(T),
}

impl<T> OneOrMore<T> {
    pub(super) fn into_vec(self) -> Vec<T> {
        match self {
            Self::More(all) => all,
            Self::One(one) => vec![one],
        }
    }
}
