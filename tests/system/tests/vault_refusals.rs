//! A vault that refuses, throttles, hangs or wants a newer token: what is said, how often it is asked, what is counted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

#[path = "vault_keys/common.rs"]
mod common;

use common::{refused, world};
use emulator::{Fault, Filter, Key, Reply, Rule};
use server_tests::{major, wait};

/// A vault's refusal as it writes it.
fn error(code: &str, inner: &str) -> String {
    format!(
        "{{\"error\": {{\"code\": \"{code}\", \"message\": \"canary\", \"innererror\": {{\"code\": \"{inner}\"}}}}}}"
    )
}

#[test]
fn each_refusal_of_a_key_has_its_sqlstate_and_says_what_to_change() {
    let world = world();
    let vault = world.emulator.vault();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    for key in [
        Key::ec("off").disabled(),
        Key::rsa("expired", 2048).valid(None, Some(now - 60)),
        Key::rsa("later", 2048).valid(Some(now + 3600), None),
        Key::rsa("signer", 2048).key_ops(&["sign", "verify"]),
        Key::rsa("kek", 2048),
        Key::rsa("gone", 2048),
    ] {
        vault.put_key(key).unwrap();
    }
    vault.delete_key("gone").unwrap();
    let mut session = world.session();
    for (call, sqlstate, words) in [
        ("sign('kv', 'off', sha256('x'), 'ES256')", "28000", vec!["403", "KeyDisabled", "disabled"]),
        ("wrap_key('kv', 'expired', 'x')", "28000", vec!["403", "KeyExpired", "nbf and exp"]),
        ("wrap_key('kv', 'later', 'x')", "28000", vec!["403", "KeyNotYetValid", "nbf and exp"]),
        ("wrap_key('kv', 'signer', 'x')", "28000", vec!["403", "key_ops"]),
        ("wrap_key('kv', 'gone', 'x')", "58P01", vec!["404", "KeyNotFound", "\"gone\"", "recovered"]),
        ("key('kv', 'nothing-there')", "58P01", vec!["404", "nothing-there"]),
        ("wrap_key('kv', 'kek', decode(repeat('00', 191), 'hex'))", "22023", vec!["400", "BadParameter"]),
    ] {
        let (code, said) = refused(&mut session, &format!("azure_key_vault.{call}"));
        assert_eq!(code, sqlstate, "{call}: {said}");
        assert!(words.iter().all(|word| said.contains(word)) && said.contains("request id"), "{call}: {said}");
    }
    let json = |status: u16, body: String| Reply::new(status).header("x-ms-request-id", "id-7").body(body);
    let kid_of = |name: &str| format!("{}/keys/{name}/{}", vault.uri(), "0".repeat(32));
    let wrapped = |kid: &str, value: &str| format!("{{\"kid\": \"{kid}\", \"value\": {value}}}");
    let cases: [(Reply, &str, &str); 19] = [
        (json(400, error("BadParameter", "")), "22023", "BadParameter"),
        (json(400, error("Other", "")), "08P01", "Other"),
        (json(401, error("Unauthorized", "")), "28000", "azure_key_vault.diagnose"),
        (json(403, error("Forbidden", "ForbiddenByRbac")), "28000", "Key Vault Crypto Service Encryption User"),
        (json(403, error("Forbidden", "AccessDenied")), "28000", "AccessDenied"),
        (json(403, error("Forbidden", "ForbiddenByFirewall")), "28000", "network"),
        (json(403, error("Forbidden", "ForbiddenByConnection")), "28000", "network"),
        (json(403, "<html>canary".into()), "28000", "403"),
        (json(409, error("Conflict", "ObjectIsDeletedButRecoverable")), "55006", "409"),
        (json(418, String::new()), "08P01", "418"),
        (json(307, String::new()).header("location", "https://127.0.0.1:1/canary"), "08P01", "307"),
        (json(200, String::new()), "08P01", "id-7"),
        (json(200, "canary".into()), "08P01", ""),
        (json(200, wrapped(&kid_of("kek"), "null")), "08P01", ""),
        (json(200, wrapped(&kid_of("kek"), "\"canary canary\"")), "08P01", ""),
        (json(200, wrapped(&kid_of("canary"), "\"eA\"")), "08P01", ""),
        (json(200, wrapped("https://canary.test/keys/kek/0", "\"eA\"")), "08P01", "none of its own"),
        (json(200, wrapped(&kid_of("kek"), "\"eA")), "08P01", ""),
        (json(200, wrapped(&kid_of("kek"), &format!("\"{}\"", "canary00".repeat(200_000)))), "54000", "large"),
    ];
    for (reply, sqlstate, words) in cases {
        vault.log().clear();
        let status = reply.status;
        vault.faults().next(1, reply);
        let (code, said) = refused(&mut session, "azure_key_vault.wrap_key('kv', 'kek', 'x')");
        assert_eq!(code, sqlstate, "{status} {said}");
        assert!(said.contains(words) && !said.contains("canary"), "{status} {said}");
        assert_eq!(vault.log().count(), 1, "{status} is not tried again");
    }
    assert!(!world.cluster.log().contains("canary"));
}

