//! `diagnose`: each cause of `tests/diagnose.tsv` is provoked, and told at its step with a hint of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

#[path = "diagnose/stage.rs"]
mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use emulator::{Fault, Identity, TENANT};
use server_tests::{Options, Pod, SUBJECT, World, wait};

use stage::{Stage, Step, diagnose};

/// A row of the table.
struct Cause {
    name: String,
    provoked: Vec<String>,
    step: String,
    status: String,
    hint: String,
}

fn table() -> Vec<Cause> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../diagnose.tsv");
    let text = fs::read_to_string(file).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("cause\tprovoked\tstep\tstatus\thint"));
    let row = |line: &str| {
        let [name, provoked, step, status, hint] =
            line.split('\t').collect::<Vec<_>>().try_into().expect("five columns");
        let provoked = provoked.split(", ").map(str::to_owned).collect();
        let [name, step, status, hint] = [name, step, status, hint].map(str::to_owned);
        Cause { name, provoked, step, status, hint }
    };
    lines.map(row).collect()
}

fn names(steps: &[Step]) -> Vec<&str> {
    steps.iter().map(|step| step.name.as_str()).collect()
}

/// The first step with this status; before it none failed.
fn found<'s>(steps: &'s [Step], status: &str) -> &'s Step {
    let at = steps.iter().position(|step| step.status == status);
    let at = at.unwrap_or_else(|| panic!("no step has status {status}: {steps:#?}"));
    assert!(steps[..at].iter().all(|step| step.status != "error"), "an error came before: {steps:#?}");
    &steps[at]
}

/// No part of a token that was issued or shown, nor any text of a service, stands in the rows.
fn nothing_secret(steps: &[Step], issued: &[String], shown: &[String]) {
    let text = format!("{steps:?}");
    assert!(!text.contains("canary"), "{text}");
    for token in issued.iter().chain(shown) {
        for part in token.split('.').filter(|part| part.len() > 20) {
            assert!(!text.contains(part), "{text}");
        }
    }
}

#[test]
fn each_cause_of_the_table_is_told_at_its_step_with_a_hint_of_its_own() {
    let stage = Stage::new();
    let causes = table();
    let mut hints = BTreeSet::new();
    let mut pieces = BTreeSet::new();
    for cause in &causes {
        let mut said = BTreeSet::new();
        for how in &cause.provoked {
            let told = stage.provoke(how);
            let step = found(&told.steps, &cause.status);
            let about = format!("{} by {how}: {:#?}", cause.name, told.steps);
            assert_eq!(
                (step.name.as_str(), step.status.as_str()),
                (cause.step.as_str(), cause.status.as_str()),
                "{about}"
            );
            assert!(step.hint.contains(&cause.hint), "{about}");
            // An error of the same cause says no less.
            if let Some(error) = &told.error {
                assert!(told.steps.iter().any(|step| step.hint == *error), "\"{error}\" is not in {about}");
            }
            let worlds = [&stage.vm, &stage.aks, &stage.pod.world, &stage.bare.world, &stage.late];
            for world in worlds {
                nothing_secret(&told.steps, &world.emulator.issued_tokens(), &stage.pod.assertions());
            }
            said.insert(step.hint.clone());
        }
        assert_eq!(said.len(), 1, "one cause, one hint: {said:?}");
        hints.extend(said);
        pieces.insert(&cause.hint);
    }
    assert_eq!((hints.len(), pieces.len()), (causes.len(), causes.len()), "each has its own");
    // And when nothing is provoked, nothing is told.
    for (world, identity) in [(&stage.vm, "machine"), (&stage.pod.world, "machine")] {
        let steps = diagnose(&mut world.session(), "storage", identity);
        assert!(steps.iter().all(|step| step.status == "ok" && step.hint.is_empty()), "{steps:#?}");
    }
}

#[test]
fn a_healthy_identity_is_told_step_by_step_and_nothing_is_cached() {
    let world = World::new();
    let mut session = world.session();
    for asked in 1..=2 {
        let steps = diagnose(&mut session, "storage", "machine");
        assert_eq!(names(&steps), ["permission", "source", "tls roots", "endpoint", "clock", "answer", "token"]);
        assert!(steps.iter().all(|step| step.status == "ok" && step.hint.is_empty()), "{steps:#?}");
        let system = Identity::system();
        for told in
            ["aud https://storage.azure.com/", "iss ", &system.object_id, &system.client_id, &system.resource_id]
        {
            assert!(steps[6].detail.contains(told), "{steps:#?}");
        }
        assert!(steps[6].detail.contains(" UTC, in "), "{steps:#?}");
        assert!(steps[1].detail.contains("AZURE_CLIENT_ID"), "{steps:#?}");
        assert_eq!(world.asked(), asked, "each asks anew");
        nothing_secret(&steps, &world.emulator.issued_tokens(), &[]);
    }
    assert_eq!(session.value("SELECT count(*) FROM managed_identity.cached_tokens"), "0");
    // Nor does it take what is cached, or change it.
    let token = session.value("SELECT managed_identity.access_token('storage')");
    let row = "SELECT state, fetches, failures, fetched_at FROM managed_identity.cached_tokens";
    let before = session.rows(row);
    world.emulator.identity().faults().next(1, Fault::status(403));
    assert_eq!(found(&diagnose(&mut session, "storage", "machine"), "error").name, "answer");
    assert_eq!((session.rows(row), world.asked()), (before, 4));
    assert_eq!(session.value("SELECT managed_identity.access_token('storage')"), token);
    // The arguments have defaults, and are checked as everywhere.
    assert_eq!(session.value("SELECT count(*) FROM managed_identity.diagnose() WHERE status = 'ok'"), "7");
    for (arguments, sqlstate) in [("NULL", "22004"), ("'nothing'", "22023"), ("'storage', 'nobody'", "42704")] {
        assert_eq!(session.sqlstate(&format!("SELECT managed_identity.diagnose({arguments})")), sqlstate);
    }
}

