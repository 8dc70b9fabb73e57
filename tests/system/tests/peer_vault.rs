//! The functions of schema azure_key_vault on two vaults: our emulator's and azure-keyvault-emulator, which others have
//! written; both trust one issuer. What differs between them is named where it does. `make test-peers`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::path::Path;
use std::process::Command;

use emulator::{AUDIENCE, CA_CERTIFICATE, Identity, Issuer, Key, Reply, Secret, TENANT, TokenRequest, VaultOperation};
use serde_json::json;
use server_tests::{ConnectProxy, Options, PeerVault, Session, World, pg_config};

/// One server, and the foreign servers `ours` and `theirs` for the same identity.
struct Both {
    world: World,
    peer: PeerVault,
    proxy: ConnectProxy,
}

const VAULTS: [&str; 2] = ["ours", "theirs"];

impl Both {
    fn new() -> Self {
        let proxy = ConnectProxy::start();
        let options = Options::default().environment("HTTPS_PROXY", &proxy.url()).environment("NO_PROXY", "127.0.0.1");
        let world = World::with(options, vec![Identity::system(), Identity::user("keys")]);
        let peer = PeerVault::start(&world.emulator);
        let address = peer.proxy().endpoint();
        proxy.connect_to(address.trim_start_matches("https://").parse().unwrap());
        for (name, uri) in VAULTS.into_iter().zip([world.emulator.vault_uri(), PeerVault::uri()]) {
            world.session().run(&format!(
                "CREATE SERVER {name} FOREIGN DATA WRAPPER azure_key_vault OPTIONS (vault_uri '{uri}', identity 'keys',
                     allow 'secrets,keys,wrap,unwrap,encrypt,decrypt,sign,verify')"
            ));
        }
        Self { world, peer, proxy }
    }

    fn rsa(&self, name: &str) -> [String; 2] {
        let ours = self.world.emulator.vault().put_key(Key::rsa(name, 2048)).unwrap();
        [ours, self.peer.put_key(name, &json!({"kty": "RSA", "key_size": 2048}))]
    }

    fn secret(&self, name: &str, value: &str) -> [String; 2] {
        [self.world.emulator.vault().put(Secret::new(name, value)).unwrap(), self.peer.put_secret(name, value)]
    }

    /// Sets `enabled`, `nbf` or `exp` of the newest version in both.
    fn change(&self, name: &str, attribute: &str, value: i64) {
        let change = |attributes: &mut emulator::Attributes| match attribute {
            "enabled" => attributes.enabled = value != 0,
            "nbf" => attributes.nbf = Some(value),
            _ => attributes.exp = Some(value),
        };
        self.world.emulator.vault().change_key(name, None, change).unwrap();
        let value = if attribute == "enabled" { json!(value != 0) } else { json!(value) };
        self.peer.change_key(name, &json!({ attribute: value }));
    }

    fn uris(&self) -> [String; 2] {
        [self.world.emulator.vault_uri(), PeerVault::uri()]
    }
}

/// The SQLSTATE of a call, and all that is said of it.
fn refused(session: &mut Session, call: &str) -> (String, String) {
    let error = session.error(&format!("SELECT azure_key_vault.{call}"));
    let said = [Some(error.message()), error.detail(), error.hint()].map(Option::unwrap_or_default);
    (error.code().code().to_owned(), said.join("|"))
}

#[test]
fn secrets_are_read_by_name_and_version_with_their_properties() {
    let both = Both::new();
    let value = "two\nlines, 'quotes', \\, \u{e9}, \u{1f511}";
    let old = both.secret("s", "old");
    both.secret("s", value);
    let mut session = both.world.session();
    for ((vault, old), uri) in VAULTS.into_iter().zip(&old).zip(both.uris()) {
        assert_eq!(session.value(&format!("SELECT azure_key_vault.secret('{vault}', 's')")), value, "{vault}");
        assert_eq!(session.value(&format!("SELECT azure_key_vault.secret('{vault}', 's', '{old}')")), "old");
        let properties = format!(
            "SELECT enabled, expires_at IS NULL, id LIKE '{uri}/secrets/s/%', created_at > now() - interval '1 hour'
             FROM azure_key_vault.secret_properties('{vault}', 's')"
        );
        assert_eq!(session.value(&properties), "t|t|t|t", "{vault}");
        let (code, said) = refused(&mut session, &format!("secret('{vault}', 'none')"));
        assert!(code == "58P01" && said.contains("SecretNotFound"), "{vault}: {said}");
    }
}

