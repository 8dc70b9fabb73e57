//! What is told of each step that a token takes: found in order, or wrong, and then what to change.
//!
//! Hints of failures are those of the errors, so that a diagnosis and an error say the same; what stands
//! here is what no error knows, because nothing fails by it.

use chrono::DateTime;
use serde_json::{Map, Value};

use super::assertion::Assertion;
use super::detection::Reason;
use super::{Identity, Machine, Resource, Source, SourceName, answer, federated};
use crate::http::client;
use crate::http::failure::{Failure, Kind};
use crate::http::request::{Answer, Request};
use crate::http::roots::Trusted;
use crate::http::unanswered::Unanswered;
use crate::token::{AccessToken, claims};

/// What was found of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub name: &'static str,
    pub status: Status,
    pub detail: String,
    pub hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// It works, perhaps not as meant.
    Warn,
    Error,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

pub const PERMISSION: &str = "permission";
const LIBRARY: &str = "library";
pub const SOURCE: &str = "source";
const TOKEN_FILE: &str = "token file";
pub const ROOTS: &str = "tls roots";
const ENDPOINT: &str = "endpoint";
const CLOCK: &str = "clock";
const ANSWER: &str = "answer";
const TOKEN: &str = "token";

/// Entra accepts clocks that differ by no more; seconds.
const SKEW: i64 = 300;
/// The longest text of others that is shown: a resource id has up to 512 characters.
const LONGEST: usize = 600;

impl Step {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), hint: None }
    }

    /// The failure as an error would tell it.
    pub fn failed(name: &'static str, failure: Failure) -> Self {
        let detail = match failure.detail {
            Some(detail) => format!("{}: {detail}", failure.message),
            None => failure.message,
        };
        Self { name, status: Status::Error, detail, hint: failure.hint }
    }

    pub fn warn(self) -> Self {
        Self { status: Status::Warn, ..self }
    }
}

/// Where the library was loaded too late for some of what it is for: what that is. Tokens it gives all the same.
pub fn library(copies: bool, shares: bool) -> Option<Step> {
    let lacks = match (copies, shares) {
        (true, true) => return None,
        (false, true) => "COPY does not know URLs",
        (true, false) => "each session fetches tokens for itself",
        (false, false) => "COPY does not know URLs, and each session fetches tokens for itself",
    };
    let detail = format!("The library was not loaded when the server started: here {lacks}.");
    let hint = "Put managed_identity first in shared_preload_libraries and restart; for COPY alone session_preload_libraries will do, without a restart.";
    Some(Step { hint: Some(hint.into()), ..Step::ok(LIBRARY, detail).warn() })
}

/// Which source it is, and why.
pub fn source(machine: &Machine, identity: &Identity, source: &Source) -> Step {
    let environment = &machine.environment;
    let why = match machine.chosen(identity).1 {
        Reason::Option => "the server's option source says so".into(),
        Reason::Options => "the server's options ask for workload identity".into(),
        Reason::Setting => "managed_identity.source says so".into(),
        Reason::Environment => "the environment that PostgreSQL was started with has its variables".into(),
        Reason::NothingElse => {
            let missing = environment.workload_identity().into_iter().filter(|(_, is_set)| !is_set);
            let missing: Vec<_> = missing.map(|(name, _)| name).collect();
            format!("the environment that PostgreSQL was started with lacks {}", missing.join(", "))
        }
    };
    let id = source.id().map(|id| format!(" {id}")).unwrap_or_default();
    let step =
        Step::ok(SOURCE, format!("{}, because {why}; the identity: {}{id}.", source.name().as_str(), source.kind()));
    let unasked = matches!(machine.chosen(identity), (SourceName::Imds, Reason::NothingElse));
    if !(unasked && environment.in_kubernetes) {
        return step;
    }
    let detail = format!("{} This is a pod of Kubernetes: an identity of its node answers.", step.detail);
    let hint = "For an identity of its own label the pod azure.workload.identity/use: \"true\" and start it again; if the node's is meant, say so by the server's option source.";
    Step { detail, hint: Some(hint.into()), ..step }.warn()
}

/// A request for a token, and what it was made of.
pub struct Asked<'s> {
    source: &'s Source,
    pub request: Request,
    assertion: Option<Assertion>,
}

impl<'s> Asked<'s> {
    /// Reads the federated token, where there is one.
    pub fn new(source: &'s Source, resource: &Resource) -> Result<Self, Step> {
        Ok(match source {
            Source::Imds { imds, selector, .. } => {
                Self { source, request: imds.request(selector, resource), assertion: None }
            }
            Source::Federated(federated) => {
                let assertion = federated.assertion().map_err(|failure| Step::failed(TOKEN_FILE, failure))?;
                Self { source, request: federated.request(&assertion, resource), assertion: Some(assertion) }
            }
        })
    }

