//! The program: its endpoints, its control, its end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{STORAGE, VAULT, get, send};
use emulator::{Identity, Pki};
use serde_json::{Value, json};

struct Running {
    child: Child,
    dir: PathBuf,
    at: Value,
}

impl Running {
    fn start(name: &str, more: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!("emulator-{name}-{}", std::process::id()));
        let secrets = dir.join("secrets.json");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(&secrets, r#"[{"name": "db", "value": "hunter2", "tags": {"a": "b"}}]"#).unwrap();
        let keys = dir.join("keys.json");
        std::fs::write(&keys, r#"[{"name": "kek", "kty": "RSA", "key_size": 2048, "tags": {"a": "b"}}]"#).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_emulator"))
            .args(["serve", "--user-assigned", "keys", "--state-dir"])
            .arg(&dir)
            .arg("--secrets")
            .arg(&secrets)
            .arg("--keys")
            .arg(&keys)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let at = serde_json::from_str(&line).unwrap();
        Self { child, dir, at }
    }

    fn endpoint(&self, name: &str) -> &str {
        self.at[name].as_str().unwrap()
    }

    fn control(&self, command: &str, body: Value) -> (u16, Value) {
        let url = format!("{}/{command}", self.endpoint("control"));
        let answer = match body {
            Value::Null => get(None, &url, &[]),
            body => send(None, "POST", &url, &[], body.to_string().as_bytes()),
        };
        (answer.status, answer.json())
    }

    fn ask(&self, resource: &str) -> common::Answer {
        let path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=";
        let url = format!("{}{path}{resource}", self.endpoint("imds_endpoint"));
        get(None, &url, &[("metadata", "true")])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn it_serves_and_is_controlled() {
    let running = Running::start("control", &["--token-life", "60"]);
    let pki = Pki::load(&running.dir).unwrap();
    assert_eq!(running.at["proxy"], Value::Null);
    assert_eq!(running.at["identities"][1]["client_id"], Identity::user("keys").client_id);
    let token = running.ask(VAULT).json();
    assert_eq!(token["expires_in"], "60");
    let bearer = format!("Bearer {}", token["access_token"].as_str().unwrap());
    let headers = [("authorization", bearer.as_str())];
    let read = |name: &str| {
        let url = format!("{}/secrets/{name}?api-version=7.6", running.endpoint("vault_uri"));
        get(Some(&pki), &url, &headers)
    };
    assert_eq!(read("db").json()["value"], "hunter2");

    let (status, versions) = running.control("secrets", json!({"name": "new", "value": "x"}));
    assert_eq!((status, versions.as_array().unwrap().len()), (200, 1));
    assert_eq!(read("new").json()["value"], "x");
    assert_eq!(running.control("token_life", json!({"seconds": 5})).0, 200);
    assert_eq!(running.ask(STORAGE).json()["expires_in"], "5");

    let fault = json!({"service": "identity", "fault": {"kind": "status", "status": 429}, "times": 1});
    assert_eq!(running.control("faults", fault).0, 200);
    assert_eq!([running.ask(STORAGE).status, running.ask(STORAGE).status], [429, 200]);
    let always = json!([{"service": "vault", "fault": {"kind": "reset"}, "filter": {"path": "db"}}]);
    assert_eq!(running.control("faults", always).0, 200);
    assert_eq!((read("db").status, read("new").status), (0, 200));
    assert_eq!(running.control("clear_faults", json!({"service": "vault"})).0, 200);
    assert_eq!(read("db").status, 200);
    assert_eq!(running.control("release", json!({})).0, 200);

    let (_, counters) = running.control("counters", Value::Null);
    let counted = &counters["identity"]["by_identity"];
    assert_eq!(
        counted,
        &json!([
            {"identity": "system", "resource": STORAGE, "requests": 2},
            {"identity": "system", "resource": VAULT, "requests": 1},
        ]),
    );
    assert_eq!(counters["vault"]["without_bearer"], 0);
    let (_, log) = running.control("log?service=vault", Value::Null);
    assert_eq!(log["vault"][0]["path"], "/secrets/db");
    assert_eq!(log.get("identity"), None);
    assert_eq!(running.control("clear_log", json!({})).0, 200);
    let (_, log) = running.control("log", Value::Null);
    assert_eq!(log["identity"], json!([]));

    let (_, all) = running.control("identities", json!({"user_assigned": ["other"]}));
    assert_eq!(all[0]["client_id"], Identity::user("other").client_id);
    assert_eq!(running.ask(STORAGE).json()["client_id"], all[0]["client_id"]);
}

#[test]
fn its_keys_are_controlled() {
    let running = Running::start("keys", &[]);
    let pki = Pki::load(&running.dir).unwrap();
    let token = || running.ask(VAULT).json()["access_token"].as_str().unwrap().to_owned();
    let of = |token: &str, method: &str, path: &str, body: &[u8]| {
        let url = format!("{}/keys/{path}?api-version=7.6", running.endpoint("vault_uri"));
        let bearer = format!("Bearer {token}");
        let answer = send(Some(&pki), method, &url, &[("authorization", &bearer)], body);
        let error = answer.json()["error"].clone();
        let code = error["innererror"]["code"].as_str().or(error["code"].as_str());
        (answer.status, code.unwrap_or_default().to_owned())
    };
    let first = token();
    let get = |name: &str| of(&first, "GET", name, b"");
    let wrap = || of(&first, "POST", "kek//wrapkey", br#"{"alg": "RSA-OAEP-256", "value": "AAAA"}"#);
    let told = |command: &str, body: Value| assert_eq!(running.control(command, body).0, 200, "{command}");
    let is = |code: u16, name: &str| (code, name.to_owned());
    assert_eq!((get("kek"), wrap()), (is(200, ""), is(200, "")));

    let (status, versions) = running.control("keys", json!([{"name": "ec", "kty": "EC"}, {"name": "kek"}]));
    assert_eq!((status, versions.as_array().unwrap().len()), (200, 2));
    assert_eq!(get(&format!("kek/{}", versions[1].as_str().unwrap())), is(200, ""));
    told("change_key", json!({"name": "kek", "enabled": false}));
    assert_eq!(wrap(), is(403, "KeyDisabled"));
    told("show_disabled_keys", json!({"show": false}));
    assert_eq!(get("kek"), is(403, "KeyDisabled"));
    told("change_key", json!({"name": "kek", "version": versions[1], "enabled": true, "exp": 1}));
    assert_eq!((get("kek"), wrap()), (is(200, ""), is(403, "KeyExpired")));
    told("change_key", json!({"name": "kek", "exp": null}));
    assert_eq!(wrap(), is(200, ""));
    told("delete_key", json!({"name": "kek"}));
    assert_eq!(get("kek"), is(404, "KeyNotFound"));
    told("recover_key", json!({"name": "kek"}));
    let denial = json!({"identity": Identity::system().object_id, "operations": ["wrapKey", "readKey"]});
    told("deny", denial.clone());
    assert_eq!((get("kek"), wrap()), (is(403, "ForbiddenByRbac"), is(403, "ForbiddenByRbac")));
    told("allow_again", denial);
    told("network", json!({"network": "firewall"}));
    assert_eq!(get("kek"), is(403, "ForbiddenByFirewall"));
    told("network", json!({"network": "open"}));
    told("require_new_tokens", Value::Object(serde_json::Map::new()));
    assert_eq!((get("kek").0, of(&token(), "GET", "kek", b"").0), (401, 200));
    told("delete_key", json!({"name": "kek"}));
    told("purge_key", json!({"name": "kek"}));
    for (command, body) in [
        ("recover_key", json!({"name": "kek"})),
        ("delete_key", json!({"name": "nope"})),
        ("change_key", json!({"name": "nope", "enabled": false})),
        ("change_key", json!({"name": "ec", "disabled": true})),
        ("keys", json!({"name": "odd", "key_size": 2049})),
        ("deny", json!({"identity": "*", "operations": ["rotate"]})),
        ("network", json!({"network": "ajar"})),
    ] {
        assert_eq!(running.control(command, body).0, 400, "{command}");
    }
}

#[test]
fn what_control_does_not_understand_is_refused() {
    let running = Running::start("refused", &[]);
    let refused = |command: &str, body: Value| {
        let (status, body) = running.control(command, body);
        assert!(body["error"].is_string(), "{body}");
        status
    };
    assert_eq!(refused("nothing", Value::Null), 404);
    assert_eq!(refused("nothing", json!({})), 404);
    assert_eq!(refused("log?service=other", Value::Null), 400);
    assert_eq!(refused("token_life", json!({"seconds": "x"})), 400);
    assert_eq!(refused("secrets", json!({"name": "a/b", "value": ""})), 400);
    let no_service = json!({"service": "proxy", "fault": {"kind": "reset"}});
    assert_eq!(refused("faults", no_service), 400);
    let no_fault = json!({"service": "vault", "fault": {"kind": "explode"}});
    assert_eq!(refused("faults", no_fault), 400);
}

#[test]
fn it_starts_a_proxy_and_ends_on_sigterm_with_a_connection_held() {
    let made = Command::new(env!("CARGO_BIN_EXE_emulator"))
        .args(["pki", "--state-dir"])
        .arg(std::env::temp_dir().join(format!("emulator-proxy-{}", std::process::id())))
        .output()
        .unwrap();
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let nobody = emulator::Refuses::start().unwrap();
    let upstream = format!("https://{}", nobody.address());
    let mut running = Running::start("proxy", &["--upstream", &upstream]);
    assert_eq!(running.at["ca_certificate"], made["ca_certificate"]);
    let pki = Pki::load(&running.dir).unwrap();
    assert_eq!(get(Some(&pki), running.endpoint("proxy"), &[]).status, 502);

    let hang = json!({"service": "proxy", "fault": {"kind": "hang_before_headers"}});
    assert_eq!(running.control("faults", hang).0, 200);
    let (mut stream, _) = common::connect(running.endpoint("proxy"), Some(&pki));
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    while running.control("counters", Value::Null).1["proxy"]["held"] != 1 {
        std::thread::yield_now();
    }
    let pid = running.child.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(killed.success());
    assert!(running.child.wait().unwrap().success());
}
