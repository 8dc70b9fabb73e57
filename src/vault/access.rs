//! What an `azure_key_vault` server allows: its vault, operations and names.

use url::Url;

use crate::http::destination::Destination;
use crate::http::failure::{Failure, Kind};
use crate::identity::hosts::Hosts;
use crate::identity::{Cloud, Resource};

/// The words of option `allow`.
pub const OPERATIONS: [&str; 9] =
    ["secrets", "keys", "wrap", "unwrap", "encrypt", "decrypt", "sign", "verify", "data-keys"];
const DEFAULT_OPERATIONS: &str = "keys,data-keys";

/// What option `api_version` may say. The data plane knows no default; all of them agree in what is asked for here.
const API_VERSIONS: [&str; 4] = ["7.4", "7.5", "7.6", "2025-07-01"];
const DEFAULT_API_VERSION: &str = "2025-07-01";

/// A vault and what may be done there through one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultAccess {
    pub destination: Destination,
    /// What the token must be for. From our table, never from the vault's challenge: a host that may
    /// choose the audience may ask for a token of another service.
    pub resource: Resource,
    is_hsm: bool,
    api_version: String,
    operations: Vec<String>,
    names: Option<Vec<String>>,
    /// Whether rows of data keys without a signature are accepted.
    pub unsigned_keys: bool,
}

