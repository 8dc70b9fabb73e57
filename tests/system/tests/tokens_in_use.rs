//! Tokens in use: renewed, forced, forgotten, by whom, and what takes effect while sessions are open.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::thread;

use emulator::{Fault, Identity};
use server_tests::{Options, Session, World, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";
const FORCED: &str = "SELECT managed_identity.access_token('storage', NULL, true)";
const FORGET: &str = "SELECT managed_identity.forget_tokens()";

/// The identity that the endpoint was last asked for.
fn last(world: &World) -> String {
    let entry = world.emulator.identity().log().requests().pop().expect("a request");
    entry.identity.unwrap_or_default()
}

fn said(session: &Session) -> Vec<String> {
    session.notices().iter().map(|notice| format!("{}: {}", notice.severity(), notice.message())).collect()
}

#[test]
fn a_forced_refresh_is_a_new_token_and_soon_after_the_same_one() {
    let world = World::new();
    let (mut one, mut two) = (world.session(), world.session());
    let cached = "NOTICE: the cached token is returned";
    let first = one.value(FORCED);
    assert_eq!(said(&one), Vec::<String>::new());
    for session in [&mut one, &mut two] {
        assert_eq!(session.value(FORCED), first);
        assert_eq!(said(session), [cached]);
    }
    assert_eq!((world.asked(), two.value(TOKEN)), (1, first.clone()));
    // Another resource has its own turn.
    one.run("SELECT managed_identity.access_token('sql', force_refresh => true)");
    assert_eq!((world.asked(), said(&one).len()), (2, 0));
    // Those who force at once while nobody may yet, get one new token between them when they may.
    wait::until("a forced refresh is made again", || one.value(FORCED) != first);
    assert_eq!(world.asked(), 3);
    let second = world.emulator.identity().log().requests()[2].token.clone().expect("a token");
    for session in [&mut one, &mut two] {
        assert_eq!(session.value(TOKEN), second, "a copy of the old one is no longer used");
    }
    assert_eq!(world.asked(), 3);
}

#[test]
fn a_forced_refresh_after_a_plain_call_is_a_new_token() {
    let world = World::new();
    let mut session = world.session();
    let plain = session.value(TOKEN);
    assert!(session.value(FORCED) != plain, "no forced refresh was made yet, but the cached token was returned");
    assert_eq!(said(&session), Vec::<String>::new());
}

#[test]
fn forced_refreshes_at_once_are_one_request() {
    let world = World::new();
    let faults = world.emulator.identity().faults();
    faults.next(1, Fault::HangBeforeHeaders);
    let mut sessions: Vec<Session> = (0..8).map(|_| world.session()).collect();
    let tokens: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(move || session.value(FORCED))).collect();
        let waiting = "SELECT waiting FROM managed_identity.cached_tokens";
        wait::until("all others wait for the one", || world.session().rows(waiting) == ["7"]);
        world.emulator.identity().log().wait_for_held(1, wait::LONG).expect("the one request");
        faults.release();
        threads.into_iter().map(|thread| thread.join().expect("a token")).collect()
    });
    assert_eq!(world.asked(), 1);
    assert!(tokens.iter().all(|token| *token == tokens[0]));
}

