//! A key identifier: `https://payroll.vault.azure.net/keys/kek/0123456789abcdef0123456789abcdef`, one version of a key.

use std::fmt::{self, Display};

use super::access::{VaultAccess, is_object_name, is_version};
use crate::http::failure::{Failure, Kind};

/// One version of a key of a server's vault. Its vault is the server's, whoever wrote it.
#[derive(Debug, Clone)]
pub struct Kid {
    /// Scheme, host, and the port where it is not the scheme's own.
    origin: String,
    name: String,
    /// 32 hexadecimal digits.
    version: String,
}

impl Kid {
    /// Reads what a user gives. 22023 unless it is a key of this very vault, spelled out: nothing is normalised that
    /// could be read as another host or another path by somebody else.
    pub fn parse(text: &str, access: &VaultAccess) -> Result<Self, Failure> {
        Self::read(text, access).ok_or_else(|| {
            Failure::new(Kind::InvalidValue, "invalid key identifier")
                .detail("It must name a key of the server's vault and its version.")
                .hint(format!("It looks like {}/keys/<name>/<32 hexadecimal digits>.", origin(access)))
        })
    }

    /// Reads what the vault answers.
    pub fn answered(text: &str, access: &VaultAccess) -> Result<Self, Failure> {
        Self::read(text, access).ok_or_else(|| {
            Failure::new(Kind::Protocol, "the vault answered with a key identifier that is none of its own")
        })
    }

    fn read(text: &str, access: &VaultAccess) -> Option<Self> {
        let (name, version) = object(text, access, "keys")?;
        Some(Self { origin: origin(access), name: name.into(), version: version.into() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn version(&self) -> &str {
        &self.version
    }
}

/// The vault as its objects' identifiers start.
fn origin(access: &VaultAccess) -> String {
    access.destination.base().origin().ascii_serialization()
}

/// Name and version of an object of the vault, by its identifier. Compares the text itself: no parser that tidies up
/// stands between it and the vault's URL.
pub fn object<'t>(text: &'t str, access: &VaultAccess, collection: &str) -> Option<(&'t str, &'t str)> {
    let origin = origin(access);
    let (head, rest) = text.split_at_checked(origin.len())?;
    // The vault itself writes the port that goes without saying in some of its answers.
    let https = origin.starts_with("https://") && access.destination.base().port().is_none();
    let rest = rest.strip_prefix(":443").filter(|_| https).unwrap_or(rest);
    let (name, version) = rest.strip_prefix('/')?.strip_prefix(collection)?.strip_prefix('/')?.split_once('/')?;
    (head.eq_ignore_ascii_case(&origin) && is_object_name(name) && is_version(version)).then_some((name, version))
}

/// The full identifier.
impl Display for Kid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/keys/{}/{}", self.origin, self.name, self.version)
    }
}

/// Names and versions know no case; Microsoft asks for such a comparison.
impl PartialEq for Kid {
    fn eq(&self, other: &Self) -> bool {
        self.origin == other.origin
            && self.name.eq_ignore_ascii_case(&other.name)
            && self.version.eq_ignore_ascii_case(&other.version)
    }
}

