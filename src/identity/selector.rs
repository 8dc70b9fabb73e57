//! Which identity is meant: what a `managed_identity` server's options say.

use super::resource::is_guid;
use super::{Cloud, Resource};
use crate::http::failure::{Failure, Kind};

/// How one of several identities is chosen. At most one may be given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Selector {
    /// Whatever the machine gives without being asked for one.
    #[default]
    Automatic,
    ClientId(String),
    ObjectId(String),
    ResourceId(String),
}

impl Selector {
    /// Checks and lower-cases an option's value: Azure compares all three without regard to case, and
    /// equal identities share a cached token. 22023 otherwise.
    pub fn parse(option: &str, value: &str) -> Result<Self, Failure> {
        let lower = value.to_ascii_lowercase();
        let invalid =
            |hint: &str| Failure::new(Kind::InvalidValue, format!("invalid value for option \"{option}\"")).hint(hint);
        match option {
            "client_id" | "object_id" if !is_guid(value) => {
                Err(invalid("It is a GUID, such as 11111111-2222-3333-4444-555555555555."))
            }
            "client_id" => Ok(Self::ClientId(lower)),
            "object_id" => Ok(Self::ObjectId(lower)),
            _ if is_resource_id(&lower) => Ok(Self::ResourceId(lower)),
            _ => Err(invalid(
                "It is the identity's full resource id: /subscriptions/.../Microsoft.ManagedIdentity/userAssignedIdentities/<name>.",
            )),
        }
    }

    /// `automatic` or `user-assigned`, as `cached_tokens.kind` shows it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Automatic => "automatic",
            _ => "user-assigned",
        }
    }

    /// The identifier, or nothing.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Automatic => None,
            Self::ClientId(id) | Self::ObjectId(id) | Self::ResourceId(id) => Some(id),
        }
    }
}

/// The longest resource id, in bytes; ARM's parts allow about 300.
pub const LONGEST_ID: usize = 512;

fn is_resource_id(lower: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | '(' | ')');
    lower.len() <= LONGEST_ID
        && lower.starts_with("/subscriptions/")
        && lower.contains("/providers/microsoft.managedidentity/userassignedidentities/")
        && lower.chars().all(fine)
}

/// One identity of this machine, and what tokens may be fetched for with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    pub selector: Selector,
    /// `None`: any resource.
    pub resources: Option<Vec<Resource>>,
}

impl Identity {
    /// Reads a `managed_identity` server's options. 22023 for a bad value or two selectors.
    pub fn from_options<'o>(
        options: impl IntoIterator<Item = (&'o str, &'o str)>,
        cloud: Cloud,
    ) -> Result<Self, Failure> {
        let mut identity = Self::default();
        for (name, value) in options {
            match name {
                "client_id" | "object_id" | "resource_id" => {
                    if identity.selector != Selector::Automatic {
                        return Err(Failure::new(Kind::InvalidValue, "an identity is chosen by one option only")
                            .hint("Give one of client_id, object_id, resource_id."));
                    }
                    identity.selector = Selector::parse(name, value)?;
                }
                "resources" => {
                    let parsed = value.split(',').map(|entry| Resource::parse(entry.trim(), cloud));
                    identity.resources = Some(parsed.collect::<Result<_, _>>()?);
                }
                _ => {}
            }
        }
        Ok(identity)
    }

    /// Whether a token for `resource` may be fetched with this identity.
    pub fn allows(&self, resource: &Resource) -> bool {
        self.resources.as_ref().is_none_or(|allowed| allowed.iter().any(|entry| entry.same_service(resource)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "AAAAAAAA-2222-3333-4444-555555555555";

    #[test]
    fn one_selector_at_most() {
        let one = Identity::from_options([("client_id", GUID)], Cloud::Public).expect("an identity");
        assert_eq!(one.selector, Selector::ClientId(GUID.to_ascii_lowercase()));
        let two = Identity::from_options([("client_id", GUID), ("object_id", GUID)], Cloud::Public);
        assert_eq!(two.expect_err("two selectors").kind, Kind::InvalidValue);
        Identity::from_options([("resource_id", "/subscriptions/../x")], Cloud::Public).expect_err("no resource id");
        Identity::from_options([("client_id", "")], Cloud::Public).expect_err("an empty id is never sent");
    }

    #[test]
    fn resources_are_an_allow_list() {
        let keys =
            Identity::from_options([("resources", "key-vault, managed-hsm")], Cloud::Public).expect("an identity");
        let parse = |text| Resource::parse(text, Cloud::Public).expect(text);
        assert!(keys.allows(&parse("key-vault")));
        assert!(keys.allows(&parse("https://vault.azure.net/")));
        assert!(!keys.allows(&parse("storage")));
        assert!(Identity::default().allows(&parse("storage")));
    }
}