#[test]
fn forgotten_tokens_are_counted_and_only_those_the_caller_may_use() {
    let world = World::new();
    let mut session = world.session();
    let mut etl = world.role("etl");
    session.run(&format!(
        "CREATE SERVER app FOREIGN DATA WRAPPER managed_identity OPTIONS (client_id '{}');
         GRANT EXECUTE ON FUNCTION managed_identity.forget_tokens, managed_identity.access_token TO etl;
         GRANT USAGE ON FOREIGN SERVER machine TO etl",
        Identity::user("app").client_id,
    ));
    world
        .emulator
        .identity()
        .assign(["keys", "app"].map(Identity::user).into_iter().chain([Identity::system()]).collect())
        .unwrap();
    let fill = [("storage", "machine"), ("sql", "machine"), ("key-vault", "keys"), ("storage", "app"), ("sql", "app")];
    let fill = |session: &mut Session| {
        for (resource, identity) in fill {
            session.run(&format!("SELECT managed_identity.access_token('{resource}', '{identity}')"));
        }
    };
    fill(&mut session);
    let states = "SELECT string_agg(identity || ' ' || resource, ', ' ORDER BY identity, resource)
                  FROM managed_identity.cached_tokens WHERE state = 'ready'";
    assert_eq!(world.asked(), 5);
    let forget = |arguments: &str| format!("SELECT managed_identity.forget_tokens({arguments})");
    // Without an identity: what the caller may use, and nothing of anybody else's.
    assert_eq!(etl.value(&forget("'key-vault'")), "0");
    assert_eq!(etl.sqlstate(&forget("NULL, 'keys'")), "42501");
    assert_eq!(etl.sqlstate(&forget("'storage', 'app'")), "42501");
    assert_eq!(etl.value(&forget("'storage'")), "1");
    assert_eq!(etl.value(FORGET), "1");
    assert_eq!(etl.value(FORGET), "0");
    assert_eq!(
        session.value(states),
        "app https://database.windows.net/, app https://storage.azure.com/, keys https://vault.azure.net"
    );
    // The open session's own copy went with it; what was not forgotten is served on.
    fill(&mut session);
    assert_eq!(world.asked(), 7);
    assert_eq!(session.value(&forget("'https://database.windows.net/'")), "2");
    assert_eq!(session.value(&forget("identity => 'app'")), "1");
    assert_eq!(session.value(&forget("'storage', 'app'")), "0");
    assert_eq!(session.value(&forget("'storage', 'machine'")), "1");
    assert_eq!(session.value(FORGET), "1");
    assert_eq!(session.rows("SELECT * FROM managed_identity.cached_tokens"), Vec::<String>::new());
    assert_eq!(session.sqlstate(&forget("'no resource'")), "22023");
    assert_eq!(session.sqlstate(&forget("NULL, 'nobody'")), "42704");
    fill(&mut session);
    assert_eq!(world.asked(), 12);
}

#[test]
fn a_token_that_is_due_is_renewed_by_one_while_all_others_are_served() {
    let world = World::with(Options::default().no_renewal_ahead(), vec![Identity::system()]);
    let identity = world.emulator.identity();
    let (mut one, mut two) = (world.session(), world.session());
    // Due a second later at most, and good for an hour.
    identity.set_refresh_in(Some(1));
    let old = one.value(TOKEN);
    identity.set_refresh_in(None);
    identity.faults().next(1, Fault::HangBeforeHeaders);
    thread::scope(|scope| {
        let renewer = scope.spawn(|| {
            wait::until("one session asks", || one.value(TOKEN) != old);
            one.value(TOKEN)
        });
        identity.log().wait_for_held(1, wait::LONG).expect("a renewal");
        for _ in 0..3 {
            assert_eq!(two.value(TOKEN), old, "who does not renew does not wait");
        }
        let state = "SELECT state, expires_at > now() FROM managed_identity.cached_tokens";
        assert_eq!(two.rows(state), ["ready|t"]);
        assert_eq!((identity.log().held(), world.asked()), (1, 2));
        identity.faults().release();
        let new = renewer.join().expect("a token");
        assert_eq!(two.value(TOKEN), new);
        assert_eq!(world.asked(), 2);
    });
}

#[test]
fn a_valid_token_is_served_while_the_endpoint_is_down() {
    let world = World::with(Options::default().no_renewal_ahead(), vec![Identity::system()]);
    let identity = world.emulator.identity();
    let (mut one, mut two) = (world.session(), world.session());
    identity.set_refresh_in(Some(1));
    for session in [&mut one, &mut two] {
        session.run("SET managed_identity.acquire_timeout = '1s'");
    }
    for (resource, fault) in [("storage", Fault::status(503)), ("sql", Fault::Reset), ("graph", Fault::status(400))] {
        let sql = format!("SELECT managed_identity.access_token('{resource}')");
        identity.log().clear();
        let old = one.value(&sql);
        identity.faults().always(fault);
        wait::until("a renewal was tried", || {
            assert_eq!(one.value(&sql), old);
            world.asked() == 2
        });
        for session in [&mut one, &mut two] {
            assert_eq!(session.value(&sql), old, "{resource}");
        }
        assert_eq!(world.asked(), 2, "{resource}: a renewal that failed is not tried again at once");
        let row = "SELECT state, failures, last_error IS NOT NULL FROM managed_identity.cached_tokens ORDER BY fetched_at DESC";
        assert_eq!(two.rows(row)[0], "ready|1|t", "{resource}");
        identity.faults().clear();
    }
}

