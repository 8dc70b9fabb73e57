//! The log as numbers: how often each identity was asked for each resource.

use std::collections::BTreeMap;

use serde::Serialize;

use super::State;

/// The counts of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub service: &'static str,
    pub requests: usize,
    pub without_bearer: usize,
    pub held: usize,
    pub connections: usize,
    pub accepted: u64,
    /// How many requests got which status.
    pub by_status: BTreeMap<u16, usize>,
    /// The identity service alone: the tokens issued.
    pub by_identity: Vec<IdentityCount>,
}

/// How often one identity got a token for one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentityCount {
    pub identity: String,
    pub resource: String,
    pub requests: usize,
}

impl Counters {
    pub(super) fn of(service: &'static str, state: &State) -> Self {
        let requests = state.requests();
        let mut by_status = BTreeMap::new();
        let mut by_identity: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for entry in requests {
            if let Some(status) = entry.status {
                *by_status.entry(status).or_default() += 1;
            }
            if let (Some(identity), Some(resource)) = (&entry.identity, &entry.resource) {
                *by_identity.entry((identity, resource)).or_default() += 1;
            }
        }
        let without_bearer = |entry: &&super::Entry| entry.bearer.is_none();
        Self {
            service,
            requests: requests.len(),
            without_bearer: requests.iter().filter(without_bearer).count(),
            held: state.held(),
            connections: state.connections(),
            accepted: state.accepted(),
            by_status,
            by_identity: by_identity
                .into_iter()
                .map(|((identity, resource), requests)| IdentityCount {
                    identity: identity.to_owned(),
                    resource: resource.to_owned(),
                    requests,
                })
                .collect(),
        }
    }

    /// The tokens issued to `identity` for `resource`.
    pub fn issued(&self, identity: &str, resource: &str) -> usize {
        let found = self.by_identity.iter().find(|count| count.identity == identity && count.resource == resource);
        found.map_or(0, |count| count.requests)
    }
}
