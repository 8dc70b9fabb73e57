//! `managed_identity.log_access`: who was given what stands in the server's log, the thing itself never.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use server_tests::{ACCOUNT, Session, World, wait};

/// What the log has of ours since its first `from` bytes, up to a mark that is written now.
fn lines(world: &World, admin: &mut Session, from: &mut usize) -> Vec<String> {
    let mark = format!("mark {from}");
    admin.run(&format!("DO $$BEGIN RAISE LOG '{mark}'; END$$"));
    let new = || world.cluster.log()[*from..].to_owned();
    wait::until("the mark in the log", || new().contains(&format!("LOG:  {mark}")));
    let new = new();
    *from += new.len();
    let ours = |line: &str| line.split_once("LOG:  role ").map(|(_, what)| what.to_owned());
    new.lines().filter_map(ours).collect()
}

#[test]
fn each_token_and_secret_given_out_is_a_line_and_what_stays_inside_is_none_unless_all_is_asked_for() {
    let world = World::with_storage();
    let mut admin = world.session();
    let mut etl = world.role("etl");
    admin.run(&format!(
        "CREATE TABLE t (a int); GRANT ALL ON t TO etl; GRANT USAGE ON FOREIGN SERVER vault, machine, {ACCOUNT} TO etl;
         GRANT EXECUTE ON FUNCTION azure_key_vault.secret, managed_identity.access_token,
             managed_identity.authorization_header TO etl"
    ));
    let mut from = world.cluster.log().len();
    let token = "SELECT managed_identity.access_token('storage')";
    let copy = format!("COPY t TO '{}'", world.url("box/a.csv"));

    // One line for a token, however often it is asked for; a COPY keeps it to itself.
    let given = etl.value(token);
    etl.run("SELECT managed_identity.access_token('storage') FROM generate_series(1, 100)");
    etl.run(&copy);
    let machine = r#""etl", database "postgres": token of identity "machine" for "https://storage.azure.com/""#;
    assert_eq!(lines(&world, &mut admin, &mut from), [machine]);
    // Another role in the same session, another token, another session: a line each.
    admin.run(token);
    admin.run("SET ROLE etl");
    admin.run(token);
    admin.run("RESET ROLE; SELECT managed_identity.forget_tokens()");
    etl.run("SELECT managed_identity.authorization_header('https://storage.azure.com/')");
    let lines_now = lines(&world, &mut admin, &mut from);
    assert_eq!(lines_now.len(), 3, "{lines_now:?}");
    assert_eq!(lines_now[1..], [machine, machine]);
    assert!(!lines_now[0].starts_with("\"etl\""), "{lines_now:?}");

    // Each secret, with the vault's own id of the request; what was refused was not given.
    etl.run("SELECT azure_key_vault.secret('vault', 'db-password')");
    etl.run("SELECT azure_key_vault.secret('vault', 'db-password')");
    etl.sqlstate("SELECT azure_key_vault.secret('vault', 'missing')");
    let secrets = lines(&world, &mut admin, &mut from);
    let secret = r#""etl", database "postgres": secret "db-password" of server "vault", request id "#;
    assert_eq!(secrets.len(), 2, "{secrets:?}");
    assert!(secrets.iter().all(|line| line.starts_with(secret)) && secrets[0] != secrets[1], "{secrets:?}");

    // `all` tells of COPY, too; `none` of nothing; and it is not for the role to choose.
    assert_eq!(etl.sqlstate("SET managed_identity.log_access = 'none'"), "42501");
    admin.run("ALTER ROLE etl SET managed_identity.log_access = 'all'");
    let mut etl = world.cluster.session_as("etl");
    etl.run(&copy);
    etl.run(&format!("COPY t FROM '{}'", world.url("box/a.csv")));
    let blob = |verb| format!(r#""etl", database "postgres": blob "box/a.csv" {verb} through server "{ACCOUNT}""#);
    assert_eq!(lines(&world, &mut admin, &mut from), [blob("written"), blob("read")]);
    admin.run("ALTER ROLE etl SET managed_identity.log_access = 'none'");
    let mut etl = world.cluster.session_as("etl");
    etl.run(token);
    etl.run("SELECT azure_key_vault.secret('vault', 'db-password')");
    assert_eq!(lines(&world, &mut admin, &mut from), Vec::<String>::new());

    // No client is sent the lines, whatever it asks for, and no line holds what was given.
    admin.run("ALTER ROLE etl RESET managed_identity.log_access");
    let mut etl = world.cluster.session_as("etl");
    etl.run("SET client_min_messages = debug5");
    etl.run(token);
    assert!(etl.notices().iter().all(|notice| !notice.message().contains("token of identity")));
    let log = world.cluster.log();
    assert!(!log.contains(&given) && !log.contains("hunter2"));
}