#[test]
fn a_token_needs_execute_and_usage_and_a_row_needs_usage() {
    let world = World::new();
    let mut admin = world.session();
    admin.run(
        "CREATE ROLE group_of_users; CREATE ROLE lender LOGIN;
         CREATE FUNCTION lent() RETURNS text LANGUAGE sql SECURITY DEFINER
             AS $$ SELECT managed_identity.access_token('storage', 'machine') $$;
         ALTER FUNCTION lent() OWNER TO lender;
         CREATE FUNCTION borrowed() RETURNS text LANGUAGE sql
             AS $$ SELECT managed_identity.access_token('storage', 'machine') $$",
    );
    let execute = "GRANT EXECUTE ON FUNCTION managed_identity.access_token, managed_identity.authorization_header,
                   managed_identity.forget_tokens TO";
    let usage = "GRANT USAGE ON FOREIGN SERVER machine TO";
    admin.run(&format!("{execute} lender, group_of_users; {usage} lender, group_of_users"));
    // Role, its grants, whether it gets tokens, the rows it sees of the two that there are.
    let cases = [
        ("nothing", String::new(), false, ""),
        ("execute_only", format!("{execute} execute_only"), false, ""),
        ("usage_only", format!("{usage} usage_only"), false, "machine"),
        ("etl", format!("{execute} etl; {usage} etl"), true, "machine"),
        ("member", String::from("GRANT group_of_users TO member"), true, "machine"),
        ("statistics", String::from("GRANT pg_read_all_stats TO statistics"), false, "keys,machine"),
        ("monitor", String::from("GRANT pg_monitor TO monitor"), false, "keys,machine"),
    ];
    let calls = [
        "SELECT managed_identity.access_token('storage')",
        "SELECT managed_identity.access_token('storage', 'machine', true)",
        "SELECT managed_identity.authorization_header('storage')",
        "SELECT managed_identity.forget_tokens(NULL, 'machine')",
        "SELECT borrowed()",
    ];
    admin.run("SELECT managed_identity.access_token('key-vault', 'keys')");
    for (role, grants, allowed, rows) in cases {
        let mut session = world.role(role);
        admin.run(&format!("{grants}; {TOKEN}"));
        let identities = "SELECT string_agg(identity, ',' ORDER BY identity) FROM managed_identity.cached_tokens";
        assert_eq!(session.value(identities), rows, "{role}");
        let asked = world.asked();
        for call in calls {
            let outcome = session.try_rows(call).map_err(|error| error.code().code().to_owned());
            assert_eq!(outcome.err().as_deref(), (!allowed).then_some("42501"), "{role}: {call}");
        }
        assert!(allowed || world.asked() == asked, "{role}: nothing is sent for who may not");
        // Lent by one who may, as for a table; and SET ROLE takes the rights along.
        session.run("SELECT lent()");
        let switched = format!("SET ROLE {role}; {}", calls[0]);
        assert_eq!(admin.try_rows(&switched).is_ok(), allowed, "{role}");
        admin.run("RESET ROLE");
        for foreign in [
            "SELECT managed_identity.access_token('key-vault', 'keys')",
            "SET managed_identity.default_identity = 'keys'",
        ] {
            assert_eq!(session.sqlstate(foreign), "42501", "{role}: {foreign}");
        }
    }
    // A right that is taken away is gone at once, warm copy or not.
    let mut etl = world.cluster.session_as("etl");
    etl.run(TOKEN);
    admin.run("REVOKE USAGE ON FOREIGN SERVER machine FROM etl");
    assert_eq!(etl.sqlstate(TOKEN), "42501");
}

