//! A vault's keys from SQL: what each function does, and what is never sent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

#[path = "vault_keys/common.rs"]
mod common;

use common::{refused, world};
use emulator::{Key, Secret, VaultService};

fn kid(vault: &VaultService, name: &str, version: &str) -> String {
    format!("{}/keys/{name}/{version}", vault.uri())
}

#[test]
fn a_key_wraps_encrypts_and_signs_by_its_newest_version_and_goes_back_by_the_one_that_did_it() {
    let world = world();
    let vault = world.emulator.vault();
    let old = vault.put_key(Key::rsa("kek", 2048)).unwrap();
    let mut session = world.session();
    for (there, back) in [("wrap_key", "unwrap_key"), ("encrypt", "decrypt")] {
        session.run(&format!(
            "CREATE TABLE {there} AS SELECT * FROM azure_key_vault.{there}('kv', 'kek', '\\x00ff{}')",
            "07".repeat(30)
        ));
        let again = format!("SELECT azure_key_vault.{back}('kv', kid, ciphertext) FROM {there}");
        let plain = format!("\\x00ff{}", "07".repeat(30));
        assert_eq!(session.value(&again), plain);
        let (made_by, length) = (
            session.value(&format!("SELECT kid FROM {there}")),
            session.value(&format!("SELECT length(ciphertext) FROM {there}")),
        );
        assert_eq!((made_by, length.as_str()), (kid(vault, "kek", &old), "256"));
        // What SHA-1 has padded is still read; it is not made.
        let sha1 = format!("azure_key_vault.{there}('kv', 'kek', 'x', 'RSA-OAEP')");
        assert_eq!(refused(&mut session, &sha1).0, "22023");
    }
    session.run("CREATE TABLE signed AS SELECT * FROM azure_key_vault.sign('kv', 'kek', sha256('message'))");
    let new = vault.put_key(Key::rsa("kek", 2048)).unwrap();
    // A newer version does what is new, and what is old is still the older one's.
    for (there, back) in [("wrap_key", "unwrap_key"), ("encrypt", "decrypt")] {
        let now = format!("SELECT kid FROM azure_key_vault.{there}('kv', 'KEK', 'x')");
        assert_eq!(session.value(&now), kid(vault, "kek", &new));
        let again = format!("SELECT length(azure_key_vault.{back}('kv', kid, ciphertext)) FROM {there}");
        assert_eq!(session.value(&again), "32");
        let other = format!("azure_key_vault.{back}('kv', '{}', ciphertext) FROM {there}", kid(vault, "kek", &new));
        let (code, said) = refused(&mut session, &other);
        assert!(code == "22023" && said.contains("another key or version") && said.contains("BadParameter"), "{said}");
    }
    let verify = |kid: &str, digest: &str| {
        format!("SELECT azure_key_vault.verify('kv', {kid}, sha256('{digest}'), signature) FROM signed")
    };
    assert_eq!(session.value(&verify("kid", "message")), "t");
    assert_eq!(session.value(&verify("kid", "other")), "f");
    assert_eq!(session.value(&verify(&format!("'{}'", kid(vault, "kek", &new)), "message")), "f");
    assert_eq!(session.value(&verify("replace(kid, 'https', 'HTTPS')", "message")), "t", "hosts know no case");
    session.run("BEGIN READ ONLY");
    session.run("SELECT azure_key_vault.wrap_key('kv', 'kek', 'x')");
    session.run("COMMIT");
    let identity = world.emulator.identity().log().requests();
    assert_eq!(identity.len(), 1, "one token for all");
    for request in vault.log().requests() {
        assert_eq!(request.bearer, identity[0].token);
        assert_eq!(request.raw_query, "api-version=2025-07-01");
        let header = |name| request.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str());
        assert_eq!(header("x-ms-client-request-id").unwrap().len(), 36);
        assert_eq!(header("content-type"), Some("application/json"));
    }
}

