//! The vault's keys: what they are and what they do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::vault::{API, Client, DATA_KEY, error};
use common::{VAULT, call, emulator, token};
use emulator::{HSM_AUDIENCE, Key};
use serde_json::{Value, json};

#[test]
fn a_key_in_its_versions_by_every_path_that_clients_use() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    let old = client.vault.put_key(Key::rsa("kek", 2048)).unwrap();
    let new = client.vault.put_key(Key::rsa("kek", 2048).valid(Some(1), Some(4_000_000_000)).tag("a", "b")).unwrap();
    assert_eq!(client.vault.key_versions("KEK"), [old.clone(), new.clone()]);
    let kid = format!("{}/keys/kek/{new}", client.vault.uri());
    for path in ["keys/kek", "keys/kek/", &format!("Keys/KEK/{}", new.to_uppercase())] {
        let answer = client.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("x-ms-request-id").unwrap().len(), 36);
        let body = answer.json();
        assert_eq!(body["key"]["kid"], kid);
        assert_eq!(body["key"]["kty"], "RSA");
        assert_eq!(body["key"]["e"], "AQAB");
        assert_eq!(URL_SAFE_NO_PAD.decode(body["key"]["n"].as_str().unwrap()).unwrap().len(), 256);
        assert_eq!(body["key"]["key_ops"], json!(["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"]));
        assert_eq!(body["attributes"]["enabled"], true);
        assert_eq!((&body["attributes"]["nbf"], &body["attributes"]["exp"]), (&json!(1), &json!(4_000_000_000_i64)));
        assert_eq!(body["tags"], json!({"a": "b"}));
    }
    assert_ne!(client.get(&format!("keys/kek/{old}")).json()["key"]["n"], client.get("keys/kek").json()["key"]["n"]);
    for path in ["keys/kek//wrapkey", "keys/kek//wrapKey", &format!("keys/kek/{new}/WRAPKEY")] {
        let (wrapped, by) = client.done(path, "RSA-OAEP-256", &DATA_KEY);
        assert_eq!((by.as_str(), wrapped.len()), (kid.as_str(), 256));
        assert_eq!(client.done(&format!("keys/kek/{new}/unwrapkey"), "RSA-OAEP-256", &wrapped).0, DATA_KEY);
    }
    let (by_old, kid) = client.done(&format!("keys/kek/{old}/wrapkey"), "RSA-OAEP-256", &DATA_KEY);
    assert_eq!(kid, format!("{}/keys/kek/{old}", client.vault.uri()));
    let (status, code, inner, message) = error(&client.operate("keys/kek//unwrapkey", "RSA-OAEP-256", &by_old));
    assert_eq!((status, code.as_str(), inner), (400, "BadParameter", None));
    assert_eq!(message, "Unable to decrypt specified value with this key.");
}

#[test]
fn rsa_keys_of_each_size_wrap_and_sign_by_each_algorithm() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    for (name, bits) in [("k2", 2048), ("k3", 3072), ("k4", 4096)] {
        client.vault.put_key(Key::rsa(name, bits).hsm()).unwrap();
        assert_eq!(client.get(&format!("keys/{name}")).json()["key"]["kty"], "RSA-HSM");
        for alg in ["RSA-OAEP-256", "RSA-OAEP", "RSA1_5"] {
            for (forwards, backwards) in [("wrapkey", "unwrapkey"), ("encrypt", "decrypt")] {
                let (made, kid) = client.done(&format!("keys/{name}//{forwards}"), alg, &DATA_KEY);
                assert_eq!(made.len(), usize::from(bits) / 8);
                let path = kid.strip_prefix(&client.vault.uri()).unwrap().trim_start_matches('/');
                assert_eq!(client.done(&format!("{path}/{backwards}"), alg, &made).0, DATA_KEY, "{alg}");
            }
        }
        for (size, hash) in [("256", &SHA256), ("384", &SHA384), ("512", &SHA512)] {
            for alg in [format!("RS{size}"), format!("PS{size}")] {
                let (good, bad) = (digest(hash, b"message"), digest(hash, b"massage"));
                let (signature, _) = client.done(&format!("keys/{name}//sign"), &alg, good.as_ref());
                let path = format!("keys/{name}//verify");
                assert!(client.verifies(&path, &alg, good.as_ref(), &signature), "{alg}");
                assert!(!client.verifies(&path, &alg, bad.as_ref(), &signature), "{alg}");
            }
        }
    }
}

