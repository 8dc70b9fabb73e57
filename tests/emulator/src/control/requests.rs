//! The bodies of control commands.

use serde::Deserialize;

use crate::fault::Rule;
use crate::identity::Identity;

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
