//! Whose rights open a storage account or a vault: the server's owner lends the identity, the current user
//! needs USAGE on the server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use server_tests::{ACCOUNT, Session, World};

const SECRET: &str = "SELECT azure_key_vault.secret('vault', 'db-password')";

fn refused(session: &mut Session, sqlstate: &str, sql: &str) -> String {
    let error = session.error(sql);
    assert_eq!(error.code().code(), sqlstate, "{sql}: {error:?}");
    format!("{} {}", error.message(), error.hint().unwrap_or_default())
}

/// A world with a table, a blob, and roles boss, etl and nobody who may read secrets if a server lets them.
fn world() -> (World, String) {
    let world = World::with_storage();
    world.azurite().put("box/a.csv", "1\n");
    for role in ["boss", "etl", "nobody"] {
        drop(world.role(role));
    }
    world.session().run(&format!(
        "CREATE TABLE t (a int); GRANT ALL ON t TO boss, etl, nobody;
         GRANT EXECUTE ON FUNCTION azure_key_vault.secret, managed_identity.access_token TO boss, etl, nobody;
         GRANT USAGE ON FOREIGN SERVER vault, {ACCOUNT} TO etl"
    ));
    let copy = format!("COPY t FROM '{}'", world.url("box/a.csv"));
    (world, copy)
}

#[test]
fn a_server_lends_its_owners_right_on_the_identity_and_no_other() {
    let (world, copy) = world();
    let mut session = world.session();
    // Open all the time: what changes elsewhere is seen at its next use.
    let mut etl = world.cluster.session_as("etl");
    assert_eq!((etl.value(SECRET), etl.count(&copy)), ("hunter2".to_owned(), 1));
    let vault = world.emulator.vault().log();
    let (asked, read, sent) = (world.asked(), vault.count(), world.proxy().log().count());
    session.run(&format!("ALTER SERVER vault OWNER TO boss; ALTER SERVER {ACCOUNT} OWNER TO boss"));
    for (sql, identity) in [(SECRET, "keys"), (&copy, "machine")] {
        // A superuser's own rights are no substitute for the owner's.
        for who in [&mut etl, &mut session] {
            assert!(refused(who, "42501", sql).contains(identity));
        }
    }
    // What would help is said, and not what would give away more.
    let hint = etl.error(SECRET).hint().unwrap().to_owned();
    assert_eq!(hint, "GRANT USAGE ON FOREIGN SERVER keys TO boss allows it.");
    // Nor is a grant to the user of the server.
    session.run("GRANT USAGE ON FOREIGN SERVER keys, machine TO etl");
    refused(&mut etl, "42501", SECRET);
    refused(&mut etl, "42501", &copy);
    session.run("REVOKE USAGE ON FOREIGN SERVER keys, machine FROM etl");
    assert_eq!((world.asked(), vault.count(), world.proxy().log().count()), (asked, read, sent), "nothing was sent");
    session.run("GRANT USAGE ON FOREIGN SERVER keys, machine TO boss");
    assert_eq!((etl.value(SECRET), etl.count(&copy)), ("hunter2".to_owned(), 1));
    refused(&mut etl, "42501", "SELECT managed_identity.access_token('key-vault', 'keys')");
    session.run("REVOKE USAGE ON FOREIGN SERVER keys, machine FROM boss");
    refused(&mut etl, "42501", SECRET);
    refused(&mut etl, "42501", &copy);
    // Through a group it counts too, and the right of the former owner does not.
    session.run("CREATE ROLE lenders; GRANT USAGE ON FOREIGN SERVER keys, machine TO lenders; GRANT lenders TO boss");
    assert_eq!((etl.value(SECRET), etl.count(&copy)), ("hunter2".to_owned(), 1));
    session.run(&format!("ALTER SERVER vault OWNER TO nobody; ALTER SERVER {ACCOUNT} OWNER TO nobody"));
    refused(&mut etl, "42501", SECRET);
    refused(&mut etl, "42501", &copy);
    assert_eq!(world.asked(), asked, "all from the cache");
}

