//! `configure`: a server as a script wants it, however often the script runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::Identity;
use server_tests::{Options, Session, World};

fn world() -> World {
    World::with(Options::default(), vec![Identity::system()])
}

fn servers(session: &mut Session) -> Vec<String> {
    session.rows("SELECT srvname, srvoptions, srvacl FROM pg_foreign_server ORDER BY 1")
}

#[test]
fn a_script_that_runs_twice_changes_nothing_the_second_time() {
    let world = world();
    let mut session = world.session();
    for role in ["etl", "\"odd role\"\"\""] {
        session.run(&format!("CREATE ROLE {role}"));
    }
    let wants = [
        ("created", r#"'sales', 'azure_storage', '{"access": "read", "locations": "inbox/*"}', '{etl,"odd role\""}'"#),
        ("altered", r#"'sales', 'azure_storage', '{"access": "read-write", "locations": null}', '{etl}'"#),
        ("altered", r#"'sales', 'azure_storage', '{"identity": "it''s; \\ \"odd\"", "access": "read-write"}'"#),
        ("altered", r#"'sales', 'azure_storage', '{}', NULL"#),
        ("altered", r#"'sales', 'azure_storage', NULL, '{public,public}'"#),
        ("created", r#"'odd "name"', 'managed_identity', '{"resources": "storage, key-vault"}'"#),
        (
            "created",
            r#"'payroll', 'azure_key_vault', '{"vault_uri": "https://v.vault.azure.net", "allow": "secrets"}'"#,
        ),
    ];
    for (outcome, want) in wants {
        let call = format!("SELECT managed_identity.configure({want})");
        assert_eq!(session.value(&call), outcome, "{want}");
        let now = servers(&mut session);
        assert_eq!(session.value(&call), "unchanged", "{want}");
        assert_eq!(servers(&mut session), now, "{want}");
    }
    let sales = "SELECT srvoptions IS NULL, srvacl::text ~ 'etl=U', srvacl::text ~ 'odd role', srvacl::text ~ '[{,]=U'
                 FROM pg_foreign_server WHERE srvname = 'sales'";
    assert_eq!(session.rows(sales), ["t|t|t|t"], "rights are only added");
}

#[test]
fn it_can_do_what_its_caller_can_and_what_is_wrong_is_told_as_by_the_statements() {
    let world = world();
    let mut session = world.session();
    let mut boss = world.role("boss");
    let storage = "SELECT managed_identity.configure('sales', 'azure_storage', '{\"access\": \"read\"}')";
    assert_eq!(boss.sqlstate(storage), "42501");
    session.run("GRANT USAGE ON FOREIGN DATA WRAPPER azure_storage TO boss");
    assert_eq!(boss.value(storage), "created");
    let endpoint =
        "SELECT managed_identity.configure('sales', 'azure_storage', '{\"endpoint\": \"https://evil.test\"}')";
    assert_eq!(boss.sqlstate(endpoint), "42501", "for superusers");
    assert_eq!(world.role("other").sqlstate(storage.replace("read", "read-write").as_str()), "42501", "not the owner");
    // A table of the caller's own that is called like a catalog changes nothing.
    boss.run("CREATE TEMP TABLE pg_foreign_server (srvname name, srvoptions text[], srvfdw oid)");
    assert_eq!(boss.value(storage), "unchanged");
    for (sqlstate, arguments) in [
        ("42710", "'sales', 'managed_identity', '{}'"),
        ("HV00D", "'sales', 'azure_storage', '{\"colour\": \"red\"}'"),
        ("22023", "'sales', 'azure_storage', '{\"access\": \"append\"}'"),
        ("22023", "'sales', 'azure_storage', '{\"access\": [\"read\"]}'"),
        ("22023", "'sales', 'azure_storage', '[]'"),
        ("22023", "'sales', 'postgres_fdw', '{}'"),
        ("22004", "NULL, 'azure_storage', '{}'"),
        ("42704", "'sales', 'azure_storage', '{\"access\": \"read\"}', '{nobody}'"),
    ] {
        let call = format!("SELECT managed_identity.configure({arguments})");
        assert_eq!(session.sqlstate(&call), sqlstate, "{arguments}");
    }
    assert_eq!(session.value("SELECT srvoptions FROM pg_foreign_server WHERE srvname = 'sales'"), "{access=read}");
}
