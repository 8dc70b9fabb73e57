//! What an identity's options come to on this machine: a source that can be asked.

use super::authority::Authority;
use super::federated::{Federated, Given};
use super::imds::Imds;
use super::selector::Kind;
use super::{Identity, Machine, Resource, Selector, SourceName};
use crate::http::client::Purpose;
use crate::http::failure::Failure;
use crate::http::failure::Kind::{InvalidValue, NotAuthorized};
use crate::http::request::{Answer, Request};
use crate::http::unanswered::Unanswered;
use crate::token::{AccessToken, claims};

/// An identity of this machine, ready to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Imds {
        imds: Imds,
        selector: Selector,
        /// Whether another identity's token is refused, as option `kind` demands it.
        only_system_assigned: bool,
        /// Whether it is the node's service that is asked, from a pod.
        in_pod: bool,
    },
    Federated(Federated),
}

impl Machine {
    /// What an identity's options come to. 22023 where they contradict each other or this machine.
    pub fn source_of(&self, identity: &Identity) -> Result<Source, Failure> {
        let federated = identity.is_federated();
        let contradiction = |message: &str, hint: &str| Err(Failure::new(InvalidValue, message).hint(hint));
        match (identity.kind, &identity.selector) {
            (Some(Kind::SystemAssigned), selector) if federated || *selector != Selector::Automatic => {
                return contradiction(
                    "a system-assigned identity is not chosen by an option",
                    "Drop the options beside kind, or set kind to what they say.",
                );
            }
            (Some(Kind::UserAssigned), _) if federated => {
                return contradiction(
                    "a user-assigned identity of this machine needs no federated token",
                    "Drop tenant_id, token_file and authority, or set kind to workload-identity.",
                );
            }
            (Some(Kind::UserAssigned), Selector::Automatic) => {
                return contradiction(
                    "a user-assigned identity must be named",
                    "Give one of client_id, object_id, resource_id.",
                );
            }
            _ => {}
        }
        if identity.source == Some(SourceName::Imds) && identity.asks_for_federated() {
            return contradiction(
                "the instance metadata service gives no workload identity",
                "Drop option source, or set it to workload_identity.",
            );
        }
        match (self.chosen(identity).0, &identity.selector) {
            (SourceName::Imds, selector) => Ok(Source::Imds {
                imds: self.imds.clone(),
                selector: selector.clone(),
                only_system_assigned: identity.kind == Some(Kind::SystemAssigned),
                in_pod: self.environment.in_kubernetes,
            }),
            (SourceName::WorkloadIdentity, _) if identity.kind == Some(Kind::SystemAssigned) => contradiction(
                "there is no system-assigned identity here",
                "Tokens come from workload identity; option source or managed_identity.source chooses another source.",
            ),
            (SourceName::WorkloadIdentity, Selector::ObjectId(_) | Selector::ResourceId(_)) => contradiction(
                "workload identity is chosen by client_id only",
                "Drop object_id or resource_id and give the identity's client_id.",
            ),
            (SourceName::WorkloadIdentity, selector) => self.federated(identity, selector).map(Source::Federated),
        }
    }

    /// Options first, then the environment.
    fn federated(&self, identity: &Identity, selector: &Selector) -> Result<Federated, Failure> {
        let environment = &self.environment;
        let authority = match (&identity.authority, &self.authority, &environment.authority_host) {
            (Some(authority), ..) | (None, Some(authority), _) => authority.clone(),
            (None, None, Some(host)) => Authority::parse(host, "AZURE_AUTHORITY_HOST in the server's environment")?,
            (None, None, None) => Authority::of(self.cloud)?,
        };
        Federated::new(
            either(selector.id(), &environment.client_id, ["client_id", "AZURE_CLIENT_ID"])?,
            either(identity.tenant_id.as_deref(), &environment.tenant_id, ["tenant_id", "AZURE_TENANT_ID"])?,
            either(
                identity.token_file.as_deref(),
                &environment.token_file,
                ["token_file", "AZURE_FEDERATED_TOKEN_FILE"],
            )?,
            authority,
        )
    }
}

/// An option's value, which was checked when it was set, or the environment's, which was not.
fn either<'v>(
    option: Option<&'v str>,
    variable: &'v Option<String>,
    [name, called]: [&'static str; 2],
) -> Result<Given<'v>, Failure> {
    option.or(variable.as_deref()).map(|value| Given { value, called: if option.is_some() { name } else { called } }).ok_or_else(
        || {
            Failure::new(InvalidValue, "workload identity is not set up").detail(format!("There is no {name}.")).hint(
                format!(
                    "Set the server's option {name}, or {called} in the environment that PostgreSQL is started with; on AKS label the pod azure.workload.identity/use=true."
                ),
            )
        },
    )
}

impl Source {
    pub fn name(&self) -> SourceName {
        match self {
            Self::Imds { .. } => SourceName::Imds,
            Self::Federated(_) => SourceName::WorkloadIdentity,
        }
    }

