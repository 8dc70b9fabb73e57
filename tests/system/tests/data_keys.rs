//! Customer-managed keys: values are read by who may, planted keys by nobody, and a vault is asked once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::os::unix::fs::FileExt;
use std::process::Command;

use emulator::{Fault, Filter, Identity, Key, Rule};
use server_tests::{Options, Session, World, given, wait};

/// A world whose vault has a key, a server that may use it for data keys, and a data key.
fn world() -> (World, Session) {
    // Little shared memory: a test reads all of it.
    let options = Options::default().conf("shared_buffers = '1MB'");
    let world = World::with(options, vec![Identity::system(), Identity::user("keys")]);
    world.emulator.vault().put_key(Key::rsa("kek", 2048)).unwrap();
    let mut session = world.session();
    create_server(&world, &mut session, "payroll", "");
    session.run("SELECT azure_key_vault.create_data_key('salary', 'payroll', 'kek')");
    (world, session)
}

fn create_server(world: &World, session: &mut Session, name: &str, more: &str) {
    session.run(&format!(
        "CREATE SERVER {name} FOREIGN DATA WRAPPER azure_key_vault
             OPTIONS (vault_uri '{}', identity 'keys', allow 'data-keys'{more})",
        world.emulator.vault_uri(),
    ));
}

const ENCRYPT: &str = "SELECT azure_key_vault.encrypt_value('salary', 'hello'::bytea, 'hr')";

#[test]
fn what_was_encrypted_is_read_by_other_sessions_and_the_vault_is_asked_once() {
    let (world, mut session) = world();
    session.run(&format!("CREATE TABLE t AS SELECT ({ENCRYPT}) AS v"));
    let read = "SELECT convert_from(azure_key_vault.decrypt_value(v, 'hr'), 'UTF8') FROM t";
    let asked = world.emulator.vault().log().count();
    for _ in 0..3 {
        assert_eq!(world.session().value(read), "hello");
    }
    assert_eq!(world.emulator.vault().log().count(), asked, "the data key was unwrapped when it was made");
    let text = "SELECT azure_key_vault.decrypt_text(azure_key_vault.encrypt_text('salary', 'grüße'))";
    assert_eq!(session.value(text), "grüße");
    assert_eq!(session.value("SELECT name || generation FROM t, azure_key_vault.data_key_of(v)"), "salary1");
}

fn unwraps(world: &World) -> usize {
    world.emulator.vault().log().requests().iter().filter(|entry| entry.path.ends_with("/unwrapkey")).count()
}

/// Two data keys of one server, one of another over the same vault, and a value of the first.
fn two_domains() -> (World, Session) {
    let (world, mut session) = world();
    create_server(&world, &mut session, "public_data", "");
    session.run(&format!(
        "SELECT azure_key_vault.create_data_key('bonus', 'payroll', 'kek');
         SELECT azure_key_vault.create_data_key('menu', 'public_data', 'kek');
         CREATE TABLE t AS SELECT ({ENCRYPT}) AS v; GRANT SELECT ON t TO PUBLIC"
    ));
    (world, session)
}