    /// What was found, at Unix time `now`: which roots are trusted, and what became of the request. And the token, for
    /// who goes on with it.
    pub fn steps(
        self,
        trusted: Result<Trusted, Failure>,
        outcome: Result<Answer, Unanswered>,
        now: i64,
    ) -> (Vec<Step>, Option<AccessToken>) {
        let theirs = outcome.as_ref().ok().and_then(Answer::sent_at);
        let mut steps = Vec::new();
        if let (Source::Federated(federated), Some(assertion)) = (self.source, &self.assertion) {
            // By the authority's clock, so that ours, when it is wrong, does not put the blame on the file.
            steps.push(token_file(&federated.token_file().display().to_string(), assertion, theirs.unwrap_or(now)));
        }
        steps.push(roots(trusted));
        let authority = client::authority(&self.request.url);
        let mut token = None;
        match outcome {
            Err(unanswered) => steps.push(Step::failed(ENDPOINT, self.source.unanswered(unanswered))),
            Ok(answer) => {
                steps.push(Step::ok(ENDPOINT, format!("\"{authority}\" answers.")));
                steps.push(clock(CLOCK, theirs, now));
                let (found, read) = answered(self.source, &answer, now);
                steps.extend(found);
                token = read;
            }
        }
        (steps, token)
    }
}

fn token_file(path: &str, assertion: &Assertion, now: i64) -> Step {
    let claims = match assertion.claims() {
        Ok(claims) => claims,
        Err(failure) => return Step::failed(TOKEN_FILE, failure.detail(format!("The file is \"{path}\"."))),
    };
    let ends = claims.ends.map_or_else(|| "does not say when it ends".into(), |ends| ending(ends, now));
    let detail = format!(
        "\"{path}\" holds a token of issuer \"{}\" for subject \"{}\" and audience \"{}\"; it {ends}.",
        shown(&claims.issuer),
        shown(&claims.subject),
        shown(&claims.audience)
    );
    match claims.ends {
        Some(ends) if ends <= now => {
            Step { status: Status::Error, hint: Some(federated::STALE.into()), ..Step::ok(TOKEN_FILE, detail) }
        }
        _ => Step::ok(TOKEN_FILE, detail),
    }
}

/// Azure's services speak TLS even where the identity endpoint does not.
fn roots(trusted: Result<Trusted, Failure>) -> Step {
    match trusted {
        Ok(Trusted { told, hint: None }) => Step::ok(ROOTS, told),
        Ok(Trusted { told, hint: Some(hint) }) => Step { hint: Some(hint.into()), ..Step::ok(ROOTS, told).warn() },
        Err(failure) => Step::failed(ROOTS, failure),
    }
}

/// This machine's clock beside that of who answered.
pub fn clock(name: &'static str, theirs: Option<i64>, now: i64) -> Step {
    let Some(theirs) = theirs else {
        return Step::ok(name, "The answer has no date to compare this machine's clock with.");
    };
    let skew = now - theirs;
    if skew.abs() <= SKEW {
        return Step::ok(name, "This machine's clock agrees with the answer's date.");
    }
    let side = if skew > 0 { "ahead of" } else { "behind" };
    let detail = format!("This machine's clock is {} s {side} the answer's date.", skew.abs());
    Step { status: Status::Error, hint: Some(answer::CLOCK.into()), ..Step::ok(name, detail) }
}

/// The answer, and the token in it.
fn answered(source: &Source, answer: &Answer, now: i64) -> (Vec<Step>, Option<AccessToken>) {
    let fine = Step::ok(ANSWER, "It answered 200 with a token.");
    match source.read(answer, now, 0.0) {
        Ok(token) => (vec![fine, Step::ok(TOKEN, token_detail(&token, now))], Some(token)),
        // A good answer, for somebody else.
        Err(failure) if answer.status == 200 && failure.kind == Kind::NotAuthorized => {
            (vec![fine, Step::failed(TOKEN, failure)], None)
        }
        Err(failure) => (vec![Step::failed(ANSWER, failure)], None),
    }
}

fn token_detail(token: &AccessToken, now: i64) -> String {
    let said = named(&claims::claims(token), &["aud", "iss", "tid", "appid", "oid", "xms_mirid"]);
    let said = if said.is_empty() { "It says nothing of itself".into() } else { said.join(", ") };
    format!("{said}; it {}.", ending(token.expires_at, now))
}

fn named(claims: &Map<String, Value>, names: &[&str]) -> Vec<String> {
    let text = |name: &&str| claims.get(*name).and_then(Value::as_str).map(|text| format!("{name} {}", shown(text)));
    names.iter().filter_map(text).collect()
}