#[test]
fn changes_of_servers_and_databases_take_effect_at_once_in_open_sessions() {
    let identities = ["keys", "a", "b"].map(Identity::user).into_iter().chain([Identity::system()]).collect();
    let world = World::with(Options::default(), identities);
    let mut admin = world.session();
    let client_id = |name: &str| Identity::user(name).client_id;
    let server = "SERVER app FOREIGN DATA WRAPPER managed_identity OPTIONS";
    admin.run(&format!("CREATE {server} (client_id '{}')", client_id("a")));
    let app = "SELECT managed_identity.access_token('storage', 'app')";
    let mut open = world.session();
    open.run(app);
    assert_eq!(last(&world), "a");
    admin.run(&format!("ALTER SERVER app OPTIONS (SET client_id '{}')", client_id("b")));
    open.run(app);
    assert_eq!((last(&world).as_str(), world.asked()), ("b", 2));
    admin.run("ALTER SERVER app OPTIONS (ADD resources 'sql')");
    assert_eq!(open.sqlstate(app), "42501");
    admin.run("ALTER SERVER app OPTIONS (SET resources 'sql,storage')");
    open.run(app);
    assert_eq!(world.asked(), 2, "the same identity, the same token");
    admin.run("ALTER SERVER app RENAME TO other");
    assert_eq!(open.sqlstate(app), "42704");
    admin.run(&format!("CREATE {server} (object_id '{}')", Identity::user("a").object_id));
    open.run(app);
    assert_eq!(last(&world), "a");
    admin.run("DROP SERVER app");
    assert_eq!(open.sqlstate(app), "42704");

    // Which identity is meant where none is named is a matter of the database.
    admin.run("CREATE DATABASE sales");
    admin.run("ALTER DATABASE sales SET managed_identity.default_identity = 'house'");
    let mut sales = world.cluster.session_in("sales");
    sales.run(&format!(
        "CREATE EXTENSION managed_identity;
         CREATE SERVER house FOREIGN DATA WRAPPER managed_identity OPTIONS (client_id '{}')",
        client_id("b"),
    ));
    let asked = world.asked();
    let in_sales = sales.value(TOKEN);
    assert_eq!(world.asked(), asked, "all databases share one cache");
    assert_ne!(open.value(TOKEN), in_sales);
    assert_eq!(last(&world), "system");
    sales.run("SELECT managed_identity.access_token('graph')");
    assert_eq!(last(&world), "b");

    // Nothing is written: it works where nothing may be.
    sales.run("BEGIN READ ONLY");
    sales.run(&format!("SELECT managed_identity.access_token('sql'); {FORCED}; {FORGET}; {TOKEN}; COMMIT"));
}

#[test]
fn a_security_restricted_operation_gets_a_cached_token_and_no_fetch() {
    let world = World::new();
    let (mut session, mut other) = (world.session(), world.session());
    session.run(
        "CREATE TABLE t (a int); INSERT INTO t VALUES (1);
         CREATE FUNCTION size(a int) RETURNS int IMMUTABLE LANGUAGE sql
             AS $$ SELECT a + length(managed_identity.access_token('storage')) $$;
         CREATE FUNCTION forced(a int) RETURNS int IMMUTABLE LANGUAGE sql
             AS $$ SELECT a + length(managed_identity.access_token('sql', NULL, true)) $$;
         CREATE MATERIALIZED VIEW m AS SELECT size(a) FROM t WITH NO DATA",
    );
    let operations = ["CREATE INDEX ON t (size(a))", "REFRESH MATERIALIZED VIEW m", "CREATE INDEX ON t (forced(a))"];
    for operation in operations {
        let error = session.error(operation);
        assert_eq!(error.code().code(), "42501", "{operation}: {error:?}");
        assert!(error.hint().is_some(), "{error:?}");
    }
    assert_eq!(world.asked(), 0);
    // Cached by another session: this one has no copy yet.
    other.run(TOKEN);
    for operation in &operations[..2] {
        session.run(operation);
        session.run(operation);
    }
    assert_eq!(session.value("SELECT size > 100 FROM m"), "t");
    assert_eq!(session.sqlstate(operations[2]), "42501");
    assert_eq!(world.asked(), 1);
    // Outside of such an operation the same function fetches.
    session.run("SELECT forced(1)");
    assert_eq!(world.asked(), 2);
}