#[test]
fn a_key_wraps_and_encrypts_by_its_newest_version_and_goes_back_by_the_one_that_did_it() {
    let both = Both::new();
    let old = both.rsa("kek");
    let mut session = both.world.session();
    let plain = format!("\\x00ff{}", "07".repeat(30));
    for there in ["wrap_key", "encrypt"] {
        session.run(&format!(
            "CREATE TABLE {there} AS SELECT vault, (azure_key_vault.{there}(vault, 'kek', '{plain}')).*
                 FROM (VALUES ('ours'::name), ('theirs')) v (vault)"
        ));
    }
    let new = both.rsa("kek");
    for (((vault, uri), old), new) in VAULTS.into_iter().zip(both.uris()).zip(&old).zip(&new) {
        for (there, back) in [("wrap_key", "unwrap_key"), ("encrypt", "decrypt")] {
            let of = format!("FROM {there} WHERE vault = '{vault}'");
            assert_eq!(
                session.value(&format!("SELECT kid, length(ciphertext) {of}")),
                format!("{uri}/keys/kek/{old}|256")
            );
            let again = format!("SELECT azure_key_vault.{back}('{vault}', kid, ciphertext) {of}");
            assert_eq!(session.value(&again), plain, "{vault} {back}");
            let now = format!("SELECT kid FROM azure_key_vault.{there}('{vault}', 'kek', 'x')");
            assert_eq!(session.value(&now), format!("{uri}/keys/kek/{new}"));
            let wrong = format!("{back}('{vault}', replace(kid, '{old}', '{new}'), ciphertext) {of}");
            let (code, said) = refused(&mut session, &wrong);
            assert!(code == "22023" && said.contains("BadParameter"), "{vault} {back}: {said}");
        }
        let versions = format!(
            "SELECT count(*), bool_and(enabled), bool_or(kid LIKE '%{old}'), bool_or(kid LIKE '%{new}')
             FROM azure_key_vault.key_versions('{vault}', 'kek')"
        );
        assert_eq!(session.value(&versions), "2|t|t|t", "{vault}");
        let key = format!(
            "SELECT kid, key_type, enabled, 'unwrapKey' = ANY (key_ops), jwk->>'e'
             FROM azure_key_vault.key('{vault}', 'kek', '{old}')"
        );
        assert_eq!(session.value(&key), format!("{uri}/keys/kek/{old}|RSA|t|t|AQAB"), "{vault}");
    }
}

#[test]
fn each_algorithm_signs_what_another_call_verifies() {
    let both = Both::new();
    both.rsa("rsa");
    both.world.emulator.vault().put_key(Key::ec("ec")).unwrap();
    both.peer.put_key("ec", &json!({"kty": "EC", "crv": "P-256"}));
    let mut session = both.world.session();
    for vault in VAULTS {
        for (key, algorithm, bits) in [
            ("rsa", "PS256", 256),
            ("rsa", "PS384", 384),
            ("rsa", "PS512", 512),
            ("rsa", "RS256", 256),
            ("rsa", "RS384", 384),
            ("rsa", "RS512", 512),
            ("ec", "ES256", 256),
        ] {
            let both = format!(
                "SELECT azure_key_vault.verify('{vault}', s.kid, sha{bits}('m'), s.signature, '{algorithm}'),
                        azure_key_vault.verify('{vault}', s.kid, sha{bits}('n'), s.signature, '{algorithm}')
                 FROM azure_key_vault.sign('{vault}', '{key}', sha{bits}('m'), '{algorithm}') s"
            );
            assert_eq!(session.value(&both), "t|f", "{vault} {algorithm}");
        }
        let (code, said) = refused(&mut session, &format!("sign('{vault}', 'rsa', sha256('m'), 'ES256')"));
        assert_eq!(code, "22023", "{vault}: {said}");
    }
}

#[test]
fn what_a_key_is_refused_for_has_the_same_sqlstate_in_both() {
    let both = Both::new();
    let [ours, theirs] = both.rsa("kek");
    let kids = [format!("{}/keys/kek/{ours}", both.uris()[0]), format!("{}/keys/kek/{theirs}", both.uris()[1])];
    let mut session = both.world.session();
    session.run(
        "CREATE TABLE w AS SELECT vault, (azure_key_vault.wrap_key(vault, 'kek', 'x')).*
             FROM (VALUES ('ours'::name), ('theirs')) v (vault)",
    );
    let mut wraps = |sqlstate: &str, when: &str| {
        for vault in VAULTS {
            let (code, said) = refused(&mut session, &format!("wrap_key('{vault}', 'kek', 'x')"));
            assert_eq!(code, sqlstate, "{vault} {when}: {said}");
            assert!(said.contains("403") || said.contains("404"), "{vault} {when}: {said}");
        }
    };
    both.change("kek", "enabled", 0);
    wraps("28000", "disabled");
    both.change("kek", "enabled", 1);
    both.change("kek", "nbf", 4_000_000_000);
    wraps("28000", "not yet valid");
    both.change("kek", "nbf", 1);
    both.change("kek", "exp", 1_000_000_000);
    wraps("28000", "expired");
    // An expired key still unwraps what it has wrapped in Azure, and in ours; theirs refuses.
    let unwrap = |vault: &str| format!("unwrap_key('{vault}', kid, ciphertext) FROM w WHERE vault = '{vault}'");
    assert_eq!(both.world.session().value(&format!("SELECT azure_key_vault.{}", unwrap("ours"))), "\\x78");
    assert_eq!(refused(&mut both.world.session(), &unwrap("theirs")).0, "28000");
    both.change("kek", "exp", 4_000_000_000);
    both.world.emulator.vault().delete_key("kek").unwrap();
    both.peer.delete_key("kek");
    wraps("58P01", "deleted");
    both.world.emulator.vault().recover_key("kek").unwrap();
    both.peer.recover_key("kek");
    let keys = Identity::user("keys");
    both.world.emulator.vault().deny(&keys.client_id, VaultOperation::WrapKey);
    both.peer.control("permissions", &json!({ &keys.object_id: ["keys/unwrapkey"] }));
    wraps("28000", "denied");
    let mut session = both.world.session();
    for (vault, kid) in VAULTS.into_iter().zip(kids) {
        let unwrapped = session.value(&format!("SELECT azure_key_vault.{}", unwrap(vault)));
        assert_eq!(unwrapped, "\\x78", "{vault}: what is left to the identity works with {kid}");
    }
}

