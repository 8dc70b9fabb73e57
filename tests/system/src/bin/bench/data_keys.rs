//! Values under customer-managed keys: a million different ones under a hundred data keys, and cold for hundreds of
//! sessions at once.

use std::sync::Barrier;

use emulator::{Identity, Key};
use server_tests::{Options, Session, World};

use crate::measure::{figure, in_turn, line, seconds};

const KEYS: usize = 100;

pub fn run() {
    let options = Options::default()
        .conf("shared_buffers = '1GB'")
        .conf("max_wal_size = '8GB'")
        .conf("autovacuum = off")
        .conf("max_connections = 300")
        .conf("max_parallel_workers_per_gather = 0");
    let world = World::with(options, vec![Identity::system(), Identity::user("keys")]);
    world.emulator.vault().put_key(Key::rsa("kek", 2048)).expect("a key");
    let mut session = world.session();
    session.run(&format!(
        "CREATE EXTENSION pgcrypto;
         CREATE SERVER payroll FOREIGN DATA WRAPPER azure_key_vault
             OPTIONS (vault_uri '{}', identity 'keys', allow 'data-keys');
         SELECT azure_key_vault.create_data_key('k' || i, 'payroll', 'kek') FROM generate_series(1, {KEYS}) i;
         CREATE TABLE plain AS SELECT i, decode(rpad(md5(i::text), 200, md5((-i)::text)), 'hex') AS v
             FROM generate_series(1, 1000000) i;
         CREATE TABLE ours AS SELECT azure_key_vault.encrypt_value('k' || i % {KEYS} + 1, v) AS v FROM plain;
         CREATE TABLE theirs AS SELECT encrypt(v, repeat('k', 32)::bytea, 'aes') AS v FROM plain",
        world.emulator.vault_uri(),
    ));
    session.run("VACUUM ANALYZE");
    drop(session);
    world.cluster.restart();
    cold(&world);
    let (mut a, mut b) = (world.session(), world.session());
    let time = |session: &mut Session, sql: &str| seconds(|| session.run(sql));
    let [ours, theirs] =
        in_turn(&mut [&mut || time(&mut a, "SELECT count(azure_key_vault.decrypt_value(v)) FROM ours"), &mut || {
            time(&mut b, "SELECT count(decrypt(v, repeat('k', 32)::bytea, 'aes')) FROM theirs")
        }]);
    line("1,000,000 values of 100 bytes under 100 data keys / pgcrypto's decrypt", ours / theirs, "<= 1");
}

fn cold(world: &World) {
    const SESSIONS: usize = 200;
    let mut sessions: Vec<Session> = (0..SESSIONS).map(|_| world.session()).collect();
    let log = world.emulator.vault().log();
    log.clear();
    let start = Barrier::new(SESSIONS);
    std::thread::scope(|scope| {
        for session in &mut sessions {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                session.run(&format!(
                    "SELECT count(azure_key_vault.decrypt_value(v)) FROM (SELECT v FROM ours LIMIT {KEYS}) v"
                ));
            });
        }
    });
    let unwraps = log.requests().iter().filter(|entry| entry.path.ends_with("/unwrapkey")).count();
    figure("200 cold sessions, unwrap calls per data key", unwraps as f64 / KEYS as f64, "", "1");
    figure("  all calls per data key", log.count() as f64 / KEYS as f64, "", "1");
}