/// When something ends or has ended, for a sentence that starts with what it is.
pub fn ending(ends: i64, now: i64) -> String {
    let at = DateTime::from_timestamp(ends, 0).map(|at| at.format(" at %Y-%m-%d %H:%M:%S UTC").to_string());
    let at = at.unwrap_or_default();
    if ends > now { format!("ends{at}, in {} s", ends - now) } else { format!("ended{at}, {} s ago", now - ends) }
}

/// Somebody else's text as it may stand in a row, in any of the database's encodings.
fn shown(text: &str) -> String {
    text.chars().take(LONGEST).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::unanswered::Obstacle;
    use crate::identity::environment::Environment;
    use crate::identity::imds::Imds;
    use crate::identity::{Cloud, Selector};
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use reqwest::header::{DATE, HeaderMap, HeaderValue};
    use serde_json::json;
    use zeroize::Zeroizing;

    const NOW: i64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT

    fn machine(environment: Environment) -> Machine {
        let imds = Imds::new("http://169.254.169.254", "2018-02-01").expect("defaults");
        Machine { imds, source: None, authority: None, environment, cloud: Cloud::Public }
    }

    fn pod() -> Machine {
        machine(Environment { in_kubernetes: true, ..Environment::default() })
    }

    fn identity(options: &[(&str, &str)]) -> Identity {
        Identity::from_options(options.iter().copied(), Cloud::Public).expect("options")
    }

    fn answer(status: u16, date: &'static str, body: Value) -> Answer {
        let headers = HeaderMap::from_iter([(DATE, HeaderValue::from_static(date))]);
        Answer { status, headers, body: Zeroizing::new(body.to_string().into_bytes()) }
    }

    fn steps(source: &Source, outcome: Result<Answer, Unanswered>) -> Vec<(&'static str, &'static str)> {
        let resource = Resource::parse("storage", Cloud::Public).expect("an alias");
        let asked = Asked::new(source, &resource).expect("a request");
        let (steps, token) = asked.steps(Ok(Trusted { told: "some".into(), hint: None }), outcome, NOW);
        assert_eq!(token.is_some(), steps.iter().any(|step| (step.name, step.status) == (TOKEN, Status::Ok)));
        for step in &steps {
            assert!(step.hint.is_none() || step.status != Status::Ok, "{step:?}");
            assert!(!format!("{step:?}").contains("canary"), "{step:?}");
        }
        steps.into_iter().map(|step| (step.name, step.status.as_str())).collect()
    }

    fn automatic() -> Source {
        machine(Environment::default()).source_of(&Identity::default()).expect("a source")
    }

    #[test]
    fn a_pod_that_gets_its_nodes_identity_unasked_is_warned_of() {
        let client = ("client_id", "11111111-2222-3333-4444-555555555555");
        type Options<'o> = &'o [(&'o str, &'o str)];
        let cases: [(Machine, Options, Status, &str); 6] = [
            (machine(Environment::default()), &[], Status::Ok, "lacks AZURE_CLIENT_ID, AZURE_TENANT_ID"),
            (pod(), &[], Status::Warn, "of its node answers"),
            (pod(), &[client], Status::Warn, "user-assigned 11111111-2222-3333-4444-555555555555"),
            (pod(), &[("source", "imds")], Status::Ok, "option source"),
            (Machine { source: Some(SourceName::Imds), ..pod() }, &[], Status::Ok, "managed_identity.source"),
            (pod(), &[client, ("tenant_id", "t"), ("token_file", "/f")], Status::Ok, "server's options"),
        ];
        for (machine, options, status, word) in cases {
            let identity = identity(options);
            let step = source(&machine, &identity, &machine.source_of(&identity).expect("a source"));
            assert_eq!((step.name, step.status), (SOURCE, status), "{step:?}");
            assert!(step.detail.contains(word), "{step:?}");
        }
    }

    #[test]
    fn a_library_that_was_not_preloaded_is_told_by_what_is_missed() {
        assert_eq!(library(true, true), None);
        for (copies, shares, urls, sessions) in
            [(false, true, true, false), (true, false, false, true), (false, false, true, true)]
        {
            let step = library(copies, shares).expect("a step");
            assert_eq!((step.name, step.status), (LIBRARY, Status::Warn));
            assert_eq!((step.detail.contains("URLs"), step.detail.contains("each session")), (urls, sessions));
        }
    }

    #[test]
    fn each_step_is_told_up_to_the_one_that_fails() {
        let at = "Sun, 06 Nov 1994 08:49:37 GMT";
        let token = json!({"access_token": "canary", "expires_on": 1_000_000_000});
        let before = [(ROOTS, "ok"), (ENDPOINT, "ok"), (CLOCK, "ok")];
        let found = |outcome| steps(&automatic(), outcome)[3..].to_vec();
        assert_eq!(steps(&automatic(), Ok(answer(200, at, token.clone())))[..3], before);
        assert_eq!(found(Ok(answer(200, at, token.clone()))), [(ANSWER, "ok"), (TOKEN, "ok")]);
        assert_eq!(found(Ok(answer(403, at, json!({"error": "canary canary"})))), [(ANSWER, "error")]);
        assert_eq!(found(Ok(answer(200, at, json!("<canary>")))).len(), 1);
        let failure = Failure::new(Kind::Unreachable, "nobody");
        let refused = Unanswered { obstacle: Obstacle::Refused, ..failure.into() };
        assert_eq!(steps(&automatic(), Err(refused)), [(ROOTS, "ok"), (ENDPOINT, "error")]);
        let Source::Imds { imds, .. } = automatic() else { panic!("another source") };
        let selector = Selector::ClientId("11111111-2222-3333-4444-555555555555".into());
        let one = Source::Imds { imds, selector, only_system_assigned: false, in_pod: false };
        let mut others = token;
        others["client_id"] = "other".into();
        assert_eq!(steps(&one, Ok(answer(200, at, others)))[3..], [(ANSWER, "ok"), (TOKEN, "error")]);
    }

    #[test]
    fn a_clock_may_be_off_by_what_entra_accepts() {
        for (theirs, status, word) in [
            (Some(NOW - SKEW), Status::Ok, "agrees"),
            (Some(NOW + SKEW), Status::Ok, "agrees"),
            (Some(NOW - SKEW - 1), Status::Error, "301 s ahead of"),
            (Some(NOW + SKEW + 1), Status::Error, "301 s behind"),
            (None, Status::Ok, "no date"),
        ] {
            let step = clock(CLOCK, theirs, NOW);
            assert_eq!(step.status, status, "{step:?}");
            assert!(step.detail.contains(word), "{step:?}");
        }
        assert_eq!(answer(200, "Sun, 06 Nov 1994 08:49:37 GMT", json!("")).sent_at(), Some(NOW));
        assert_eq!(answer(200, "soon", json!("")).sent_at(), None);
    }

    #[test]
    fn a_federated_token_is_told_by_its_claims_and_its_age_by_the_authoritys_clock() {
        let payload = json!({"iss": "https://i/", "sub": "s\u{e9}\n", "aud": ["a"], "exp": NOW + 60, "jti": "canary"});
        let file = std::env::temp_dir().join(format!("diagnosis-{}", std::process::id()));
        std::fs::write(&file, format!("e30.{}.canary", URL_SAFE_NO_PAD.encode(payload.to_string()))).expect("a file");
        let options = [
            ("client_id", "11111111-2222-3333-4444-555555555555"),
            ("tenant_id", "t"),
            ("token_file", file.to_str().expect("a path")),
        ];
        let machine = machine(Environment::default());
        let federated = machine.source_of(&identity(&options)).expect("a source");
        let refusal = || json!({"error_codes": [700_024], "error_description": "canary"});
        let in_time = steps(&federated, Ok(answer(401, "Sun, 06 Nov 1994 08:49:37 GMT", refusal())));
        assert_eq!(in_time[0], (TOKEN_FILE, "ok"));
        let late = steps(&federated, Ok(answer(401, "Sun, 06 Nov 1994 08:51:37 GMT", refusal())));
        assert_eq!(late[0], (TOKEN_FILE, "error"));
        let Source::Federated(of_file) = &federated else { panic!("another source") };
        let step = token_file("/f", &of_file.assertion().expect("a token"), NOW);
        std::fs::remove_file(&file).expect("the file");
        assert!(step.detail.contains("subject \"s??\" and audience \"a\"; it ends at 1994-11-06"), "{step:?}");
        let resource = Resource::parse("storage", Cloud::Public).expect("an alias");
        let missing = Asked::new(&federated, &resource).err().expect("no file");
        assert_eq!((missing.name, missing.status), (TOKEN_FILE, Status::Error));
    }

    #[test]
    fn roots_that_may_not_be_meant_are_a_warning_and_a_file_that_cannot_be_read_is_an_error() {
        let trusted = |hint| roots(Ok(Trusted { told: "some".into(), hint })).status;
        assert_eq!((trusted(None), trusted(Some("install them"))), (Status::Ok, Status::Warn));
        assert_eq!(roots(Err(Failure::new(Kind::Local, "no such file"))).status, Status::Error);
    }
}
