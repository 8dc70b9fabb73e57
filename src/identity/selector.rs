//! Which identity is meant: what a `managed_identity` server's options say.

use std::collections::BTreeMap;

use super::authority::Authority;
use super::federated::{Given, check_tenant_id, check_token_file};
use super::resource::is_guid;
use super::{Cloud, Resource, SourceName};
use crate::http::failure::Failure;
use crate::http::failure::Kind::InvalidValue;

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
            |hint: &str| Failure::new(InvalidValue, format!("invalid value for option \"{option}\"")).hint(hint);
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

/// What an identity's option `kind` insists on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    SystemAssigned,
    UserAssigned,
    WorkloadIdentity,
}

impl Kind {
    /// The value of option `kind`, as `cached_tokens.kind` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SystemAssigned => "system-assigned",
            Self::UserAssigned => "user-assigned",
            Self::WorkloadIdentity => "workload-identity",
        }
    }

    /// 22023 for anything else.
    fn parse(text: &str) -> Result<Self, Failure> {
        [Self::SystemAssigned, Self::UserAssigned, Self::WorkloadIdentity]
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                Failure::new(InvalidValue, "invalid value for option \"kind\"")
                    .hint("It is system-assigned, user-assigned or workload-identity.")
            })
    }
}

/// One identity of this machine as its server's options say it, and what tokens may be fetched for with
/// it. What it comes to on this machine is [`super::Machine`]'s to say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    pub kind: Option<Kind>,
    pub selector: Selector,
    pub source: Option<SourceName>,
    /// For workload identity; what is missing comes from the environment.
    pub tenant_id: Option<String>,
    pub token_file: Option<String>,
    pub authority: Option<Authority>,
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
                        return Err(Failure::new(InvalidValue, "an identity is chosen by one option only")
                            .hint("Give one of client_id, object_id, resource_id."));
                    }
                    identity.selector = Selector::parse(name, value)?;
                }
                // Twice, where the server's TYPE says it too.
                "kind" => {
                    let kind = Kind::parse(value)?;
                    if identity.kind.replace(kind).is_some_and(|before| before != kind) {
                        return Err(Failure::new(InvalidValue, "the server's TYPE and its option \"kind\" disagree")
                            .hint("Drop the option, or set it to the server's TYPE."));
                    }
                }
                "source" => identity.source = Some(SourceName::parse(value)?),
                "tenant_id" => {
                    check_tenant_id(&Given { value, called: "option \"tenant_id\"" })?;
                    identity.tenant_id = Some(value.into());
                }
                "token_file" => {
                    check_token_file(&Given { value, called: "option \"token_file\"" })?;
                    identity.token_file = Some(value.into());
                }
                "authority" => identity.authority = Some(Authority::parse(value, "option \"authority\"")?),
                "resources" => {
                    let parsed = value.split(',').map(|entry| Resource::parse(entry.trim(), cloud));
                    identity.resources = Some(parsed.collect::<Result<_, _>>()?);
                }
                _ => {}
            }
        }
        Ok(identity)
    }

    /// The options but `resources`, in a form that [`Self::from_text`] reads.
    pub fn to_text(&self) -> String {
        let selector = match self.selector {
            Selector::Automatic => "",
            Selector::ClientId(_) => "client_id",
            Selector::ObjectId(_) => "object_id",
            Selector::ResourceId(_) => "resource_id",
        };
        let options: BTreeMap<&str, &str> = [
            (selector, self.selector.id()),
            ("kind", self.kind.map(Kind::name)),
            ("source", self.source.map(SourceName::as_str)),
            ("tenant_id", self.tenant_id.as_deref()),
            ("token_file", self.token_file.as_deref()),
            ("authority", self.authority.as_ref().map(Authority::as_str)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
        serde_json::json!(options).to_string()
    }

    /// Reads what [`Self::to_text`] has written. 22023 for anything else.
    pub fn from_text(text: &str, cloud: Cloud) -> Result<Self, Failure> {
        let options: BTreeMap<String, String> =
            serde_json::from_str(text).map_err(|_| Failure::new(InvalidValue, "the identity cannot be read"))?;
        Self::from_options(options.iter().map(|(name, value)| (name.as_str(), value.as_str())), cloud)
    }

    /// Whether its options speak of a federated token.
    pub fn is_federated(&self) -> bool {
        self.tenant_id.is_some() || self.token_file.is_some() || self.authority.is_some()
    }

    /// Whether its options or its kind ask for workload identity.
    pub fn asks_for_federated(&self) -> bool {
        self.is_federated() || self.kind == Some(Kind::WorkloadIdentity)
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
        assert_eq!(two.expect_err("two selectors").kind, InvalidValue);
        Identity::from_options([("resource_id", "/subscriptions/../x")], Cloud::Public).expect_err("no resource id");
        Identity::from_options([("client_id", "")], Cloud::Public).expect_err("an empty id is never sent");
    }

    #[test]
    fn the_text_of_an_identity_is_the_identity() {
        let resource_id =
            "/subscriptions/s/resourcegroups/g/providers/microsoft.managedidentity/userassignedidentities/u";
        let cases: [&[(&str, &str)]; 5] = [
            &[],
            &[("client_id", GUID), ("kind", "user-assigned")],
            &[("object_id", GUID), ("source", "imds")],
            &[("resource_id", resource_id)],
            &[("tenant_id", "t"), ("token_file", "/a=b\n\"c\""), ("authority", "https://a.test:8443")],
        ];
        for options in cases {
            let identity = Identity::from_options(options.iter().copied(), Cloud::Public).expect("an identity");
            assert!(!identity.to_text().is_empty());
            assert_eq!(Identity::from_text(&identity.to_text(), Cloud::Public), Ok(identity), "{options:?}");
        }
        Identity::from_text("", Cloud::Public).expect_err("nothing");
    }

    #[test]
    fn a_kind_is_said_once_or_twice_alike() {
        let with =
            |options: &[(&'static str, &'static str)]| Identity::from_options(options.iter().copied(), Cloud::Public);
        let identity = with(&[("kind", "system-assigned"), ("kind", "system-assigned")]).expect("an identity");
        assert_eq!(identity.kind, Some(Kind::SystemAssigned));
        with(&[("kind", "system-assigned"), ("kind", "user-assigned")]).expect_err("two kinds");
        for (name, value) in [
            ("kind", ""),
            ("kind", "automatic"),
            ("source", "cloud"),
            ("tenant_id", "a/b"),
            ("token_file", "f"),
            ("authority", "http://login.microsoftonline.com"),
        ] {
            let refused = with(&[(name, value)]).expect_err(name);
            assert_eq!(refused.kind, InvalidValue);
            assert!(refused.message.contains(name), "{refused:?}");
            assert!(refused.hint.is_some() || refused.detail.is_some(), "{refused:?}");
        }
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
