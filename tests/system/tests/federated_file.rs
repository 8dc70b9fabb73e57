//! A federated token that lives five minutes, as GitHub's do, in a file that is replaced before each one ends: what
//! the authority is shown is what the file holds at that moment.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs;

use emulator::{EXCHANGE, Fault, Identity, OidcIssuer, TENANT};
use serde_json::json;
use server_tests::{Pod, wait};

const LIFE: i64 = 300;
const SUBJECT: &str = "repo:contoso/orders:ref:refs/heads/main";
const TOKEN: &str = "SELECT managed_identity.access_token('storage', 'deploy')";

/// A machine that is no pod, and server `deploy`, whose identity trusts GitHub's workflow.
struct Workflow {
    pod: Pod,
    github: OidcIssuer,
}

impl Workflow {
    fn new() -> Self {
        let pod = Pod::without_environment();
        let github = OidcIssuer::new("https://token.actions.githubusercontent.com").unwrap();
        let deploy = Identity::user("deploy");
        pod.entra.trust(TENANT, &deploy, &github, SUBJECT).unwrap();
        pod.world.session().run(&format!(
            "CREATE SERVER deploy FOREIGN DATA WRAPPER managed_identity OPTIONS
                 (client_id '{}', tenant_id '{TENANT}', token_file '{}', authority '{}')",
            deploy.client_id,
            pod.token_file(),
            pod.entra.authority(),
        ));
        Self { pod, github }
    }

    /// What GitHub writes, with the authority's clock so many lives of a token ahead.
    fn token(&self, lives: i64) -> String {
        let mut claims = self.github.claims(SUBJECT);
        let now = claims["iat"].as_i64().unwrap() + lives * LIFE;
        for (claim, time) in [("iat", now), ("nbf", now), ("exp", now + LIFE)] {
            claims[claim] = json!(time);
        }
        claims["aud"] = json!(EXCHANGE);
        for (claim, value) in [
            ("repository", "contoso/orders"),
            ("repository_owner", "contoso"),
            ("ref", "refs/heads/main"),
            ("ref_type", "branch"),
            ("event_name", "push"),
            ("workflow", "deploy"),
            ("job_workflow_ref", "contoso/orders/.github/workflows/deploy.yml@refs/heads/main"),
            ("runner_environment", "self-hosted"),
        ] {
            claims[claim] = json!(value);
        }
        self.github.sign(&claims).unwrap()
    }

    /// Time passes for the authority: what was written for an earlier life has ended.
    fn pass(&self, lives: i64) {
        self.pod.world.emulator.issuer().set_clock_ahead(lives * LIFE);
    }

    /// Says that no request was refused: every token was good when it was shown.
    fn assert_none_had_ended(&self) {
        let requests = self.pod.entra.log().requests();
        assert!(requests.iter().all(|entry| entry.status == Some(200)), "{requests:?}");
    }
}

#[test]
fn each_fetch_shows_what_the_file_holds_and_never_one_that_has_ended() {
    let workflow = Workflow::new();
    let pod = &workflow.pod;
    let mut session = pod.world.session();
    let mut shown = Vec::new();
    for lives in 0..6 {
        workflow.pass(lives);
        shown.push(workflow.token(lives));
        pod.write(&shown[shown.len() - 1]);
        session.run("SELECT managed_identity.forget_tokens()");
        session.run(TOKEN);
        // Another session, which has read no file yet.
        pod.world.session().run(&TOKEN.replace("storage", &format!("https://{lives}.example.com")));
        shown.push(shown[shown.len() - 1].clone());
        assert_eq!(pod.assertions(), shown);
    }
    workflow.assert_none_had_ended();
    // The authority does look: this one has ended.
    workflow.pass(6);
    session.run("SELECT managed_identity.forget_tokens()");
    let error = session.error(TOKEN);
    assert!(error.detail().is_some_and(|detail| detail.contains("AADSTS700024")), "{error:?}");
}

#[test]
fn the_next_try_of_one_fetch_reads_the_file_again() {
    let workflow = Workflow::new();
    let pod = &workflow.pod;
    let [first, second] = [0, 1].map(|lives| workflow.token(lives));
    pod.write(&first);
    let (clock, file, new) = (pod.world.emulator.issuer().clone(), pod.token_file(), second.clone());
    // While the first try waits for its answer, its token ends and the next one is written.
    pod.entra.faults().next(
        1,
        Fault::call(move |_| {
            clock.set_clock_ahead(LIFE);
            fs::write(&file, &new).unwrap();
        }),
    );
    pod.entra.faults().next(1, Fault::status(503));
    pod.world.session().run(TOKEN);
    let statuses: Vec<_> = pod.entra.log().requests().iter().map(|entry| entry.status).collect();
    assert_eq!(statuses, [Some(503), Some(200)]);
    // The form of a request is read when it is answered as usual.
    assert_eq!(pod.assertions(), [second]);
}

#[test]
fn a_renewal_while_nobody_is_connected_shows_what_the_file_holds() {
    let workflow = Workflow::new();
    let pod = &workflow.pod;
    pod.entra.set_refresh_in(Some(1));
    let mut shown = vec![workflow.token(0)];
    pod.write(&shown[0]);
    pod.world.session().run(TOKEN);
    for lives in 1..4 {
        workflow.pass(lives);
        let next = workflow.token(lives);
        pod.write(&next);
        wait::until("it is renewed", || pod.assertions().contains(&next));
        shown.push(next);
    }
    let mut once = pod.assertions();
    once.dedup();
    assert_eq!(once, shown);
    assert_eq!(pod.world.asked(), 0, "the machine's own identity is not asked");
}
