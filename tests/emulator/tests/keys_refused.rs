//! The vault's keys: when they are refused, and to whom.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::vault::{Client, DATA_KEY, error};
use common::{Answer, emulator};
use emulator::{ANYONE, Fault, Filter, Identity, Key, Network, Reply, Rule, VaultOperation};
use serde_json::{Value, json};

const USES: [&str; 6] = ["wrapkey", "unwrapkey", "encrypt", "decrypt", "sign", "verify"];

#[test]
fn a_disabled_key_does_nothing_and_may_be_shown_or_not() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    client.vault.put_key(Key::rsa("kek", 2048)).unwrap();
    client.vault.change_key("KEK", None, |attributes| attributes.enabled = false).unwrap();
    let refused_to = |operation: &str, answer: &Answer| {
        let message = format!("Operation {operation} is not allowed on a disabled key.");
        assert_eq!(error(answer), (403, "Forbidden".to_owned(), Some("KeyDisabled".to_owned()), message));
    };
    for (path, operation) in USES.into_iter().zip(["wrapKey", "unwrapKey", "encrypt", "decrypt", "sign", "verify"]) {
        refused_to(operation, &client.use_it("kek", path));
    }
    assert_eq!(client.get("keys/kek").json()["attributes"]["enabled"], false);
    client.vault.set_shows_disabled_keys(false);
    refused_to("get", &client.get("keys/kek"));
    assert_eq!(client.get("keys/kek/versions").json()["value"][0]["attributes"]["enabled"], false);
    client.vault.change_key("kek", None, |attributes| attributes.enabled = true).unwrap();
    client.done("keys/kek//wrapkey", "RSA-OAEP-256", &DATA_KEY);
}

#[test]
fn outside_its_time_a_key_reads_and_does_not_write() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    let version = client.vault.put_key(Key::rsa("kek", 2048)).unwrap();
    let (wrapped, _) = client.done("keys/kek//wrapkey", "RSA-OAEP-256", &DATA_KEY);
    for (nbf, exp, code, state) in [
        (None, Some(1), "KeyExpired", "an expired key"),
        (Some(4_000_000_000), None, "KeyNotYetValid", "a key that is not yet valid"),
    ] {
        client.vault.change_key("kek", Some(&version), |at| (at.nbf, at.exp) = (nbf, exp)).unwrap();
        for (path, operation) in [("wrapkey", "wrapKey"), ("encrypt", "encrypt"), ("sign", "sign")] {
            let message = format!("Operation {operation} is not allowed on {state}.");
            let expected = (403, "Forbidden".to_owned(), Some(code.to_owned()), message);
            assert_eq!(error(&client.use_it("kek", path)), expected);
        }
        assert_eq!(client.done("keys/kek//unwrapkey", "RSA-OAEP-256", &wrapped).0, DATA_KEY);
        assert_eq!(client.done("keys/kek//decrypt", "RSA-OAEP-256", &wrapped).0, DATA_KEY);
        assert_eq!(client.use_it("kek", "verify").json(), json!({"value": false}));
        let attributes = client.get("keys/kek").json()["attributes"].clone();
        assert_eq!((attributes["nbf"].as_i64(), attributes["exp"].as_i64()), (nbf, exp));
    }
}

#[test]
fn a_deleted_key_is_not_found_until_it_is_recovered() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    let version = client.vault.put_key(Key::rsa("kek", 2048)).unwrap();
    let (wrapped, _) = client.done("keys/kek//wrapkey", "RSA-OAEP-256", &DATA_KEY);
    client.vault.delete_key("kek").unwrap();
    for operation in USES {
        let (status, code, inner, message) = error(&client.use_it("kek", operation));
        assert_eq!((status, code.as_str(), inner), (404, "KeyNotFound", None));
        assert!(message.starts_with("A key with (name/id) kek was not found in this key vault."));
    }
    assert_eq!(error(&client.get(&format!("keys/kek/{version}"))).1, "KeyNotFound");
    assert_eq!(client.get("keys/kek/versions").json()["value"], json!([]));
    assert!(client.vault.put_key(Key::rsa("kek", 2048)).is_err());
    client.vault.recover_key("kek").unwrap();
    assert_eq!(client.done(&format!("keys/kek/{version}/unwrapkey"), "RSA-OAEP-256", &wrapped).0, DATA_KEY);
    let old = client.get("keys/kek").json()["key"]["n"].clone();
    client.vault.delete_key("kek").unwrap();
    client.vault.purge_key("kek").unwrap();
    assert!(client.vault.recover_key("kek").is_err());
    client.vault.put_key(Key::rsa("kek", 2048)).unwrap();
    assert_ne!(client.get("keys/kek").json()["key"]["n"], old);
}