    /// As `cached_tokens.kind` shows it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Imds { only_system_assigned: true, .. } => Kind::SystemAssigned.name(),
            Self::Imds { selector: Selector::Automatic, .. } => "automatic",
            Self::Imds { .. } => Kind::UserAssigned.name(),
            Self::Federated(_) => Kind::WorkloadIdentity.name(),
        }
    }

    /// The identifier that is asked for, or nothing.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Imds { selector, .. } => selector.id(),
            Self::Federated(federated) => Some(&federated.client_id),
        }
    }

    /// What distinguishes this identity from all others: everything that shapes its requests, and what
    /// answers are refused.
    pub fn identity_key(&self) -> String {
        match self {
            Self::Imds { imds, selector, .. } => format!("{}\n{}", imds.identity_key(selector), self.kind()),
            Self::Federated(federated) => federated.identity_key(),
        }
    }

    /// The request for a token, with the credential that is good now.
    pub fn request(&self, resource: &Resource) -> Result<Request, Failure> {
        match self {
            Self::Imds { imds, selector, .. } => Ok(imds.request(selector, resource)),
            Self::Federated(federated) => Ok(federated.request(&federated.assertion()?, resource)),
        }
    }

    /// Who is asked.
    pub fn purpose(&self) -> Purpose {
        match self {
            Self::Imds { .. } => Purpose::Identity,
            Self::Federated(federated) => federated.purpose(),
        }
    }

    /// Tells of an answer's status whether another try may help.
    pub fn worth_a_retry(&self) -> fn(u16) -> bool {
        match self {
            Self::Imds { .. } => Imds::is_worth_a_retry,
            Self::Federated(_) => Federated::is_worth_a_retry,
        }
    }

    /// A request that got no answer, as a failure that says what to change.
    pub fn unanswered(&self, unanswered: Unanswered) -> Failure {
        match self {
            Self::Imds { in_pod, .. } => Imds::unanswered(unanswered, *in_pod),
            Self::Federated(_) => Federated::unanswered(unanswered),
        }
    }

    /// Reads an answer at Unix time `now`; `jitter` as [`crate::token::expiry::refresh_at`] takes it.
    pub fn read(&self, answer: &Answer, now: i64, jitter: f64) -> Result<AccessToken, Failure> {
        match self {
            Self::Federated(_) => Federated::read(answer, now, jitter),
            Self::Imds { selector, only_system_assigned, .. } => {
                let token = Imds::read(answer, selector, now, jitter)?;
                if *only_system_assigned {
                    refuse_user_assigned(&token)?;
                }
                Ok(token)
            }
        }
    }
}

