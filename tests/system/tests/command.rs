//! The command `managed-identity`, as it is installed beside psql: what it writes, how it ends, what it keeps to itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

#[path = "command/machine.rs"]
mod machine;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use emulator::{CA_CERTIFICATE, Fault, Identity, Pki, Reply, Rule, Secret, TENANT, VaultOperation};
use machine::{DATA_KEY, Machine, fed, given, judged, refused, written};
use server_tests::{SUBJECT, is_root, wait};

#[test]
fn a_secret_is_written_to_the_byte_and_with_a_line_end_only_where_asked_for() {
    let machine = Machine::new();
    let vault = machine.emulator.vault();
    let odd = "two\nlines, 'quotes', \\, é, €, \u{1f511}\n";
    let long = "s".repeat(25_000);
    for (name, value) in [("odd", odd), ("long", &long), ("empty", "")] {
        vault.put(Secret::new(name, value)).unwrap();
        assert_eq!(written(machine.secret(name)), value.as_bytes(), "{name}");
    }
    let old = vault.put(Secret::new("versions", "old")).unwrap();
    vault.put(Secret::new("versions", "new")).unwrap();
    assert_eq!(written(machine.secret("versions")), b"new");
    let with = |words: &[&str]| {
        let mut command = machine.secret("versions");
        command.args(words);
        written(command)
    };
    assert_eq!(with(&["--version", &old]), b"old");
    assert_eq!(with(&["--newline"]), b"new\n");
    assert_eq!(with(&["--kind", "user-assigned", "--client-id", &Identity::user("keys").client_id]), b"new");
    assert_eq!(with(&["--kind", "system-assigned"]), b"new");
    let asked = machine.emulator.identity().log().requests();
    assert!(asked.iter().all(|entry| entry.query("resource") == Some("https://vault.azure.net")));
    let identities: Vec<_> = asked.iter().rev().take(2).map(|entry| entry.identity.clone().unwrap()).collect();
    assert_eq!(identities, ["system", "keys"]);
}

#[test]
fn a_token_is_written_for_an_alias_and_by_a_federated_token() {
    let machine = Machine::new();
    let token = written(machine.command(&["token", "--resource", "storage"]));
    assert_eq!(token, machine.emulator.issued_tokens().pop().unwrap().as_bytes());
    let entra = machine.emulator.entra().unwrap();
    let issuer = emulator::OidcIssuer::new("https://oidc.test/cluster/").unwrap();
    let pod = Identity::user("pod");
    entra.trust(TENANT, &pod, &issuer, SUBJECT).unwrap();
    let file = machine.file("federated-token", issuer.token(SUBJECT).unwrap());
    let mut by_environment = machine.command(&["token", "--resource", "key-vault"]);
    by_environment.envs([
        ("AZURE_CLIENT_ID", pod.client_id.as_str()),
        ("AZURE_TENANT_ID", TENANT),
        ("AZURE_FEDERATED_TOKEN_FILE", &file),
        ("AZURE_AUTHORITY_HOST", &entra.authority()),
    ]);
    assert_eq!(written(by_environment), machine.emulator.issued_tokens().pop().unwrap().as_bytes());
    let authority = entra.authority();
    let words =
        ["--client-id", &pod.client_id, "--tenant-id", TENANT, "--token-file", &file, "--authority", &authority];
    let mut by_options = machine.command(&["token", "--resource", "key-vault"]);
    by_options.args(words);
    assert_eq!(written(by_options), machine.emulator.issued_tokens().pop().unwrap().as_bytes());
    assert_eq!((entra.log().count(), machine.asked()), (2, (1, 0)));
}

#[test]
fn a_key_is_unwrapped_from_each_encoding_into_each() {
    let machine = Machine::new();
    let (version, wrapped) = machine.wrapped();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(given(machine.unwrap(&version, &[]), &wrapped), DATA_KEY);
    let file = machine.file("wrapped", &wrapped);
    assert_eq!(written(machine.unwrap(&version, &["--in", &file])), DATA_KEY);
    let kid = format!("{}/keys/kek/{version}", machine.emulator.vault_uri());
    assert_eq!(given(machine.vault_command(&["unwrap-key", "--kid", &kid]), &wrapped), DATA_KEY);
    // As such texts come: in lines, padded or not, in capitals or not.
    let lines = STANDARD.encode(&wrapped).as_bytes().chunks(64).collect::<Vec<_>>().join(&b'\n');
    for (encoding, text) in [
        ("base64", [&lines, &b"\r\n"[..]].concat()),
        ("base64url", URL_SAFE_NO_PAD.encode(&wrapped).into_bytes()),
        ("base64url", URL_SAFE.encode(&wrapped).into_bytes()),
        ("hex", hex(&wrapped).into_bytes()),
        ("hex", hex(&wrapped).to_uppercase().into_bytes()),
    ] {
        assert_eq!(given(machine.unwrap(&version, &["--encoding", encoding]), &text), DATA_KEY, "{encoding}");
    }
    for (encoding, text) in [
        ("raw", DATA_KEY.to_vec()),
        ("hex", hex(&DATA_KEY).into_bytes()),
        ("base64", STANDARD.encode(DATA_KEY).into_bytes()),
        ("base64url", URL_SAFE_NO_PAD.encode(DATA_KEY).into_bytes()),
    ] {
        assert_eq!(given(machine.unwrap(&version, &["--encoding-out", encoding]), &wrapped), text, "{encoding}");
    }
}

