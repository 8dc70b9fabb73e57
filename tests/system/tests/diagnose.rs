//! `diagnose`: each cause of `tests/diagnose.tsv` is provoked, and told at its step with a hint of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use emulator::{Fault, Faults, Identity, NeverAccepts, OidcIssuer, Pki, Refuses, Reply, TENANT};
use serde_json::{Value, json};
use server_tests::{Options, Pod, SUBJECT, Session, World, is_root, wait};

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

/// A row of `diagnose`.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    name: String,
    status: String,
    detail: String,
    hint: String,
}

fn diagnose(session: &mut Session, resource: &str, identity: &str) -> Vec<Step> {
    let sql = format!(
        "SELECT json_build_array(step, status, detail, coalesce(hint, ''))
         FROM managed_identity.diagnose('{resource}', '{identity}')"
    );
    let step = |row: String| {
        let [name, status, detail, hint]: [String; 4] = serde_json::from_str(&row).unwrap();
        Step { name, status, detail, hint }
    };
    session.rows(&sql).into_iter().map(step).collect()
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

/// What was told of one cause: the rows, and the HINT of the error that a token gets.
struct Told {
    steps: Vec<Step>,
    error: Option<String>,
}

fn told(world: &World, resource: &str, identity: &str) -> Told {
    let mut session = world.session();
    let steps = diagnose(&mut session, resource, identity);
    session.run("SELECT managed_identity.forget_tokens()");
    let token = session.try_rows(&format!("SELECT managed_identity.access_token('{resource}', '{identity}')"));
    let error = token.err().map(|error| error.hint().unwrap_or_default().to_owned());
    session.run("SELECT managed_identity.forget_tokens()");
    Told { steps, error }
}

fn with_fault(faults: &Faults, fault: impl Into<Fault>, tell: impl FnOnce() -> Told) -> Told {
    faults.always(fault);
    let told = tell();
    faults.clear();
    faults.release();
    told
}

fn with_setting(world: &World, name: &str, value: &str, tell: impl FnOnce() -> Told) -> Told {
    let before = world.session().value(&format!("SHOW {name}"));
    world.set(name, value);
    let told = tell();
    world.set(name, &before);
    told
}

fn with_server(world: &World, options: &str, tell: impl FnOnce() -> Told) -> Told {
    let create = format!("CREATE SERVER chosen FOREIGN DATA WRAPPER managed_identity OPTIONS ({options})");
    world.session().run(&create);
    let told = tell();
    world.session().run("DROP SERVER chosen");
    told
}

/// A refusal that asks to be left alone for longer than a token is waited for, so that nobody tries again.
fn refusal(status: u16) -> Reply {
    let body = r#"{"error": "some_error", "error_description": "canary"}"#;
    Reply::new(status).header("Retry-After", "30").body(body)
}

fn page(status: u16) -> Reply {
    Reply::new(status).header("Retry-After", "30").body("<html>canary</html>")
}

/// Where causes are provoked: a virtual machine, a pod without workload identity, one with it, and one without
/// certificates.
struct Stage {
    vm: World,
    aks: World,
    pod: Pod,
    bare: Pod,
}

impl Stage {
    fn new() -> Self {
        let in_cluster = Options::default().environment("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        let hidden = match is_root() {
            true => Options { no_certificates: true, ..Options::default() },
            false => Options::default()
                .environment("SSL_CERT_FILE", "/nonexistent/roots.pem")
                .environment("SSL_CERT_DIR", "/nonexistent"),
        };
        let bare = Pod::with(hidden);
        bare.world.set("managed_identity.tls_ca_file", "");
        Self {
            vm: World::with(Options::default(), vec![Identity::system()]),
            aks: World::with(in_cluster.clone(), vec![Identity::user("node")]),
            pod: Pod::with(in_cluster.environment("RES_OPTIONS", "timeout:1 attempts:1")),
            bare,
        }
    }

    fn provoke(&self, how: &str) -> Told {
        let (place, how) = how.split_once(": ").expect("a place");
        match place {
            "vm" => self.on_the_vm(how),
            "aks" => self.on_aks(how),
            "pod" => self.in_the_pod(how),
            _ => told(&self.bare.world, "storage", "machine"),
        }
    }

    fn on_the_vm(&self, how: &str) -> Told {
        let vm = &self.vm;
        let (identity, issuer) = (vm.emulator.identity(), vm.emulator.issuer());
        let tell = || told(vm, "storage", "machine");
        let assigned = |identities: Vec<Identity>, options: Option<&str>| {
            identity.assign(identities).unwrap();
            let told = match options {
                Some(options) => with_server(vm, options, || told(vm, "storage", "chosen")),
                None => tell(),
            };
            identity.assign(vec![Identity::system()]).unwrap();
            told
        };
        let system = || vec![Identity::system()];
        let other = Identity::user("other").client_id;
        let of_other = format!("client_id '{other}'");
        match how {
            "nothing listens" => nothing_listens(vm, tell),
            "no connection" => no_connection(vm, tell),
            "hangs" => with_fault(identity.faults(), Fault::HangBeforeHeaders, || {
                with_setting(vm, "managed_identity.acquire_timeout", "300ms", tell)
            }),
            "401" => with_fault(identity.faults(), refusal(401), tell),
            "403" => with_fault(identity.faults(), refusal(403), tell),
            "410" => with_fault(identity.faults(), refusal(410), tell),
            "429" => with_fault(identity.faults(), refusal(429), tell),
            "503" => with_fault(identity.faults(), refusal(503), tell),
            "another service" => with_fault(identity.faults(), Reply::new(200).body(r#"{"x": "canary"}"#), tell),
            "HTML" => with_fault(identity.faults(), page(200), tell),
            "Via" => with_fault(identity.faults(), refusal(503).header("Via", "1.1 proxy").body("canary"), tell),
            "none assigned" => assigned(Vec::new(), None),
            "another chosen" => assigned(system(), Some(&of_other)),
            "several assigned" => assigned(vec![Identity::user("a"), Identity::user("b")], None),
            "another answers" => {
                let body = r#"{"access_token": "canary", "expires_in": "60", "client_id": "some-other"}"#;
                with_fault(identity.faults(), Reply::new(200).body(body), || assigned(system(), Some(&of_other)))
            }
            "system-assigned asked" => assigned(vec![Identity::user("a")], Some("kind 'system-assigned'")),
            "workload identity asked" => assigned(system(), Some("kind 'workload-identity'")),
            "unknown resource" => {
                issuer.set_resources(Some(&["https://vault.azure.net"]));
                let told = tell();
                issuer.set_resources(None);
                told
            }
            // Seen from here a clock that is ahead is a service that lags behind.
            "clock ahead" => {
                issuer.set_clock_ahead(-200_000);
                let told = tell();
                issuer.set_clock_ahead(0);
                told
            }
            "clock behind" => {
                issuer.set_clock_ahead(600);
                let told = tell();
                issuer.set_clock_ahead(0);
                told
            }
            _ => panic!("how is \"{how}\" provoked?"),
        }
    }

    fn on_aks(&self, how: &str) -> Told {
        let tell = || told(&self.aks, "storage", "machine");
        match how {
            "node" => tell(),
            "nothing listens" => nothing_listens(&self.aks, tell),
            "no connection" => no_connection(&self.aks, tell),
            // A prefix that is there for packets to be discarded (RFC 6666).
            "no route" => by_way_of(&self.aks, "[100::1]", tell),
            _ => panic!("how is \"{how}\" provoked?"),
        }
    }

    fn in_the_pod(&self, how: &str) -> Told {
        let (pod, world, issuer) = (&self.pod, &self.pod.world, self.pod.world.emulator.issuer());
        let tell = || told(world, "storage", "machine");
        let chosen = |options: &str| with_server(world, options, || told(world, "storage", "chosen"));
        let shown = |token: &str| {
            pod.write(token);
            let told = tell();
            pod.write(&pod.issuer.token(SUBJECT).unwrap());
            told
        };
        let claiming = |claim: &str, value: Value| {
            let mut claims = pod.issuer.claims(SUBJECT);
            claims[claim] = value;
            shown(&pod.issuer.sign(&claims).unwrap())
        };
        match how {
            "no file" => {
                fs::remove_file(pod.token_file()).unwrap();
                let told = tell();
                pod.write(&pod.issuer.token(SUBJECT).unwrap());
                told
            }
            "no permission" => {
                fs::set_permissions(pod.token_file(), Permissions::from_mode(0o000)).unwrap();
                let told = tell();
                pod.write(&pod.issuer.token(SUBJECT).unwrap());
                told
            }
            "stale" => claiming("exp", json!(1)),
            "no token" => shown("canary of some file"),
            "subject" => claiming("sub", json!("system:serviceaccount:default:other")),
            "audience" => claiming("aud", json!("https://storage.azure.com")),
            "issuer" => shown(&OidcIssuer::new("https://oidc.test/another/").unwrap().token(SUBJECT).unwrap()),
            "70021" => {
                let body = json!({"error": "invalid_request", "error_codes": [70_021], "error_description": "canary"});
                with_fault(pod.entra.faults(), Reply::new(400).body(body.to_string()), tell)
            }
            "tenant" => chosen("tenant_id '9d2a77c0-55f1-4a0e-8a3e-1b7d5c3f0a11'"),
            "client" => chosen(&format!("client_id '{}'", Identity::user("nobody").client_id)),
            "another service" => chosen(&format!("authority '{}'", world.emulator.vault_uri())),
            // However slow it is to learn that there is none.
            "no such name" => with_setting(world, "managed_identity.connect_timeout", "14s", || {
                chosen("authority 'https://login.invalid'")
            }),
            "nothing listens" => {
                let nobody = Refuses::start().unwrap();
                chosen(&format!("authority 'https://{}'", nobody.address()))
            }
            "Via" => with_fault(pod.entra.faults(), page(503).header("Via", "1.1 proxy"), tell),
            "another CA" => {
                let other = world.cluster.file("other-ca.pem", Pki::create().unwrap().ca_pem());
                with_setting(world, "managed_identity.tls_ca_file", &other, tell)
            }
            "unknown resource" => {
                issuer.set_resources(Some(&["https://vault.azure.net"]));
                let told = tell();
                issuer.set_resources(None);
                told
            }
            // The pod's token is as old as the cluster's clock says, which is the authority's.
            "clock ahead" => {
                issuer.set_clock_ahead(-200_000);
                let mut claims = pod.issuer.claims(SUBJECT);
                for claim in ["exp", "iat", "nbf"] {
                    claims[claim] = (claims[claim].as_i64().unwrap() - 200_000).into();
                }
                let told = shown(&pod.issuer.sign(&claims).unwrap());
                issuer.set_clock_ahead(0);
                told
            }
            _ => panic!("how is \"{how}\" provoked?"),
        }
    }
}

fn nothing_listens(world: &World, tell: impl FnOnce() -> Told) -> Told {
    let nobody = Refuses::start().unwrap();
    with_setting(world, "managed_identity.imds_endpoint", &format!("http://{}", nobody.address()), tell)
}

fn no_connection(world: &World, tell: impl FnOnce() -> Told) -> Told {
    let silent = NeverAccepts::start().unwrap();
    by_way_of(world, &silent.address().to_string(), tell)
}

fn by_way_of(world: &World, address: &str, tell: impl FnOnce() -> Told) -> Told {
    with_setting(world, "managed_identity.connect_timeout", "200ms", || {
        with_setting(world, "managed_identity.imds_endpoint", &format!("http://{address}"), tell)
    })
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
            let worlds = [&stage.vm, &stage.aks, &stage.pod.world, &stage.bare.world];
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