#[test]
fn throttling_and_failures_are_waited_out() {
    let both = Both::new();
    both.secret("s", "value");
    let mut session = both.world.session();
    session.run("SELECT azure_key_vault.secret('ours', 's')");
    both.world.emulator.vault().faults().next(1, Reply::throttled());
    both.peer.control("faults", &json!({"throttleNextRequests": 1}));
    let asked = || [both.world.emulator.vault().log().count(), both.peer.proxy().log().count()];
    let before = asked();
    for vault in VAULTS {
        assert_eq!(session.value(&format!("SELECT azure_key_vault.secret('{vault}', 's')")), "value", "{vault}");
    }
    assert_eq!(asked(), before.map(|count| count + 2), "each was asked again, once");
    both.world.emulator.vault().faults().next(1, Reply::new(500));
    both.peer.control("faults", &json!({"rejectNextRequests": 1}));
    for vault in VAULTS {
        assert_eq!(session.value(&format!("SELECT azure_key_vault.secret('{vault}', 's')")), "value", "{vault}");
    }
}

#[test]
fn theirs_takes_a_token_of_our_issuer_for_vaults_and_no_other() {
    let both = Both::new();
    both.secret("s", "value");
    let issuer = both.world.emulator.issuer();
    let token =
        |issuer: &Issuer, request: TokenRequest| issuer.issue(&request.identity(&Identity::user("keys"))).unwrap().text;
    let good = token(issuer, TokenRequest::new(AUDIENCE));
    assert_eq!(both.peer.status("secrets/s", &good), 200);
    let mut forged = good.clone();
    let last = if forged.pop() == Some('A') { 'B' } else { 'A' };
    forged.insert(forged.len() - 10, last);
    for (what, token) in [
        ("another service's", token(issuer, TokenRequest::new("https://storage.azure.com/"))),
        ("another issuer's", token(&Issuer::new(TENANT).unwrap(), TokenRequest::new(AUDIENCE))),
        ("another issuer's name", token(issuer, TokenRequest::new(AUDIENCE).claim("iss", "https://evil.test/"))),
        ("one that has ended", token(issuer, TokenRequest::new(AUDIENCE).life(-3600))),
        ("one that was changed", forged),
    ] {
        assert_eq!(both.peer.status("secrets/s", &token), 401, "{what}");
    }
    // The extension's own is refused once the vault's clock says that it has ended.
    let mut session = both.world.session();
    assert_eq!(session.value("SELECT azure_key_vault.secret('theirs', 's')"), "value");
    both.peer.control("clock", &json!({"advance": 10 * 86_400}));
    let (code, said) = refused(&mut session, "secret('theirs', 's')");
    assert!(code == "28000" && said.contains("401"), "{said}");
}

#[test]
fn the_command_asks_theirs_as_the_server_does() {
    let both = Both::new();
    both.secret("s", "value");
    let version = &both.rsa("kek")[1];
    let ca = both.world.cluster.folder().join(CA_CERTIFICATE);
    let run = |words: &[&str]| {
        let mut command = Command::new(Path::new(&pg_config("--bindir")).join("managed-identity"));
        command.args(words).args(["--vault", &PeerVault::uri(), "--ca-file"]).arg(&ca);
        command.args(["--imds-endpoint", &both.world.emulator.imds_endpoint()]);
        command.env_clear().env("HTTPS_PROXY", both.proxy.url());
        command.output().unwrap()
    };
    assert_eq!(run(&["get-secret", "--name", "s"]).stdout, b"value");
    let wrapped = "SELECT encode(ciphertext, 'hex') FROM azure_key_vault.wrap_key('theirs', 'kek', '\\x00ff0a')";
    let file = both.world.cluster.file("wrapped", both.world.session().value(wrapped));
    let unwrap = ["unwrap-key", "--key", "kek", "--version", version, "--in", &file, "--encoding", "hex"];
    assert_eq!(run(&unwrap).stdout, [0, 0xff, 0x0a]);
    assert_eq!(run(&["get-secret", "--name", "none"]).status.code(), Some(66));
}
