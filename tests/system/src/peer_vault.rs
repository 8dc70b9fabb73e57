//! azure-keyvault-emulator, a vault that others have written, trusting our emulator's issuer: `make test-peers`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use emulator::{AUDIENCE, Emulator, Identity, Proxy, TokenRequest};
use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::{given, wait};

/// Its name; it gives its objects identifiers of this host wherever it listens.
pub const HOST: &str = "peer.vault.azure.net";

/// A running vault, empty at first, behind a proxy that speaks TLS for it. Ended when dropped.
pub struct PeerVault {
    process: Child,
    /// Where it listens itself.
    address: SocketAddr,
    proxy: Proxy,
    client: Client,
    token: String,
}

impl PeerVault {
    pub fn start(emulator: &Emulator) -> Self {
        let mut process = Command::new(given("MI_PEER_VAULT"))
            .args(["--addr", "127.0.0.1:0", "--default-vault", "peer", "--data-dir", "", "--disable-tls"])
            .args(["--entra-issuer", &emulator.issuer().issuer(), "--entra-jwks-url", &emulator.jwks_uri()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the vault starts");
        let lines = BufReader::new(process.stdout.take().expect("its words")).lines();
        let (say, hear) = channel();
        // Reads on for as long as it writes: a full pipe would stop it.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on http://") {
                    let _ = say.send(rest.split_whitespace().next().unwrap_or_default().to_owned());
                }
            }
        });
        let address: SocketAddr = hear.recv_timeout(wait::LONG).expect("it says where").parse().expect("an address");
        let proxy = emulator.proxy(&format!("http://{address}")).expect("a proxy");
        // It redirects `/keys/kek//wrapkey`, which Microsoft's clients follow; nothing of ours follows with a token.
        proxy.join_slashes();
        let client = Client::builder().no_proxy().timeout(wait::LONG).build().expect("a client");
        let request = TokenRequest::new(AUDIENCE).identity(&Identity::system());
        let token = emulator.issuer().issue(&request).expect("a token").text;
        Self { process, address, proxy, client, token }
    }

    /// `https://<name>.vault.azure.net`, as it is called in Azure.
    pub fn uri() -> String {
        format!("https://{HOST}")
    }

    /// What stands before it: where connections to its name are to go.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}/{path}?api-version=7.4", self.address))
    }

    /// Its status for a request with this token.
    pub fn status(&self, path: &str, token: &str) -> u16 {
        self.request(Method::GET, path).bearer_auth(token).send().expect("an answer").status().as_u16()
    }

    fn managed(&self, method: Method, path: &str, body: &Value) -> Value {
        read(self.request(method, path).bearer_auth(&self.token).body(body.to_string()).send())
    }

    /// Returns the version.
    pub fn put_secret(&self, name: &str, value: &str) -> String {
        version(&self.managed(Method::PUT, &format!("secrets/{name}"), &json!({"value": value}))["id"])
    }

    /// Makes a key, or a newer version of it; returns the version. `what` is `{"kty": "RSA", "key_size": 2048}` or the like.
    pub fn put_key(&self, name: &str, what: &Value) -> String {
        version(&self.managed(Method::POST, &format!("keys/{name}/create"), what)["key"]["kid"])
    }

    /// Changes attributes of the newest version: `enabled`, `nbf`, `exp`.
    pub fn change_key(&self, name: &str, attributes: &Value) {
        self.managed(Method::PATCH, &format!("keys/{name}"), &json!({ "attributes": attributes }));
    }

    pub fn delete_key(&self, name: &str) {
        self.managed(Method::DELETE, &format!("keys/{name}"), &json!({}));
    }

    pub fn recover_key(&self, name: &str) {
        self.managed(Method::POST, &format!("deletedkeys/{name}/recover"), &json!({}));
    }

    /// What it is told to do for tests: `clock`, `faults`, `permissions`.
    pub fn control(&self, what: &str, body: &Value) {
        read(self.request(Method::POST, &format!("_emulator/{what}")).body(body.to_string()).send());
    }
}

impl Drop for PeerVault {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(answer: reqwest::Result<Response>) -> Value {
    let answer = answer.expect("an answer");
    let (status, text) = (answer.status(), answer.text().expect("text"));
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).unwrap_or_default()
}

fn version(id: &Value) -> String {
    id.as_str().and_then(|id| id.rsplit('/').next()).expect("an identifier").to_owned()
}