#[test]
fn an_elliptic_curve_signs_and_does_nothing_else() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    client.vault.put_key(Key::ec("ec")).unwrap();
    let key = client.get("keys/ec").json()["key"].clone();
    assert_eq!(
        (&key["kty"], &key["crv"], &key["key_ops"]),
        (&json!("EC"), &json!("P-256"), &json!(["sign", "verify"]))
    );
    for number in ["x", "y"] {
        assert_eq!(URL_SAFE_NO_PAD.decode(key[number].as_str().unwrap()).unwrap().len(), 32);
    }
    let hash = digest(&SHA256, b"message");
    let (signature, _) = client.done("keys/ec//sign", "ES256", hash.as_ref());
    assert_eq!(signature.len(), 64);
    assert!(client.verifies("keys/ec//verify", "ES256", hash.as_ref(), &signature));
    assert!(!client.verifies("keys/ec//verify", "ES256", digest(&SHA256, b"massage").as_ref(), &signature));
    assert_eq!(error(&client.use_it("ec", "wrapkey")).2.as_deref(), Some("KeyOperationForbidden"));
    assert_eq!(error(&client.use_it("ec", "sign")).1, "BadParameter");
}

#[test]
fn a_managed_hsm_has_an_audience_of_its_own_and_wraps_with_aes() {
    let emulator = emulator();
    let hsm = emulator.another_vault(HSM_AUDIENCE).unwrap();
    hsm.put_key(Key::oct_hsm("kek")).unwrap();
    let client = Client { vault: &hsm, ..Client::of(&emulator) };
    let refused = client.get("keys/kek");
    assert!(error(&refused).3.starts_with("AKV10022: Invalid audience. Expected https://managedhsm.azure.net"));
    assert!(refused.header("www-authenticate").unwrap().contains(r#"resource="https://managedhsm.azure.net""#));
    let client = Client { token: token(&emulator, HSM_AUDIENCE), ..client };
    let key = client.get("keys/kek").json()["key"].clone();
    assert_eq!((&key["kty"], key.get("k")), (&json!("oct-HSM"), None));
    let (wrapped, _) = client.done("keys/kek//wrapkey", "A256KW", &DATA_KEY);
    assert_eq!(wrapped.len(), 40);
    assert_eq!(client.done("keys/kek//unwrapkey", "A256KW", &wrapped).0, DATA_KEY);
    for (operation, value) in [("wrapkey", &DATA_KEY[..31]), ("unwrapkey", &wrapped[..32]), ("encrypt", &DATA_KEY)] {
        let refused = client.operate(&format!("keys/kek//{operation}"), "A256KW", value);
        assert_eq!(error(&refused).1, "BadParameter", "{operation}");
    }
    assert_eq!(hsm.private_key("kek", None).unwrap().len(), 32);
}

#[test]
fn versions_come_in_pages() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    let mut versions: Vec<String> = (0..27).map(|_| client.vault.put_key(Key::ec("many")).unwrap()).collect();
    versions.sort();
    let pages = |first: &str| {
        let mut url = format!("{}/{first}", client.vault.uri());
        let (mut sizes, mut kids) = (Vec::new(), Vec::new());
        loop {
            let page = call(&emulator, "GET", &url, &client.token, &Value::Null).json();
            let items = page["value"].as_array().unwrap();
            assert!(items.iter().all(|item| item["attributes"]["enabled"] == true && item.get("key").is_none()));
            sizes.push(items.len());
            kids.extend(items.iter().map(|item| item["kid"].as_str().unwrap().to_owned()));
            match page["nextLink"].as_str() {
                None => break (sizes, kids),
                Some(next) => url = next.to_owned(),
            }
        }
    };
    let expected: Vec<String> =
        versions.iter().map(|version| format!("{}/keys/many/{version}", client.vault.uri())).collect();
    assert_eq!(pages(&format!("keys/many/versions?{API}")), (vec![25, 2], expected.clone()));
    assert_eq!(pages(&format!("keys/many/versions?{API}&maxresults=10")), (vec![10, 10, 7], expected));
    assert_eq!(pages(&format!("keys/nope/versions?{API}")), (vec![0], Vec::new()));
    for most in ["0", "26", "x"] {
        let url = format!("{}/keys/many/versions?{API}&maxresults={most}", client.vault.uri());
        assert_eq!(error(&call(&emulator, "GET", &url, &client.token, &Value::Null)).0, 400);
    }
}

#[test]
fn requests_that_are_not_as_they_should_be() {
    let emulator = emulator();
    let client = Client::of(&emulator);
    client.vault.put_key(Key::rsa("kek", 2048)).unwrap();
    client.vault.put_key(Key::rsa("signs", 2048).key_ops(&["sign", "verify"])).unwrap();
    let value = URL_SAFE_NO_PAD.encode(DATA_KEY);
    for (path, body) in [
        ("wrapkey", json!({"alg": "RSA-OAEP-256"})),
        ("wrapkey", json!({"value": value})),
        ("wrapkey", json!({"alg": "RSA-OAEP-256", "value": "a+b/"})),
        ("wrapkey", json!({"alg": "RSA-OAEP-256", "value": format!("{value}=")})),
        ("wrapkey", json!({"alg": "RSA-OAEP-256", "value": URL_SAFE_NO_PAD.encode([0; 191])})),
        ("wrapkey", json!({"alg": "A256KW", "value": value})),
        ("wrapkey", json!({"alg": "RSA-OAEP-384", "value": value})),
        ("unwrapkey", json!({"alg": "RSA-OAEP-256", "value": value})),
        ("sign", json!({"alg": "ES256", "value": value})),
        ("sign", json!({"alg": "PS512", "value": value})),
        ("verify", json!({"alg": "PS256", "value": value})),
        ("wrapkey", Value::Null),
    ] {
        let answer = client.post(&format!("keys/kek//{path}"), &body);
        assert_eq!((error(&answer).0, error(&answer).1.as_str()), (400, "BadParameter"), "{path} {body}");
    }
    let largest = client.operate("keys/kek//wrapkey", "RSA-OAEP-256", &[0; 190]);
    assert_eq!(largest.status, 200);
    let wrong = client.operate("keys/kek//sign", "RS256", &DATA_KEY[..5]);
    let message = "Invalid length of 'value': 5 bytes. RS256 requires 32 bytes, encoded with base64url.";
    assert_eq!(error(&wrong).3, message);
    let (status, _, inner, message) = error(&client.use_it("signs", "wrapkey"));
    assert_eq!((status, inner.as_deref()), (403, Some("KeyOperationForbidden")));
    assert_eq!(message, "Operation wrapKey is not permitted on this key.");
    assert_eq!(error(&client.get("keys/kek//wrapkey")).0, 405);
    assert_eq!(error(&client.post("keys/kek", &json!({}))).0, 405);
    assert_eq!(error(&client.post("keys/kek//release", &json!({}))).0, 404);
    for (name, bits) in [("a/b", 2048), ("small", 1024), ("odd", 2049)] {
        assert!(client.vault.put_key(Key::rsa(name, bits)).is_err());
    }
}

#[test]
fn vaults_that_are_alive_share_no_key() {
    let emulator = emulator();
    let other = emulator.another_vault(VAULT).unwrap();
    let client = Client::of(&emulator);
    let beside = Client { vault: &other, ..Client::of(&emulator) };
    for vault in [client.vault, &other] {
        vault.put_key(Key::rsa("kek", 2048)).unwrap();
    }
    let (wrapped, _) = client.done("keys/kek//wrapkey", "RSA-OAEP-256", &DATA_KEY);
    assert_eq!(error(&beside.operate("keys/kek//unwrapkey", "RSA-OAEP-256", &wrapped)).1, "BadParameter");
}
