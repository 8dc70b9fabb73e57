//! `azure-keyvault-keys` is satisfied, and so is `cryptography`, which knows nothing of vaults; both in Python.
//!
//! `MI_PYTHON` names the interpreter of an environment with `tests/python/requirements.txt` installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::emulator;
use common::python::{self, sent_by};
use emulator::{Config, Control, Emulator, HSM_AUDIENCE, Identity, Key, Network, Pki, VaultOperation};
use serde_json::{Value, json};

fn run(emulator: &Emulator, class: &str, more: &Value) {
    python::run(emulator, "microsoft_keys", class, more);
}

#[test]
fn azure_keyvault_keys_reads_keys_and_lists_their_versions() {
    let emulator = emulator();
    let vault = emulator.vault();
    let versions: Vec<String> = (0..5).map(|_| vault.put_key(Key::rsa("kek", 2048)).unwrap()).collect();
    let described = Key::rsa("large", 3072).hsm().valid(Some(1), Some(4_000_000_000)).tag("team", "data");
    vault.put_key(described.key_ops(&["wrapKey", "unwrapKey"])).unwrap();
    vault.put_key(Key::ec("ec")).unwrap();
    run(&emulator, "Reading", &json!({"versions": versions}));
    let listed = vault.log().requests().into_iter().filter(|entry| entry.path.ends_with("/versions"));
    let pages: Vec<_> = listed.filter(|entry| entry.bearer.is_some()).map(|entry| entry.status).collect();
    assert_eq!(pages, [Some(200); 4]);
    sent_by(vault.log(), "azsdk-python-keyvault-keys/");
}

/// The client verifies the challenge's resource, and a port that is written out leads it nowhere else.
#[test]
fn azure_keyvault_keys_believes_a_vault_by_its_real_name() {
    let name = "payroll.vault.azure.net";
    let mut config = Config::new(Pki::create_for(&[name]).unwrap());
    config.identities = vec![Identity::user("keys")];
    config.keys = vec![Key::rsa("kek", 2048), Key::rsa("kek", 2048), Key::rsa("kek", 2048)];
    let emulator = Emulator::start(config).unwrap();
    run(&emulator, "ByName", &json!({"name": name}));
}

/// With the right to read the key the client wraps, encrypts and verifies on its own; without it the vault does all.
#[test]
fn azure_keyvault_keys_and_the_vault_undo_what_the_other_did() {
    let emulator = emulator();
    let vault = emulator.vault();
    for (name, bits) in [("k2", 2048), ("k3", 3072), ("k4", 4096)] {
        vault.put_key(Key::rsa(name, bits)).unwrap();
    }
    vault.put_key(Key::ec("ec")).unwrap();
    vault.deny(&Identity::user("keys").object_id, VaultOperation::ReadKey);
    run(&emulator, "Cryptography", &json!({}));
}

#[test]
fn cryptography_undoes_what_the_vault_did() {
    let emulator = emulator();
    let vault = emulator.vault();
    vault.put_key(Key::rsa("kek", 2048)).unwrap();
    vault.put_key(Key::ec("ec")).unwrap();
    let private = |name| STANDARD.encode(vault.private_key(name, None).unwrap());
    run(&emulator, "Independent", &json!({"rsa": private("kek"), "ec": private("ec")}));
}

#[test]
fn azure_keyvault_keys_wraps_with_a_managed_hsm() {
    let emulator = emulator();
    let hsm = emulator.another_vault(HSM_AUDIENCE).unwrap();
    hsm.put_key(Key::oct_hsm("kek")).unwrap();
    hsm.deny(&Identity::user("keys").client_id, VaultOperation::ReadKey);
    let private = STANDARD.encode(hsm.private_key("kek", None).unwrap());
    run(&emulator, "ManagedHsm", &json!({"vault": hsm.uri(), "private": private}));
}

#[test]
fn azure_keyvault_keys_is_refused_as_by_azure() {
    let emulator = Arc::new(emulator());
    let vault = emulator.vault();
    let old = vault.put_key(Key::rsa("kek", 2048)).unwrap();
    vault.put_key(Key::rsa("kek", 2048)).unwrap();
    vault.put_key(Key::rsa("off", 2048).disabled()).unwrap();
    vault.put_key(Key::rsa("expired", 2048).valid(None, Some(1))).unwrap();
    vault.put_key(Key::rsa("early", 2048).valid(Some(4_000_000_000), None)).unwrap();
    vault.put_key(Key::rsa("gone", 2048)).unwrap();
    vault.delete_key("gone").unwrap();
    vault.put_key(Key::rsa("signs", 2048).key_ops(&["sign", "verify"])).unwrap();
    let system = Identity::system();
    VaultOperation::ALL.into_iter().for_each(|operation| vault.deny(&system.client_id, operation));
    run(&emulator, "Refused", &json!({"old": old}));
    vault.set_network(Network::Firewall);
    run(&emulator, "Firewall", &json!({}));
}

#[test]
fn azure_keyvault_keys_answers_a_challenge_for_claims_with_one_new_token() {
    let emulator = Arc::new(emulator());
    emulator.vault().put_key(Key::rsa("kek", 2048)).unwrap();
    let control = Control::start(Arc::clone(&emulator), None, 0).unwrap();
    run(&emulator, "NewToken", &json!({"control": control.endpoint()}));
    let answered: Vec<_> = emulator.vault().log().requests().into_iter().map(|entry| entry.status.unwrap()).collect();
    assert_eq!(answered, [401, 200, 401, 200, 200]);
    assert_eq!(emulator.identity().log().counters().issued("keys", "https://vault.azure.net"), 2);
}