#[test]
fn a_row_that_was_planted_swapped_moved_or_shortened_is_refused_before_the_vault_unwraps() {
    let (world, mut session) = two_domains();
    // A correctly wrapped key of the attacker's own, with its right check value: he knows the public key.
    let jwk: serde_json::Value = {
        session.run("ALTER SERVER payroll OPTIONS (SET allow 'keys,data-keys')");
        serde_json::from_str(&session.value("SELECT jwk FROM azure_key_vault.key('payroll', 'kek')")).unwrap()
    };
    let (wrapped, check) = planted(&jwk);
    let salary = "UPDATE azure_key_vault.data_key SET";
    let of = "WHERE name = 'salary' AND generation = 1";
    session.run("SELECT azure_key_vault.rotate_data_key('bonus')");
    let old = "(SELECT {} FROM azure_key_vault.data_key WHERE name = 'bonus' AND generation = 1)";
    let swapped = "(SELECT {} FROM azure_key_vault.data_key WHERE name = 'bonus' AND generation = 2)";
    let take = |from: &str, column: &str| from.replace("{}", column);
    let all = |from: &str| {
        let columns = ["wrapped", "check_value", "signature"];
        columns.map(|column| format!("{column} = {}", take(from, column))).join(", ")
    };
    for (what, tamper, wrong) in [
        ("a planted key in the row", format!("{salary} wrapped = '{wrapped}', check_value = '{check}' {of}"), "salary"),
        (
            "a planted generation",
            format!(
                "INSERT INTO azure_key_vault.data_key
                 SELECT gen_random_uuid(), name, 2, server, kid, '{wrapped}', '{check}', signature
                 FROM azure_key_vault.data_key {of}"
            ),
            "salary",
        ),
        (
            "without a signature",
            format!("{salary} wrapped = '{wrapped}', check_value = '{check}', signature = NULL {of}"),
            "salary",
        ),
        ("another row's wrap", format!("{salary} {} {of}", all(swapped)), "salary"),
        (
            "an older wrap after a rotation",
            format!("UPDATE azure_key_vault.data_key SET {} WHERE name = 'bonus' AND generation = 2", all(old)),
            "bonus",
        ),
        ("a shortened check value", format!("{salary} check_value = substr(check_value, 1, 16) {of}"), "salary"),
        ("an empty check value", format!("{salary} check_value = '' {of}"), "salary"),
        ("a server of other readers", format!("{salary} server = 'public_data' {of}"), "salary"),
        ("another name", format!("{salary} name = 'menu2' {of}"), "menu2"),
        (
            "another database's id",
            "UPDATE azure_key_vault.data_key_database SET id = gen_random_uuid()".into(),
            "salary",
        ),
    ] {
        let unwraps = unwraps(&world);
        session.run(&format!(
            "CREATE TABLE saved AS SELECT * FROM azure_key_vault.data_key;
                              CREATE TABLE saved_id AS SELECT * FROM azure_key_vault.data_key_database; {tamper}"
        ));
        if what.contains("database") {
            // What was verified before stays known until the server is started again.
            world.cluster.restart();
            session = world.session();
        }
        let mut victim = world.session();
        let error = victim.error(&format!("SELECT azure_key_vault.encrypt_value('{wrong}', 'x'::bytea)"));
        let message = format!("data key \"{wrong}\" is not authentic");
        assert_eq!((error.code().code(), error.message()), ("22000", message.as_str()), "{what}: {error:?}");
        assert_eq!(self::unwraps(&world), unwraps, "{what}");
        session.run(
            "TRUNCATE azure_key_vault.data_key, azure_key_vault.data_key_database;
             INSERT INTO azure_key_vault.data_key SELECT * FROM saved;
             INSERT INTO azure_key_vault.data_key_database SELECT * FROM saved_id; DROP TABLE saved, saved_id",
        );
        assert_eq!(victim.value("SELECT convert_from(azure_key_vault.decrypt_value(v, 'hr'), 'UTF8') FROM t"), "hello");
    }
}

/// A key of one's own, wrapped for the vault's key, and its check value; as hex.
fn planted(jwk: &serde_json::Value) -> (String, String) {
    let script = "import sys, json, hmac, hashlib, base64
from cryptography.hazmat.primitives.asymmetric import rsa, padding
from cryptography.hazmat.primitives import hashes
jwk = json.loads(sys.argv[1])
number = lambda name: int.from_bytes(base64.urlsafe_b64decode(jwk[name] + '=='), 'big')
key = rsa.RSAPublicNumbers(number('e'), number('n')).public_key()
mine = b'k' * 32
oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
check = hmac.new(mine, b'managed_identity data key check', hashlib.sha256)
print(key.encrypt(mine, oaep).hex(), check.hexdigest())";
    let ran = Command::new(given("MI_PYTHON")).args(["-c", script, &jwk.to_string()]).output().unwrap();
    let text = String::from_utf8(ran.stdout).unwrap();
    let (wrapped, check) =
        text.trim().split_once(' ').unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&ran.stderr)));
    (format!("\\x{wrapped}"), format!("\\x{check}"))
}

