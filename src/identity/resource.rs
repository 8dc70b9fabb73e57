//! What a token is for: a resource, as managed-identity endpoints call it.

use super::Cloud;
use crate::http::failure::{Failure, Kind};

/// The longest resource that is accepted, in bytes; a cache slot has room for it.
pub const LONGEST: usize = 256;

/// A resource exactly as it is sent. A trailing slash is never added or removed: Entra compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource(String);

impl Resource {
    /// Reads an alias (`storage`), an absolute URI, an application id (GUID), or a v2 scope, whose one
    /// `/.default` is cut off: a managed-identity endpoint takes no scopes. 22023 otherwise.
    pub fn parse(text: &str, cloud: Cloud) -> Result<Self, Failure> {
        if let Some((_, resource)) = cloud.aliases().into_iter().find(|(alias, _)| *alias == text) {
            return Ok(Self(resource.into()));
        }
        let resource = text.strip_suffix("/.default").unwrap_or(text);
        let printable =
            resource.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\'));
        let absolute = url::Url::parse(resource).is_ok_and(|url| !url.cannot_be_a_base() && url.has_host());
        let urn = resource.split_once("://").is_some_and(|(scheme, rest)| scheme == "api" && !rest.is_empty());
        if resource.len() > LONGEST || !printable || !(absolute || urn || is_guid(resource)) {
            let aliases: Vec<_> = cloud.aliases().into_iter().map(|(alias, _)| alias).collect();
            return Err(Failure::new(Kind::InvalidValue, "invalid resource")
                .detail(format!(
                    "A resource is an absolute URI, an application id or an alias, of at most {LONGEST} characters."
                ))
                .hint(format!("The aliases are {}.", aliases.join(", "))));
        }
        Ok(Self(resource.into()))
    }

    /// Blob Storage, the same in every cloud.
    pub fn storage() -> Self {
        Self("https://storage.azure.com/".into())
    }

    /// One that was read before, as the cache keeps it.
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both name the same service: a trailing slash distinguishes tokens, not services.
    pub fn same_service(&self, other: &Resource) -> bool {
        self.0.trim_end_matches('/').eq_ignore_ascii_case(other.0.trim_end_matches('/'))
    }
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, hexadecimal.
pub fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_normalised_as_documented() {
        for (text, resource) in [
            ("storage", "https://storage.azure.com/"),
            ("key-vault", "https://vault.azure.net"),
            ("https://storage.azure.com/.default", "https://storage.azure.com"),
            ("https://management.azure.com//.default", "https://management.azure.com/"),
            ("https://vault.azure.net/", "https://vault.azure.net/"),
            ("11111111-2222-3333-4444-555555555555", "11111111-2222-3333-4444-555555555555"),
            ("api://my-app", "api://my-app"),
        ] {
            assert_eq!(Resource::parse(text, Cloud::Public).expect(text).as_str(), resource);
        }
        let china = Resource::parse("key-vault", Cloud::China).expect("an alias");
        assert_eq!(china.as_str(), "https://vault.azure.cn");
    }

    #[test]
    fn what_is_no_resource_is_refused() {
        let long = format!("https://{}", "a".repeat(LONGEST));
        for text in ["", "blob", "Storage", "https://", "https://a b", "/.default", "mailto:a", long.as_str()] {
            assert_eq!(Resource::parse(text, Cloud::Public).expect_err(text).kind, Kind::InvalidValue);
        }
    }

    #[test]
    fn a_slash_makes_another_token_of_the_same_service() {
        let parse = |text| Resource::parse(text, Cloud::Public).expect(text);
        let (with, without) = (parse("https://storage.azure.com/"), parse("https://storage.azure.com"));
        assert_ne!(with, without);
        assert!(with.same_service(&without));
        assert!(!with.same_service(&parse("https://vault.azure.net")));
    }
}