#[test]
fn each_end_has_its_exit_code_and_says_what_to_change_in_the_commands_own_words() {
    let machine = Machine::new();
    let (version, wrapped) = machine.wrapped();
    let (vault, identity) = (machine.emulator.vault(), machine.emulator.identity());
    vault.put(Secret::new("off", "canary").disabled()).unwrap();
    let ends = |code: i32, words: &[&str], output: (i32, String)| {
        assert!(output.0 == code && words.iter().all(|word| output.1.contains(word)), "{code} {words:?}: {output:?}");
    };
    // The service's answer.
    ends(66, &["ERROR:  secret \"none\" does not exist", "DETAIL:", "404"], refused(machine.secret("none")));
    ends(77, &["SecretDisabled", "HINT:  The secret is disabled"], refused(machine.secret("off")));
    for (reply, code) in [
        (Reply::new(403), 77),
        (Reply::new(401), 77),
        (Reply::new(302).header("location", "https://127.0.0.1:1/"), 70),
        (Reply::new(200).body("canary"), 70),
        (Reply::new(409), 70),
    ] {
        vault.faults().next(1, reply);
        ends(code, &["ERROR:  ", "DETAIL:  The vault answered"], refused(machine.secret("db-password")));
    }
    for (reply, code) in [
        (Reply::new(400).body(r#"{"error": "invalid_request", "error_description": "Identity not found"}"#), 77),
        (Reply::new(403), 77),
    ] {
        identity.faults().next(1, reply);
        ends(code, &["HINT:"], refused(machine.secret("db-password")));
    }
    // A wait that is over: whoever was asked last is named.
    let hurried = |faults: &emulator::Faults, fault: Fault, word: &str| {
        faults.always(fault);
        let mut command = machine.secret("db-password");
        command.args(["--timeout", "1"]);
        ends(75, &[word, "--timeout"], refused(command));
        faults.clear();
        faults.release();
    };
    hurried(vault.faults(), Fault::HangBeforeHeaders, "the vault gave no answer in time");
    hurried(identity.faults(), Fault::HangBeforeHeaders, "the identity endpoint gave no answer in time");
    // A service that wants to be left alone for longer than there is time is not waited for.
    for (reply, said) in [(Reply::throttled(), "the vault is throttling"), (Reply::new(503), "the vault failed")] {
        vault.faults().always(reply.header("retry-after", "60"));
        ends(75, &[said], refused(machine.secret("db-password")));
        vault.faults().clear();
    }
    let mut nobody = machine.command(&["get-secret", "--name", "a", "--vault", "https://127.0.0.1:1"]);
    nobody.args(["--vault-host", "127.0.0.1"]);
    ends(75, &["could not reach \"127.0.0.1:1\""], refused(nobody));
    machine.file(CA_CERTIFICATE, Pki::create().unwrap().ca_pem());
    ends(75, &["not trusted", "--ca-file"], refused(machine.secret("db-password")));
    machine.file(CA_CERTIFICATE, machine.emulator.pki().ca_pem());
    // What was read.
    let wrong = |input: &[u8], words: &[&str]| judged(&fed(machine.unwrap(&version, words), input));
    ends(65, &["nothing was read"], wrong(b"", &[]));
    ends(65, &["not base64", "--encoding"], wrong(&wrapped, &["--encoding", "base64"]));
    ends(65, &["not hexadecimal"], wrong(b"abc", &["--encoding", "hex"]));
    ends(65, &["too long"], wrong(&[b'a'; 70_000], &[]));
    ends(65, &["too long"], wrong(&[b'a'; 9_000], &[]));
    ends(65, &["BadParameter", "another key or version"], wrong(&wrapped[..200], &[]));
    ends(66, &["could not read", "nowhere"], wrong(b"", &["--in", "/nowhere"]));
    ends(74, &["could not read"], wrong(b"", &["--in", "/"]));
    vault.deny(&Identity::system().client_id, VaultOperation::UnwrapKey);
    ends(77, &["Key Vault Crypto Service Encryption User"], wrong(&wrapped, &[]));
    vault.allow_again(&Identity::system().client_id, VaultOperation::UnwrapKey);
    vault.delete_key("kek").unwrap();
    ends(66, &["key \"kek\" does not exist"], wrong(&wrapped, &[]));
    // What cannot be written.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut nowhere = machine.secret("db-password");
    nowhere.stdout(full);
    ends(74, &["could not write"], refused(nowhere));
}

#[test]
fn arguments_that_cannot_be_right_end_before_anything_is_read_or_asked() {
    let machine = Machine::new();
    let version = "0123456789abcdef0123456789abcdef";
    let kid = |vault: &str| format!("{vault}/keys/kek/{version}");
    let uri = machine.emulator.vault_uri();
    let client = &Identity::user("keys").client_id;
    let mut cases = Vec::new();
    for words in [
        vec![],
        vec!["get-secret", "--name", "a"],
        vec!["unwrap-key", "--vault", &uri],
        vec!["unwrap-key", "--vault", &uri, "--key", "kek"],
        vec!["token"],
        vec!["token", "--resource", "nothing-known"],
        vec!["token", "--resource", "storage", "--kind", "nobody"],
        vec!["token", "--resource", "storage", "--kind", "system-assigned", "--client-id", client],
        vec!["token", "--resource", "storage", "--client-id", client, "--object-id", client],
        vec!["token", "--resource", "storage", "--kind", "workload-identity"],
        vec!["token", "--resource", "storage", "--timeout", "0"],
        vec!["token", "--resource", "storage", "--client-secret", "canary"],
        // A vault is of the cloud or named beside it; no other host is given a token, whatever its own name.
        vec!["get-secret", "--name", "a", "--vault", &uri],
        vec!["get-secret", "--name", "a", "--vault", "https://payroll.vault.azure.net.evil.test"],
        vec!["get-secret", "--name", "a", "--vault", "http://payroll.vault.azure.net"],
        vec!["get-secret", "--name", "a", "--vault", "https://payroll.vault.azure.cn"],
        vec!["get-secret", "--name", "a", "--vault", "https://evil.test", "--vault-host", "127.0.0.1"],
    ] {
        cases.push(machine.command(&words));
    }
    let (own, other) = (kid(&uri), kid("https://other.vault.azure.net"));
    for words in [
        vec!["get-secret", "--name", "../keys"],
        vec!["get-secret", "--name", "a", "--version", "latest"],
        vec!["get-secret", "--name", "a", "--api-version", "1"],
        vec!["unwrap-key", "--kid", &other],
        vec!["unwrap-key", "--kid", &own, "--key", "kek", "--version", version],
        vec!["unwrap-key", "--kid", &own, "--algorithm", "RSA1_5"],
        vec!["unwrap-key", "--kid", &own, "--encoding", "rot13"],
    ] {
        cases.push(machine.vault_command(&words));
    }
    for mut command in cases {
        // Nobody ever writes to it: to read it would be to wait for ever.
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let held = process.stdin.take();
        let (code, said) = judged(&process.wait_with_output().unwrap());
        drop(held);
        assert!(code == 2 && !said.is_empty(), "{code} {command:?}: {said}");
    }
    assert_eq!(machine.asked(), (0, 0));
}

#[test]
fn a_terminal_is_shown_nothing_unless_forced() {
    let machine = Machine::new();
    let shown = |force: &[&str]| {
        let mut command = machine.secret("db-password");
        command.args(force);
        let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
        let line: Vec<_> = words.iter().map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-c", &line.join(" "), "/dev/null"]).stdin(Stdio::null());
        let output = script.output().expect("script");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = shown(&[]);
    assert!(code == Some(2) && text.contains("--force-tty") && !text.contains("hunter2"), "{code:?} {text}");
    assert_eq!(machine.asked(), (0, 0), "nothing is asked for that cannot be written");
    assert_eq!(shown(&["--force-tty"]), (Some(0), "hunter2".to_owned()));
}

#[test]
fn other_processes_and_core_files_see_nothing_of_it() {
    let machine = Machine::new();
    machine.emulator.vault().faults().add(Rule::new(Fault::HangBeforeHeaders).times(1));
    let mut command = machine.secret("db-password");
    if is_root() {
        // As somebody whose processes are his own to look into.
        let postgres = Command::new("id").args(["-u", "postgres"]).output().unwrap();
        command.uid(String::from_utf8(postgres.stdout).unwrap().trim().parse().expect("a user postgres"));
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(machine.files.path(), open).unwrap();
    }
    let process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    machine.emulator.vault().log().wait_for_held(1, wait::LONG).unwrap();
    let folder = Path::new("/proc").join(process.id().to_string());
    // It holds the token now. Its memory is root's, as that of a process which is not dumpable.
    assert_eq!(fs::metadata(folder.join("environ")).unwrap().uid(), 0);
    let limits = fs::read_to_string(folder.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let token = machine.emulator.issued_tokens().pop().unwrap();
    let mut seen = fs::read(folder.join("cmdline")).unwrap();
    if is_root() {
        seen.extend(fs::read(folder.join("environ")).unwrap());
    }
    machine.emulator.vault().faults().release();
    let output = process.wait_with_output().unwrap();
    seen.extend(&output.stderr);
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("get-secret") && !seen.contains(&token) && !seen.contains("hunter2"), "{seen}");
}

#[test]
fn a_vault_that_wants_a_newer_token_is_shown_one() {
    let machine = Machine::new();
    assert_eq!(written(machine.secret("db-password")), b"hunter2");
    machine.emulator.require_new_tokens();
    let head = r#"Bearer realm="", error="insufficient_claims", claims="e30=""#;
    machine.emulator.vault().faults().next(1, Reply::new(401).header("www-authenticate", head));
    assert_eq!(written(machine.secret("db-password")), b"hunter2");
    assert_eq!(machine.asked(), (3, 3));
}