#[test]
fn who_may_use_the_server_may_use_its_data_keys_and_nobody_else() {
    let (world, mut session) = two_domains();
    let mut reader = world.role("reader");
    let mut owner = world.role("owner");
    let decrypt = "SELECT azure_key_vault.decrypt_value(v, 'hr') FROM t";
    assert_eq!(reader.sqlstate(ENCRYPT), "42501", "no USAGE on the server");
    assert_eq!(reader.sqlstate(decrypt), "42501", "no EXECUTE");
    session.run(
        "GRANT EXECUTE ON FUNCTION azure_key_vault.decrypt_value TO reader; GRANT USAGE ON FOREIGN SERVER public_data TO reader",
    );
    assert_eq!(reader.sqlstate(decrypt), "42501", "USAGE on another server over the same vault");
    assert_eq!(reader.rows("SELECT name FROM azure_key_vault.data_keys"), ["menu"]);
    session.run("GRANT USAGE ON FOREIGN SERVER payroll TO reader");
    assert_eq!(reader.rows(decrypt).len(), 1);
    assert_eq!(reader.rows("SELECT name FROM azure_key_vault.data_keys ORDER BY 1"), ["bonus", "menu", "salary"]);
    session.run("REVOKE USAGE ON FOREIGN SERVER payroll FROM reader");
    assert_eq!(reader.sqlstate(decrypt), "42501", "at once, though it holds a copy");
    session.run("GRANT USAGE ON FOREIGN SERVER payroll TO reader; ALTER SERVER payroll OPTIONS (SET allow 'keys')");
    assert_eq!(reader.sqlstate(decrypt), "42501", "the server's own rules");
    session.run("ALTER SERVER payroll OPTIONS (SET allow 'data-keys', ADD names 'other')");
    assert_eq!(reader.sqlstate(decrypt), "42501");
    session.run("ALTER SERVER payroll OPTIONS (DROP names)");
    assert_eq!(reader.rows(decrypt).len(), 1);
    for sql in [
        "SELECT azure_key_vault.create_data_key('mine', 'payroll', 'kek')",
        "SELECT azure_key_vault.rotate_data_key('salary')",
        "SELECT azure_key_vault.rewrap_data_keys('payroll')",
        "SELECT azure_key_vault.lock_data_keys('payroll')",
        "SELECT azure_key_vault.revalidate_data_keys('payroll')",
        "SELECT * FROM azure_key_vault.data_key",
        "INSERT INTO azure_key_vault.data_key_database VALUES (gen_random_uuid())",
    ] {
        assert_eq!(reader.sqlstate(sql), "42501", "{sql}");
    }
    for sql in ["rewrap_data_keys", "lock_data_keys", "revalidate_data_keys"] {
        assert_eq!(reader.value(&format!("SELECT azure_key_vault.{sql}()")), "0", "{sql}: he owns none");
    }
    // The vault key itself is its data keys' owner's alone, by whichever server.
    session.run(
        "ALTER SERVER public_data OPTIONS (SET allow 'keys,wrap,unwrap,encrypt,decrypt,sign,verify,data-keys');
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA azure_key_vault TO owner; GRANT USAGE ON FOREIGN SERVER machine, keys TO owner;
         ALTER SERVER public_data OWNER TO owner",
    );
    let kid = session.value("SELECT kid FROM azure_key_vault.data_keys WHERE name = 'salary'");
    let wrapped = session.value("SELECT wrapped FROM azure_key_vault.data_key WHERE name = 'salary'");
    for sql in [
        format!("SELECT azure_key_vault.unwrap_key('public_data', '{kid}', '{wrapped}')"),
        format!("SELECT azure_key_vault.decrypt('public_data', '{kid}', '{wrapped}')"),
        "SELECT azure_key_vault.wrap_key('public_data', 'KEK', 'x')".into(),
        "SELECT azure_key_vault.encrypt('public_data', 'kek', 'x')".into(),
        "SELECT azure_key_vault.sign('public_data', 'kek', sha256('x'))".into(),
    ] {
        assert_eq!(owner.sqlstate(&sql), "42501", "{sql}");
    }
    assert_eq!(owner.value("SELECT azure_key_vault.encrypt_value('menu', 'x') IS NOT NULL"), "t");
}

