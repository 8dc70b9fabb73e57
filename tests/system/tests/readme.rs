//! Every statement of the README, with no system-assigned identity at all: on workload identity alone, with one
//! user-assigned identity, and with two of which `default_identity` names one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::{Identity, Secret, TENANT};
use server_tests::{ACCOUNT, Pod, Session};

const README: &str = include_str!("../../../README.md");

/// Every statement of the README's SQL, without comments. The one that needs another extension is `own_application`'s.
fn statements() -> Vec<String> {
    let blocks = README.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let without_comment = |line: &'static str| line.split(" --").next().unwrap().trim_end();
    let text: Vec<&str> = blocks.flat_map(str::lines).map(without_comment).collect();
    let all = text.join("\n");
    let statements = all.split(';').map(str::trim).filter(|statement| !statement.is_empty());
    statements.filter(|statement| !statement.contains("http_request")).map(str::to_owned).collect()
}

/// A statement with this world's places and ids for Azure's, otherwise to the letter.
fn here(pod: &Pod, statement: &str) -> String {
    let storage = format!("{}/{ACCOUNT}", pod.world.proxy().endpoint());
    let mut sql = statement.to_owned();
    if sql.starts_with("CREATE SERVER sales ") {
        sql = format!("{sql} OPTIONS (account '{ACCOUNT}', endpoint '{storage}')");
    }
    for (azure, ours) in [
        ("https://sales.blob.core.windows.net", storage),
        ("https://payroll.vault.azure.net", pod.world.emulator.vault_uri()),
        ("11111111-2222-3333-4444-555555555555", Identity::user("keys").client_id),
        ("contoso.onmicrosoft.com", TENANT.to_owned()),
        ("/run/secrets/federated-token", pod.token_file()),
    ] {
        sql = sql.replace(azure, &ours);
    }
    sql
}

/// Runs them all in a database that has nothing but the README's role and table, and says whose token opened the
/// account, and the vault.
fn run_all(pod: &Pod, prepare: impl FnOnce(&mut Session)) -> [Option<String>; 2] {
    let world = &pod.world;
    world.azurite().create_container("export");
    world.emulator.vault().put(Secret::new("mail-password", "hunter2")).unwrap();
    // Where the README's server `deploy` exchanges its token.
    world.set("managed_identity.authority_host", &pod.entra.authority());
    let mut session = world.session();
    session.run("DROP EXTENSION managed_identity CASCADE; CREATE ROLE etl");
    session.run("CREATE TABLE orders AS SELECT 1 AS id");
    let statements = statements();
    assert!(statements.len() >= 10 && statements[0] == "CREATE EXTENSION managed_identity", "{statements:#?}");
    let mut prepare = Some(prepare);
    for statement in &statements {
        let sql = here(pod, statement);
        let rows = session.rows(&sql);
        if let Some(prepare) = prepare.take() {
            prepare(&mut session);
        }
        if statement.contains(".diagnose(") {
            assert!(!rows.is_empty() && rows.iter().all(|row| row.contains("|ok|")), "{rows:#?}");
        }
        if statement.contains(".secret(") {
            assert_eq!(rows, ["hunter2"]);
        }
        if statement.contains("cached_tokens") {
            assert_eq!(rows.len(), 2, "of the account and of the vault: {rows:#?}");
        }
    }
    assert_eq!(session.value("SELECT count(*) FROM orders"), "2", "once written, once read");
    session.run("SELECT managed_identity.access_token('key-vault', 'deploy')");
    let log = [pod.entra.log().requests(), world.emulator.identity().log().requests()].concat();
    ["storage", "vault"].map(|word| {
        let of = log.iter().find(|entry| entry.resource.as_ref().is_some_and(|resource| resource.contains(word)));
        of.and_then(|entry| entry.identity.clone())
    })
}

fn named(storage: &str) -> [Option<String>; 2] {
    [Some(storage.to_owned()), Some("keys".to_owned())]
}

#[test]
fn on_workload_identity_alone() {
    let pod = Pod::with_storage();
    pod.world.emulator.identity().assign(Vec::new()).unwrap();
    assert_eq!(run_all(&pod, |_| ()), named("pod"));
    assert_eq!(pod.world.asked(), 0);
}

#[test]
fn with_one_user_assigned_identity() {
    let pod = Pod::with_storage_without_environment();
    pod.world.emulator.identity().assign(vec![Identity::user("keys")]).unwrap();
    assert_eq!(run_all(&pod, |_| ()), named("keys"));
}

#[test]
fn with_two_user_assigned_identities_of_which_one_is_the_default() {
    let pod = Pod::with_storage_without_environment();
    let chosen = Identity::user("chosen");
    pod.world.emulator.identity().assign(vec![Identity::user("keys"), chosen.clone()]).unwrap();
    let choose = |session: &mut Session| {
        session.run(&format!(
            "CREATE SERVER chosen FOREIGN DATA WRAPPER managed_identity OPTIONS (client_id '{}');
             ALTER DATABASE postgres SET managed_identity.default_identity = 'chosen';
             SET managed_identity.default_identity = 'chosen'",
            chosen.client_id
        ));
    };
    assert_eq!(run_all(&pod, choose), named("chosen"));
}