#[test]
fn a_healthy_pod_is_told_of_its_federated_token_by_its_claims() {
    let pod = Pod::new();
    let steps = diagnose(&mut pod.world.session(), "key-vault", "keys");
    let expected = ["permission", "source", "token file", "tls roots", "endpoint", "clock", "answer", "token"];
    assert_eq!(names(&steps), expected, "{steps:#?}");
    assert!(steps.iter().all(|step| step.status == "ok"), "{steps:#?}");
    for told in [pod.issuer.url(), SUBJECT, "api://AzureADTokenExchange", &pod.token_file()] {
        assert!(steps[2].detail.contains(told), "{steps:#?}");
    }
    assert!(steps[7].detail.contains(TENANT), "{steps:#?}");
    assert_eq!(pod.assertions().len(), 1);
    nothing_secret(&steps, &pod.world.emulator.issued_tokens(), &pod.assertions());
}

#[test]
fn who_may_not_use_an_identity_is_told_so_and_nothing_is_contacted() {
    let world = World::new();
    let mut admin = world.session();
    let mut etl = world.role("etl");
    let call = "SELECT * FROM managed_identity.diagnose()";
    assert_eq!(etl.sqlstate(call), "42501");
    admin.run("GRANT EXECUTE ON FUNCTION managed_identity.diagnose TO etl");
    let denied = diagnose(&mut etl, "storage", "machine");
    assert_eq!(names(&denied), ["permission"]);
    assert_eq!(denied[0].status, "error");
    assert_eq!(denied[0].hint, "GRANT USAGE ON FOREIGN SERVER machine allows it.");
    admin.run("GRANT USAGE ON FOREIGN SERVER keys TO etl");
    let outside = diagnose(&mut etl, "storage", "keys");
    assert_eq!((names(&outside), outside[0].status.as_str()), (vec!["permission"], "error"));
    assert!(outside[0].hint.contains("option resources"), "{outside:?}");
    assert_eq!(world.emulator.identity().log().requests().len(), 0);
    assert!(diagnose(&mut etl, "key-vault", "keys").iter().all(|step| step.status == "ok"));
    assert_eq!(world.asked(), 1);
    // Where user code must not reach out, as for a token.
    admin.run(
        "CREATE FUNCTION steps(int) RETURNS bigint IMMUTABLE LANGUAGE sql AS
             'SELECT count(*) FROM managed_identity.diagnose()';
         CREATE TABLE t AS SELECT 1 AS a",
    );
    assert_eq!(admin.sqlstate("CREATE INDEX ON t (steps(a))"), "42501");
    assert_eq!(world.asked(), 1);
}

#[test]
fn a_diagnosis_that_waits_can_be_cancelled_timed_out_and_terminated() {
    let world = World::new();
    let (log, faults) = (world.emulator.identity().log(), world.emulator.identity().faults());
    faults.always(Fault::HangBeforeHeaders);
    let call = "SELECT * FROM managed_identity.diagnose()";
    let mut session = world.session();
    session.run("SET statement_timeout = '300ms'");
    assert_eq!(session.sqlstate(call), "57014");
    // An ERROR is not a row: only who calls may catch it.
    session.run("SET statement_timeout = 0");
    for (end, expected) in [("pg_cancel_backend", Some("57014")), ("pg_terminate_backend", None)] {
        let held = log.held();
        let mut waiting = world.session();
        let pid = waiting.pid();
        let over = std::thread::spawn(move || {
            let error = waiting.client().simple_query(call).expect_err("it cannot succeed");
            (error.as_db_error().map(|error| error.code().code().to_owned()), waiting.client().is_closed())
        });
        log.wait_for_held(held + 1, wait::LONG).unwrap();
        session.run(&format!("SELECT {end}({pid})"));
        let (code, closed) = over.join().unwrap();
        match expected {
            Some(expected) => assert_eq!((code.as_deref(), closed), (Some(expected), false)),
            None => assert!(closed || code.as_deref() == Some("57P01"), "{code:?}"),
        }
    }
    faults.clear();
    faults.release();
    assert_eq!(session.value("SELECT count(*) FROM managed_identity.diagnose() WHERE status = 'ok'"), "7");
    assert!(!world.cluster.log().contains("was terminated by signal"));
}

#[test]
fn the_detected_source_is_for_who_watches_the_server() {
    let pod = Pod::new();
    let vm = World::with(Options::default(), vec![Identity::system()]);
    for (world, source) in [(&vm, "imds"), (&pod.world, "workload_identity")] {
        let call = "SELECT managed_identity.detected_source()";
        let mut anyone = world.role("anyone");
        assert_eq!(anyone.sqlstate(call), "42501");
        world.session().run("GRANT pg_monitor TO anyone");
        assert_eq!(anyone.value(call), source);
        assert_eq!(world.asked(), 0);
    }
    pod.world.set("managed_identity.source", "imds");
    assert_eq!(pod.world.session().value("SELECT managed_identity.detected_source()"), "imds");
}