#[test]
fn nulls_unknown_keys_and_forged_values_are_told_apart() {
    let (world, mut session) = world();
    for (sql, state) in [
        ("encrypt_value(NULL, 'x')", "22004"),
        ("encrypt_value('salary', 'x', NULL)", "22004"),
        ("decrypt_value('x', NULL)", "22004"),
        ("encrypt_value('nobody', 'x')", "42704"),
        ("decrypt_value('x')", "22000"),
        ("decrypt_value('')", "22000"),
        ("create_data_key('salary', 'payroll', 'kek')", "42710"),
        ("create_data_key('', 'payroll', 'kek')", "22023"),
        ("create_data_key('new', 'payroll', 'a/b')", "22023"),
        ("create_data_key('new', 'payroll', 'missing')", "58P01"),
        ("create_data_key('new', 'keys', 'kek')", "42809"),
        ("create_data_key('new', 'nobody', 'kek')", "42704"),
        ("rotate_data_key('nobody')", "42704"),
        ("rotate_data_key(NULL)", "22004"),
        ("decrypt_text(azure_key_vault.encrypt_value('salary', '\\xff'))", "22021"),
    ] {
        assert_eq!(session.sqlstate(&format!("SELECT azure_key_vault.{sql}")), state, "{sql}");
    }
    for sql in
        ["encrypt_value('salary', NULL)", "encrypt_text('salary', NULL)", "decrypt_value(NULL)", "decrypt_text(NULL)"]
    {
        assert_eq!(session.value(&format!("SELECT azure_key_vault.{sql} IS NULL")), "t", "{sql}");
    }
    let value = session.value(ENCRYPT);
    let decrypt = |value: &str, context: &str| format!("SELECT azure_key_vault.decrypt_value('{value}', '{context}')");
    assert_eq!(session.value(&decrypt(&value, "hr")), "\\x68656c6c6f");
    let last = if value.ends_with('0') { '1' } else { '0' };
    let forged = format!("{}{last}", &value[..value.len() - 1]);
    let one_text = ["hr2", ""].map(|context| session.error(&decrypt(&value, context)));
    let forged = session.error(&decrypt(&forged, "hr"));
    for error in one_text.iter().chain([&forged]) {
        assert_eq!(
            (error.code().code(), error.message()),
            ("22000", "the encrypted value or its context is not authentic")
        );
    }
    // A value of another database's key.
    session.run("CREATE DATABASE second");
    let mut second = world.cluster.session_in("second");
    second.run("CREATE EXTENSION managed_identity");
    assert_eq!(second.sqlstate(&decrypt(&value, "hr")), "42704");
    // Only RSA keys wrap, and a key that may not be used now does not.
    world.emulator.vault().put_key(Key::ec("curve")).unwrap();
    world.emulator.vault().put_key(Key::rsa("off", 2048).disabled()).unwrap();
    assert_eq!(session.sqlstate("SELECT azure_key_vault.create_data_key('new', 'payroll', 'curve')"), "22023");
    assert_eq!(session.sqlstate("SELECT azure_key_vault.create_data_key('new', 'payroll', 'off')"), "28000");
    session.run("BEGIN READ ONLY");
    assert_eq!(session.sqlstate("SELECT azure_key_vault.create_data_key('new', 'payroll', 'kek')"), "25006");
    session.run("ROLLBACK");
    assert_eq!(session.rows("SELECT name, generation FROM azure_key_vault.data_keys"), ["salary|1"]);
}

