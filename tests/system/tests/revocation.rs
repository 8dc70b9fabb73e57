//! What a vault takes away is gone in every session within its time, what it gives back comes back by itself, and what
//! merely cannot be reached is neither.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::time::{SystemTime, UNIX_EPOCH};

use emulator::{ANYONE, Fault, Identity, Key, Network, Pki, Reply, VaultOperation};
use server_tests::{Options, World, wait};

const NEVER: &str = "-1";
const READ: &str = "SELECT convert_from(azure_key_vault.decrypt_value(v), 'UTF8') FROM t";
const STATE: &str = "SELECT state FROM azure_key_vault.data_keys";

/// A server that tries its vault keys every second, and a value under one.
fn world() -> World {
    let options = Options::default()
        .conf("azure_key_vault.revalidate_interval = 1")
        .conf("azure_key_vault.grace_period = -1")
        .conf("azure_key_vault.revocation_grace_period = -1")
        .conf("managed_identity.request_timeout = '500ms'");
    let world = World::with(options, vec![Identity::system(), Identity::user("keys")]);
    world.emulator.vault().put_key(Key::rsa("kek", 2048)).unwrap();
    world.session().run(&format!(
        "CREATE SERVER payroll FOREIGN DATA WRAPPER azure_key_vault
             OPTIONS (vault_uri '{}', identity 'keys', allow 'data-keys');
         SELECT azure_key_vault.create_data_key('salary', 'payroll', 'kek');
         CREATE TABLE t AS SELECT azure_key_vault.encrypt_value('salary', 'hello') AS v",
        world.emulator.vault_uri(),
    ));
    world
}

/// Something that befalls the vault, the way to it, or the identity.
struct Cause {
    what: &'static str,
    begin: fn(&World),
    end: fn(&World),
}

const fn cause(what: &'static str, begin: fn(&World), end: fn(&World)) -> Cause {
    Cause { what, begin, end }
}

fn vault_says(world: &World, reply: Reply) {
    world.emulator.vault().faults().always(reply);
}

fn vault_is_well(world: &World) {
    world.emulator.vault().faults().clear();
}

fn forget_tokens(world: &World) {
    world.session().run("SELECT managed_identity.forget_tokens()");
}