impl Eq for Kid {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Cloud, hosts::Hosts};

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn access(uri: &str) -> VaultAccess {
        let hosts = Hosts::parse("127.0.0.1, [::1]").expect("hosts");
        VaultAccess::from_options([("vault_uri", uri)], Cloud::Public, &hosts).expect(uri)
    }

    #[test]
    fn a_kid_of_the_vault_is_kept_in_its_own_form() {
        for (vault, text, kept) in [
            ("https://payroll.vault.azure.net", "https://payroll.vault.azure.net/keys/kek/*", ""),
            ("https://Payroll.vault.azure.net/", "https://payroll.vault.azure.net/keys/kek/*", ""),
            ("https://payroll.vault.azure.net", "https://payroll.vault.azure.net:443/keys/kek/*", "drops the port"),
            ("https://payroll.vault.azure.net:443", "HTTPS://PayRoll.Vault.Azure.Net/keys/kek/*", "drops the case"),
            ("https://payroll.managedhsm.azure.net", "https://payroll.managedhsm.azure.net/keys/kek/*", ""),
            ("https://127.0.0.1:8443", "https://127.0.0.1:8443/keys/kek/*", ""),
            ("https://[::1]:8443", "https://[::1]:8443/keys/kek/*", ""),
        ] {
            let text = text.replace('*', VERSION);
            let access = access(vault);
            let kid = Kid::parse(&text, &access).expect(&text);
            assert_eq!((kid.name(), kid.version()), ("kek", VERSION));
            if kept.is_empty() {
                assert_eq!(kid.to_string(), text);
            } else {
                let plain = text.to_lowercase().replace(":443", "");
                assert_eq!(kid.to_string(), plain, "{kept}");
            }
            assert_eq!(Kid::answered(&kid.to_string(), &access).expect("its own"), kid);
        }
        let access = access("https://payroll.vault.azure.net");
        let kid = |name: &str, version: &str| {
            Kid::parse(&format!("https://payroll.vault.azure.net/keys/{name}/{version}"), &access).expect(name)
        };
        assert_eq!(kid("kek", VERSION), kid("KEK", &VERSION.to_uppercase()));
        assert_ne!(kid("kek", VERSION), kid("kek2", VERSION));
    }

    #[test]
    fn what_is_no_kid_of_the_vault_is_refused() {
        let access = access("https://payroll.vault.azure.net");
        for text in [
            "",
            "kek",
            "https://payroll.vault.azure.net",
            "https://payroll.vault.azure.net/keys/kek",
            "https://payroll.vault.azure.net/keys/kek/",
            "https://payroll.vault.azure.net/keys/kek/*/",
            "https://payroll.vault.azure.net/keys/kek//*",
            "https://payroll.vault.azure.net//keys/kek/*",
            "https://payroll.vault.azure.net/keys//*",
            "https://payroll.vault.azure.net/keys/kek/*/wrapkey",
            "https://payroll.vault.azure.net/secrets/kek/*",
            "https://payroll.vault.azure.net/KEYS/kek/*",
            "https://payroll.vault.azure.net/keys/kek/*f",
            "https://payroll.vault.azure.net/keys/kek/latest",
            "https://payroll.vault.azure.net/keys/kek/0123456789abcdef0123456789abcdeg",
            "https://payroll.vault.azure.net/keys/kek/*?api-version=7.4",
            "https://payroll.vault.azure.net/keys/kek/*#",
            "https://payroll.vault.azure.net/keys/kek/* ",
            " https://payroll.vault.azure.net/keys/kek/*",
            "https://payroll.vault.azure.net/keys/kek/*\n",
            "https://payroll.vault.azure.net/keys/k\tek/*",
            "https://payroll.vault.azure.net/keys/./kek/*",
            "https://payroll.vault.azure.net/x/../keys/kek/*",
            "https://payroll.vault.azure.net/keys/%2e%2e/*",
            "https://payroll.vault.azure.net/keys/kek%2f/*",
            "https://payroll.vault.azure.net/keys/..%2fsecrets/*",
            "https://payroll.vault.azure.net\\keys\\kek\\*",
            "https://payroll.vault.azure.net/keys/k\u{435}k/*",
            "https://payroll.vault.azure.net/keys/kek/\u{ff10}123456789abcdef0123456789abcdef",
            "https://p\u{430}yroll.vault.azure.net/keys/kek/*",
            "https://payroll.vault.azure.net\u{3002}/keys/kek/*",
            "https://payroll.vault.azure.net./keys/kek/*",
            "https://payroll.vault.azure.net.evil.com/keys/kek/*",
            "https://evil.com/keys/kek/*",
            "https://evil.com/https://payroll.vault.azure.net/keys/kek/*",
            "https://other.vault.azure.net/keys/kek/*",
            "https://payroll.managedhsm.azure.net/keys/kek/*",
            "https://payroll.vault.azure.net@evil.com/keys/kek/*",
            "https://user@payroll.vault.azure.net/keys/kek/*",
            "https://user:secret@payroll.vault.azure.net/keys/kek/*",
            "https://payroll.vault.azure.net:8443/keys/kek/*",
            "https://payroll.vault.azure.net:/keys/kek/*",
            "https://payroll.vault.azure.net:0443/keys/kek/*",
            "https://payroll.vault.azure.net:443:443/keys/kek/*",
            "https://payroll.vault.azure.net:80/keys/kek/*",
            "http://payroll.vault.azure.net/keys/kek/*",
            "http://payroll.vault.azure.net:443/keys/kek/*",
            "ftp://payroll.vault.azure.net/keys/kek/*",
            "//payroll.vault.azure.net/keys/kek/*",
            "https:/payroll.vault.azure.net/keys/kek/*",
        ] {
            let text = text.replace('*', VERSION);
            assert_eq!(Kid::parse(&text, &access).expect_err(&text).kind, Kind::InvalidValue);
            let failure = Kid::answered(&text, &access).expect_err(&text);
            assert_eq!(failure.kind, Kind::Protocol);
            assert!(!failure.to_string().contains("evil"), "{failure}");
        }
        let long = "k".repeat(128);
        Kid::parse(&format!("https://payroll.vault.azure.net/keys/{long}/{VERSION}"), &access).expect_err("too long");
    }
}