#[test]
fn a_new_generation_is_every_sessions_at_once_and_old_values_stay_readable() {
    let (world, mut session) = world();
    let mut other = world.session();
    let generation = "SELECT generation FROM azure_key_vault.data_key_of(azure_key_vault.encrypt_value('salary', 'x'))";
    let old = session.value(ENCRYPT);
    assert_eq!((session.value(generation), other.value(generation)), ("1".into(), "1".into()));
    session.run("BEGIN");
    session.run("SELECT azure_key_vault.rotate_data_key('salary')");
    assert_eq!(
        (session.value(generation), other.value(generation)),
        ("2".into(), "1".into()),
        "others when it commits"
    );
    session.run("COMMIT");
    assert_eq!(other.value(generation), "2");
    session.run("BEGIN; SELECT azure_key_vault.rotate_data_key('salary'); ROLLBACK");
    assert_eq!((session.value(generation), other.value(generation)), ("2".into(), "2".into()));
    assert_eq!(other.value(&format!("SELECT azure_key_vault.decrypt_value('{old}', 'hr')")), "\\x68656c6c6f");
    assert_eq!(
        session.rows("SELECT generation, state, signed, rotated_at IS NULL FROM azure_key_vault.data_keys ORDER BY 1"),
        ["1|ready|t|f", "2|ready|t|t"]
    );
}

#[test]
fn a_new_version_of_the_vault_key_or_another_vault_wraps_what_was_wrapped_and_values_stay() {
    let (world, mut session) = two_domains();
    let versions = |session: &mut Session| {
        session.value(
            "SELECT string_agg(DISTINCT right(kid, 32), ' ') FROM azure_key_vault.data_keys WHERE vault = 'payroll'",
        )
    };
    let first = versions(&mut session);
    assert_eq!(session.value("SELECT azure_key_vault.rewrap_data_keys('payroll')"), "0", "it is the newest");
    let newest = world.emulator.vault().put_key(Key::rsa("kek", 2048)).unwrap();
    assert_eq!(session.value("SELECT azure_key_vault.rewrap_data_keys('payroll')"), "2");
    assert_ne!(versions(&mut session), first);
    assert_eq!(versions(&mut session), newest);
    assert_eq!(session.value("SELECT count(*) FROM azure_key_vault.data_keys WHERE signed"), "3");
    let read = "SELECT convert_from(azure_key_vault.decrypt_value(v, 'hr'), 'UTF8') FROM t";
    assert_eq!(session.value(read), "hello");
    // The old version is no longer needed.
    world.emulator.vault().change_key("kek", Some(&first), |attributes| attributes.enabled = false).unwrap();
    world.cluster.restart();
    let mut session = world.session();
    assert_eq!(session.value(read), "hello");
    // To another vault, which the old one is not needed for afterwards.
    let other = world.emulator.another_vault(emulator::AUDIENCE).unwrap();
    other.put_key(Key::rsa("moved", 3072)).unwrap();
    session.run(&format!(
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER azure_key_vault
             OPTIONS (vault_uri '{}', identity 'keys', allow 'data-keys')",
        other.uri(),
    ));
    assert_eq!(session.value("SELECT azure_key_vault.rewrap_data_keys('payroll', 'elsewhere', 'moved')"), "2");
    world.emulator.vault().delete_key("kek").unwrap();
    world.cluster.restart();
    assert_eq!(world.session().value(read), "hello");
}

