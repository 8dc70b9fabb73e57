//! The scripts for DBAs, `sql/scripts`, as psql runs them: twice is as good as once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::path::Path;

use emulator::Identity;
use server_tests::{Options, World};

/// Runs a script; returns what it printed, or what it complained about.
fn script(world: &World, name: &str, variables: &[&str]) -> Result<String, String> {
    told(world, name, variables).map(|(printed, _)| printed)
}

/// The same with what it warned of, too.
fn told(world: &World, name: &str, variables: &[&str]) -> Result<(String, String), String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sql/scripts").join(name);
    let mut arguments = vec!["-q", "-At", "-f", file.to_str().unwrap()];
    arguments.extend(variables.iter().flat_map(|variable| ["-v", variable]));
    let done = world.cluster.psql(&arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if done.status.success() { Ok((text(done.stdout), text(done.stderr))) } else { Err(text(done.stderr)) }
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
    let storage = ["account=sales", "roles= etl, team ", "access=read", "locations=inbox/*"];
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
                "payroll|azure_key_vault|https://payroll.vault.azure.net|odd one|grant|t|",
                "sales|azure_storage|sales|ann|member of team|f|",
                "sales|azure_storage|sales|etl|grant|f|",
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
                report.contains(identity)
                    && report.contains("machine|managed_identity|whatever identity this machine has|postgres|")
            );
        }
    }
    // What a script needs and was not given is said, and nothing is done.
    let before = catalogs(&world);
    for (name, variables) in [("setup_storage.sql", &["roles=etl"][..]), ("setup_keys.sql", &["server=payroll"])] {
        let complaint = script(&world, name, variables).unwrap_err();
        assert!(complaint.contains("ERROR:  ") && complaint.contains("say which"), "{complaint}");
        assert_eq!(complaint.lines().count(), 1, "and nothing else is said: {complaint}");
    }
    assert_eq!(catalogs(&world), before);
}

#[test]
fn the_report_tells_of_servers_whose_identity_their_owner_cannot_use_and_of_each_kind_of_identity() {
    let world = World::with(Options::default(), vec![Identity::system()]);
    let mut session = world.session();
    session.run(
        "CREATE ROLE boss LOGIN; CREATE ROLE etl LOGIN;
         CREATE SERVER lent FOREIGN DATA WRAPPER azure_storage; ALTER SERVER lent OWNER TO boss;
         CREATE SERVER lost FOREIGN DATA WRAPPER azure_storage OPTIONS (identity 'nobody');
         GRANT USAGE ON FOREIGN SERVER lent, lost TO etl;
         CREATE SERVER pod TYPE 'workload-identity' FOREIGN DATA WRAPPER managed_identity;
         CREATE SERVER deploy FOREIGN DATA WRAPPER managed_identity
             OPTIONS (client_id '11111111-2222-3333-4444-555555555555', tenant_id 'contoso.onmicrosoft.com');
         CREATE SERVER strict FOREIGN DATA WRAPPER managed_identity OPTIONS (kind 'system-assigned')",
    );
    let has = |row: &str| {
        let report = script(&world, "grant_report.sql", &[]).unwrap();
        assert!(report.lines().any(|line| line == row), "{row} is not in {report}");
    };
    has("lent|azure_storage|lent|etl|grant|f|its owner boss has no USAGE on identity \"machine\"");
    has("lost|azure_storage|lost|etl|grant|f|there is no identity \"nobody\"");
    has("pod|managed_identity|workload identity|postgres|superuser|t|");
    has("deploy|managed_identity|11111111-2222-3333-4444-555555555555 (workload identity)|postgres|superuser|t|");
    has("strict|managed_identity|the machine's system-assigned identity|postgres|superuser|t|");
    session.run("GRANT USAGE ON FOREIGN SERVER machine TO boss");
    has("lent|azure_storage|lent|etl|grant|f|");
    session.run("ALTER DATABASE postgres SET managed_identity.default_identity = 'pod'");
    has("lent|azure_storage|lent|etl|grant|f|its owner boss has no USAGE on identity \"pod\"");
}

#[test]
fn teardown_takes_back_what_setup_gave_and_tells_what_it_leaves_without_an_identity() {
    let world = World::with(Options::default(), vec![Identity::system()]);
    let mut session = world.session();
    session.run("DROP SERVER vault; CREATE ROLE app; CREATE ROLE other; CREATE ROLE kept");
    session.run("GRANT EXECUTE ON FUNCTION azure_key_vault.secret TO kept");
    let client_id = "client_id=11111111-2222-3333-4444-555555555555";
    let setup = |server: &str, roles: &str| {
        let [server, roles] = [format!("server={server}"), format!("roles={roles}")];
        let allow = "allow=secrets, data-keys";
        let variables = ["vault_uri=https://payroll.vault.azure.net", client_id, &server, &roles, allow];
        script(&world, "setup_keys.sql", &variables).unwrap();
    };
    setup("payroll", "app, other,public");
    setup("second", "other");
    let may = "SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_roles WHERE rolname IN ('app', 'other', 'kept')
               AND has_function_privilege(oid, 'azure_key_vault.secret(name, text, text)', 'EXECUTE')";
    assert_eq!(session.value(may), "app kept other");
    let decrypts = may.replace("secret(name, text, text)", "decrypt_text(bytea, bytea)");
    assert_eq!(session.value(&decrypts), "app kept other", "PUBLIC was named");
    let wraps = may.replace("secret(name, text, text)", "wrap_key(name, text, bytea, text)");
    assert_eq!(session.value(&wraps), "", "it was not allowed");
    // The identity alone: the vault's server stays, and does not work.
    let (_, warned) = told(&world, "teardown.sql", &["servers=payroll_identity"]).unwrap();
    assert!(warned.contains("name an identity that is gone: payroll"), "{warned}");
    assert_eq!(session.value(may), "app kept other");
    for _ in 0..2 {
        let (_, warned) = told(&world, "teardown.sql", &["servers= payroll , payroll_identity"]).unwrap();
        assert_eq!((warned.as_str(), session.value(may).as_str()), ("", "kept other"));
        assert_eq!(session.value(&decrypts), "other");
        let encrypts = decrypts.replace("decrypt_text(bytea, bytea)", "encrypt_text(text, text, bytea)");
        assert_eq!(session.value(&encrypts), "app kept other", "everybody may from the start");
    }
}
