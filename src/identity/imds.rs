//! The instance metadata service: the identity endpoint of a virtual machine and of an AKS node.
//!
//! Source: Microsoft's "How to use managed identities to acquire a token on a VM" (request, errors,
//! retry guidance) and the REST specification `imds.json` (selectors).

use reqwest::header::{HeaderName, HeaderValue};
use serde_json::Value;
use url::Url;

use super::answer::{self, token};
use super::{Resource, Selector};
use crate::http::destination::strict_url;
use crate::http::failure::{Failure, Kind, answered, code};
use crate::http::request::{Answer, Request};
use crate::http::unanswered::{Obstacle, Unanswered};
use crate::token::AccessToken;

const PATH: &str = "/metadata/identity/oauth2/token";

/// The settings of this source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imds {
    endpoint: Url,
    api_version: String,
}

impl Imds {
    /// Checks the settings `imds_endpoint` and `imds_api_version`; 22023 otherwise.
    pub fn new(endpoint: &str, api_version: &str) -> Result<Self, Failure> {
        let endpoint = strict_url(endpoint, "the instance metadata endpoint")?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.path() != "/" {
            return Err(Failure::new(Kind::InvalidValue, "the instance metadata endpoint must be http://host[:port]"));
        }
        let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if api_version.is_empty() || !api_version.chars().all(fine) {
            return Err(
                Failure::new(Kind::InvalidValue, "invalid API version").hint("It is a date such as 2018-02-01.")
            );
        }
        Ok(Self { endpoint, api_version: api_version.into() })
    }

    /// What distinguishes an identity of this source from all others: endpoint, version, selector.
    pub fn identity_key(&self, selector: &Selector) -> String {
        let (name, id) = parameter(selector).unwrap_or_default();
        format!("imds\n{}\n{}\n{name}\n{id}", self.endpoint, self.api_version)
    }

    /// The request for a token.
    pub fn request(&self, selector: &Selector, resource: &Resource) -> Request {
        let mut url = self.endpoint.clone();
        url.set_path(PATH);
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("api-version", &self.api_version).append_pair("resource", resource.as_str());
            if let Some((name, id)) = parameter(selector) {
                query.append_pair(name, id);
            }
        }
        // Without it the service refuses: it proves that no page or redirect tricked us into asking.
        Request::get(url).header(HeaderName::from_static("metadata"), HeaderValue::from_static("true"))
    }

    /// Whether another try may help, by the documentation's list; other 4xx are design errors.
    pub fn is_worth_a_retry(status: u16) -> bool {
        matches!(status, 404 | 408 | 410 | 429) || status >= 500
    }

    /// Reads an answer at Unix time `now`; `jitter` as [`expiry::refresh_at`] takes it.
    pub fn read(answer: &Answer, selector: &Selector, now: i64, jitter: f64) -> Result<AccessToken, Failure> {
        let read = || {
            if answer.status != 200 {
                return Err(refused(answer, selector));
            }
            let (token, rest) = token(answer, "the identity endpoint", now, jitter)?;
            same_identity(&rest, selector)?;
            Ok(token)
        };
        read().map_err(|failure| {
            if answer::came_by_proxy(answer) || answer::is_page(answer) {
                let message = "a proxy answered, not the identity endpoint".into();
                return Failure { message, ..failure }.hint(
                    "Except 169.254.169.254 from what intercepts this machine's requests, such as a transparent proxy or a sidecar.",
                );
            }
            match failure.hint {
                None if failure.kind == Kind::Protocol => failure
                    .hint("It is no instance metadata service that answers there: correct managed_identity.imds_endpoint."),
                _ => failure,
            }
        })
    }

    /// A request that got no answer, as a failure. A pod may be kept from the service of its node.
    pub fn unanswered(unanswered: Unanswered, in_pod: bool) -> Failure {
        let hint = match unanswered.obstacle {
            Obstacle::Refused | Obstacle::NoWay if in_pod => {
                "This cluster keeps pods from the instance metadata service: give the pod workload identity (label azure.workload.identity/use), or let its network policy pass 169.254.169.254."
            }
            Obstacle::Refused => {
                "Nothing listens there: outside Azure there is no instance metadata service; else correct managed_identity.imds_endpoint."
            }
            Obstacle::NoWay => {
                "Outside Azure there is no instance metadata service; else let firewall and routes pass 169.254.169.254. managed_identity.connect_timeout bounds the wait."
            }
            _ => return unanswered.failure,
        };
        unanswered.failure.hint(hint)
    }
}

/// The query parameter of a selector. `msi_res_id` is the spelling of the specification and the only
/// one that Container Instances honour; `mi_res_id` is App Service's.
fn parameter(selector: &Selector) -> Option<(&'static str, &str)> {
    match selector {
        Selector::Automatic => None,
        Selector::ClientId(id) => Some(("client_id", id)),
        Selector::ObjectId(id) => Some(("object_id", id)),
        Selector::ResourceId(id) => Some(("msi_res_id", id)),
    }
}