#[test]
fn an_owner_locks_and_unlocks_in_every_session_at_once() {
    let (world, mut session) = two_domains();
    let mut other = world.session();
    let read = "SELECT azure_key_vault.decrypt_value(v, 'hr') FROM t";
    other.run(read);
    assert_eq!(session.value("SELECT azure_key_vault.lock_data_keys('payroll')"), "2");
    for session in [&mut session, &mut other, &mut world.session()] {
        for sql in [read, ENCRYPT] {
            assert_eq!(session.sqlstate(sql), "55006", "{sql}");
        }
    }
    assert_eq!(
        session.rows("SELECT name, state, locked_reason IS NULL FROM azure_key_vault.data_keys ORDER BY 1"),
        ["bonus|locked|f", "menu|ready|t", "salary|locked|f"]
    );
    assert_eq!(session.value("SELECT azure_key_vault.revalidate_data_keys('payroll')"), "2");
    assert_eq!(other.value(read), "\\x68656c6c6f");
    assert_eq!(session.value("SELECT count(*) FROM azure_key_vault.data_keys WHERE state = 'ready'"), "3");
}

#[test]
fn without_preloading_nothing_of_it_works_and_the_hint_says_why() {
    let world = World::with(
        Options { not_preloaded: true, ..Default::default() },
        vec![Identity::system(), Identity::user("keys")],
    );
    let mut session = world.session();
    create_server(&world, &mut session, "payroll", "");
    for sql in ["SELECT azure_key_vault.create_data_key('salary', 'payroll', 'kek')", ENCRYPT] {
        let error = session.error(sql);
        assert_eq!(error.code().code(), "55000");
        assert!(error.hint().unwrap().contains("shared_preload_libraries"), "{error:?}");
    }
    assert_eq!(session.rows("SELECT FROM azure_key_vault.data_keys"), [""; 0]);
}

#[test]
fn many_cold_sessions_ask_once_for_a_key() {
    let (world, mut session) = world();
    session.run(&format!("CREATE TABLE t AS SELECT ({ENCRYPT}) AS v"));
    world.cluster.restart();
    let vault = world.emulator.vault();
    let before = unwraps(&world);
    vault.faults().add(Rule::new(Fault::HangBeforeHeaders).times(1).when(Filter::path("unwrapkey")));
    let mut sessions: Vec<Session> = (0..40).map(|_| world.session()).collect();
    let mut watcher = world.session();
    let threads: Vec<_> = sessions
        .drain(..)
        .map(|mut session| {
            std::thread::spawn(move || session.value("SELECT azure_key_vault.decrypt_value(v, 'hr') FROM t"))
        })
        .collect();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    vault.log().wait_for_held(1, wait::LONG).unwrap();
    wait::until("all but one wait", || watcher.value(waiting) == "39");
    vault.faults().release();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), "\\x68656c6c6f");
    }
    assert_eq!(unwraps(&world), before + 1);
}

#[test]
fn no_core_file_of_any_process_would_hold_a_data_key() {
    let (world, mut maker) = world();
    maker.run(&format!("CREATE TABLE t AS SELECT ({ENCRYPT}) AS v"));
    // One that unwraps, one that takes from shared memory, and the worker, which tries the key.
    world.set("azure_key_vault.revalidate_interval", "1s");
    world.cluster.restart();
    let mut sessions = [world.session(), world.session()];
    for session in &mut sessions {
        session.run("SELECT azure_key_vault.decrypt_value(v, 'hr') FROM t");
    }
    let vault = world.emulator.vault().log();
    vault.wait_for_ended(vault.count() + 4, wait::LONG).unwrap();
    let wrapped = sessions[0].value("SELECT encode(wrapped, 'hex') FROM azure_key_vault.data_key");
    let key = unwrapped(&world, &wrapped);
    let worker = sessions[0].value("SELECT worker_pid FROM managed_identity.status");
    let mut kept = 0;
    for pid in [sessions[0].pid(), sessions[1].pid(), worker.parse().unwrap(), world.cluster.postmaster()] {
        for form in [key.clone(), base64(&key).into_bytes()] {
            let (dumped, guarded) = occurrences(pid, &form);
            assert!(dumped.is_empty(), "process {pid}, {} bytes: {dumped:?}", form.len());
            kept += guarded;
        }
    }
    assert!(kept >= 2, "it looks in the right way: each session has it where no core file looks");
}