#[test]
fn a_vault_that_wants_a_newer_token_gets_one_and_one_more_try() {
    let world = world();
    let vault = world.emulator.vault();
    vault.put_key(Key::ec("kek")).unwrap();
    let mut session = world.session();
    let key = "SELECT azure_key_vault.key('kv', 'kek')";
    session.run(key);
    let (asked, calls) = (world.asked(), vault.log().count());
    vault.revoke_tokens(world.emulator.issued_tokens());
    session.run(key);
    assert_eq!((world.asked(), vault.log().count()), (asked + 1, calls + 2), "one token, one more try");
    session.run(key);
    assert_eq!((world.asked(), vault.log().count()), (asked + 1, calls + 3), "the new token is kept");
    assert!(session.notices().is_empty());
    // Whatever token is shown: never a third try.
    let challenge = r#"Bearer error="insufficient_claims", claims="e30=""#;
    vault.faults().always(Reply::new(401).header("www-authenticate", challenge));
    vault.log().clear();
    assert_eq!(session.sqlstate(key), "28000");
    assert_eq!(vault.log().count(), 2);
    // A 401 without claims is final.
    vault.faults().clear();
    let challenge = r#"Bearer authorization="https://evil.test/t", resource="https://evil.test""#;
    vault.faults().always(Reply::new(401).header("www-authenticate", challenge));
    vault.log().clear();
    let asked = world.asked();
    assert_eq!(session.sqlstate(key), "28000");
    assert_eq!((vault.log().count(), world.asked()), (1, asked));
    for request in world.emulator.identity().log().requests() {
        assert_eq!(request.query("resource"), Some("https://vault.azure.net"), "never what a challenge says");
    }
}

#[test]
fn calls_are_tried_again_counted_and_ended_as_any_other() {
    let world = world();
    let vault = world.emulator.vault();
    let version = vault.put_key(Key::rsa("kek", 2048)).unwrap();
    let mut session = world.session();
    vault.faults().add(Rule::new(Reply::new(429)).times(1).when(Filter::path("wrapkey")));
    vault.faults().add(Rule::new(Fault::Reset).times(1).when(Filter::path("/sign")));
    session.run("CREATE TABLE w AS SELECT * FROM azure_key_vault.wrap_key('kv', 'kek', 'x')");
    for call in [
        "unwrap_key('kv', kid, ciphertext) FROM w",
        "key('kv', 'kek')",
        "key_versions('kv', 'kek')",
        "decrypt('kv', e.kid, e.ciphertext) FROM azure_key_vault.encrypt('kv', 'kek', 'x') e",
        "verify('kv', s.kid, sha256('x'), s.signature) FROM azure_key_vault.sign('kv', 'kek', sha256('x')) s",
        "secret_properties('kv', 'db-password')",
    ] {
        session.run(&format!("SELECT azure_key_vault.{call}"));
    }
    let (code, _) = refused(&mut session, "azure_key_vault.key('kv', 'none')");
    assert_eq!(code, "58P01");
    let rows = session.rows(
        "SELECT operation, requests, retries, throttled, errors FROM managed_identity.stat_requests
         WHERE server = 'kv' ORDER BY operation COLLATE \"C\"",
    );
    let expected = [
        "decrypt|1|0|0|0",
        "encrypt|1|0|0|0",
        "key|2|0|0|1",
        "secret|1|0|0|0",
        "sign|2|1|0|0",
        "unwrap|1|0|0|0",
        "verify|1|0|0|0",
        "versions|1|0|0|0",
        "wrap|2|1|1|0",
    ];
    assert_eq!(rows, expected);
    // A vault that hangs: seen, and ended.
    vault.faults().add(Rule::new(Fault::HangBeforeHeaders).when(Filter::path("unwrapkey")));
    let mut hanging = world.session();
    let pid = hanging.pid();
    let kid = format!("{}/keys/kek/{version}", vault.uri());
    let hangs =
        std::thread::spawn(move || hanging.sqlstate(&format!("SELECT azure_key_vault.unwrap_key('kv', '{kid}', 'x')")));
    let waits = format!("SELECT coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = {pid}");
    let seen = if major() >= 17 { "AzureKeyVault" } else { "Extension" };
    wait::until("the wait for the vault", || session.value(&waits) == seen);
    session.run(&format!("SELECT pg_cancel_backend({pid})"));
    assert_eq!(hangs.join().unwrap(), "57014");
}
