//! What an `azure_key_vault` server allows: its vault, operations and names.

use crate::http::destination::Destination;
use crate::http::failure::{Failure, Kind};
use crate::identity::hosts::Hosts;
use crate::identity::{Cloud, Resource};

/// The words of option `allow`.
pub const OPERATIONS: [&str; 9] =
    ["secrets", "keys", "wrap", "unwrap", "encrypt", "decrypt", "sign", "verify", "data-keys"];
const DEFAULT_OPERATIONS: &str = "keys,data-keys";

/// A vault and what may be done there through one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultAccess {
    pub destination: Destination,
    /// What the token must be for. From our table, never from the vault's challenge: a host that may
    /// choose the audience may ask for a token of another service.
    pub resource: Resource,
    operations: Vec<String>,
    names: Option<Vec<String>>,
}

impl VaultAccess {
    /// Reads a server's options. 22023 for a bad value or a vault outside the cloud and the list.
    pub fn from_options<'o>(
        options: impl IntoIterator<Item = (&'o str, &'o str)>,
        cloud: Cloud,
        hosts: &Hosts,
    ) -> Result<Self, Failure> {
        let (mut vault_uri, mut allow, mut names) = (None, DEFAULT_OPERATIONS, None);
        for (name, value) in options {
            match name {
                "vault_uri" => vault_uri = Some(value),
                "allow" => allow = value,
                "names" => names = Some(value),
                _ => {}
            }
        }
        let Some(vault_uri) = vault_uri else {
            return Err(Failure::new(Kind::InvalidValue, "option \"vault_uri\" is required")
                .hint("Give the vault's URI, such as https://payroll.vault.azure.net."));
        };
        let (destination, resource) = vault(vault_uri, cloud, hosts)?;
        Ok(Self { destination, resource, operations: operations(allow)?, names: names.map(name_patterns).transpose()? })
    }

    /// Whether `operation` on the object `name` is allowed; 42501 otherwise.
    pub fn check(&self, operation: &str, name: &str) -> Result<(), Failure> {
        if !self.operations.iter().any(|allowed| allowed == operation) {
            return Err(Failure::new(Kind::Forbidden, format!("the server does not allow \"{operation}\""))
                .hint("The server's owner can add it to option allow."));
        }
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix)),
            None => name.eq_ignore_ascii_case(pattern),
        };
        if !self.names.as_ref().is_none_or(|names| names.iter().any(fits)) {
            return Err(Failure::new(Kind::Forbidden, format!("the server does not allow the name \"{name}\""))
                .hint("The server's owner can add it to option names."));
        }
        Ok(())
    }
}

/// A vault is one label in front of the cloud's vault or HSM suffix, or a host of the list.
fn vault(uri: &str, cloud: Cloud, hosts: &Hosts) -> Result<(Destination, Resource), Failure> {
    let destination = Destination::parse(uri, "option \"vault_uri\"")?;
    let base = destination.base();
    let in_suffix = |suffix: &str| {
        let label = base.host_str().and_then(|host| host.strip_suffix(suffix)?.strip_suffix('.'));
        base.scheme() == "https"
            && base.port().is_none()
            && label.is_some_and(|label| !label.is_empty() && !label.contains('.'))
    };
    let resource = |alias| Resource::parse(alias, cloud);
    if base.path() != "/" {
        return Err(Failure::new(Kind::InvalidValue, "invalid value for option \"vault_uri\"")
            .hint("Give the vault alone, without a key or secret: https://payroll.vault.azure.net."));
    }
    if in_suffix(cloud.vault_suffix()) || (base.scheme() == "https" && hosts.cover(base)) {
        return Ok((destination, resource("key-vault")?));
    }
    if in_suffix(cloud.hsm_suffix()) {
        return Ok((destination, resource("managed-hsm")?));
    }
    Err(Failure::new(Kind::InvalidValue, "option \"vault_uri\" names no vault of the configured cloud").hint(format!(
        "A vault is https://<name>.{} or a host of managed_identity.key_vault_hosts.",
        cloud.vault_suffix()
    )))
}

fn operations(allow: &str) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for word in allow.split(',').map(str::trim) {
        if !OPERATIONS.contains(&word) {
            return Err(Failure::new(Kind::InvalidValue, format!("invalid value for option \"allow\": \"{word}\""))
                .hint(format!("Give a comma-separated list of {}.", OPERATIONS.join(", "))));
        }
        found.push(word.to_owned());
    }
    Ok(found)
}

fn name_patterns(names: &str) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for pattern in names.split(',').map(str::trim) {
        let plain = pattern.strip_suffix('*').unwrap_or(pattern);
        if pattern.is_empty() || !(plain.is_empty() || is_object_name(plain)) {
            return Err(Failure::new(Kind::InvalidValue, format!("invalid value for option \"names\": \"{pattern}\""))
                .hint(
                    "Give a comma-separated list of names of letters, digits and hyphens; a trailing * is allowed.",
                ));
        }
        found.push(pattern.to_owned());
    }
    Ok(found)
}

/// Key Vault's rule for names of keys and secrets.
pub fn is_object_name(name: &str) -> bool {
    (1..=127).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(options: &[(&str, &str)]) -> Result<VaultAccess, Failure> {
        let hosts = Hosts::parse("127.0.0.1").expect("hosts");
        VaultAccess::from_options(options.iter().copied(), Cloud::Public, &hosts)
    }

    #[test]
    fn only_vaults_of_the_cloud_and_of_the_list() {
        let vault = access(&[("vault_uri", "https://payroll.vault.azure.net/")]).expect("a vault");
        assert_eq!(vault.resource.as_str(), "https://vault.azure.net");
        let hsm = access(&[("vault_uri", "https://payroll.managedhsm.azure.net")]).expect("an HSM");
        assert_eq!(hsm.resource.as_str(), "https://managedhsm.azure.net");
        access(&[("vault_uri", "https://127.0.0.1:8443")]).expect("listed");
        for uri in [
            "https://vault.azure.net",
            "https://a.b.vault.azure.net",
            "https://payroll.vault.azure.net.evil.com",
            "https://payroll.vault.azure.net:8443",
            "https://payroll.vault.azure.net/secrets/x",
            "https://payroll.vault.azure.cn",
            "http://127.0.0.1:8443",
            "https://evilvault.azure.net",
        ] {
            assert_eq!(access(&[("vault_uri", uri)]).expect_err(uri).kind, Kind::InvalidValue);
        }
        access(&[]).expect_err("vault_uri is required");
    }

    #[test]
    fn secrets_must_be_allowed_and_names_fit() {
        let uri = ("vault_uri", "https://payroll.vault.azure.net");
        let default = access(&[uri]).expect("a vault");
        assert_eq!(default.check("secrets", "x").expect_err("not by default").kind, Kind::Forbidden);
        default.check("keys", "x").expect("by default");
        let some = access(&[uri, ("allow", "secrets"), ("names", "db-*, Mail")]).expect("a vault");
        some.check("secrets", "DB-password").expect("names know no case");
        some.check("secrets", "mail").expect("listed");
        assert_eq!(some.check("secrets", "mail2").expect_err("not listed").kind, Kind::Forbidden);
        access(&[uri, ("allow", "everything")]).expect_err("no such word");
        access(&[uri, ("names", "a/b")]).expect_err("no such name");
    }
}