#[test]
fn the_current_user_counts_as_for_tables() {
    let (world, copy) = world();
    let mut session = world.session();
    session.run(
        "CREATE ROLE readers; CREATE ROLE member LOGIN IN ROLE readers;
         CREATE ROLE stranger LOGIN NOINHERIT; GRANT readers TO stranger;
         GRANT ALL ON t TO readers, member, stranger;
         GRANT EXECUTE ON FUNCTION azure_key_vault.secret TO readers, member, stranger;
         GRANT readers TO nobody; REVOKE readers FROM nobody",
    );
    session.run(&format!("GRANT USAGE ON FOREIGN SERVER vault, {ACCOUNT} TO readers"));
    let works = |session: &mut Session| {
        assert_eq!((session.value(SECRET), session.count(&copy)), ("hunter2".to_owned(), 1));
    };
    let fails = |session: &mut Session| {
        assert!(refused(session, "42501", SECRET).contains("GRANT USAGE"));
        assert!(refused(session, "42501", &copy).contains("GRANT USAGE"));
    };
    works(&mut world.cluster.session_as("member"));
    let mut stranger = world.cluster.session_as("stranger");
    // Before 16 it is the role that does not inherit, from 16 on its membership: the same here.
    fails(&mut stranger);
    stranger.run("SET ROLE readers");
    works(&mut stranger);
    stranger.run("RESET ROLE");
    fails(&mut stranger);
    works(&mut session);
    session.run("SET ROLE nobody");
    fails(&mut session);
    session.run("RESET ROLE");
    // A function that runs as its owner lends that role's rights, and takes the caller's away.
    session.run(&format!(
        "CREATE FUNCTION load() RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $f$
         BEGIN EXECUTE $c${copy}$c$; RETURN azure_key_vault.secret('vault', 'db-password'); END $f$;
         CREATE FUNCTION read() RETURNS text LANGUAGE sql SECURITY DEFINER AS $f${SECRET}$f$;
         ALTER FUNCTION load() OWNER TO etl; ALTER FUNCTION read() OWNER TO etl"
    ));
    let mut nobody = world.cluster.session_as("nobody");
    fails(&mut nobody);
    for call in ["SELECT load()", "SELECT read()"] {
        assert_eq!(nobody.value(call), "hunter2");
        assert_eq!(session.value(call), "hunter2");
    }
    fails(&mut nobody);
    session.run("ALTER FUNCTION load() OWNER TO nobody; ALTER FUNCTION read() OWNER TO nobody");
    for call in ["SELECT load()", "SELECT read()"] {
        refused(&mut world.cluster.session_as("etl"), "42501", call);
        refused(&mut session, "42501", call);
    }
    // Revoked is revoked at once, also where a token is at hand.
    let mut etl = world.cluster.session_as("etl");
    works(&mut etl);
    session.run(&format!("REVOKE USAGE ON FOREIGN SERVER vault, {ACCOUNT} FROM etl"));
    fails(&mut etl);
    // A token itself needs EXECUTE and USAGE on the identity.
    let token = "SELECT managed_identity.access_token('storage')";
    refused(&mut etl, "42501", token);
    session.run("GRANT USAGE ON FOREIGN SERVER machine TO etl");
    etl.run(token);
    session.run("REVOKE EXECUTE ON FUNCTION managed_identity.access_token FROM etl");
    refused(&mut etl, "42501", token);
}

#[test]
fn a_definers_token_is_his_and_a_refresh_has_the_rights_of_the_views_owner() {
    let world = World::new();
    let (mut etl, mut nobody) = (world.role("etl"), world.role("nobody"));
    let mut session = world.session();
    // The token is at hand for whoever may use it: what is refused below is refused for want of rights.
    session.run(
        "GRANT USAGE ON FOREIGN SERVER machine TO etl; GRANT ALL ON SCHEMA public TO etl, nobody;
         GRANT EXECUTE ON FUNCTION managed_identity.access_token TO etl;
         SELECT managed_identity.access_token('storage')",
    );
    let call = "length(managed_identity.access_token('storage')) > 100";
    etl.run(&format!(
        "CREATE FUNCTION lent() RETURNS bool LANGUAGE sql SECURITY DEFINER AS $f$SELECT {call}$f$;
         CREATE FUNCTION own() RETURNS bool LANGUAGE sql SECURITY INVOKER AS $f$SELECT {call}$f$;
         CREATE MATERIALIZED VIEW m AS SELECT own()"
    ));
    let mut called = |sql: &str| nobody.try_rows(sql).map_err(|error| error.code().code().to_owned());
    assert_eq!(called("SELECT lent()"), Ok(vec!["t".into()]));
    assert_eq!(called("SELECT own()"), Err("42501".into()));
    session.run("REFRESH MATERIALIZED VIEW m");
    // What its owner may not do, nobody does for him, a superuser no more than another.
    session.run("ALTER FUNCTION lent() OWNER TO nobody; ALTER MATERIALIZED VIEW m OWNER TO nobody");
    assert_eq!(session.sqlstate("SELECT lent()"), "42501");
    assert_eq!(session.sqlstate("REFRESH MATERIALIZED VIEW m"), "42501");
    session.run("GRANT EXECUTE ON FUNCTION managed_identity.access_token TO nobody");
    for sql in ["SELECT lent()", "REFRESH MATERIALIZED VIEW m"] {
        let error = session.error(sql);
        assert!(error.message().contains("machine"), "it is USAGE that is missing: {error:?}");
    }
    session.run("GRANT USAGE ON FOREIGN SERVER machine TO nobody; REFRESH MATERIALIZED VIEW m");
    assert_eq!((session.value("SELECT lent()"), world.asked()), ("t".to_owned(), 1));
}

#[test]
fn nobody_drops_a_token_that_he_may_not_use() {
    let world = World::new();
    let mut etl = world.role("etl");
    let mut admin = world.session();
    admin.run(
        "CREATE SERVER kv FOREIGN DATA WRAPPER managed_identity OPTIONS (resources 'key-vault');
         GRANT USAGE ON FOREIGN SERVER kv TO etl; GRANT EXECUTE ON FUNCTION managed_identity.forget_tokens TO etl;
         SELECT managed_identity.access_token('storage'), managed_identity.access_token('key-vault')",
    );
    // "kv" and "machine" are one identity, whose token for storage is not for "kv".
    assert_eq!(etl.value("SELECT managed_identity.forget_tokens('storage', 'kv')"), "0");
    assert_eq!(etl.value("SELECT managed_identity.forget_tokens()"), "1");
    assert_eq!(admin.value("SELECT managed_identity.forget_tokens()"), "1");
}

#[test]
fn servers_that_come_and_go_disturb_nobody_who_looks_for_others() {
    let world = World::new();
    let mut admin = world.session();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..500 {
                admin.run("CREATE SERVER gone FOREIGN DATA WRAPPER managed_identity");
                admin.run("DROP SERVER gone");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut reader = world.session();
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            reader.run("SELECT * FROM managed_identity.cached_tokens");
        }
    });
}