impl VaultAccess {
    /// Reads a server's options. 22023 for a bad value or a vault outside the cloud and the list.
    pub fn from_options<'o>(
        options: impl IntoIterator<Item = (&'o str, &'o str)>,
        cloud: Cloud,
        hosts: &Hosts,
    ) -> Result<Self, Failure> {
        let (mut vault_uri, mut allow, mut names, mut api_version) =
            (None, DEFAULT_OPERATIONS, None, DEFAULT_API_VERSION);
        let mut unsigned_keys = false;
        for (name, value) in options {
            match name {
                "vault_uri" => vault_uri = Some(value),
                "allow" => allow = value,
                "names" => names = Some(value),
                "api_version" => api_version = value,
                "unsigned_keys" if value == "allow" => unsigned_keys = true,
                "unsigned_keys" => {
                    return Err(Failure::new(Kind::InvalidValue, "invalid value for option \"unsigned_keys\"")
                        .hint("It is allow, or the option is not there."));
                }
                _ => {}
            }
        }
        let Some(vault_uri) = vault_uri else {
            return Err(Failure::new(Kind::InvalidValue, "option \"vault_uri\" is required")
                .hint("Give the vault's URI, such as https://payroll.vault.azure.net."));
        };
        let (destination, alias) = vault(vault_uri, cloud, hosts)?;
        let (resource, is_hsm) = (Resource::parse(alias, cloud)?, alias == MANAGED_HSM);
        if !API_VERSIONS.contains(&api_version) {
            return Err(Failure::new(Kind::InvalidValue, "invalid value for option \"api_version\"")
                .hint(format!("It is one of {}.", API_VERSIONS.join(", "))));
        }
        let names = names.map(name_patterns).transpose()?;
        let (operations, api_version) = (operations(allow)?, api_version.into());
        Ok(Self { destination, resource, is_hsm, api_version, operations, names, unsigned_keys })
    }

    /// The URL of an object or an operation on it. `segments` are of our own making or were checked: see
    /// [`is_object_name`] and [`is_version`].
    pub fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.destination.base().clone();
        url.set_path(&segments.join("/"));
        url.query_pairs_mut().append_pair("api-version", &self.api_version);
        url
    }

    pub fn api_version(&self) -> &str {
        &self.api_version
    }

    /// Whether the vault is a Managed HSM, whose roles have other names.
    pub fn is_hsm(&self) -> bool {
        self.is_hsm
    }

    /// Whether option `allow` has this word.
    pub fn allows(&self, operation: &str) -> bool {
        self.operations.iter().any(|allowed| allowed == operation)
    }

    /// Whether `operation` on the object `name` is allowed; 42501 otherwise.
    pub fn check(&self, operation: &str, name: &str) -> Result<(), Failure> {
        if !self.allows(operation) {
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

/// The aliases of the two kinds' resources.
const KEY_VAULT: &str = "key-vault";
const MANAGED_HSM: &str = "managed-hsm";

/// A vault is one label in front of the cloud's vault or HSM suffix, or a host of the list. With the alias of what its
/// token must be for.
fn vault(uri: &str, cloud: Cloud, hosts: &Hosts) -> Result<(Destination, &'static str), Failure> {
    let destination = Destination::parse(uri, "option \"vault_uri\"")?;
    let base = destination.base();
    let in_suffix = |suffix: &str| {
        let label = base.host_str().and_then(|host| host.strip_suffix(suffix)?.strip_suffix('.'));
        base.scheme() == "https"
            && base.port().is_none()
            && label.is_some_and(|label| !label.is_empty() && !label.contains('.'))
    };
    if base.path() != "/" {
        return Err(Failure::new(Kind::InvalidValue, "invalid value for option \"vault_uri\"")
            .hint("Give the vault alone, without a key or secret: https://payroll.vault.azure.net."));
    }
    if in_suffix(cloud.vault_suffix()) || (base.scheme() == "https" && hosts.cover(base)) {
        return Ok((destination, KEY_VAULT));
    }
    if in_suffix(cloud.hsm_suffix()) {
        return Ok((destination, MANAGED_HSM));
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

/// The 32 hexadecimal digits that tell one version of an object from the others.
pub fn is_version(version: &str) -> bool {
    version.len() == 32 && version.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// 22023 unless both are what a vault's object can be called, so that neither adds a path or a query to a URL.
pub fn check_object(what: &str, name: &str, version: Option<&str>) -> Result<(), Failure> {
    if !is_object_name(name) {
        return Err(Failure::new(Kind::InvalidValue, format!("invalid name of a {what}"))
            .detail("A name has 1 to 127 letters, digits and hyphens."));
    }
    if !version.is_none_or(is_version) {
        return Err(Failure::new(Kind::InvalidValue, format!("invalid version of a {what}"))
            .detail("A version has 32 hexadecimal digits."));
    }
    Ok(())
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
    fn each_cloud_has_its_vaults_and_their_audience() {
        for (cloud, vault, hsm) in [
            (Cloud::Public, "vault.azure.net", "managedhsm.azure.net"),
            (Cloud::UsGovernment, "vault.usgovcloudapi.net", "managedhsm.usgovcloudapi.net"),
            (Cloud::China, "vault.azure.cn", "managedhsm.azure.cn"),
        ] {
            for (suffix, is_hsm) in [(vault, false), (hsm, true)] {
                let uri = format!("https://payroll.{suffix}");
                let read = |cloud| VaultAccess::from_options([("vault_uri", uri.as_str())], cloud, &Hosts::default());
                let access = read(cloud).expect(&uri);
                assert_eq!((access.resource.as_str(), access.is_hsm()), (&*format!("https://{suffix}"), is_hsm));
                for other in [Cloud::Public, Cloud::UsGovernment, Cloud::China] {
                    assert_eq!(read(other).is_ok(), other == cloud, "{uri}");
                }
            }
        }
    }

    #[test]
    fn the_api_version_is_one_that_is_known() {
        let uri = ("vault_uri", "https://payroll.vault.azure.net");
        let query = |options: &[_]| access(options).map(|access| access.url(&["keys"]).query().map(str::to_owned));
        assert_eq!(query(&[uri]).expect("the default").as_deref(), Some("api-version=2025-07-01"));
        for version in API_VERSIONS {
            let found = query(&[uri, ("api_version", version)]).expect(version);
            assert_eq!(found, Some(format!("api-version={version}")));
        }
        for version in ["", "7.3", "2016-10-01", "2026-03-01-preview", "7.4&x=y", " 7.4"] {
            assert_eq!(access(&[uri, ("api_version", version)]).expect_err(version).kind, Kind::InvalidValue);
        }
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
