//! Jobs of pg_cron: each runs with its owner's rights, in a background worker or over a connection of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use server_tests::{ACCOUNT, Options, World, has_extension, wait};

/// Schedules jobs for the next start of the server, starts it, and looks at what became of them.
fn jobs_do_what_their_owners_may(use_background_workers: bool) {
    let how = if use_background_workers { "in background workers" } else { "over connections" };
    if !has_extension("pg_cron", &format!("jobs {how}")) {
        return;
    }
    let options = Options::default()
        .conf("shared_preload_libraries = 'managed_identity, pg_cron'")
        .conf(format!("cron.use_background_workers = {use_background_workers}"));
    let world = World::with_storage_and(options);
    drop((world.role("etl"), world.role("nobody")));
    // A job keeps the host that is set when it is scheduled.
    let sockets = world.cluster.folder().display();
    world.session().run(&format!("ALTER SYSTEM SET cron.host = '{sockets}'"));
    world.cluster.restart();
    let mut session = world.session();
    session.run(&format!(
        "CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO etl, nobody;
         CREATE TABLE t AS SELECT 1 AS a; CREATE TABLE got (by name, long bool, kind text);
         GRANT ALL ON t, got TO etl, nobody;
         GRANT EXECUTE ON FUNCTION managed_identity.access_token, azure_key_vault.secret TO etl, nobody;
         GRANT USAGE ON FOREIGN SERVER machine, vault, {ACCOUNT} TO etl"
    ));
    let token = "INSERT INTO got SELECT current_user, length(managed_identity.access_token('storage')) > 100,
                                        (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid())";
    let read = format!("COPY t FROM '{}'", world.url("box/in.csv"));
    world.azurite().put("box/in.csv", "2\n3\n");
    for role in ["etl", "nobody"] {
        let write = format!("COPY (SELECT current_user) TO '{}'", world.url(&format!("box/{role}.csv")));
        session.run(&format!("SET ROLE {role}"));
        for job in [token, "SELECT azure_key_vault.secret('vault', 'db-password')", &write, &read] {
            session.run(&format!("SELECT cron.schedule('@reboot', $job${job}$job$)"));
        }
        session.run("RESET ROLE");
    }
    drop(session);
    world.cluster.restart();
    let ended = "SELECT count(*) FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')";
    wait::until("all jobs have ended", || world.session().value(ended) == "8");
    let mut session = world.session();
    let outcomes = "SELECT username, status, count(*), bool_or(return_message ~ 'permission denied')
                    FROM cron.job_run_details GROUP BY 1, 2 ORDER BY 1";
    assert_eq!(session.rows(outcomes), ["etl|succeeded|4|f", "nobody|failed|4|t"]);
    assert_eq!(
        session.rows("SELECT * FROM got"),
        [format!("etl|t|{}", if use_background_workers { "pg_cron" } else { "client backend" })]
    );
    assert_eq!(session.value("SELECT string_agg(a::text, ' ' ORDER BY a) FROM t"), "1 2 3");
    assert_eq!(world.azurite().text("box/etl.csv"), "etl\n");
    assert_eq!(world.azurite().get("box/nobody.csv"), None);
    let kept = session.rows("SELECT d FROM cron.job_run_details d").join("\n");
    let issued = world.emulator.issued_tokens();
    assert!(!issued.is_empty() && issued.iter().all(|token| !kept.contains(token)) && !kept.contains("hunter2"));
}

#[test]
fn in_background_workers_jobs_do_what_their_owners_may() {
    jobs_do_what_their_owners_may(true);
}

#[test]
fn over_connections_jobs_do_what_their_owners_may() {
    jobs_do_what_their_owners_may(false);
}
