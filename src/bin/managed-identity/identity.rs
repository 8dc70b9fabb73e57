//! Who asks: the identity that the arguments and the environment name, and how requests are made.

use std::cell::Cell;
use std::time::Duration;

use managed_identity::http::client::Options;
use managed_identity::http::failure::Failure;
use managed_identity::http::roots::CaFile;
use managed_identity::http::traffic::Traffic;
use managed_identity::identity::environment::Environment;
use managed_identity::identity::fetch::fetch;
use managed_identity::identity::imds::Imds;
use managed_identity::identity::{Identity, Machine, Resource, Source};
use managed_identity::token::AccessToken;

use crate::arguments;

/// The version of the instance metadata service's API that every Azure machine knows.
const IMDS_API_VERSION: &str = "2018-02-01";

/// An identity that can be asked for tokens.
pub struct Asking {
    source: Source,
    pub options: Options,
    /// For everything together.
    pub timeout: Duration,
    /// Nobody reads it: the server counts, this command asks once.
    pub traffic: Traffic,
    /// Who was asked last, for who waits in vain.
    pub whom: Cell<&'static str>,
}

impl Asking {
    pub fn new(given: &arguments::Asking) -> Result<Self, Failure> {
        let options = [
            ("client_id", &given.client_id),
            ("object_id", &given.object_id),
            ("resource_id", &given.resource_id),
            ("kind", &given.kind),
            ("source", &given.source),
            ("tenant_id", &given.tenant_id),
            ("token_file", &given.token_file),
            ("authority", &given.authority),
        ];
        let options = options.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let machine = Machine {
            imds: Imds::new(&given.imds_endpoint, IMDS_API_VERSION)?,
            source: None,
            authority: None,
            environment: Environment::read(|name| std::env::var(name).ok()),
            cloud: given.cloud(),
        };
        let source = machine.source_of(&Identity::from_options(options, given.cloud())?)?;
        let timeout = given.timeout();
        // The bound of all is the one that is met: it knows how long everything has taken.
        let each = timeout + Duration::from_secs(1);
        let ca_file = given.ca_file.as_deref().map(CaFile::look).transpose()?;
        let options = Options { connect_timeout: each, request_timeout: each, ca_file };
        Ok(Self { source, options, timeout, traffic: Traffic::default(), whom: Cell::new("") })
    }

    pub async fn token(&self, resource: &Resource) -> Result<AccessToken, Failure> {
        self.whom.set("the identity endpoint");
        fetch(&self.source, resource, &self.options, self.timeout, &self.traffic)
            .await
            .map_err(|refusal| refusal.failure)
    }
}