/// The attributes of the only version.
fn attributes(world: &World, enabled: bool, nbf: Option<i64>, exp: Option<i64>) {
    let change = |of: &mut emulator::Attributes| (of.enabled, of.nbf, of.exp) = (enabled, nbf, exp);
    world.emulator.vault().change_key("kek", None, change).unwrap();
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

const DISTURBANCES: [Cause; 7] = [
    cause(
        "TLS",
        |world| {
            let other = Pki::create_for(&[]).unwrap();
            let file = world.cluster.file("other-ca.pem", other.ca_pem());
            world.set("managed_identity.tls_ca_file", &file);
        },
        |world| {
            let file = world.cluster.file("ca-again.pem", world.emulator.pki().ca_pem());
            world.set("managed_identity.tls_ca_file", &file);
        },
    ),
    cause("429", |world| vault_says(world, Reply::throttled()), vault_is_well),
    cause("500", |world| vault_says(world, Reply::new(500)), vault_is_well),
    cause("a reset", |world| world.emulator.vault().faults().always(Fault::Reset), vault_is_well),
    cause("no answer", |world| world.emulator.vault().faults().always(Fault::HangBeforeHeaders), vault_is_well),
    cause(
        "IMDS down",
        |world| {
            world.emulator.identity().faults().always(Fault::status(500));
            forget_tokens(world);
        },
        |world| world.emulator.identity().faults().clear(),
    ),
    cause(
        "clocks that are apart",
        |world| vault_says(world, Reply::new(401).header("date", "Sun, 06 Nov 1994 08:49:37 GMT")),
        vault_is_well,
    ),
];

const REFUSALS: [Cause; 7] = [
    cause(
        "a role that was taken away",
        |world| world.emulator.vault().deny(ANYONE, VaultOperation::UnwrapKey),
        |world| world.emulator.vault().allow_again(ANYONE, VaultOperation::UnwrapKey),
    ),
    cause(
        "the vault's firewall",
        |world| world.emulator.vault().set_network(Network::Firewall),
        |world| world.emulator.vault().set_network(Network::Open),
    ),
    cause("a disabled key", |world| attributes(world, false, None, None), |world| attributes(world, true, None, None)),
    cause(
        "a deleted key",
        |world| world.emulator.vault().delete_key("kek").unwrap(),
        |world| world.emulator.vault().recover_key("kek").unwrap(),
    ),
    cause(
        "an expired key",
        |world| attributes(world, true, None, Some(now() - 10)),
        |world| attributes(world, true, None, None),
    ),
    cause(
        "a key that is not valid yet",
        |world| attributes(world, true, Some(now() + 3_600), None),
        |world| attributes(world, true, None, None),
    ),
    cause(
        "an identity that is no longer assigned",
        |world| {
            world.emulator.identity().assign(vec![Identity::system()]).unwrap();
            forget_tokens(world);
        },
        |world| world.emulator.identity().assign(vec![Identity::system(), Identity::user("keys")]).unwrap(),
    ),
];

/// Each cause leads to `state`, in which values are read as long as its own period lasts, and no longer.
fn each_leads_to(causes: &[Cause], state: &str, period: &str, other_period: &str) {
    let world = world();
    let mut warm = world.session();
    for Cause { what, begin, end } in causes {
        assert_eq!(warm.value(READ), "hello", "{what}");
        world.set(other_period, "0");
        begin(&world);
        wait::until(&format!("{what}: {state}"), || warm.value(STATE) == state);
        assert_eq!(warm.value(READ), "hello", "{what}: in its period");
        assert_eq!(world.session().value(READ), "hello", "{what}: and for new sessions");
        world.set(period, "0");
        wait::until(&format!("{what}: locked"), || warm.value(STATE) == "locked");
        for session in [&mut warm, &mut world.session()] {
            let error = session.error(READ);
            assert_eq!(error.code().code(), "55006", "{what}: {error:?}");
            assert!(error.detail().unwrap().contains("may not be used"), "{what}: {error:?}");
        }
        assert!(!warm.value("SELECT locked_reason FROM azure_key_vault.data_keys").is_empty(), "{what}");
        world.set(period, NEVER);
        world.set(other_period, NEVER);
        end(&world);
        wait::until(&format!("{what}: over"), || warm.value(STATE) == "ready");
        assert_eq!(warm.value(READ), "hello", "{what}: it unlocked by itself");
    }
    let log = world.cluster.log();
    for line in
        [format!("is {state} (it was ready)"), format!("is locked (it was {state})"), "is ready (it was locked)".into()]
    {
        assert_eq!(log.matches(&line).count(), causes.len(), "one line each: {line}\n{log}");
    }
}

#[test]
fn what_cannot_be_reached_is_usable_for_the_grace_period() {
    each_leads_to(&DISTURBANCES, "degraded", "azure_key_vault.grace_period", "azure_key_vault.revocation_grace_period");
}

#[test]
fn what_was_refused_is_usable_for_the_shorter_period() {
    each_leads_to(
        &REFUSALS,
        "revoked_pending",
        "azure_key_vault.revocation_grace_period",
        "azure_key_vault.grace_period",
    );
}

#[test]
fn a_server_starts_without_its_vault_and_reads_once_it_is_there() {
    let world = world();
    vault_says(&world, Reply::new(403));
    world.cluster.restart();
    let mut session = world.session();
    assert_eq!(session.sqlstate(READ), "28000");
    vault_is_well(&world);
    assert_eq!(session.value(READ), "hello");
    world.emulator.vault().faults().always(Fault::Reset);
    world.cluster.restart();
    let mut session = world.session();
    assert_eq!(session.sqlstate(READ), "08001");
    vault_is_well(&world);
    wait::until("it reads", || session.try_rows(READ).is_ok());
}

#[test]
fn a_standby_locks_and_unlocks_for_itself() {
    let world = world();
    let standby = world.cluster.standby();
    standby.catch_up(&world.cluster);
    let mut session = standby.session();
    assert_eq!(session.value("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(session.value(READ), "hello");
    session.run("ALTER SYSTEM SET azure_key_vault.revocation_grace_period = 0");
    session.run("SELECT pg_reload_conf()");
    attributes(&world, false, None, None);
    wait::until("locked", || session.value(STATE) == "locked");
    assert_eq!(session.sqlstate(READ), "55006");
    attributes(&world, true, None, None);
    wait::until("ready", || session.value(STATE) == "ready");
    assert_eq!(session.value(READ), "hello");
}

#[test]
fn an_identity_that_may_only_unwrap_and_verify_is_enough_to_read() {
    let world = world();
    world.emulator.vault().deny(ANYONE, VaultOperation::ReadKey);
    world.cluster.restart();
    let mut session = world.session();
    assert_eq!(session.value(READ), "hello");
    let log = world.emulator.vault().log();
    let probes = log.count();
    log.wait_for_requests(probes + 4, wait::LONG).unwrap();
    assert_eq!(session.value(STATE), "ready");
}

#[test]
fn a_load_ends_no_revocation_and_what_was_never_usable_is_tried_again() {
    let world = world();
    let mut session = world.session();
    session.run("SELECT azure_key_vault.create_data_key('bonus', 'payroll', 'kek')");
    session.run("CREATE TABLE b AS SELECT azure_key_vault.encrypt_value('bonus', 'hello') AS v");
    world.cluster.restart();
    let mut session = world.session();
    assert_eq!(session.value(READ), "hello");
    let states = "SELECT string_agg(DISTINCT state, ' ') FROM azure_key_vault.data_keys";
    attributes(&world, true, None, Some(now() - 10));
    wait::until("it has expired", || session.value(states) == "revoked_pending");
    // The vault would still unwrap the other data key.
    assert_eq!(session.sqlstate("SELECT azure_key_vault.decrypt_value(v) FROM b"), "28000");
    assert_eq!(session.value(states), "revoked_pending");
    // A server that starts while its vault refuses, for longer than any period.
    world.set("azure_key_vault.revocation_grace_period", "0");
    world.cluster.restart();
    let mut session = world.session();
    for _ in 0..2 {
        assert_eq!(session.sqlstate(READ), "28000");
    }
    attributes(&world, true, None, None);
    wait::until("it reads", || session.try_rows(READ).is_ok());
}