/// Without a selector a machine whose one identity is user-assigned answers with that one.
fn refuse_user_assigned(token: &AccessToken) -> Result<(), Failure> {
    const PROVIDER: &str = "/providers/microsoft.managedidentity/userassignedidentities/";
    let claims = claims::claims(token);
    let resource_id = claims.get("xms_mirid").and_then(|id| id.as_str()).unwrap_or_default();
    if !resource_id.to_ascii_lowercase().contains(PROVIDER) {
        return Ok(());
    }
    let failure = Failure::new(NotAuthorized, "a user-assigned identity answered, not the system-assigned one")
        .hint("Give this machine a system-assigned identity, or drop the server's option kind.");
    let name = resource_id.rsplit('/').next().and_then(crate::http::failure::code);
    Err(match name {
        Some(name) => failure.detail(format!("The token is for the user-assigned identity \"{name}\".")),
        None => failure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Cloud;
    use crate::identity::environment::Environment;

    const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
    const OTHER: &str = "22222222-2222-3333-4444-555555555555";

    fn vm() -> Machine {
        Machine {
            imds: Imds::new("http://169.254.169.254", "2018-02-01").expect("defaults"),
            source: None,
            authority: None,
            environment: Environment::default(),
            cloud: Cloud::Public,
        }
    }

    fn pod() -> Machine {
        let given = |value: &str| Some(value.to_owned());
        let environment = Environment {
            client_id: given(CLIENT),
            tenant_id: given("tenant"),
            token_file: given("/token"),
            authority_host: given("https://login.microsoftonline.us/"),
            in_kubernetes: true,
        };
        Machine { environment, ..vm() }
    }

    fn identity(options: &[(&str, &str)]) -> Identity {
        Identity::from_options(options.iter().copied(), Cloud::Public).expect("options")
    }

    fn shown(machine: &Machine, options: &[(&str, &str)]) -> (&'static str, &'static str, Option<String>) {
        let source = machine.source_of(&identity(options)).expect("a source");
        (source.name().as_str(), source.kind(), source.id().map(str::to_owned))
    }

    #[test]
    fn the_kind_follows_from_the_options_and_the_source_from_the_machine() {
        let id = |text: &str| Some(text.to_owned());
        assert_eq!(shown(&vm(), &[]), ("imds", "automatic", None));
        assert_eq!(shown(&vm(), &[("client_id", CLIENT)]), ("imds", "user-assigned", id(CLIENT)));
        assert_eq!(shown(&vm(), &[("kind", "system-assigned")]), ("imds", "system-assigned", None));
        assert_eq!(shown(&pod(), &[]), ("workload_identity", "workload-identity", id(CLIENT)));
        assert_eq!(shown(&pod(), &[("client_id", OTHER)]), ("workload_identity", "workload-identity", id(OTHER)));
        assert_eq!(shown(&pod(), &[("source", "imds")]), ("imds", "automatic", None));
        let node = Machine { source: Some(SourceName::Imds), ..pod() };
        assert_eq!(shown(&node, &[]), ("imds", "automatic", None));
        assert_eq!(shown(&node, &[("kind", "workload-identity")]).0, "workload_identity");
        let own = [("client_id", OTHER), ("tenant_id", "t"), ("token_file", "/f"), ("authority", "https://a.test")];
        assert_eq!(shown(&vm(), &own), ("workload_identity", "workload-identity", id(OTHER)));
    }

    #[test]
    fn what_no_option_says_comes_from_the_setting_the_environment_or_the_cloud() {
        let host = |machine: &Machine, options: &[(&str, &str)]| {
            let key = machine.source_of(&identity(options)).expect("a source").identity_key();
            key.lines().nth(1).map(str::to_owned)
        };
        let is = |host: &str| Some(format!("https://{host}/"));
        assert_eq!(host(&pod(), &[("authority", "a.test")]), is("a.test"));
        assert_eq!(host(&pod(), &[]), is("login.microsoftonline.us"));
        let set = Machine { authority: Some(Authority::parse("b.test", "").expect("an authority")), ..pod() };
        assert_eq!(host(&set, &[]), is("b.test"));
        let mut china = Machine { cloud: Cloud::China, ..pod() };
        china.environment.authority_host = None;
        assert_eq!(host(&china, &[]), is("login.chinacloudapi.cn"));
    }

    #[test]
    fn contradictions_and_what_is_missing_are_refused_with_a_hint() {
        let object = ("object_id", CLIENT);
        let system = ("kind", "system-assigned");
        let cases: [(Machine, &[(&str, &str)]); 11] = [
            (vm(), &[system, ("client_id", CLIENT)]),
            (vm(), &[system, ("tenant_id", "t")]),
            (vm(), &[("kind", "user-assigned")]),
            (vm(), &[("kind", "user-assigned"), ("client_id", CLIENT), ("tenant_id", "t")]),
            (vm(), &[("kind", "workload-identity")]),
            (vm(), &[("tenant_id", "t"), ("client_id", CLIENT)]),
            (vm(), &[("tenant_id", "t"), ("source", "imds")]),
            (pod(), &[system]),
            (pod(), &[object]),
            (vm(), &[object, ("tenant_id", "t")]),
            (Machine { source: Some(SourceName::WorkloadIdentity), ..vm() }, &[]),
        ];
        for (machine, options) in cases {
            let refused = machine.source_of(&identity(options)).expect_err("a contradiction");
            assert_eq!(refused.kind, InvalidValue, "{options:?}");
            assert!(refused.hint.is_some(), "{refused:?}");
        }
        for (name, value) in
            [("AZURE_CLIENT_ID", "x"), ("AZURE_TENANT_ID", "../evil"), ("AZURE_AUTHORITY_HOST", "http://a")]
        {
            let mut machine = pod();
            let environment = &mut machine.environment;
            let variable = match name {
                "AZURE_CLIENT_ID" => &mut environment.client_id,
                "AZURE_TENANT_ID" => &mut environment.tenant_id,
                _ => &mut environment.authority_host,
            };
            *variable = Some(value.into());
            let refused = machine.source_of(&Identity::default()).expect_err(name);
            assert!(refused.message.contains(name), "{refused:?}");
        }
    }

    #[test]
    fn what_is_refused_of_answers_is_in_the_key() {
        let key = |machine: &Machine, options| machine.source_of(&identity(options)).expect("a source").identity_key();
        assert_ne!(key(&vm(), &[]), key(&vm(), &[("kind", "system-assigned")]));
        assert_eq!(key(&pod(), &[]), key(&pod(), &[("client_id", CLIENT), ("kind", "workload-identity")]));
        assert_ne!(key(&pod(), &[]), key(&vm(), &[]));
    }

    #[test]
    fn system_assigned_takes_no_other_identitys_token() {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let token = |id: &str| {
            let claims = serde_json::json!({ "xms_mirid": id }).to_string();
            AccessToken::for_test(&format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)))
        };
        let machine = "/subscriptions/s/resourcegroups/g/providers/Microsoft.Compute/virtualMachines/v";
        refuse_user_assigned(&token(machine)).expect("the machine's own");
        refuse_user_assigned(&AccessToken::for_test("opaque")).expect("nothing is known of it");
        let keys = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/keys";
        let refused = refuse_user_assigned(&token(keys)).expect_err("another identity's");
        assert_eq!(refused.kind, NotAuthorized);
        assert!(refused.detail.is_some_and(|detail| detail.contains("\"keys\"")));
    }
}
