//! What may be asked for, and how. Nothing here is secret: what is, comes from the machine, a file or standard input.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use managed_identity::identity::Cloud;

use crate::bytes::Encoding;

const EXIT_CODES: &str = "\
Exit codes:
   0  the value was written, whole
   2  the arguments contradict each other or cannot be right, or the value would be shown on a terminal
  65  what was read is no wrapped key, or not one of this key
  66  the secret, the key or the file of the wrapped key does not exist
  70  anything else, such as an answer that nobody understands
  74  the value could not be written, or the wrapped key not be read
  75  nobody answered, or the service failed or has too much to do: try again
  77  the identity was refused, or there is no such identity";

const KEY: &str = "Key";

/// Writes an access token, a secret or a key that a vault unwraps, got with the managed identity of this machine.
#[derive(Parser)]
#[command(name = "managed-identity", version, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    pub wish: Wish,
}

#[derive(Subcommand)]
pub enum Wish {
    /// Write an access token
    #[command(after_help = EXIT_CODES)]
    Token(Token),
    /// Write the value of a vault's secret
    #[command(after_help = EXIT_CODES)]
    GetSecret(GetSecret),
    /// Have a vault unwrap a key, and write it
    #[command(after_help = EXIT_CODES)]
    UnwrapKey(UnwrapKey),
}

#[derive(Args)]
pub struct Token {
    /// What the token is for: an alias such as storage or key-vault, a URI, or an application id
    #[arg(long)]
    pub resource: String,
    #[command(flatten)]
    pub asking: Asking,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct GetSecret {
    #[command(flatten)]
    pub vault: Vault,
    /// The secret's name
    #[arg(long)]
    pub name: String,
    /// Its version, of 32 hexadecimal digits; the newest where none is given
    #[arg(long)]
    pub version: Option<String>,
    #[command(flatten)]
    pub asking: Asking,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct UnwrapKey {
    #[command(flatten)]
    pub vault: Vault,
    /// The full identifier of the key that has wrapped it: https://<vault>/keys/<name>/<version>
    #[arg(long, help_heading = KEY, conflicts_with_all = ["key", "version"], required_unless_present = "key")]
    pub kid: Option<String>,
    /// The name of that key
    #[arg(long, help_heading = KEY, requires = "version")]
    pub key: Option<String>,
    /// The version of that key
    #[arg(long, help_heading = KEY, requires = "key")]
    pub version: Option<String>,
    /// By which it was wrapped: RSA-OAEP-256, RSA-OAEP, A256KW, A192KW or A128KW
    #[arg(long, help_heading = KEY, default_value = "RSA-OAEP-256")]
    pub algorithm: String,
    /// The file of the wrapped key; standard input where none is given
    #[arg(long = "in", help_heading = KEY, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// How the wrapped key is written
    #[arg(long, value_enum, help_heading = KEY, default_value_t = Encoding::Raw)]
    pub encoding: Encoding,
    /// How the key is to be written
    #[arg(long, value_enum, help_heading = "Output", default_value_t = Encoding::Raw)]
    pub encoding_out: Encoding,
    #[command(flatten)]
    pub asking: Asking,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
#[command(next_help_heading = "Vault")]
pub struct Vault {
    /// The vault or Managed HSM, such as https://payroll.vault.azure.net; no other host is given a token
    #[arg(long, value_name = "URL")]
    pub vault: String,
    /// A host beside the cloud's own that may be a vault, with an optional :port; may be given several times
    #[arg(long, value_name = "HOST")]
    pub vault_host: Vec<String>,
    /// The version of the vault's API [default: 2025-07-01]
    #[arg(long, value_name = "VERSION")]
    pub api_version: Option<String>,
}

/// The words of a `managed_identity` server's options. What none of them says comes from the environment
/// (AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE, AZURE_AUTHORITY_HOST), as it does in the server.
#[derive(Args)]
#[command(next_help_heading = "Identity, as the options of a managed_identity server")]
pub struct Asking {
    /// The user-assigned identity's client id; also AZURE_CLIENT_ID for workload identity
    #[arg(long, value_name = "GUID")]
    pub client_id: Option<String>,
    /// The user-assigned identity's object id
    #[arg(long, value_name = "GUID")]
    pub object_id: Option<String>,
    /// The user-assigned identity's full resource id
    #[arg(long, value_name = "ID")]
    pub resource_id: Option<String>,
    /// Refuse any other: system-assigned, user-assigned or workload-identity
    #[arg(long)]
    pub kind: Option<String>,
    /// Where the token comes from, imds or workload_identity, where that is not to be detected
    #[arg(long)]
    pub source: Option<String>,
    /// The tenant of a workload identity, else AZURE_TENANT_ID
    #[arg(long, value_name = "TENANT")]
    pub tenant_id: Option<String>,
    /// The file of the federated token, else AZURE_FEDERATED_TOKEN_FILE
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<String>,
    /// Who exchanges the federated token, else AZURE_AUTHORITY_HOST, else the cloud's
    #[arg(long, value_name = "URL")]
    pub authority: Option<String>,
    /// Where the instance metadata service is
    #[arg(long, value_name = "URL", default_value = "http://169.254.169.254", help_heading = "Asking")]
    pub imds_endpoint: String,
    /// The cloud whose hosts and resources are used
    #[arg(long, value_enum, default_value_t = CloudName::Public, help_heading = "Asking")]
    cloud: CloudName,
    /// A PEM file of the certificate authorities to trust; else SSL_CERT_FILE, else the system's own
    #[arg(long, value_name = "FILE", help_heading = "Asking")]
    pub ca_file: Option<PathBuf>,
    /// The longest wait for everything together, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Asking",
          value_parser = clap::value_parser!(u16).range(1..=3600))]
    timeout: u16,
}

impl Asking {
    pub fn cloud(&self) -> Cloud {
        match self.cloud {
            CloudName::Public => Cloud::Public,
            CloudName::UsGovernment => Cloud::UsGovernment,
            CloudName::China => Cloud::China,
        }
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum CloudName {
    Public,
    UsGovernment,
    China,
}

#[derive(Args)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// Write a line end behind the value
    #[arg(long)]
    pub newline: bool,
    /// Write to a terminal, too, where everybody can read it and it may be kept
    #[arg(long)]
    pub force_tty: bool,
}

impl Wish {
    pub fn output(&self) -> (&Output, Encoding) {
        match self {
            Self::Token(token) => (&token.output, Encoding::Raw),
            Self::GetSecret(secret) => (&secret.output, Encoding::Raw),
            Self::UnwrapKey(key) => (&key.output, key.encoding_out),
        }
    }
}
