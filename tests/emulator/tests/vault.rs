//! The vault's bundles, refusals and token checks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Answer, STORAGE, VAULT, emulator, get, token};
use emulator::{Emulator, Issuer, Secret, TokenRequest};
use serde_json::{Value, json};

const VERSION: &str = "?api-version=2025-07-01";

fn read(emulator: &Emulator, path: &str, token: &str) -> Answer {
    let url = format!("{}{path}", emulator.vault_uri());
    let bearer = format!("Bearer {token}");
    get(Some(emulator.pki()), &url, &[("authorization", &bearer)])
}

fn message(answer: &Answer) -> (u16, String) {
    let body: Value = answer.json();
    let message = body["error"]["message"].as_str().unwrap();
    (answer.status, message.to_owned())
}

#[test]
fn a_secret_in_its_versions() {
    let emulator = emulator();
    let token = token(&emulator, VAULT);
    let vault = emulator.vault();
    let old = vault.put(Secret::new("api-key", "one")).unwrap();
    let secret = Secret::new("api-key", "two")
        .content_type("text/plain")
        .tag("team", "data")
        .valid(Some(1), Some(4_000_000_000));
    let new = vault.put(secret).unwrap();
    assert_eq!(new.len(), 32);
    for path in [
        format!("/secrets/api-key{VERSION}"),
        format!("/secrets/api-key/{VERSION}"),
        format!("/secrets/API-KEY/{}{VERSION}", new.to_uppercase()),
    ] {
        let answer = read(&emulator, &path, &token);
        assert_eq!(answer.status, 200, "{path}");
        let request_id = answer.header("x-ms-request-id").unwrap();
        assert_eq!(request_id.len(), 36);
        let body = answer.json();
        assert_eq!(body["value"], "two");
        assert_eq!(body["contentType"], "text/plain");
        assert_eq!(body["tags"], json!({"team": "data"}));
        assert_eq!(body["id"], format!("{}/secrets/api-key/{new}", emulator.vault_uri()));
        assert_eq!(body["attributes"]["enabled"], true);
        assert_eq!(body["attributes"]["nbf"], 1);
        assert_eq!(body["attributes"]["exp"], 4_000_000_000_i64);
    }
    let earlier = read(&emulator, &format!("/secrets/api-key/{old}{VERSION}"), &token);
    assert_eq!(earlier.json()["value"], "one");
    assert!(vault.put(Secret::new("a/b", "x")).is_err());
    vault.remove("API-key");
    let gone = read(&emulator, &format!("/secrets/api-key{VERSION}"), &token);
    assert_eq!(gone.status, 404);
}

#[test]
fn no_token_is_challenged() {
    let emulator = emulator();
    let url = format!("{}/secrets/db{VERSION}", emulator.vault_uri());
    let answer = get(Some(emulator.pki()), &url, &[]);
    assert_eq!(answer.status, 401);
    let challenge = format!(
        r#"Bearer authorization="https://login.windows.net/{}", resource="https://vault.azure.net""#,
        emulator.issuer().tenant()
    );
    assert_eq!(answer.header("www-authenticate"), Some(challenge.as_str()));
    assert!(answer.header("x-ms-request-id").is_some());
    assert_eq!(
        answer.json(),
        json!({"error": {"code": "Unauthorized", "message": "AKV10000: Request is missing a Bearer or PoP token."}})
    );
    assert_eq!(emulator.vault().log().without_bearer().len(), 1);
}

#[test]
fn a_token_is_checked_for_audience_issuer_signature_and_time() {
    let emulator = emulator();
    let path = format!("/secrets/db{VERSION}");
    let refused = |token: &str, with: &str| {
        let (status, message) = message(&read(&emulator, &path, token));
        assert_eq!(status, 401);
        assert!(message.contains(with), "{message}");
    };
    refused(
        &token(&emulator, STORAGE),
        "AKV10022: Invalid audience. Expected https://vault.azure.net, found: https://storage.azure.com/",
    );
    refused(&token(&emulator, "https://vault.azure.net/"), "found: https://vault.azure.net/");
    let issuer = emulator.issuer();
    let issue = |request: TokenRequest| issuer.issue(&request).unwrap().text;
    let request = || TokenRequest::new(VAULT);
    refused(
        &issue(request().claim("iss", "https://sts.windows.net/other/")),
        "AKV10032: Invalid issuer. Expected one of https://sts.windows.net/",
    );
    refused(&issue(request().life(-1)), "TokenExpired");
    refused(&issue(request().claim("nbf", 4_000_000_000_i64)), "TokenNotYetValid");
    refused(&issue(request().claim("exp", Value::Null)), "TokenExpired");
    let foreign = Issuer::new(issuer.tenant()).unwrap();
    refused(&foreign.issue(&request()).unwrap().text, "AKV10046");
    let good = issue(request());
    let (signed, _) = good.rsplit_once('.').unwrap();
    let other = issue(request());
    let (_, signature) = other.rsplit_once('.').unwrap();
    refused(&format!("{signed}.{signature}"), "signature");
    refused("nonsense", "AKV10001");
    assert_eq!(read(&emulator, &path, &good).status, 200);
    // The keys were fetched for the first token, and again for the unknown one only.
    let fetched = emulator.documents().log().requests();
    assert_eq!(fetched.len(), 2, "{fetched:?}");
}

#[test]
fn states_and_requests_that_are_refused() {
    let emulator = emulator();
    let token = token(&emulator, VAULT);
    emulator.vault().put(Secret::new("off", "x").disabled()).unwrap();
    let disabled = read(&emulator, &format!("/secrets/off{VERSION}"), &token);
    assert_eq!(disabled.status, 403);
    assert_eq!(
        disabled.json(),
        json!({"error": {"code": "Forbidden", "message": "Operation get is not allowed on a disabled secret.", "innererror": {"code": "SecretDisabled"}}})
    );
    let missing = read(&emulator, &format!("/secrets/nope{VERSION}"), &token);
    assert_eq!(missing.json()["error"]["code"], "SecretNotFound");
    let (status, text) = message(&missing);
    assert_eq!(status, 404);
    assert!(text.starts_with("A secret with (name/id) nope was not found in this key vault."));
    let version = read(&emulator, &format!("/secrets/db/0123{VERSION}"), &token);
    assert_eq!(version.status, 404);
    for query in ["", "?api-version=1.0"] {
        let answer = read(&emulator, &format!("/secrets/db{query}"), &token);
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["code"], "BadParameter");
    }
    for query in ["7.4", "7.6", "2025-07-01", "2026-04-01"] {
        let path = format!("/secrets/db?api-version={query}");
        assert_eq!(read(&emulator, &path, &token).status, 200, "{query}");
    }
    assert_eq!(read(&emulator, &format!("/keys/db{VERSION}"), &token).status, 404);
    let url = format!("{}/secrets/db{VERSION}", emulator.vault_uri());
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let put = common::send(Some(emulator.pki()), "PUT", &url, &headers, b"{}");
    assert_eq!(put.status, 405);
}
