//! Azurite, Microsoft's emulator of Blob Storage, with its check of tokens on.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use emulator::{Issuer, LEAF_CERTIFICATE, LEAF_KEY, Pki, TokenRequest};
use reqwest::blocking::{Client, Response};
use reqwest::{Certificate, Method};
use tempfile::TempDir;

use crate::{ACCOUNT, given, wait};

/// A running Azurite. Ended when dropped.
pub struct Azurite {
    process: Child,
    endpoint: String,
    client: Client,
    issuer: Issuer,
    _dir: TempDir,
}

impl Azurite {
    /// Starts it with the leaf certificate of `pki`; `issuer` gives the test's own tokens for it.
    pub fn start(pki: &Pki, issuer: &Issuer) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        pki.write_to(dir.path()).expect("certificates");
        let (process, endpoint) = spawn(dir.path());
        let ca = Certificate::from_pem(pki.ca_pem().as_bytes()).expect("a certificate");
        let client = Client::builder().tls_certs_only([ca]).no_proxy().timeout(wait::LONG).build().expect("a client");
        Self { process, endpoint, client, issuer: issuer.clone(), _dir: dir }
    }

    /// `https://127.0.0.1:PORT`
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Response {
        let token = self.issuer.issue(&TokenRequest::new("https://storage.azure.com/")).expect("a token");
        let mut request = self.client.request(method, format!("{}/{ACCOUNT}/{path}", self.endpoint));
        request = request.bearer_auth(&token.text).header("x-ms-version", "2023-11-03").body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().expect("an answer of Azurite")
    }

    pub fn create_container(&self, name: &str) {
        let answer = self.request(Method::PUT, &format!("{name}?restype=container"), &[], Vec::new());
        assert_eq!(answer.status(), 201, "{}", answer.text().unwrap_or_default());
    }

    pub fn delete_container(&self, name: &str) {
        let answer = self.request(Method::DELETE, &format!("{name}?restype=container"), &[], Vec::new());
        assert_eq!(answer.status(), 202, "{}", answer.text().unwrap_or_default());
    }

    /// Writes a blob, `container/name`.
    pub fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        let answer = self.request(Method::PUT, path, &[("x-ms-blob-type", "BlockBlob")], content.into());
        assert_eq!(answer.status(), 201, "{}", answer.text().unwrap_or_default());
    }

    /// Reads a blob, `container/name`; `None` where there is none.
    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        let answer = self.request(Method::GET, path, &[], Vec::new());
        match answer.status().as_u16() {
            200 => Some(answer.bytes().expect("a body").to_vec()),
            404 => None,
            status => panic!("Azurite answered {status}: {}", answer.text().unwrap_or_default()),
        }
    }

    pub fn text(&self, path: &str) -> String {
        String::from_utf8(self.get(path).expect("a blob")).expect("text")
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the process and waits until it says where it listens.
fn spawn(dir: &Path) -> (Child, String) {
    let azurite = given("MI_AZURITE");
    assert!(Path::new(&azurite).exists(), "{azurite} is missing: run this by `make test`, which installs it");
    let mut process = Command::new(azurite)
        .args(["--blobHost", "127.0.0.1", "--blobPort", "0", "--oauth", "basic", "--disableTelemetry"])
        .args(["--skipApiVersionCheck", "--location"])
        .arg(dir)
        .arg("--cert")
        .arg(dir.join(LEAF_CERTIFICATE))
        .arg("--key")
        .arg(dir.join(LEAF_KEY))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("Azurite starts");
    let lines = BufReader::new(process.stdout.take().expect("its output")).lines();
    let (say, hear) = channel();
    // Reads on for as long as it writes: a full pipe would stop it.
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if let Some((_, endpoint)) = line.split_once("successfully listens on ") {
                let _ = say.send(endpoint.trim().to_owned());
            }
        }
    });
    let endpoint = hear.recv_timeout(wait::LONG).expect("Azurite says where it listens");
    (process, endpoint)
}
