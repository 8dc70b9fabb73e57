//! Behind PgBouncer in transaction mode many clients take turns in one session: what each may do is what its role may
//! do now, whatever that session did before.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use server_tests::{ACCOUNT, PgBouncer, Session, World};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";
const SECRET: &str = "SELECT azure_key_vault.secret('vault', 'db-password')";

/// Roles `etl`, who may use all, and `nobody`, who may call all and use nothing; `app` may be either and is neither.
fn world() -> (World, PgBouncer) {
    let world = World::with_storage();
    world.session().run(&format!(
        "CREATE ROLE etl LOGIN; CREATE ROLE nobody LOGIN; CREATE ROLE app LOGIN NOINHERIT IN ROLE etl, nobody;
         CREATE TABLE t (by name); GRANT ALL ON t TO etl, nobody, app;
         GRANT EXECUTE ON FUNCTION managed_identity.access_token, azure_key_vault.secret TO etl, nobody, app;
         GRANT USAGE ON FOREIGN SERVER machine, vault, {ACCOUNT} TO etl"
    ));
    let bouncer = PgBouncer::start(&world.cluster, &["etl", "nobody", "app"]);
    (world, bouncer)
}

/// What the current role of this session gets of a token, a secret and COPY to and from `url`, `None` where all is
/// refused for want of rights.
fn used(session: &mut Session, url: &str) -> Option<Vec<String>> {
    let statements =
        [TOKEN, SECRET, &format!("COPY (SELECT current_user) TO '{url}'"), &format!("COPY t FROM '{url}'")];
    let outcomes: Vec<_> = statements
        .into_iter()
        .map(|sql| {
            session.run("SAVEPOINT before");
            let outcome = session.try_rows(sql);
            if outcome.is_err() {
                session.run("ROLLBACK TO before");
            }
            outcome
        })
        .collect();
    if outcomes.iter().all(Result::is_ok) {
        return Some(outcomes.into_iter().flatten().flatten().collect());
    }
    let refused = outcomes.iter().all(|outcome| outcome.as_ref().is_err_and(|error| error.code().code() == "42501"));
    assert!(refused, "{outcomes:?}");
    None
}

#[test]
fn clients_that_share_two_sessions_have_each_the_rights_of_its_role() {
    let (world, bouncer) = world();
    // Which roles each session of the server has been.
    let served: Mutex<BTreeMap<i32, Vec<&str>>> = Mutex::default();
    thread::scope(|scope| {
        for client in 0..6 {
            let (world, bouncer, served) = (&world, &bouncer, &served);
            scope.spawn(move || {
                let mut session = bouncer.session("app", "as_app");
                for round in 0..8 {
                    let role = ["etl", "nobody", "app"][(client + round) % 3];
                    session.run(&format!("BEGIN; SET LOCAL ROLE {role}"));
                    served.lock().unwrap().entry(session.pid()).or_default().push(role);
                    let url = world.url(&format!("box/{client}-{round}.csv"));
                    let got = used(&mut session, &url);
                    if role == "etl" {
                        assert_eq!(got.unwrap()[1], "hunter2");
                        assert_eq!(world.azurite().text(&format!("box/{client}-{round}.csv")), "etl\n");
                    } else {
                        assert_eq!(got, None, "{role}");
                    }
                    session.run("COMMIT");
                }
            });
        }
    });
    let served = served.into_inner().unwrap();
    assert_eq!(served.len(), 2, "{served:?}");
    for roles in served.values() {
        assert!(["etl", "nobody", "app"].iter().all(|role| roles.contains(role)), "{served:?}");
    }
    assert_eq!(world.asked(), 2, "one token for storage and one for the vault, for all of them");
    assert_eq!(world.session().rows("SELECT by, count(*) FROM t GROUP BY 1"), ["etl|16"]);
}

#[test]
fn a_role_that_was_set_is_gone_with_its_transaction_and_so_is_what_it_may_use() {
    let (world, bouncer) = world();
    let (mut one, mut two) = (bouncer.session("app", "as_app"), bouncer.session("app", "as_app"));
    let url = world.url("box/a.csv");
    one.run("BEGIN; SET ROLE etl");
    let pid = one.pid();
    assert!(used(&mut one, &url).is_some());
    one.run("COMMIT");
    // As one at a time asks, the server has one session for both.
    for session in [&mut two, &mut one] {
        session.run("BEGIN");
        assert_eq!(session.rows("SELECT pg_backend_pid(), current_user"), [format!("{pid}|app")]);
        assert_eq!(used(session, &url), None);
        session.run("COMMIT");
    }
    // A setting of one client's transaction is not the next one's.
    one.run("BEGIN; SET managed_identity.acquire_timeout = '100ms'; COMMIT");
    assert_eq!(two.value("SHOW managed_identity.acquire_timeout"), "15s");
}

#[test]
fn clients_of_different_roles_have_sessions_of_their_own_and_one_cache() {
    let (world, bouncer) = world();
    let (mut etl, mut nobody) = (bouncer.session("etl", "postgres"), bouncer.session("nobody", "postgres"));
    for round in 0..4 {
        let url = world.url(&format!("box/{round}.csv"));
        for (session, may) in [(&mut etl, true), (&mut nobody, false)] {
            session.run("BEGIN");
            assert_eq!(used(session, &url).is_some(), may);
            session.run("COMMIT");
        }
    }
    assert_eq!(world.asked(), 2);
}