#[test]
fn a_role_is_missing_for_one_identity_and_one_operation() {
    let emulator = emulator();
    let system = Client::of(&emulator);
    let keys = system.as_keys();
    let vault = emulator.vault();
    vault.put_key(Key::rsa("kek", 2048)).unwrap();
    let id = Identity::user("keys");
    let refused = |answer: &Answer, action: &str, object: &str| {
        let (status, code, inner, message) = error(answer);
        assert_eq!((status, code.as_str(), inner.as_deref()), (403, "Forbidden", Some("ForbiddenByRbac")));
        let caller =
            format!("\r\nCaller: appid={};oid={};iss={}\r\n", id.client_id, id.object_id, emulator.issuer().issuer());
        assert!(message.starts_with("Caller is not authorized to perform action on resource.\r\n"), "{message}");
        assert!(message.contains(&caller), "{message}");
        assert!(message.contains(&format!("Action: 'Microsoft.KeyVault/vaults/{action}'\r\n")), "{message}");
        assert!(message.contains(&format!("/vaults/emulator/{object}'\r\n")), "{message}");
    };
    vault.deny(&id.object_id, VaultOperation::UnwrapKey);
    refused(&keys.use_it("kek", "unwrapkey"), "keys/unwrap/action", "keys/kek");
    keys.done("keys/kek//wrapkey", "RSA-OAEP-256", &DATA_KEY);
    assert_eq!(error(&system.use_it("kek", "unwrapkey")).0, 400);
    vault.deny(&id.client_id, VaultOperation::ReadKey);
    for path in ["keys/kek", "keys/kek/versions", "keys/nope"] {
        refused(&keys.get(path), "keys/read", path.trim_end_matches("/versions"));
    }
    vault.deny(&id.client_id, VaultOperation::GetSecret);
    refused(&keys.get("secrets/db"), "secrets/getSecret/action", "secrets/db");
    assert_eq!(system.get("secrets/db").status, 200);
    vault.allow_again(&id.object_id, VaultOperation::UnwrapKey);
    assert_eq!(error(&keys.use_it("kek", "unwrapkey")).0, 400);
    vault.deny(ANYONE, VaultOperation::WrapKey);
    assert_eq!([&system, &keys].map(|client| client.use_it("kek", "wrapkey").status), [403, 403]);
}

#[test]
fn a_network_that_the_vault_does_not_serve() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    client.vault.put_key(Key::ec("ec")).unwrap();
    for (network, code) in [(Network::Firewall, "ForbiddenByFirewall"), (Network::Private, "ForbiddenByConnection")] {
        client.vault.set_network(network);
        for path in ["keys/ec", "secrets/db"] {
            let (status, outer, inner, _) = error(&client.get(path));
            assert_eq!((status, outer.as_str(), inner.as_deref()), (403, "Forbidden", Some(code)));
        }
    }
    client.vault.set_network(Network::Open);
    assert_eq!(client.get("keys/ec").status, 200);
}

#[test]
fn answers_that_go_wrong_are_marked_all_the_same() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    client.vault.put_key(Key::rsa("kek", 2048)).unwrap();
    let faults = client.vault.faults();
    faults.next(1, Reply::throttled());
    let throttled = client.get("keys/kek");
    let (status, code, _, message) = error(&throttled);
    assert_eq!((status, code.as_str(), throttled.header("retry-after")), (429, "Throttled", None));
    assert!(message.ends_with("Reason: VaultRequestTypeLimitReached"));
    let oversized = json!({"kid": "x", "value": "A".repeat(8 << 20)}).to_string();
    faults.add(Rule::new(Reply::new(200).body(oversized.clone())).times(1).when(Filter::path("unwrapkey")));
    faults.add(Rule::new(Fault::Truncate { after: 100 }).times(1).when(Filter::path("/wrapkey")));
    faults.add(Rule::new(Reply::new(200).body("<html>not json")).times(1).when(Filter::method("GET")));
    assert_eq!(client.get("keys/kek").body, b"<html>not json");
    assert_eq!(client.use_it("kek", "unwrapkey").body.len(), oversized.len());
    let short = client.use_it("kek", "wrapkey");
    assert_eq!((short.status, short.body.len(), short.is_whole()), (200, 100, false));
    client.use_it("kek", "wrapkey");
    let ids: Vec<_> = client.vault.log().requests().into_iter().map(|entry| entry.request_id.unwrap()).collect();
    assert_eq!(ids.len(), 5);
    assert_eq!(ids[0], throttled.header("x-ms-request-id").unwrap());
    assert!(ids.iter().all(|id| ids.iter().filter(|other| id == *other).count() == 1));
}

#[test]
fn a_token_of_before_is_challenged_for_claims_and_a_newer_one_is_taken() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    client.vault.put_key(Key::ec("ec")).unwrap();
    assert_eq!(client.get("keys/ec").status, 200);
    emulator.require_new_tokens();
    for _ in 0..2 {
        let refused = client.get("keys/ec");
        assert_eq!(error(&refused).0, 401);
        let challenge = refused.header("www-authenticate").unwrap();
        let (before, claims) = challenge.split_once(r#", error="insufficient_claims", claims=""#).unwrap();
        assert_eq!(
            before,
            r#"Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize""#
        );
        let claims = STANDARD.decode(claims.strip_suffix('"').unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["access_token"]["nbf"]["essential"], true);
        assert!(claims["access_token"]["nbf"]["value"].is_string());
    }
    assert_eq!(Client::of(&emulator).get("keys/ec").status, 200);
}
