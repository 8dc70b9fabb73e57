//! The scripts for DBAs, `sql/scripts`, as psql runs them: twice is as good as once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::path::Path;

use emulator::Identity;
use server_tests::{Options, World};

/// Runs a script; returns what it printed, or what it complained about.
fn script(world: &World, name: &str, variables: &[&str]) -> Result<String, String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sql/scripts").join(name);
    let mut arguments = vec!["-q", "-At", "-f", file.to_str().unwrap()];
    arguments.extend(variables.iter().flat_map(|variable| ["-v", variable]));
    let done = world.cluster.psql(&arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
}

fn catalogs(world: &World) -> Vec<String> {
    world.session().rows(
        "SELECT srvname, srvoptions, srvacl::text FROM pg_foreign_server
         UNION ALL SELECT oid::regprocedure::text, NULL, proacl::text FROM pg_proc WHERE proname = 'secret'
         UNION ALL SELECT extname, NULL, extversion FROM pg_extension ORDER BY 1",
    )
}

#[test]
fn each_script_run_twice_changes_nothing_the_second_time() {
    let world = World::with(Options::default(), vec![Identity::system()]);
    let mut session = world.session();
    session.run("DROP EXTENSION managed_identity CASCADE");
    for role in ["etl LOGIN", "team", "ann LOGIN IN ROLE team", "\"odd one\" LOGIN"] {
        session.run(&format!("CREATE ROLE {role}"));
    }
    let storage = ["account=sales", "roles=etl,team", "access=read", "locations=inbox/*"];
    let client_id = "client_id=11111111-2222-3333-4444-555555555555";
    let keys = ["vault_uri=https://payroll.vault.azure.net", client_id, "server=payroll", "roles=odd one"];
    let none = ["servers=payroll,payroll_identity"];
    let runs: [(&str, &[&str], &str, &str); 4] = [
        ("setup_storage.sql", &storage, "created\n", "unchanged\n"),
        ("setup_keys.sql", &keys, "created\ncreated\n", "unchanged\nunchanged\n"),
        ("teardown.sql", &none, "", ""),
        ("teardown.sql", &["everything=yes"], "", ""),
    ];
    for (name, variables, first, second) in runs {
        let before = catalogs(&world);
        assert_eq!(script(&world, name, variables).as_deref(), Ok(first), "{name}");
        let after = catalogs(&world);
        assert_ne!(before, after, "{name}");
        assert_eq!(script(&world, name, variables).as_deref(), Ok(second), "{name}");
        assert_eq!(catalogs(&world), after, "{name}");
        if name == "setup_keys.sql" {
            let report = script(&world, "grant_report.sql", &[]).unwrap();
            let rows: Vec<&str> = report.lines().filter(|row| !row.contains("|superuser|")).collect();
            let expected = [
                "payroll|azure_key_vault|https://payroll.vault.azure.net|odd one|grant|t",
                "sales|azure_storage|sales|ann|member of team|f",
                "sales|azure_storage|sales|etl|grant|f",
            ];
            assert_eq!(rows, expected);
            let identity =
                "payroll_identity|managed_identity|11111111-2222-3333-4444-555555555555|postgres|superuser|t";
            session.run("GRANT USAGE ON FOREIGN DATA WRAPPER managed_identity TO team");
            let report = script(&world, "grant_report.sql", &[]).unwrap();
            let creator =
                "(what it creates)|managed_identity|every identity of this machine|ann|USAGE on the wrapper|f";
            assert!(report.contains(creator), "{report}");
            session.run("REVOKE USAGE ON FOREIGN DATA WRAPPER managed_identity FROM team");
            assert!(
                report.contains(identity) && report.contains("machine|managed_identity|the machine's own|postgres|")
            );
        }
    }
    // What a script needs and was not given is said, and nothing is done.
    let before = catalogs(&world);
    for (name, variables) in [("setup_storage.sql", &["roles=etl"][..]), ("setup_keys.sql", &["server=payroll"])] {
        assert!(script(&world, name, variables).unwrap_err().contains("say which"), "{name}");
    }
    assert_eq!(catalogs(&world), before);
}
