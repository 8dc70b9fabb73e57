//! A client of a vault's keys, for what one test asks of it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use emulator::{Emulator, Identity, VaultService};
use serde_json::{Value, json};

use super::{Answer, VAULT, ask, call, token};

pub const API: &str = "api-version=2025-07-01";
pub const DATA_KEY: [u8; 32] = [7; 32];

/// A vault and a token that it takes.
pub struct Client<'e> {
    pub emulator: &'e Emulator,
    pub vault: &'e VaultService,
    pub token: String,
}

impl<'e> Client<'e> {
    pub fn of(emulator: &'e Emulator) -> Self {
        Self { emulator, vault: emulator.vault(), token: token(emulator, VAULT) }
    }

    /// The same vault with the token of `keys`.
    pub fn as_keys(&self) -> Self {
        let selector = format!("&client_id={}", Identity::user("keys").client_id);
        let answer = ask(self.emulator, VAULT, &selector).json();
        Self { token: answer["access_token"].as_str().unwrap().to_owned(), ..*self }
    }

    /// Uses the newest version of a key, with a value that is good for nothing.
    pub fn use_it(&self, name: &str, operation: &str) -> Answer {
        let alg = if matches!(operation, "sign" | "verify") { "PS256" } else { "RSA-OAEP-256" };
        let value = URL_SAFE_NO_PAD.encode([9; 32]);
        self.post(&format!("keys/{name}//{operation}"), &json!({"alg": alg, "value": value, "digest": value}))
    }

    pub fn get(&self, path: &str) -> Answer {
        let url = format!("{}/{path}?{API}", self.vault.uri());
        call(self.emulator, "GET", &url, &self.token, &Value::Null)
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let url = format!("{}/{path}?{API}", self.vault.uri());
        call(self.emulator, "POST", &url, &self.token, body)
    }

    pub fn operate(&self, path: &str, alg: &str, value: &[u8]) -> Answer {
        self.post(path, &json!({"alg": alg, "value": URL_SAFE_NO_PAD.encode(value)}))
    }

    /// The result's bytes, and the id of the key that made it.
    pub fn done(&self, path: &str, alg: &str, value: &[u8]) -> (Vec<u8>, String) {
        let answer = self.operate(path, alg, value);
        assert_eq!(answer.status, 200, "{path} {alg}: {:?}", answer.json());
        let body = answer.json();
        let value = URL_SAFE_NO_PAD.decode(body["value"].as_str().unwrap()).unwrap();
        (value, body["kid"].as_str().unwrap().to_owned())
    }

    pub fn verifies(&self, path: &str, alg: &str, digest: &[u8], signature: &[u8]) -> bool {
        let body = json!({
            "alg": alg,
            "digest": URL_SAFE_NO_PAD.encode(digest),
            "value": URL_SAFE_NO_PAD.encode(signature),
        });
        self.post(path, &body).json()["value"].as_bool().unwrap()
    }
}

/// Status, code, inner code and message of a refusal, which has a request id.
pub fn error(answer: &Answer) -> (u16, String, Option<String>, String) {
    assert_eq!(answer.header("x-ms-request-id").unwrap().len(), 36);
    let body = answer.json();
    let error = &body["error"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let message = text(&error["message"]).unwrap();
    (answer.status, text(&error["code"]).unwrap(), text(&error["innererror"]["code"]), message)
}