/// What the vault's key makes of a wrapped key.
fn unwrapped(world: &World, wrapped: &str) -> Vec<u8> {
    let script = "import sys
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
key = serialization.load_der_private_key(bytes.fromhex(sys.argv[1]), None)
oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
sys.stdout.buffer.write(key.decrypt(bytes.fromhex(sys.argv[2]), oaep))";
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let private = hex(&world.emulator.vault().private_key("kek", None).unwrap());
    let ran = Command::new(given("MI_PYTHON")).args(["-c", script, &private, wrapped]).output().unwrap();
    assert_eq!(ran.stdout.len(), 32, "{}", String::from_utf8_lossy(&ran.stderr));
    ran.stdout
}

/// As the vault's answer has it.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    // The last character has bits of padding.
    let whole = bits.as_bytes().chunks_exact(6);
    whole
        .map(|six| char::from(ALPHABET[usize::from_str_radix(std::str::from_utf8(six).unwrap(), 2).unwrap()]))
        .collect()
}

/// How often a process's memory holds some bytes: where a core file would, and where it would not.
fn occurrences(pid: i32, wanted: &[u8]) -> (Vec<String>, usize) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut dumped, mut guarded) = (Vec::new(), 0);
    let mut region = None;
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-').filter(|_| !first.ends_with(':')) {
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            region = line.contains(" rw").then(|| (number(start), number(end), line));
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && let Some((start, end, line)) = region.take()
        {
            let mut bytes = vec![0; (end - start) as usize];
            if memory.read_at(&mut bytes, start).is_err() {
                continue;
            }
            for (at, window) in bytes.windows(wanted.len()).enumerate() {
                if window == wanted && flags.contains(" dd") {
                    guarded += 1;
                } else if window == wanted {
                    dumped.push(format!("{:x} in {line}", start + at as u64));
                }
            }
        }
    }
    (dumped, guarded)
}

#[test]
fn the_log_tells_of_the_first_use_in_a_transaction_and_never_of_a_plaintext() {
    let (world, mut session) = world();
    session.run("SET log_min_messages = debug5; SET log_min_error_statement = fatal");
    session.run("SELECT azure_key_vault.encrypt_text('salary', 'canary-plaintext')");
    session.run("RESET log_min_error_statement");
    session.run("BEGIN");
    for _ in 0..3 {
        session.run("SELECT azure_key_vault.decrypt_text(azure_key_vault.encrypt_text('salary', 'canary-plaintext'))");
    }
    session.run("COMMIT");
    let log = world.cluster.log();
    let line = "role \"postgres\", database \"postgres\": data key \"salary\" of server \"payroll\"";
    assert_eq!(log.matches(line).count(), 2, "one for each transaction: {log}");
    assert!(!log.contains("canary-plaintext"), "{log}");
    // What is not IMMUTABLE is in no index, and so in no statistics.
    session.run("CREATE TABLE t (v bytea)");
    assert_eq!(session.sqlstate("CREATE INDEX ON t (azure_key_vault.decrypt_value(v))"), "42P17");
    let volatility = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'azure_key_vault'::regnamespace
                      AND proname ~ 'crypt' AND (provolatile <> 'v' OR proleakproof)";
    assert_eq!(session.value(volatility), "0");
}

