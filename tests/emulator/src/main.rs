//! The emulator stand-alone: `emulator serve` prints its endpoints as one line of JSON, and runs until SIGTERM.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use emulator::{CA_CERTIFICATE, Config, Control, Emulator, Identity, LEAF_CERTIFICATE, LEAF_KEY, Pki, Ports, Proxy};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// An endpoint for development and tests: identities of a machine, a key vault, a proxy before a blob service.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the certificates that are missing, for a blob service that is to start first
    Pki {
        /// Where they are kept
        #[arg(long, value_name = "DIR")]
        state_dir: PathBuf,
    },
    /// Serves until SIGTERM or SIGINT; ports that are not given are free ones
    Serve(Serve),
}

#[derive(Args)]
struct Serve {
    /// Where the certificates are kept; made there if missing
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    identity_port: u16,
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    issuer_port: u16,
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    vault_port: u16,
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    control_port: u16,
    #[arg(long, value_name = "PORT", default_value_t = 0, requires = "upstream")]
    proxy_port: u16,
    /// Starts a proxy before this, for instance a blob service's https://127.0.0.1:10000
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Gives the machine no identity of its own
    #[arg(long)]
    no_system_assigned: bool,
    /// Assigns a user-assigned identity; can be repeated
    #[arg(long, value_name = "NAME")]
    user_assigned: Vec<String>,
    /// A JSON array of secrets: [{"name": "db", "value": "..."}]
    #[arg(long, value_name = "FILE")]
    secrets: Option<PathBuf>,
    /// A JSON array of keys: [{"name": "kek", "kty": "RSA", "key_size": 3072}]
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Seconds that tokens live
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    token_life: i64,
}

fn main() -> Result<(), Box<dyn Error>> {
    match Cli::parse().command {
        Command::Pki { state_dir } => {
            Pki::load_or_create(&state_dir)?;
            print(&certificates(&state_dir))
        }
        Command::Serve(serve) => serve.run(),
    }
}

impl Serve {
    fn run(self) -> Result<(), Box<dyn Error>> {
        // Before the services, so that a signal meanwhile is not lost.
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let emulator = Arc::new(Emulator::start(self.config()?)?);
        emulator.identity().set_token_life(self.token_life);
        let upstream = self.upstream.as_deref();
        let start = |upstream| Proxy::start(emulator.pki(), upstream, self.proxy_port);
        let proxy = upstream.map(start).transpose()?.map(Arc::new);
        let control = Control::start(Arc::clone(&emulator), proxy.clone(), self.control_port)?;
        let mut endpoints = certificates(&self.state_dir);
        endpoints["imds_endpoint"] = emulator.imds_endpoint().into();
        endpoints["vault_uri"] = emulator.vault_uri().into();
        endpoints["jwks_uri"] = emulator.jwks_uri().into();
        endpoints["proxy"] = json!(proxy.as_ref().map(|proxy| proxy.endpoint()));
        endpoints["control"] = control.endpoint().into();
        endpoints["tenant"] = emulator.issuer().tenant().into();
        endpoints["identities"] = json!(emulator.identity().identities());
        print(&endpoints)?;
        signals.forever().next();
        Ok(())
    }

    fn config(&self) -> Result<Config, Box<dyn Error>> {
        let mut config = Config::new(Pki::load_or_create(&self.state_dir)?);
        let system = (!self.no_system_assigned).then(Identity::system);
        let user = self.user_assigned.iter().map(|name| Identity::user(name));
        config.identities = system.into_iter().chain(user).collect();
        config.secrets = array(self.secrets.as_deref())?;
        config.keys = array(self.keys.as_deref())?;
        config.ports = Ports { identity: self.identity_port, issuer: self.issuer_port, vault: self.vault_port };
        Ok(config)
    }
}

/// What the file lists; nothing without a file.
fn array<T: DeserializeOwned>(file: Option<&Path>) -> Result<Vec<T>, Box<dyn Error>> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let about = |error: &dyn Error| format!("{}: {error}", file.display());
    let text = fs::read(file).map_err(|error| about(&error))?;
    Ok(serde_json::from_slice(&text).map_err(|error| about(&error))?)
}

fn certificates(dir: &Path) -> Value {
    json!({
        "ca_certificate": dir.join(CA_CERTIFICATE),
        "leaf_certificate": dir.join(LEAF_CERTIFICATE),
        "leaf_key": dir.join(LEAF_KEY),
    })
}

fn print(line: &Value) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
