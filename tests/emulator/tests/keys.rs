//! The vault's keys: what they do, and when they are refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Answer, VAULT, call, emulator, token};
use emulator::{Emulator, Key, VaultService};
use serde_json::{Value, json};

const API: &str = "api-version=2025-07-01";
const DATA_KEY: [u8; 32] = [7; 32];

/// A vault and a token that it takes.
struct Client<'e> {
    emulator: &'e Emulator,
    vault: &'e VaultService,
    token: String,
}

impl<'e> Client<'e> {
    fn of(emulator: &'e Emulator) -> Self {
        Self { emulator, vault: emulator.vault(), token: token(emulator, VAULT) }
    }

    fn get(&self, path: &str) -> Answer {
        let url = format!("{}/{path}?{API}", self.vault.uri());
        call(self.emulator, "GET", &url, &self.token, &Value::Null)
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        let url = format!("{}/{path}?{API}", self.vault.uri());
        call(self.emulator, "POST", &url, &self.token, body)
    }

    fn operate(&self, path: &str, alg: &str, value: &[u8]) -> Answer {
        self.post(path, &json!({"alg": alg, "value": URL_SAFE_NO_PAD.encode(value)}))
    }

    /// The result's bytes, and the id of the key that made it.
    fn done(&self, path: &str, alg: &str, value: &[u8]) -> (Vec<u8>, String) {
        let answer = self.operate(path, alg, value);
        assert_eq!(answer.status, 200, "{path} {alg}: {:?}", answer.json());
        let body = answer.json();
        let value = URL_SAFE_NO_PAD.decode(body["value"].as_str().unwrap()).unwrap();
        (value, body["kid"].as_str().unwrap().to_owned())
    }

    fn verifies(&self, path: &str, alg: &str, digest: &[u8], signature: &[u8]) -> bool {
        let body = json!({
            "alg": alg,
            "digest": URL_SAFE_NO_PAD.encode(digest),
            "value": URL_SAFE_NO_PAD.encode(signature),
        });
        self.post(path, &body).json()["value"].as_bool().unwrap()
    }
}

fn error(answer: &Answer) -> (u16, String, Option<String>, String) {
    assert_eq!(answer.header("x-ms-request-id").unwrap().len(), 36);
    let body = answer.json();
    let error = &body["error"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let message = text(&error["message"]).unwrap();
    (answer.status, text(&error["code"]).unwrap(), text(&error["innererror"]["code"]), message)
}

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