#[test]
fn each_algorithm_signs_what_another_call_verifies() {
    let world = world();
    let vault = world.emulator.vault();
    vault.put_key(Key::rsa("rsa", 3072).hsm()).unwrap();
    vault.put_key(Key::ec("ec")).unwrap();
    vault.put_key(Key::oct_hsm("oct")).unwrap();
    let mut session = world.session();
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
            "SELECT azure_key_vault.verify('kv', s.kid, sha{bits}('m'), s.signature, '{algorithm}')
             FROM azure_key_vault.sign('kv', '{key}', sha{bits}('m'), '{algorithm}') s"
        );
        assert_eq!(session.value(&both), "t", "{algorithm}");
    }
    let aes = "SELECT length(w.ciphertext), azure_key_vault.unwrap_key('kv', w.kid, w.ciphertext, 'A256KW')
               FROM azure_key_vault.wrap_key('kv', 'oct', decode(repeat('07', 32), 'hex'), 'A256KW') w";
    assert_eq!(session.value(aes), format!("40|\\x{}", "07".repeat(32)));
    // A key of another type, or curve, is the vault's to refuse.
    for (call, sqlstate) in [
        ("sign('kv', 'ec', sha256('m'))", "22023"),
        ("sign('kv', 'rsa', sha256('m'), 'ES256')", "22023"),
        ("wrap_key('kv', 'ec', 'x')", "28000"),
    ] {
        let (code, said) = refused(&mut session, &format!("azure_key_vault.{call}"));
        assert_eq!(code, sqlstate, "{call}: {said}");
    }
}

