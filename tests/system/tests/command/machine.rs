//! A machine and its vault without a server, the command that asks them, and what came of it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use emulator::{CA_CERTIFICATE, Config, Emulator, Identity, Key, Pki, Secret};
use server_tests::pg_config;
use tempfile::TempDir;

/// What AES-256 takes as a key.
pub const DATA_KEY: [u8; 32] = *b"0123456789abcdef\0\xff\n\r56789abcdef!";

/// A machine and its vault, without a server.
pub struct Machine {
    pub emulator: Emulator,
    pub files: TempDir,
}

impl Machine {
    pub fn new() -> Self {
        let mut config = Config::new(Pki::create().unwrap());
        config.identities = vec![Identity::system(), Identity::user("keys")];
        config.secrets = vec![Secret::new("db-password", "hunter2")];
        let machine = Self { emulator: Emulator::start(config).unwrap(), files: tempfile::tempdir().unwrap() };
        machine.file(CA_CERTIFICATE, machine.emulator.pki().ca_pem());
        machine
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.files.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The command with these words, and with what it takes to ask the emulator.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(Path::new(&pg_config("--bindir")).join("managed-identity"));
        command.args(words).args(["--imds-endpoint", &self.emulator.imds_endpoint()]);
        command.arg("--ca-file").arg(self.files.path().join(CA_CERTIFICATE));
        // Whatever machine the tests run on.
        command.env_clear().stdin(Stdio::null());
        command
    }

    pub fn vault_command(&self, words: &[&str]) -> Command {
        let mut command = self.command(words);
        command.args(["--vault", &self.emulator.vault_uri(), "--vault-host", "127.0.0.1"]);
        command
    }

    pub fn secret(&self, name: &str) -> Command {
        self.vault_command(&["get-secret", "--name", name])
    }

    /// A key of the vault and, wrapped by it, `DATA_KEY`: name, version, wrapped.
    pub fn wrapped(&self) -> (String, Vec<u8>) {
        let version = self.emulator.vault().put_key(Key::rsa("kek", 2048)).unwrap();
        let key = self.file("kek.der", self.emulator.vault().private_key("kek", None).unwrap());
        let plain = self.file("plain", DATA_KEY);
        let padding = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"];
        let mut openssl = Command::new("openssl");
        openssl.args(["pkeyutl", "-encrypt", "-keyform", "DER", "-inkey", &key, "-in", &plain]);
        let output = openssl.args(padding.iter().flat_map(|option| ["-pkeyopt", option])).output().expect("openssl");
        assert!(output.status.success(), "{}", said(&output));
        (version, output.stdout)
    }

    pub fn unwrap(&self, version: &str, words: &[&str]) -> Command {
        let mut command = self.vault_command(&["unwrap-key", "--key", "kek", "--version", version]);
        command.args(words);
        command
    }

    /// How often the identity endpoint and the vault were asked.
    pub fn asked(&self) -> (usize, usize) {
        (self.emulator.identity().log().count(), self.emulator.vault().log().count())
    }
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What it writes, byte for byte; panics when it does not end well or says anything.
pub fn written(mut command: Command) -> Vec<u8> {
    good(command.output().unwrap())
}

/// The same when it reads this.
pub fn given(command: Command, input: &[u8]) -> Vec<u8> {
    good(fed(command, input))
}

fn good(output: Output) -> Vec<u8> {
    assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
    output.stdout
}

pub fn fed(mut command: Command, input: &[u8]) -> Output {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended without reading.
    let _ = process.stdin.take().unwrap().write_all(input);
    process.wait_with_output().unwrap()
}

/// Its exit code and what it said; panics when it wrote anything.
pub fn refused(mut command: Command) -> (i32, String) {
    judged(&command.output().unwrap())
}

pub fn judged(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{} bytes were written", output.stdout.len());
    let said = said(output);
    for theirs in ["managed_identity.", "option \"", "the server's", "canary", "panicked"] {
        assert!(!said.contains(theirs), "{said}");
    }
    (output.status.code().expect("an exit code"), said)
}
