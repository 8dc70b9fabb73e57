//! A world whose vault keys are looked after each second, and the worker as a test sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::{Fault, Filter, Key, Rule};
use server_tests::{Options, Session, World, wait};

/// A world that looks after its vault keys each second, with a data key.
pub fn world() -> (World, Session) {
    world_with(Options::default())
}

pub fn world_with(options: Options) -> (World, Session) {
    let options = options
        .conf("azure_key_vault.revalidate_interval = '1s'")
        .conf("azure_key_vault.revocation_grace_period = '1s'");
    let world = World::with(options, vec![emulator::Identity::system(), emulator::Identity::user("keys")]);
    world.emulator.vault().put_key(Key::rsa("kek", 2048)).unwrap();
    let mut session = world.session();
    prepare(&world, &mut session);
    (world, session)
}

pub fn prepare(world: &World, session: &mut Session) {
    session.run(&format!(
        "CREATE SERVER payroll FOREIGN DATA WRAPPER azure_key_vault
             OPTIONS (vault_uri '{}', identity 'keys', allow 'data-keys')",
        world.emulator.vault_uri(),
    ));
    create(session, "salary");
}

pub fn create(session: &mut Session, name: &str) {
    session.run(&format!("SELECT azure_key_vault.create_data_key('{name}', 'payroll', 'kek')"));
}

/// Another database with a data key of the same name.
pub fn second(world: &World) -> Session {
    world.session().run("CREATE DATABASE second");
    let mut session = world.cluster.session_in("second");
    session.run("CREATE EXTENSION managed_identity");
    world.create_servers(&mut session);
    prepare(world, &mut session);
    session
}

pub fn worker(session: &mut Session) -> Option<i32> {
    let pid = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'managed_identity data keys'";
    session.rows(pid).first().map(|pid| pid.parse().unwrap())
}

/// Waits until nothing is left to do.
pub fn idle(session: &mut Session) {
    wait::until("the worker has ended", || worker(session).is_none());
}

pub const EVENTS: &str = "SELECT event FROM azure_key_vault.data_key_events ORDER BY at";

pub fn wait_for_event(session: &mut Session, event: &str) {
    wait::until(event, || session.rows(EVENTS).iter().any(|row| row == event));
}

/// How many data keys the newest version wraps.
pub fn wrapped_by(session: &mut Session, version: &str) -> usize {
    let rows = session.rows("SELECT right(kid, 32) FROM azure_key_vault.data_keys");
    rows.iter().filter(|row| *row == version).count()
}

pub fn new_version(world: &World) -> String {
    world.emulator.vault().put_key(Key::rsa("kek", 2048)).unwrap()
}

/// Lets the vault hang when it is to unwrap with this version, after so many times.
pub fn hang_at(world: &World, version: &str, skip: u32) {
    let filter = Filter::path(&format!("{version}/unwrapkey"));
    world.emulator.vault().faults().add(Rule::new(Fault::HangBeforeHeaders).when(filter).skip(skip).times(1));
}

pub fn wait_for_hanging(world: &World) {
    world.emulator.vault().log().wait_for_held(1, wait::LONG).unwrap();
}

pub fn let_go(world: &World) {
    world.emulator.vault().faults().clear();
    world.emulator.vault().faults().release();
}

pub const ENCRYPT: &str = "SELECT azure_key_vault.encrypt_value('salary', 'hello'::bytea)";
