//! `azure_key_vault.diagnose`: the way to a vault and a key, told step by step up to the one that fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

#[path = "vault_keys/common.rs"]
mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use common::{refused, world};
use emulator::{ANYONE, Fault, Filter, Key, Network, Pki, Refuses, Reply, Rule, TENANT, VaultOperation};
use server_tests::{Session, World, wait};

#[derive(Debug)]
struct Step {
    name: String,
    status: String,
    detail: String,
    hint: String,
}

/// `arguments` as SQL.
fn diagnose(session: &mut Session, arguments: &str) -> Vec<Step> {
    let sql = format!("SELECT step, status, detail, hint FROM azure_key_vault.diagnose({arguments})");
    let rows = session.client().query(&sql, &[]).unwrap();
    let text = |row: &postgres::Row, at| row.get::<_, Option<String>>(at).unwrap_or_default();
    rows.iter()
        .map(|row| Step { name: text(row, 0), status: text(row, 1), detail: text(row, 2), hint: text(row, 3) })
        .collect()
}

fn names(steps: &[Step]) -> String {
    steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The last step, which alone is an error, and tells nothing of the vault's own text.
fn wrong(steps: &[Step]) -> (&str, &str, &str) {
    let errors: Vec<&Step> = steps.iter().filter(|step| step.status == "error").collect();
    assert_eq!(errors.len(), 1, "{steps:#?}");
    assert!(!format!("{steps:?}").contains("canary"), "{steps:#?}");
    (&errors[0].name, &errors[0].detail, &errors[0].hint)
}

const IDENTITY: &str = "permission, identity, source, tls roots, endpoint, clock, answer, token";
const VAULT: &str = "dns, connection, vault clock";

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

#[test]
fn a_healthy_way_is_told_to_its_end_and_changes_nothing() {
    let world = world();
    let vault = world.emulator.vault();
    let version = vault.put_key(Key::rsa("kek", 2048).hsm()).unwrap();
    vault.put_key(Key::ec("ec")).unwrap();
    let mut session = world.session();
    for (arguments, more) in [
        ("'kv'", "secrets, keys"),
        ("'kv', NULL", "secrets, keys"),
        ("'vault'", "secrets"),
        ("vault => 'kv', key => 'KEK'", "key, unwrap, sign"),
        ("'kv', 'ec'", "key"),
    ] {
        let steps = diagnose(&mut session, arguments);
        assert_eq!(names(&steps), format!("{IDENTITY}, {VAULT}, {more}"), "{arguments}");
        assert!(steps.iter().all(|step| step.status == "ok" && step.hint.is_empty()), "{steps:#?}");
        assert!(steps[1].detail.contains("\"keys\"") && steps[8].detail.contains("127.0.0.1 (private)"), "{steps:#?}");
        for token in world.emulator.issued_tokens() {
            assert!(token.split('.').all(|part| part.len() < 20 || !format!("{steps:?}").contains(part)));
        }
        if arguments.contains("KEK") {
            assert!(steps[11].detail.contains("RSA-HSM") && steps[11].detail.contains(&version), "{steps:#?}");
        }
    }
    assert_eq!(session.value("SELECT count(*) FROM managed_identity.cached_tokens"), "0");
    // Only what the server allows is tried.
    for (allow, more) in
        [("keys", "key"), ("keys,data-keys", "key, unwrap, sign"), ("sign", "key, sign"), ("unwrap", "key, unwrap")]
    {
        session.run(&format!("ALTER SERVER kv OPTIONS (SET allow '{allow}')"));
        assert_eq!(names(&diagnose(&mut session, "'kv', 'kek'")), format!("{IDENTITY}, {VAULT}, {more}"), "{allow}");
    }
    vault.log().clear();
    session.run("ALTER SERVER kv OPTIONS (SET allow 'secrets')");
    assert_eq!(names(&diagnose(&mut session, "'kv', 'kek'")), "permission");
    session.run("ALTER SERVER kv OPTIONS (SET allow 'keys', ADD names 'other*')");
    let steps = diagnose(&mut session, "'kv', 'kek'");
    assert!(names(&steps) == "permission" && wrong(&steps).2.contains("option names"), "{steps:#?}");
    assert_eq!(vault.log().count(), 0);
    for (arguments, sqlstate) in [("'nobody'", "42704"), ("'keys'", "42809"), ("'kv', 'no/name'", "22023")] {
        assert_eq!(refused(&mut session, &format!("azure_key_vault.diagnose({arguments})")).0, sqlstate);
    }
}

#[test]
fn who_may_not_use_the_server_is_told_so_and_nothing_is_contacted() {
    let world = world();
    let mut admin = world.session();
    let mut etl = world.role("etl");
    assert_eq!(etl.sqlstate("SELECT azure_key_vault.diagnose('kv')"), "42501");
    admin.run("GRANT EXECUTE ON FUNCTION azure_key_vault.diagnose TO etl");
    let steps = diagnose(&mut etl, "'kv', 'kek'");
    assert_eq!(names(&steps), "permission");
    assert_eq!(wrong(&steps).2, "GRANT USAGE ON FOREIGN SERVER kv allows it.");
    // The server's owner lends the identity, and can only lend what he may use.
    admin.run("GRANT USAGE ON FOREIGN SERVER kv TO etl; CREATE ROLE lender; ALTER SERVER kv OWNER TO lender");
    let steps = diagnose(&mut etl, "'kv'");
    assert_eq!(names(&steps), "permission, identity");
    assert_eq!(wrong(&steps).2, "GRANT USAGE ON FOREIGN SERVER keys TO lender allows it.");
    admin.run("GRANT USAGE ON FOREIGN SERVER keys TO lender; ALTER SERVER keys OPTIONS (SET resources 'storage')");
    let steps = diagnose(&mut etl, "'kv'");
    assert!(names(&steps) == "permission, identity" && wrong(&steps).2.contains("resources"), "{steps:#?}");
    assert_eq!((world.asked(), world.emulator.vault().log().count()), (0, 0));
    admin.run("ALTER SERVER keys OPTIONS (SET resources 'key-vault')");
    assert!(diagnose(&mut etl, "'kv'").iter().all(|step| step.status == "ok"));
    // Where user code must not reach out, as for a token.
    admin.run(
        "CREATE FUNCTION steps(int) RETURNS bigint IMMUTABLE LANGUAGE sql AS
             'SELECT count(*) FROM azure_key_vault.diagnose(''kv'')';
         CREATE TABLE t AS SELECT 1 AS a",
    );
    assert_eq!(admin.sqlstate("CREATE INDEX ON t (steps(a))"), "42501");
}

#[test]
fn a_missing_role_is_told_by_its_name_and_a_key_by_its_state() {
    let world = world();
    let vault = world.emulator.vault();
    for key in [
        Key::rsa("kek", 2048),
        Key::ec("off").disabled(),
        Key::ec("expired").valid(None, Some(now() - 60)),
        Key::ec("later").valid(Some(now() + 3600), None),
        Key::ec("gone"),
    ] {
        vault.put_key(key).unwrap();
    }
    vault.delete_key("gone").unwrap();
    let mut session = world.session();
    let mut hints = Vec::new();
    let mut told = |session: &mut Session, arguments: &str, step: &str, words: &str| {
        let steps = diagnose(session, arguments);
        let (name, detail, hint) = wrong(&steps);
        assert_eq!(name, step, "{steps:#?}");
        assert!(hint.contains(words) && !detail.is_empty(), "{steps:#?}");
        hints.push(hint.to_owned());
    };
    for (operation, arguments, step, role) in [
        (VaultOperation::GetSecret, "'kv'", "secrets", "\"Key Vault Secrets User\" on the vault or secret"),
        (VaultOperation::ReadKey, "'kv'", "keys", "\"Key Vault Crypto User\" on the vault or key"),
        (VaultOperation::UnwrapKey, "'kv', 'kek'", "unwrap", "\"Key Vault Crypto Service Encryption User\""),
        (VaultOperation::Sign, "'kv', 'kek'", "sign", "\"Key Vault Crypto User\""),
    ] {
        vault.deny(ANYONE, operation);
        told(&mut session, arguments, step, role);
        vault.allow_again(ANYONE, operation);
    }
    // What a server does not allow needs no role.
    session.run(&format!(
        "CREATE SERVER less FOREIGN DATA WRAPPER azure_key_vault
             OPTIONS (vault_uri '{}', identity 'keys', allow 'keys,unwrap')",
        vault.uri()
    ));
    vault.deny(ANYONE, VaultOperation::ReadKey);
    told(&mut session, "'less'", "keys", "\"Key Vault Crypto Service Encryption User\" on the vault or key");
    vault.allow_again(ANYONE, VaultOperation::ReadKey);
    for (key, words) in [
        ("off", "Enable the key"),
        ("expired", "move its expiry"),
        ("later", "activation date"),
        ("gone", "can be recovered"),
    ] {
        told(&mut session, &format!("'kv', '{key}'"), "key", words);
    }
    vault.set_shows_disabled_keys(false);
    told(&mut session, "'kv', 'off'", "key", "disabled in the vault");
    for network in [Network::Firewall, Network::Private] {
        vault.set_network(network);
        told(&mut session, "'vault'", "secrets", "network rules");
    }
    vault.set_network(Network::Open);
    let challenge = r#"Bearer authorization="https://login.windows.net/11111111-2222-3333-4444-555555555555", resource="https://canary""#;
    vault.faults().next(1, Reply::new(401).header("www-authenticate", challenge).body("canary"));
    told(
        &mut session,
        "'vault'",
        "secrets",
        &format!("tenant 11111111-2222-3333-4444-555555555555 and the token of tenant {TENANT}"),
    );
    vault.faults().next(1, Reply::new(401).body("canary"));
    told(&mut session, "'vault'", "secrets", "does not take the token");
    vault.faults().next(1, Reply::new(404).body("<html>canary"));
    told(&mut session, "'vault'", "secrets", "vault_uri");
    hints.sort();
    hints.dedup();
    assert_eq!(hints.len(), 12, "each cause has a hint of its own: {hints:#?}");
}

#[test]
fn what_stands_on_the_way_is_told_before_the_vault_is() {
    let world = world();
    let mut session = world.session();
    let server = |session: &mut Session, name: &str, uri: &str| {
        session.run(&format!(
            "CREATE SERVER {name} FOREIGN DATA WRAPPER azure_key_vault OPTIONS (vault_uri '{uri}', identity 'keys')"
        ));
    };
    world.set("managed_identity.key_vault_hosts", "127.0.0.1, vault.invalid");
    let mut session_with_hosts = world.session();
    server(&mut session_with_hosts, "nowhere", "https://payroll.vault.invalid");
    let steps = diagnose(&mut session_with_hosts, "'nowhere'");
    let (step, detail, hint) = wrong(&steps);
    assert!(
        step == "dns" && detail.contains("payroll.vault.invalid") && hint.contains("private DNS zone"),
        "{steps:#?}"
    );
    assert_eq!(steps.last().unwrap().name, "dns");
    let refuses = Refuses::start().unwrap();
    server(&mut session, "away", &format!("https://{}", refuses.address()));
    let steps = diagnose(&mut session, "'away'");
    let (step, _, hint) = wrong(&steps);
    assert!(step == "connection" && hint.contains("firewall"), "{steps:#?}");
    // The vault's clock.
    let absent = r#"{"error": {"code": "SecretNotFound", "message": "canary"}}"#;
    let reply = Reply::new(404).header("date", "Sun, 06 Nov 1994 08:49:37 GMT").body(absent);
    world.emulator.vault().faults().next(1, reply);
    let steps = diagnose(&mut session, "'vault'");
    let (step, _, hint) = wrong(&steps);
    assert!(step == "vault clock" && hint.contains("clock"), "{steps:#?}");
    // Without a token the vault is not asked.
    world.emulator.vault().log().clear();
    world.emulator.identity().faults().next(1, Fault::status(403));
    let steps = diagnose(&mut session, "'vault'");
    assert!(wrong(&steps).0 == "answer" && world.emulator.vault().log().count() == 0, "{steps:#?}");
    let other = world.cluster.file("other-ca.pem", Pki::create().unwrap().ca_pem());
    world.set("managed_identity.tls_ca_file", &other);
    let steps = diagnose(&mut world.session(), "'vault'");
    let (step, _, hint) = wrong(&steps);
    assert!(step == "connection" && hint.contains("tls_ca_file"), "{steps:#?}");
    assert_eq!(world.emulator.vault().log().count(), 0);
    world.set("managed_identity.key_vault_hosts", "");
    let steps = diagnose(&mut world.session(), "'vault'");
    assert!(names(&steps) == "server" && wrong(&steps).2.contains("key_vault_hosts"), "{steps:#?}");
}

#[test]
fn a_diagnosis_that_waits_for_the_vault_can_be_ended() {
    let world: World = world();
    let vault = world.emulator.vault();
    vault.faults().add(Rule::new(Fault::HangBeforeHeaders).when(Filter::path("/secrets/")));
    let mut session = world.session();
    let call = "SELECT * FROM azure_key_vault.diagnose('vault')";
    session.run("SET statement_timeout = '500ms'");
    assert_eq!(session.sqlstate(call), "57014");
    let held = vault.log().held();
    let mut waiting = world.session();
    let pid = waiting.pid();
    let over = std::thread::spawn(move || waiting.sqlstate(call));
    vault.log().wait_for_held(held + 1, wait::LONG).unwrap();
    session.run(&format!("SELECT pg_cancel_backend({pid})"));
    assert_eq!(over.join().unwrap(), "57014");
}