#[test]
fn what_a_vault_tells_of_keys_and_secrets_comes_in_columns() {
    let world = world();
    let vault = world.emulator.vault();
    let first = vault.put_key(Key::ec("many").valid(Some(1_000_000_000), Some(4_000_000_000))).unwrap();
    for _ in 0..29 {
        vault.put_key(Key::ec("many")).unwrap();
    }
    vault.change_key("many", Some(&first), |attributes| attributes.enabled = false).unwrap();
    let mut session = world.session();
    let list = session.rows("SELECT kid FROM azure_key_vault.key_versions('kv', 'many')");
    let mut all: Vec<String> = vault.key_versions("many").iter().map(|version| kid(vault, "many", version)).collect();
    all.sort();
    let mut listed = list.clone();
    listed.sort();
    assert_eq!(listed, all, "of more than one page");
    let of = "enabled, extract(epoch FROM not_before)::bigint, extract(epoch FROM expires_at)::bigint,
              created_at <= now() + interval '1 min', updated_at IS NOT NULL";
    let attributes = "f|1000000000|4000000000|t|t";
    let one = format!("SELECT {of} FROM azure_key_vault.key_versions('kv', 'many') WHERE kid LIKE '%{first}'");
    assert_eq!(session.value(&one), attributes);
    let one = format!("SELECT {of}, kid FROM azure_key_vault.key('kv', 'many', '{first}')");
    assert_eq!(session.value(&one), format!("{attributes}|{}", kid(vault, "many", &first)));
    let newest = "SELECT enabled, not_before, expires_at, key_type, key_ops, jwk->>'crv', jwk->>'kid' = kid
                  FROM azure_key_vault.key(name => 'many', vault => 'kv')";
    assert_eq!(session.value(newest), "t|||EC|{sign,verify}|P-256|t");
    let secret =
        Secret::new("s", "canary").content_type("text/pl\u{e4}in").tag("key", "v\u{e4}lue").valid(Some(7), None);
    vault.put(secret).unwrap();
    let properties = "SELECT content_type, enabled, extract(epoch FROM not_before)::int, expires_at, tags->>'key',
                      id LIKE '%/secrets/s/' || repeat('_', 32) FROM azure_key_vault.secret_properties('kv', 's')";
    assert_eq!(session.value(properties), "text/pl\u{e4}in|t|7||v\u{e4}lue|t");
    let row = session.value("SELECT p::text FROM azure_key_vault.secret_properties('kv', 's') p");
    assert!(!row.contains("canary"), "{row}");
    // JSON is UTF-8, the database need not be.
    session.run("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
    let mut latin = world.cluster.session_in("latin");
    latin.run("CREATE EXTENSION managed_identity");
    world.create_servers(&mut latin);
    let measured = "SELECT octet_length(content_type), octet_length(tags->>'key')
                    FROM azure_key_vault.secret_properties('vault', 's')";
    assert_eq!(
        (latin.value(measured), session.value(&measured.replace("'vault'", "'kv'"))),
        ("10|5".into(), "11|6".into())
    );
    vault.put(Secret::new("euro", "canary").tag("key", "\u{20ac}")).unwrap();
    assert_eq!(latin.sqlstate("SELECT azure_key_vault.secret_properties('vault', 'euro')"), "22P05");
    for call in ["secret_properties('kv', 'none')", "key('kv', 'none')", "key_versions('kv', 'none')"] {
        let rows = session.try_rows(&format!("SELECT * FROM azure_key_vault.{call}"));
        match rows {
            Err(error) => assert_eq!(error.code().code(), "58P01", "{call}"),
            // A real vault lists the versions of what is not there: none.
            Ok(rows) => assert!(rows.is_empty() && call.starts_with("key_versions"), "{call}"),
        }
    }
    session.run("ALTER SERVER kv OPTIONS (ADD api_version '7.4')");
    session.run("SELECT azure_key_vault.key('kv', 'many')");
    assert_eq!(vault.log().requests().pop().unwrap().query("api-version"), Some("7.4"));
    for value in ["", "7.3", "2026-03-01-preview", "7.4&a=b"] {
        let alter = format!("ALTER SERVER kv OPTIONS (SET api_version '{value}')");
        assert_eq!(session.sqlstate(&alter), "22023", "{value}");
    }
}

#[test]
fn an_identifier_of_anything_but_a_key_of_this_vault_is_never_sent() {
    let world = world();
    let vault = world.emulator.vault();
    let version = vault.put_key(Key::ec("kek")).unwrap();
    let mut session = world.session();
    session.run("SELECT azure_key_vault.key('kv', 'kek')");
    vault.log().clear();
    let uri = vault.uri();
    let authority = uri.strip_prefix("https://").unwrap();
    let port = authority.rsplit(':').next().unwrap();
    let kids = [
        String::new(),
        "kek".into(),
        format!("{uri}/keys/kek"),
        format!("{uri}/keys/kek/"),
        format!("{uri}/keys/kek/{version}/"),
        format!("{uri}/keys/kek/{version}/unwrapkey"),
        format!("{uri}/keys/kek/{version}?a=b"),
        format!("{uri}/keys/kek/{version}#f"),
        format!("{uri}/keys/kek/{version}%00"),
        format!("{uri}/keys/kek//{version}"),
        format!("{uri}//keys/kek/{version}"),
        format!("{uri}/x/../keys/kek/{version}"),
        format!("{uri}/keys/../secrets/{version}"),
        format!("{uri}/keys/%2e%2e/{version}"),
        format!("{uri}/keys/k%65k/{version}"),
        format!("{uri}/keys/k\u{435}k/{version}"),
        format!("{uri}/secrets/kek/{version}"),
        format!("{uri}/Keys/kek/{version}"),
        format!("{uri}\\keys\\kek\\{version}"),
        format!(" {uri}/keys/kek/{version}"),
        format!("{uri}/keys/kek/{version}\n"),
        format!("https://user@{authority}/keys/kek/{version}"),
        format!("{uri}@evil.test/keys/kek/{version}"),
        format!("{uri}.evil.test/keys/kek/{version}"),
        format!("{uri}0/keys/kek/{version}"),
        format!("https://127.0.0.1/keys/kek/{version}"),
        format!("https://127.1:{port}/keys/kek/{version}"),
        format!("https://localhost:{port}/keys/kek/{version}"),
        format!("https://evil.vault.azure.net/keys/kek/{version}"),
        format!("http://{authority}/keys/kek/{version}"),
        format!("//{authority}/keys/kek/{version}"),
        format!("{uri}/keys/{}/{version}", "k".repeat(128)),
        format!("{uri}/keys/kek/{}", &version[1..]),
        format!("{uri}/keys/kek/{}g", &version[1..]),
    ];
    for kid in &kids {
        let kid = kid.replace('\'', "''");
        for call in [
            format!("unwrap_key('kv', '{kid}', 'x')"),
            format!("decrypt('kv', '{kid}', 'x')"),
            format!("verify('kv', '{kid}', sha256('x'), 'x')"),
        ] {
            let (code, said) = refused(&mut session, &format!("azure_key_vault.{call}"));
            assert_eq!(code, "22023", "{call}: {said}");
            assert!(said.contains(&format!("{uri}/keys/<name>/")), "{said}");
        }
    }
    for name in ["", "..", "a/b", "a%2fb", "a?b", "a#b", "a b", "k\u{435}k", "kek/", &"k".repeat(128)] {
        for call in [
            "secret_properties('kv', '$')",
            "key('kv', '$')",
            "key_versions('kv', '$')",
            "wrap_key('kv', '$', 'x')",
            "encrypt('kv', '$', 'x')",
            "sign('kv', '$', sha256('x'))",
            "diagnose('kv', '$')",
        ] {
            let call = format!("azure_key_vault.{}", call.replace('$', name));
            assert_eq!(refused(&mut session, &call).0, "22023", "{call}");
        }
    }
    assert_eq!(vault.log().count(), 0, "nothing was sent");
}

#[test]
fn what_cannot_be_right_is_refused_before_it_is_sent() {
    let world = world();
    let vault = world.emulator.vault();
    let version = vault.put_key(Key::rsa("kek", 2048)).unwrap();
    let kid = kid(vault, "kek", &version);
    let mut session = world.session();
    for (call, hint) in [
        ("wrap_key('kv', 'kek', 'x', 'RSA1_5')", "RSA-OAEP-256, A256KW, A192KW, A128KW"),
        ("wrap_key('kv', 'kek', 'x', 'RSA-OAEP')", "RSA-OAEP-256, A256KW, A192KW, A128KW"),
        ("unwrap_key('kv', '{kid}', 'x', 'RSA1_5')", "A128KW, RSA-OAEP."),
        ("encrypt('kv', 'kek', 'x', 'A256GCM')", "RSA-OAEP-256."),
        ("decrypt('kv', '{kid}', 'x', 'rsa-oaep')", "RSA-OAEP-256, RSA-OAEP."),
        ("sign('kv', 'kek', sha256('x'), 'HS256')", "PS256, PS384"),
        ("sign('kv', 'kek', sha256('x'), 'ES256K')", "ES512"),
        ("sign('kv', 'kek', 'the message')", "SHA-256"),
        ("sign('kv', 'kek', sha256('x'), 'RS512')", "SHA-512"),
        ("verify('kv', '{kid}', sha512('x'), 'x')", "SHA-256"),
        ("verify('kv', '{kid}', sha256('x'), 'x', '')", "PS256"),
        ("wrap_key('kv', 'kek', decode(repeat('00', 8193), 'hex'))", "Have the key wrap a key"),
        ("key('kv', 'kek', 'latest')", ""),
        ("secret_properties('kv', 'db-password', '..')", ""),
    ] {
        let (code, said) = refused(&mut session, &format!("azure_key_vault.{}", call.replace("{kid}", &kid)));
        assert!(code == "22023" && said.contains(hint), "{call}: {said}");
    }
    // NULL is no key, no value and no algorithm; of a version it is none.
    for call in [
        "secret_properties(NULL, 'a')",
        "secret_properties('kv', NULL)",
        "key(NULL, 'a')",
        "key('kv', NULL)",
        "key_versions(NULL, 'a')",
        "key_versions('kv', NULL)",
        "wrap_key(NULL, 'a', 'x')",
        "wrap_key('kv', NULL, 'x')",
        "wrap_key('kv', 'a', NULL)",
        "wrap_key('kv', 'a', 'x', NULL)",
        "unwrap_key(NULL, 'a', 'x')",
        "unwrap_key('kv', NULL, 'x')",
        "unwrap_key('kv', 'a', NULL)",
        "unwrap_key('kv', 'a', 'x', NULL)",
        "encrypt(NULL, 'a', 'x')",
        "encrypt('kv', NULL, 'x')",
        "encrypt('kv', 'a', NULL)",
        "encrypt('kv', 'a', 'x', NULL)",
        "decrypt(NULL, 'a', 'x')",
        "decrypt('kv', NULL, 'x')",
        "decrypt('kv', 'a', NULL)",
        "decrypt('kv', 'a', 'x', NULL)",
        "sign(NULL, 'a', 'x')",
        "sign('kv', NULL, 'x')",
        "sign('kv', 'a', NULL)",
        "sign('kv', 'a', 'x', NULL)",
        "verify(NULL, 'a', 'x', 'x')",
        "verify('kv', NULL, 'x', 'x')",
        "verify('kv', 'a', NULL, 'x')",
        "verify('kv', 'a', 'x', NULL)",
        "verify('kv', 'a', 'x', 'x', NULL)",
        "diagnose(NULL)",
    ] {
        let (code, said) = refused(&mut session, &format!("azure_key_vault.{call}"));
        assert!(code == "22004" && said.contains("must not be null"), "{call}: {said}");
    }
    assert_eq!(vault.log().count(), 0, "nothing was sent");
    assert_eq!(world.asked(), 0, "nor was a token asked for");
    session.run("SELECT azure_key_vault.key('kv', 'kek', NULL)");
}
