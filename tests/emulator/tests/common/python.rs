//! Runs Microsoft's clients, which are in Python.

use std::process::Command;

use emulator::{Emulator, Identity, Log};
use serde_json::{Value, json};

/// Runs one class of a script's tests; `more` is added to what it is told of the emulator.
pub fn run(emulator: &Emulator, script: &str, class: &str, more: &Value) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python");
    let Ok(python) = std::env::var("MI_PYTHON") else {
        panic!(
            "MI_PYTHON is not set: `make test` does it, or \
             python3 -m venv VENV && VENV/bin/pip install -r {folder}/requirements.txt && \
             MI_PYTHON=VENV/bin/python"
        );
    };
    let ca = std::env::temp_dir().join(format!("emulator-ca-{class}-{}.pem", std::process::id()));
    std::fs::write(&ca, emulator.pki().ca_pem()).unwrap();
    let mut at = json!({
        "vault": emulator.vault_uri(),
        "ca": ca,
        "system": Identity::system(),
        "keys": Identity::user("keys"),
    });
    for (name, value) in more.as_object().unwrap() {
        at[name] = value.clone();
    }
    let output = Command::new(&python)
        .args(["-m", "unittest", "-v"])
        .arg(format!("{script}.{class}"))
        .current_dir(folder)
        // Whatever else the environment says of identities would lead the clients elsewhere.
        .env_remove("IDENTITY_ENDPOINT")
        .env_remove("MSI_ENDPOINT")
        .env("AZURE_POD_IDENTITY_AUTHORITY_HOST", emulator.imds_endpoint())
        .env("NO_PROXY", "127.0.0.1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("EMULATOR", at.to_string())
        .output()
        .unwrap_or_else(|error| panic!("{python}: {error}"));
    std::fs::remove_file(&ca).unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(!told.contains("Ran 0 tests"), "{told}");
}

/// Every request says that this client sent it.
pub fn sent_by(log: &Log, client: &str) {
    let requests = log.requests();
    assert!(!requests.is_empty());
    for entry in requests {
        let agent = entry.header("user-agent").unwrap_or_default();
        assert!(agent.starts_with(client) || agent.contains(&format!(" {client}")), "{client}: {agent:?}");
    }
}
