//! Microsoft's own clients are satisfied: `azure-identity`, `msal` and `azure-keyvault-secrets`, in Python.
//!
//! `MI_PYTHON` names the interpreter of an environment with `tests/python/requirements.txt` installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::emulator;
use common::python::{self, sent_by};
use emulator::{Emulator, EntraService, Fault, Identity, OidcIssuer, Reply, Secret, TENANT};
use serde_json::{Value, json};

const SUBJECT: &str = "system:serviceaccount:default:postgres";

fn run(emulator: &Emulator, class: &str, more: &Value) {
    python::run(emulator, "microsoft_clients", class, more);
}

#[test]
fn azure_identity_gets_each_identity() {
    let emulator = emulator();
    run(&emulator, "Identity", &json!({}));
    let counters = emulator.identity().log().counters();
    assert_eq!(counters.issued("system", "https://storage.azure.com"), 1);
    assert_eq!(counters.issued("keys", "https://storage.azure.com"), 2);
    assert_eq!(counters.issued("keys", "https://vault.azure.net"), 1);
    sent_by(emulator.identity().log(), "azsdk-python-identity/");
}

#[test]
fn azure_identity_is_told_of_several() {
    let emulator = emulator();
    let both = vec![Identity::user("keys"), Identity::user("other")];
    emulator.identity().assign(both).unwrap();
    run(&emulator, "SeveralIdentities", &json!({}));
    let only = vec![Identity::user("keys")];
    emulator.identity().assign(only).unwrap();
    run(&emulator, "OnlyIdentity", &json!({}));
}

#[test]
fn azure_identity_tries_again_and_waits_as_long_as_it_is_asked_to() {
    let emulator = emulator();
    let faults = emulator.identity().faults();
    let asked_to_wait = |seconds| Fault::from(Reply::new(429).header("Retry-After", seconds));
    let cases: [(Vec<Fault>, &[u32]); 3] = [
        (vec![Fault::status(404)], &[]),
        (vec![asked_to_wait("7")], &[7]),
        (vec![asked_to_wait("0"), asked_to_wait("3"), Fault::status(500)], &[3]),
    ];
    for (answers, slept) in cases {
        emulator.identity().log().clear();
        let count = answers.len() + 1;
        answers.into_iter().for_each(|answer| faults.next(1, answer));
        run(&emulator, "TriesAgain", &json!({"slept": slept}));
        assert_eq!(emulator.identity().log().count(), count);
    }
}

#[test]
fn azure_identity_is_refused_without_its_header() {
    let emulator = emulator();
    run(&emulator, "NoHeader", &json!({}));
    let requests = emulator.identity().log().requests();
    assert_eq!(requests.iter().map(|entry| entry.status).collect::<Vec<_>>(), [Some(400)]);
    sent_by(emulator.identity().log(), "azsdk-python-identity/");
}

#[test]
fn msal_gets_each_identity() {
    let emulator = emulator();
    run(&emulator, "Msal", &json!({}));
    let counters = emulator.identity().log().counters();
    assert_eq!(counters.issued("system", "https://storage.azure.com"), 1);
    assert_eq!(counters.issued("keys", "https://storage.azure.com"), 3);
    sent_by(emulator.identity().log(), "python-requests/");
}

/// The authority of a class of the script, after that class.
fn exchanged(class: &str) -> EntraService {
    let emulator = emulator();
    let entra = emulator.entra().unwrap();
    let cluster = OidcIssuer::new("https://oidc.test/cluster/").unwrap();
    let keys = Identity::user("keys");
    entra.trust(TENANT, &keys, &cluster, SUBJECT).unwrap();
    let files = std::env::temp_dir().join(format!("emulator-federated-{class}-{}", std::process::id()));
    std::fs::create_dir_all(&files).unwrap();
    let write = |name: &str, claim: &str, value: Value| {
        let mut claims = cluster.claims(SUBJECT);
        claims[claim] = value;
        std::fs::write(files.join(name), cluster.sign(&claims).unwrap()).unwrap();
    };
    write("good", "azp", json!("extra"));
    write("AADSTS700213", "sub", json!("system:serviceaccount:default:other"));
    write("AADSTS700212", "aud", json!("https://storage.azure.com"));
    write("AADSTS700211", "iss", json!("https://oidc.test/other/"));
    write("AADSTS700024", "exp", json!(1));
    let foreign = OidcIssuer::new(cluster.url()).unwrap().token(SUBJECT).unwrap();
    let good = std::fs::read_to_string(files.join("good")).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let others: Vec<&str> = foreign.split('.').collect();
    std::fs::write(files.join("AADSTS700027"), format!("{}.{}.{}", parts[0], others[1], parts[2])).unwrap();
    std::fs::write(files.join("AADSTS50027"), "no token").unwrap();
    run(&emulator, class, &json!({"authority": entra.authority(), "tenant": TENANT, "files": files}));
    std::fs::remove_dir_all(&files).unwrap();
    let issued = entra.log().requests().into_iter().filter(|entry| entry.token.is_some());
    assert_eq!(issued.map(|entry| entry.identity.unwrap()).collect::<Vec<_>>(), ["keys"]);
    entra
}

#[test]
fn azure_identity_exchanges_a_federated_token() {
    sent_by(exchanged("Federated").log(), "azsdk-python-identity/");
}

#[test]
fn msal_exchanges_a_federated_token() {
    sent_by(exchanged("MsalFederated").log(), "python-requests/");
}

#[test]
fn azure_keyvault_secrets_reads_and_fails_as_against_azure() {
    let emulator = emulator();
    let vault = emulator.vault();
    let old = vault.put(Secret::new("api-key", "one")).unwrap();
    let secret = Secret::new("api-key", "two")
        .content_type("text/plain")
        .tag("team", "data")
        .valid(Some(1), Some(4_000_000_000));
    let new = vault.put(secret).unwrap();
    vault.put(Secret::new("off", "x").disabled()).unwrap();
    run(&emulator, "Secrets", &json!({"old": old, "new": new}));
    let requests = vault.log().requests();
    let with_token = requests.iter().filter(|entry| entry.bearer.is_some());
    assert!(with_token.count() >= 14, "{requests:?}");
    sent_by(vault.log(), "azsdk-python-keyvault-secrets/");
}