/// Endpoints that ignore a selector answer with another identity's token: where the answer echoes
/// the identity it must be the one asked for.
fn same_identity(body: &Value, selector: &Selector) -> Result<(), Failure> {
    let (fields, id): (&[&str], &str) = match selector {
        Selector::Automatic => return Ok(()),
        Selector::ClientId(id) => (&["client_id"], id),
        Selector::ObjectId(id) => (&["object_id"], id),
        Selector::ResourceId(id) => (&["msi_res_id", "mi_res_id"], id),
    };
    let echoed =
        fields.iter().find_map(|field| body.get(field)).and_then(Value::as_str).filter(|echo| !echo.is_empty());
    match echoed {
        Some(echo) if !echo.eq_ignore_ascii_case(id) => {
            let failure = Failure::new(Kind::NotAuthorized, "another identity answered than the one asked for");
            let named = code(echo).map(|echo| format!("The answer is for {} {echo}.", fields[0]));
            Err(Failure { detail: named, ..failure }
                .hint("The identity endpoint ignored the selector; assign the identity to this machine."))
        }
        _ => Ok(()),
    }
}

/// An answer that is not 200, as a failure. The description is read for the HINT only, as the
/// documentation asks: control flow must not depend on it.
fn refused(answer: &Answer, selector: &Selector) -> Failure {
    let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let text = |field: &str| body.as_ref().and_then(|body| body.get(field)).and_then(Value::as_str);
    let detail = answered("The identity endpoint", answer.status, text("error"), answer.header("x-ms-request-id"));
    let says = |what: &str| text("error_description").is_some_and(|text| text.to_ascii_lowercase().contains(what));
    let (kind, message) = match answer.status {
        400 | 401 | 403 => (Kind::NotAuthorized, "the identity endpoint refused to issue a token"),
        404 | 410 => (Kind::Unavailable, "the identity endpoint is not ready"),
        429 => (Kind::Throttled, "the identity endpoint is throttling"),
        408 | 500.. => (Kind::Unavailable, "the identity endpoint failed"),
        _ => (Kind::Protocol, "the identity endpoint did not answer as it should"),
    };
    let hint = match (answer.status, selector) {
        (400, _) if says("multiple user assigned") => {
            "This machine has several identities: choose one by option client_id of a managed_identity server."
        }
        (400, Selector::Automatic) if says("identity not found") => "Assign a managed identity to this machine.",
        (400, _) if says("identity not found") => {
            "Assign this identity to the machine, or correct the server's option."
        }
        (400, _) if text("error") == Some("invalid_resource") => answer::RESOURCE,
        (401, _) => {
            "The service knows requests of this very machine only: correct managed_identity.imds_endpoint, and send from the primary network interface."
        }
        (403, _) => {
            "Something on the way refuses it, a proxy, a firewall or the Metadata Security Protocol: let PostgreSQL's operating system user reach the service directly."
        }
        (404 | 410, _) => {
            "The service may be updating, or the identity was assigned a moment ago: try again in a minute."
        }
        (429, _) => {
            "All processes of this machine share the endpoint's limit: find the one that asks so often, and wait a minute."
        }
        (408 | 500.., _) => "Try again in a minute; if it stays so, Azure's service health may tell why.",
        _ => return Failure::new(kind, message).detail(detail),
    };
    Failure::new(kind, message).detail(detail).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Cloud;
    use serde_json::json;
    use zeroize::Zeroizing;

    const GUID: &str = "11111111-2222-3333-4444-555555555555";
    const NOW: i64 = 1_700_000_000;

    fn imds() -> Imds {
        Imds::new("http://169.254.169.254", "2018-02-01").expect("defaults")
    }

    fn answer(status: u16, body: Value) -> Answer {
        Answer { status, headers: Default::default(), body: Zeroizing::new(body.to_string().into_bytes()) }
    }

    #[test]
    fn the_request_is_the_documented_one() {
        let resource = Resource::parse("storage", Cloud::Public).expect("an alias");
        let request = imds().request(&Selector::ClientId(GUID.into()), &resource);
        assert_eq!(
            request.url.as_str(),
            format!(
                "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01\
                 &resource=https%3A%2F%2Fstorage.azure.com%2F&client_id={GUID}"
            )
        );
        assert_eq!(request.headers["metadata"], "true");
        assert!(!imds().request(&Selector::Automatic, &resource).url.as_str().contains("client_id"));
    }

    #[test]
    fn an_endpoint_with_a_path_or_query_is_refused() {
        for text in ["http://a/b", "http://a?b", "ftp://a", "http://u@a", "a"] {
            Imds::new(text, "2018-02-01").expect_err(text);
        }
        Imds::new("http://a", "2018&x=1").expect_err("an API version");
    }

    #[test]
    fn a_token_is_read_from_every_accepted_body() {
        for body in [
            json!({"access_token": "t", "expires_on": (NOW + 3600).to_string(), "expires_in": "3599"}),
            json!({"access_token": "t", "expires_on": NOW + 3600}),
            json!({"access_token": "t", "expires_in": 3600}),
        ] {
            let token = Imds::read(&answer(200, body), &Selector::Automatic, NOW, 0.0).expect("a token");
            assert_eq!((token.expires_at, token.refresh_at, token.expose()), (NOW + 3600, NOW + 3300, "t"));
        }
    }

    #[test]
    fn what_is_no_answer_of_the_protocol_is_refused() {
        for body in [
            json!(null),
            json!([]),
            json!({"access_token": "", "expires_in": 1}),
            json!({"access_token": 1, "expires_in": 1}),
            json!({"access_token": "t"}),
            json!({"access_token": "t", "expires_on": "soon", "expires_in": 1}),
            json!({"access_token": "t", "expires_on": NOW - 1}),
            json!({"access_token": "a\r\nb: c", "expires_in": 1}),
        ] {
            let refused = Imds::read(&answer(200, body.clone()), &Selector::Automatic, NOW, 0.0).expect_err("refused");
            assert_eq!(refused.kind, Kind::Protocol, "{body}");
            assert!(refused.hint.is_some(), "{body}");
        }
    }

    #[test]
    fn another_identitys_token_is_refused() {
        let body =
            json!({"access_token": "t", "expires_in": 3600, "client_id": "AAAAAAAA-2222-3333-4444-555555555555"});
        let asked = Selector::ClientId(GUID.into());
        let refused = Imds::read(&answer(200, body.clone()), &asked, NOW, 0.0).expect_err("refused");
        assert_eq!(refused.kind, Kind::NotAuthorized);
        let same = Selector::ClientId("aaaaaaaa-2222-3333-4444-555555555555".into());
        Imds::read(&answer(200, body), &same, NOW, 0.0).expect("case does not matter");
    }

    #[test]
    fn what_answers_nothing_has_another_cause_in_a_pod() {
        let hint = |obstacle, in_pod| {
            let failure = Failure::new(Kind::Unreachable, "unreachable").hint("as it was");
            Imds::unanswered(Unanswered { obstacle, ..failure.into() }, in_pod).hint.expect("a hint")
        };
        assert!(hint(Obstacle::Refused, false).contains("imds_endpoint"));
        assert!(hint(Obstacle::NoWay, false).contains("firewall"));
        for obstacle in [Obstacle::Refused, Obstacle::NoWay] {
            assert!(hint(obstacle, true).contains("workload identity"), "{obstacle:?}");
            for in_pod in [true, false] {
                // The room that a failure has in the cache.
                assert!(hint(obstacle, in_pod).len() <= 240);
            }
        }
        assert_eq!(hint(Obstacle::Other, true), "as it was");
    }

    #[test]
    fn a_proxys_answer_is_not_taken_for_the_services() {
        for status in [200, 403, 503] {
            let page = Answer { body: Zeroizing::new(b"<html>canary</html>".to_vec()), ..answer(status, json!("")) };
            let refused = Imds::read(&page, &Selector::Automatic, NOW, 0.0).expect_err("refused");
            assert!(
                refused.message.contains("proxy") && refused.hint.is_some_and(|hint| hint.len() <= 240),
                "{status}"
            );
        }
    }

    #[test]
    fn refusals_say_what_to_change_and_quote_nobody() {
        let body =
            json!({"error": "invalid_request", "error_description": "Multiple user assigned identities exist, canary"});
        let refused = Imds::read(&answer(400, body), &Selector::Automatic, NOW, 0.0).expect_err("refused");
        assert_eq!(refused.kind, Kind::NotAuthorized);
        assert!(refused.hint.as_deref().is_some_and(|hint| hint.contains("client_id")));
        assert!(!format!("{refused:?}").contains("canary"));
        for (status, kind) in
            [(404, Kind::Unavailable), (429, Kind::Throttled), (500, Kind::Unavailable), (302, Kind::Protocol)]
        {
            let refused = Imds::read(&answer(status, json!("")), &Selector::Automatic, NOW, 0.0).expect_err("refused");
            assert_eq!(refused.kind, kind, "{status}");
        }
        for (status, error, word) in [
            (401, "unknown_source", "network interface"),
            (403, "forbidden", "Metadata Security Protocol"),
            (400, "invalid_resource", "resource"),
            (429, "too_many_requests", "share"),
        ] {
            let refused = Imds::read(&answer(status, json!({"error": error})), &Selector::Automatic, NOW, 0.0);
            let hint = refused.expect_err(error).hint.expect("a hint");
            assert!(hint.contains(word) && hint.len() <= 240, "{hint}");
        }
    }
}