/// By who may change rows and nothing else, under sessions that know the keys.
#[test]
fn what_is_planted_under_a_warm_session_is_refused_too_and_signed_by_nobody() {
    let (world, mut session) = two_domains();
    let mut warm = world.session();
    for key in ["salary", "menu", "bonus"] {
        warm.run(&format!("SELECT azure_key_vault.encrypt_value('{key}', 'x')"));
    }
    let mut writer = world.role("writer");
    session.run("GRANT pg_write_all_data, pg_read_all_data TO writer; SELECT azure_key_vault.rotate_data_key('bonus')");
    for (what, tamper, call) in [
        (
            "another key by the name",
            "UPDATE azure_key_vault.data_key SET name = 'was' WHERE name = 'salary';
             UPDATE azure_key_vault.data_key SET name = 'salary' WHERE name = 'menu'",
            "encrypt_value('salary', 'x')",
        ),
        (
            "an old generation as the newest",
            "UPDATE azure_key_vault.data_key SET generation = 99 WHERE name = 'bonus' AND generation = 1",
            "encrypt_value('bonus', 'x')",
        ),
        (
            "another server, which a rotation would sign",
            "UPDATE azure_key_vault.data_key SET server = 'public_data' WHERE name = 'salary'",
            "rotate_data_key('salary')",
        ),
        (
            "a last generation",
            "UPDATE azure_key_vault.data_key SET generation = 2147483647 WHERE name = 'salary'",
            "rotate_data_key('salary')",
        ),
    ] {
        session.run("CREATE TABLE saved AS SELECT * FROM azure_key_vault.data_key");
        writer.run(tamper);
        assert_eq!(warm.sqlstate(&format!("SELECT azure_key_vault.{call}")), "22000", "{what}");
        session.run(
            "TRUNCATE azure_key_vault.data_key; INSERT INTO azure_key_vault.data_key SELECT * FROM saved; DROP TABLE saved",
        );
        assert_eq!(warm.value("SELECT azure_key_vault.decrypt_value(v, 'hr') FROM t"), "\\x68656c6c6f", "{what}");
    }
    // The vault key is not free because its rows were changed, nor for who makes a server of a row's name.
    session.run(&format!(
        "CREATE ROLE app LOGIN; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA azure_key_vault TO app;
         CREATE SERVER plain FOREIGN DATA WRAPPER azure_key_vault
             OPTIONS (vault_uri '{}', identity 'keys', allow 'wrap,unwrap'); GRANT USAGE ON FOREIGN SERVER plain TO app",
        world.emulator.vault_uri(),
    ));
    let mut app = world.cluster.session_as("app");
    let wrap = "SELECT azure_key_vault.wrap_key('plain', 'kek', 'x')";
    assert_eq!(app.sqlstate(wrap), "42501");
    writer.run("UPDATE azure_key_vault.data_key SET kid = 'x'");
    assert_eq!(app.sqlstate(wrap), "42501");
}

#[test]
fn a_key_that_is_locked_while_a_session_loads_it_is_not_given_to_it() {
    let (world, mut session) = world();
    session.run(&format!("CREATE TABLE t AS SELECT ({ENCRYPT}) AS v"));
    world.cluster.restart();
    let vault = world.emulator.vault();
    vault.faults().add(Rule::new(Fault::HangBeforeHeaders).times(1).when(Filter::path("unwrapkey")));
    let (mut loading, mut session) = (world.session(), world.session());
    let read = "SELECT azure_key_vault.decrypt_value(v, 'hr') FROM t";
    let thread = std::thread::spawn(move || (loading.sqlstate(read), loading.sqlstate(read)));
    vault.log().wait_for_held(1, wait::LONG).unwrap();
    session.run("SELECT azure_key_vault.lock_data_keys('payroll')");
    vault.faults().release();
    assert_eq!(thread.join().unwrap(), ("55006".to_owned(), "55006".to_owned()));
    session.run("SELECT azure_key_vault.revalidate_data_keys('payroll')");
    assert_eq!(session.value(read), "\\x68656c6c6f");
}
