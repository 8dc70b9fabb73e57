//! The endpoint that development and tests run against: a token issuer, the instance metadata service of a
//! machine, Entra's exchange of federated tokens, a key vault, and a proxy before a blob service; all on
//! loopback, each with a log and with faults on demand.
//!
//! The library is blocking: each service has a thread and a runtime of its own and ends when it is dropped.
//!
//! ```
//! use std::time::Duration;
//! use emulator::{Config, Emulator, Fault, Filter, Identity, Pki, Rule, Secret};
//!
//! # fn main() -> Result<(), emulator::Error> {
//! let mut config = Config::new(Pki::create()?);
//! config.identities = vec![Identity::system(), Identity::user("keys")];
//! config.secrets = vec![Secret::new("db-password", "hunter2")];
//! let emulator = Emulator::start(config)?;
//! println!("{} {}", emulator.imds_endpoint(), emulator.vault_uri());
//!
//! // The next request for `keys` gets no answer until released; all others are served as usual.
//! let keys = Identity::user("keys").client_id;
//! let hang = Rule::new(Fault::HangBeforeHeaders).times(1).when(Filter::query(&keys));
//! emulator.identity().faults().add(hang);
//! # let client = std::net::TcpStream::connect(emulator.imds_endpoint().trim_start_matches("http://"));
//! # let mut client = client.map_err(|error| emulator::Error::Io { what: "connect".into(), source: error })?;
//! # let path = format!("/metadata/identity/oauth2/token?client_id={keys}");
//! # let sent = std::io::Write::write_all(&mut client, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
//! # sent.map_err(|error| emulator::Error::Io { what: "send".into(), source: error })?;
//! // ... a client asks, gives up, and goes away ...
//! # drop(client);
//! emulator.identity().log().wait_for_held(1, Duration::from_secs(10))?;
//! assert_eq!(emulator.identity().log().held(), 1); // the connection is still open at this end
//! emulator.identity().faults().release();
//! # Ok(())
//! # }
//! ```

mod control;
mod emulator;
mod entra;
mod error;
mod fault;
mod http;
mod identity;
mod issuer;
mod listeners;
mod log;
mod pki;
mod proxy;
mod tunnels;
mod vault;

pub use control::Control;
pub use emulator::{Config, Emulator, Ports, TENANT};
pub use entra::{EXCHANGE, EntraService, OidcIssuer};
pub use error::Error;
pub use fault::{Callback, Fault, Faults, Filter, Reply, Rule};
pub use identity::{Identity, IdentityKind, IdentityService};
pub use issuer::{Issuer, IssuerService, Jwks, Token, TokenRefused, TokenRequest};
pub use listeners::{NeverAccepts, Refuses, ResetOnAccept, TlsNeverAnswers};
pub use log::{Counters, Ending, Entry, IdentityCount, Log, State};
pub use pki::{CA_CERTIFICATE, CA_KEY, LEAF_CERTIFICATE, LEAF_KEY, Leaf, Pki};
pub use proxy::Proxy;
pub use tunnels::Tunnels;
pub use vault::{
    ANYONE, AUDIENCE, Attributes, HSM_AUDIENCE, Key, KeyType, Network, Secret, VaultConfig, VaultOperation,
    VaultService,
};
