//! The command `managed-identity` where others run it: as a server's ssl_passphrase_command, as a key command, before a
//! backup's encryption. `docs/command.md` shows the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use emulator::{CA_CERTIFICATE, Filter, Key, Reply, Rule, Secret};
use server_tests::{World, pg_config, wait};

/// A passphrase that no test prints by accident, and that a shell or a careless program would change.
const PASSPHRASE: &str = "canary $HOME 'quoted' \\n \"twice\" \u{e9}";

/// The command and what it takes to ask the emulator, as a shell's words; its identity is the machine's.
fn shell_words(world: &World, words: &str) -> String {
    let command = Path::new(&pg_config("--bindir")).join("managed-identity");
    let ca = world.cluster.folder().join(CA_CERTIFICATE);
    let (imds, vault) = (world.emulator.imds_endpoint(), world.emulator.vault_uri());
    format!(
        "{} {words} --vault {vault} --vault-host 127.0.0.1 --imds-endpoint {imds} --ca-file {}",
        command.display(),
        ca.display()
    )
}

fn openssl(words: &[&str], folder: &Path) {
    let output = Command::new("openssl").args(words).current_dir(folder).stdin(Stdio::null()).output();
    let output = output.expect("openssl");
    assert!(output.status.success(), "openssl {words:?}: {}", said(&output));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn shell(line: &str, folder: &Path) -> Output {
    Command::new("bash").args(["-e", "-o", "pipefail", "-c", line]).current_dir(folder).output().expect("a shell")
}

/// A file that the server's user alone can read, as PostgreSQL wants a TLS key.
fn belongs_to_the_server(world: &World, path: &Path) {
    let data = fs::metadata(world.cluster.data_folder()).unwrap();
    chown(path, Some(data.uid()), Some(data.gid())).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// A certificate and its key, encrypted by this passphrase, in the server's folder.
fn encrypted_key(world: &World, passphrase: &str) -> (PathBuf, PathBuf) {
    let folder = world.cluster.folder();
    world.cluster.file("passphrase", passphrase);
    openssl(
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-subj",
            "/CN=db",
            "-passout",
            "file:passphrase",
            "-keyout",
            "tls.key",
            "-out",
            "tls.crt",
        ],
        folder,
    );
    fs::remove_file(folder.join("passphrase")).unwrap();
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    assert!(fs::read_to_string(&key).unwrap().contains("ENCRYPTED PRIVATE KEY"));
    belongs_to_the_server(world, &certificate);
    belongs_to_the_server(world, &key);
    (certificate, key)
}

#[test]
fn a_server_starts_with_a_tls_key_whose_passphrase_is_in_the_vault() {
    let world = World::new();
    let vault = world.emulator.vault();
    vault.put(Secret::new("tls-passphrase", PASSPHRASE)).unwrap();
    let (certificate, key) = encrypted_key(&world, PASSPHRASE);
    let command = shell_words(&world, "get-secret --name tls-passphrase");
    let mut session = world.session();
    for (name, value) in [
        ("ssl", "on"),
        ("ssl_cert_file", certificate.to_str().unwrap()),
        ("ssl_key_file", key.to_str().unwrap()),
        ("ssl_passphrase_command", &command),
        ("ssl_passphrase_command_supports_reload", "on"),
    ] {
        session.run(&format!("ALTER SYSTEM SET {name} = '{value}'"));
    }
    drop(session);
    let asked = || vault.log().requests().iter().filter(|entry| entry.path.contains("tls-passphrase")).count();
    world.cluster.restart();
    assert_eq!(world.session().value("SHOW ssl"), "on");
    assert_eq!(asked(), 1);
    // At a reload, too; and where the vault refuses, the key that is in use stays.
    let refused = Rule::new(Reply::new(403)).when(Filter::path("tls-passphrase"));
    vault.faults().add(refused);
    world.session().run("SELECT pg_reload_conf()");
    wait::until("the server says why", || world.cluster.log().contains("managed-identity: ERROR:"));
    wait::until("the server goes on", || world.cluster.log().contains("SSL configuration was not reloaded"));
    assert_eq!(world.session().value("SHOW ssl"), "on");
    vault.faults().clear();
    let log = world.cluster.log();
    assert!(log.contains("HINT:  Give the identity the role \"Key Vault Secrets User\""), "{log}");
    assert!(!log.contains("canary"), "{log}");
    for token in world.emulator.issued_tokens() {
        assert!(!log.contains(&token));
    }
}

#[test]
fn another_servers_key_command_unwraps_the_key_that_openssl_then_decrypts_with() {
    let world = World::new();
    let folder = world.cluster.folder();
    let vault = world.emulator.vault();
    let version = vault.put_key(Key::rsa("kek", 2048)).unwrap();
    world.cluster.file("kek.der", vault.private_key("kek", None).unwrap());
    openssl(&["pkey", "-inform", "DER", "-in", "kek.der", "-pubout", "-out", "kek.pem"], folder);
    fs::remove_file(folder.join("kek.der")).unwrap();
    openssl(&["rand", "-out", "key", "32"], folder);
    let key = fs::read(folder.join("key")).unwrap();
    // As EDB's --key-wrap-command is run: the key on standard input, the path of the file in place of %p. The public
    // half of the vault's key does it, which `az keyvault key download` gives.
    let options = "-pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256";
    let wrap = format!("openssl pkeyutl -encrypt -pubin -inkey kek.pem {options} -out \"%p\"");
    let output = shell(&format!("{} < key", wrap.replace("%p", "key.wrapped")), folder);
    assert!(output.status.success(), "{}", said(&output));
    fs::remove_file(folder.join("key")).unwrap();
    // As EDB's --key-unwrap-command is run: with the path of the file in place of %p, the key to standard output.
    let kid = format!("{}/keys/kek/{version}", vault.uri());
    let unwrap = shell_words(&world, &format!("unwrap-key --kid {kid} --in \"%p\""));
    let output = shell(&unwrap.replace("%p", "key.wrapped"), folder);
    assert!(output.status.success() && output.stdout == key, "{}", said(&output));
    // As Cybertec's encryption_key_command wants it: hexadecimal digits, two for each byte.
    let digits = shell(&format!("{} --encoding-out hex --newline", unwrap.replace("%p", "key.wrapped")), folder);
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(String::from_utf8(digits.stdout).unwrap(), format!("{hex}\n"));
    // And it is the key: what one such command encrypted the next decrypts.
    world.cluster.file("plain", "a page of data\n".repeat(1000));
    let cipher = |mode: &str, from: &str, to: &str| {
        let line = format!(
            "openssl enc {mode} -aes-256-cbc -pbkdf2 -in {from} -out {to} -pass fd:3 3< <({} --encoding-out hex)",
            unwrap.replace("%p", "key.wrapped")
        );
        let output = shell(&line, folder);
        assert!(output.status.success(), "{}", said(&output));
    };
    cipher("-e", "plain", "sealed");
    cipher("-d", "sealed", "opened");
    assert_ne!(fs::read(folder.join("sealed")).unwrap(), fs::read(folder.join("plain")).unwrap());
    assert_eq!(fs::read(folder.join("opened")).unwrap(), fs::read(folder.join("plain")).unwrap());
}

#[test]
fn a_dump_is_encrypted_by_a_passphrase_from_the_vault_and_read_back() {
    let world = World::new();
    world.emulator.vault().put(Secret::new("backup-passphrase", PASSPHRASE)).unwrap();
    world.session().run("CREATE TABLE t AS SELECT generate_series(1, 1000) a");
    let folder = world.cluster.folder();
    let secret = shell_words(&world, "get-secret --name backup-passphrase");
    let programs = pg_config("--bindir");
    let to = format!("-h {} -U postgres", folder.display());
    let cipher = "openssl enc -aes-256-cbc -pbkdf2 -pass fd:3";
    for line in [
        format!("{programs}/pg_dump {to} -t t postgres | {cipher} -e -out dump.enc 3< <({secret})"),
        format!("{programs}/createdb {to} restored"),
        format!("{cipher} -d -in dump.enc 3< <({secret}) | {programs}/psql {to} -X -q -v ON_ERROR_STOP=1 -d restored"),
    ] {
        let output = shell(&line, folder);
        assert!(output.status.success(), "{line}: {}", said(&output));
    }
    assert_eq!(world.cluster.session_in("restored").value("SELECT count(*), sum(a) FROM t"), "1000|500500");
    let sealed = fs::read(folder.join("dump.enc")).unwrap();
    assert!(sealed.starts_with(b"Salted__") && !String::from_utf8_lossy(&sealed).contains("CREATE TABLE"));
}
