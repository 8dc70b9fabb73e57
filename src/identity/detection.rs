//! Where tokens come from on this machine, and what says so.

use super::authority::Authority;
use super::environment::Environment;
use super::imds::Imds;
use super::{Cloud, Identity};
use crate::http::failure::Failure;
use crate::http::failure::Kind::InvalidValue;

/// A kind of endpoint that issues tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceName {
    Imds,
    WorkloadIdentity,
}

impl SourceName {
    /// As settings, options and views call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Imds => "imds",
            Self::WorkloadIdentity => "workload_identity",
        }
    }

    /// 22023 for anything else.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        [Self::Imds, Self::WorkloadIdentity].into_iter().find(|source| source.as_str() == text).ok_or_else(|| {
            Failure::new(InvalidValue, "invalid value for option \"source\"").hint("It is imds or workload_identity.")
        })
    }
}

/// What settings and environment say of this machine: the same for all of its identities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub imds: Imds,
    /// `None`: detected.
    pub source: Option<SourceName>,
    /// `None`: the environment's, else the cloud's.
    pub authority: Option<Authority>,
    pub environment: Environment,
    pub cloud: Cloud,
}

/// What chose a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The server's option `source`.
    Option,
    /// The server's other options, or its kind.
    Options,
    /// `managed_identity.source`.
    Setting,
    /// The variables that this source needs are set.
    Environment,
    /// Nothing names another one.
    NothingElse,
}

impl Machine {
    /// The source of an identity that names none: workload identity where its variables are set, as
    /// Azure's own clients decide.
    pub fn detected(&self) -> SourceName {
        self.own().0
    }

    /// The source of an identity, and why.
    pub fn chosen(&self, identity: &Identity) -> (SourceName, Reason) {
        match identity.source {
            Some(source) => (source, Reason::Option),
            None if identity.asks_for_federated() => (SourceName::WorkloadIdentity, Reason::Options),
            None => self.own(),
        }
    }

    fn own(&self) -> (SourceName, Reason) {
        match self.source {
            Some(source) => (source, Reason::Setting),
            None if self.environment.has_workload_identity() => (SourceName::WorkloadIdentity, Reason::Environment),
            None => (SourceName::Imds, Reason::NothingElse),
        }
    }
}
