//! Foreign servers: which options are taken, whose rights count at each use, which server a URL means.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::Identity;
use postgres::error::DbError;
use server_tests::{ACCOUNT, Session, World};

const SECRET: &str = "SELECT azure_key_vault.secret('vault', 'db-password')";

/// The error of `sql`, which must have this SQLSTATE.
fn refused(session: &mut Session, sqlstate: &str, sql: &str) -> DbError {
    let error = session.error(sql);
    assert_eq!(error.code().code(), sqlstate, "{sql}: {error:?}");
    error
}

fn hint(error: &DbError) -> &str {
    error.hint().unwrap_or_else(|| panic!("no HINT: {error:?}"))
}

#[test]
fn options_that_are_not_enforced_are_unknown_and_the_hint_lists_ours() {
    let world = World::new();
    let mut session = world.session();
    session.run(
        "CREATE SERVER i FOREIGN DATA WRAPPER managed_identity; CREATE SERVER s FOREIGN DATA WRAPPER azure_storage;
         CREATE SERVER v FOREIGN DATA WRAPPER azure_key_vault",
    );
    let wrappers: [(&str, &str, &[&str], &str); 3] = [
        (
            "managed_identity",
            "i",
            &[
                "kind",
                "client_id",
                "object_id",
                "resource_id",
                "tenant_id",
                "token_file",
                "authority",
                "source",
                "resources",
            ],
            "auth account identity endpoint vault_uri credential user host",
        ),
        (
            "azure_storage",
            "s",
            &["account", "identity", "endpoint", "access", "locations"],
            "auth credential client_id resources vault_uri allow names api_version kind source password",
        ),
        (
            "azure_key_vault",
            "v",
            &["vault_uri", "identity", "api_version", "allow", "names", "unsigned_keys"],
            "credential auth client_id account endpoint tenant_id",
        ),
    ];
    for (wrapper, server, ours, unknown) in wrappers {
        for option in unknown.split(' ').chain(["nonsense", "Access"]) {
            for sql in [
                format!("CREATE SERVER x FOREIGN DATA WRAPPER {wrapper} OPTIONS (\"{option}\" 'x')"),
                format!("ALTER SERVER {server} OPTIONS (ADD \"{option}\" 'x')"),
            ] {
                let error = refused(&mut session, "HV00D", &sql);
                assert!(ours.iter().all(|name| hint(&error).contains(name)), "{sql}: {error:?}");
                assert!(error.message().contains(option), "{error:?}");
            }
        }
        for option in unknown.split(' ').chain(ours.iter().copied()) {
            for sql in [
                format!("ALTER FOREIGN DATA WRAPPER {wrapper} OPTIONS (ADD {option} 'x')"),
                format!("CREATE USER MAPPING FOR PUBLIC SERVER {server} OPTIONS ({option} 'x')"),
            ] {
                let error = refused(&mut session, "HV00D", &sql);
                assert!(!hint(&error).is_empty(), "{sql}");
            }
        }
    }
}

#[test]
fn values_that_cannot_be_right_are_refused() {
    let world = World::new();
    let mut session = world.session();
    type Values<'v> = &'v [(&'v str, &'v [&'v str])];
    let servers: [(&str, Values<'_>); 3] = [
        (
            "managed_identity",
            &[
                ("client_id", &["", "x", "11111111-2222-3333-4444-55555555555", "1111 OR 1"]),
                ("object_id", &["", "x"]),
                ("resource_id", &["", "x", "/subscriptions", "/subscriptions/x&client_id=y"]),
                ("kind", &["", "automatic", "System-Assigned"]),
                ("tenant_id", &["", "..", "a/b", "a b", "a?b", "tenänt"]),
                ("token_file", &["", "token", "./token"]),
                ("source", &["", "auto", "IMDS", "azure_arc"]),
                (
                    "authority",
                    &[
                        "",
                        "http://login.test",
                        "https://u@a.test",
                        "https://a.test/b",
                        "https://a.test?b",
                        "a.test#b",
                        "a b",
                    ],
                ),
                ("resources", &["", "nonsense", "storage,", "storage,,key-vault", "https://a b/"]),
            ],
        ),
        (
            "azure_storage",
            &[
                ("account", &["", "ab", "Sales", "a-b", "a.b", "evil.com#x", &"a".repeat(25)]),
                ("identity", &["", &"i".repeat(64)]),
                ("access", &["", "write", "READ", "read,write"]),
                ("locations", &["", "BOX", "ab", "box,", "box/../other", "*", "box*", "box/a*b"]),
                (
                    "endpoint",
                    &[
                        "",
                        "x",
                        "ftp://127.0.0.1/",
                        "http://example.test/",
                        "https://u@127.0.0.1/",
                        "https://127.0.0.1/?sig=x",
                        "https://127.0.0.1/#x",
                        "https://127.0.0.1/a/../b",
                        "https://127.0.0.1/a/%2e%2e/b",
                        "https://127.0.0.1./",
                        "https://0x7f.1/",
                        "https://127.0.0.1\\x",
                    ],
                ),
            ],
        ),
        (
            "azure_key_vault",
            &[
                (
                    "vault_uri",
                    &[
                        "",
                        "x",
                        "http://127.0.0.1",
                        "https://127.0.0.1/secrets",
                        "https://u@127.0.0.1",
                        "https://127.0.0.1?x",
                        "https://127.0.0.1#x",
                        "https://example.test",
                        "https://vault.azure.net",
                        "https://a.b.vault.azure.net",
                        "https://a.vault.azure.net.evil.test",
                    ],
                ),
                ("identity", &[""]),
                ("api_version", &["", "7.3", "2026-03-01-preview", "7.4&x=y"]),
                ("allow", &["", "all", "secrets,", "Secrets", "secrets keys"]),
                ("names", &["", "a/b", "a*b", "a,", "..", "**"]),
            ],
        ),
    ];
    for (wrapper, options) in servers {
        for (option, values) in options {
            for value in *values {
                let sql = format!("CREATE SERVER x FOREIGN DATA WRAPPER {wrapper} OPTIONS ({option} '{value}')");
                let error = refused(&mut session, "22023", &sql);
                assert!(error.hint().is_some() || error.detail().is_some(), "{sql}: {error:?}");
            }
        }
    }
}

#[test]
fn options_change_one_by_one_in_any_order_and_are_judged_at_use() {
    let world = World::with_storage();
    let mut session = world.session();
    let keys = Identity::user("keys");
    let token = "SELECT managed_identity.access_token('key-vault', 'keys')";
    let mut alter = |sql: &str| session.run(&format!("ALTER SERVER {sql}"));
    alter(&format!("keys OPTIONS (ADD object_id '{}')", keys.object_id));
    let mut other = world.session();
    refused(&mut other, "22023", token);
    assert_eq!(world.asked(), 0);
    alter("keys OPTIONS (DROP client_id)");
    other.run(token);
    let asked = world.emulator.identity().log().requests();
    assert_eq!(asked[0].query("object_id"), Some(keys.object_id.as_str()));
    alter(&format!("keys OPTIONS (SET object_id '{}')", Identity::system().object_id));
    other.run(token);
    assert_eq!(world.asked(), 2, "another identity, another token");
    // A vault server can lose its vault_uri and get it back; without one it cannot work.
    other.run(&format!("ALTER SERVER keys OPTIONS (DROP object_id, ADD client_id '{}')", keys.client_id));
    alter("vault OPTIONS (DROP vault_uri)");
    assert!(hint(&refused(&mut other, "22023", SECRET)).contains("vault"));
    alter(&format!("vault OPTIONS (ADD vault_uri '{}')", world.emulator.vault_uri()));
    assert_eq!(other.value(SECRET), "hunter2");
    // The account's name may come from the server's name; with neither there is no account.
    world.azurite().put("box/a.csv", "1\n");
    other.run("CREATE TABLE t (a int)");
    other.run(&format!("ALTER SERVER {ACCOUNT} RENAME TO \"Sales\""));
    let copy = format!("COPY t FROM '{}' WITH (server 'Sales')", world.url("box/a.csv"));
    assert!(hint(&refused(&mut other, "22023", &copy)).contains("account"));
    alter("\"Sales\" OPTIONS (ADD account 'sales')");
    assert_eq!(other.count(&copy), 1);
}

#[test]
fn an_endpoint_is_a_superusers_unless_the_servers_settings_cover_it() {
    let world = World::new();
    let mut maker = world.role("maker");
    world.session().run("GRANT USAGE ON FOREIGN DATA WRAPPER azure_storage TO maker");
    let create = "CREATE SERVER s FOREIGN DATA WRAPPER azure_storage OPTIONS (endpoint 'https://127.0.0.1:1/x')";
    refused(&mut maker, "42501", create);
    maker.run("CREATE SERVER mine FOREIGN DATA WRAPPER azure_storage OPTIONS (account 'abc')");
    refused(&mut maker, "42501", "ALTER SERVER mine OPTIONS (ADD endpoint 'https://127.0.0.1:1/x')");
    world.session().run("ALTER SERVER mine OPTIONS (ADD endpoint 'https://127.0.0.1:1/x')");
    refused(&mut maker, "42501", "ALTER SERVER mine OPTIONS (SET endpoint 'https://127.0.0.1:2/x')");
    refused(&mut maker, "42501", "ALTER SERVER mine OPTIONS (ADD access 'read')");
    maker.run("ALTER SERVER mine OPTIONS (DROP endpoint)");
    maker.run("ALTER SERVER mine OPTIONS (ADD access 'read')");
    world.set("managed_identity.storage_hosts", "127.0.0.1:1, blobs.test");
    let mut maker = world.cluster.session_as("maker");
    maker.run(create);
    maker.run("ALTER SERVER mine OPTIONS (ADD endpoint 'https://a.blobs.test/x')");
    for other in
        ["https://127.0.0.1:2/x", "https://evilblobs.test/", "https://blobs.test.evil.test/", "http://127.0.0.1:2"]
    {
        refused(&mut maker, "42501", &format!("ALTER SERVER s OPTIONS (SET endpoint '{other}')"));
    }
    refused(&mut maker, "42501", "CREATE SERVER i FOREIGN DATA WRAPPER managed_identity");
    refused(&mut maker, "42501", "CREATE SERVER v FOREIGN DATA WRAPPER azure_key_vault");
}

#[test]
fn a_servers_own_limits_hold_for_everybody() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("CREATE TABLE t (a int)");
    world.azurite().create_container("other");
    for path in ["box/in/a.csv", "box/a.csv", "box/inn.csv", "other/in/a.csv"] {
        world.azurite().put(path, "1\n");
    }
    session.run(&format!("ALTER SERVER {ACCOUNT} OPTIONS (ADD access 'read')"));
    let to = format!("COPY t TO '{}'", world.url("box/out.csv"));
    refused(&mut session, "42501", &to);
    assert_eq!(session.count(&format!("COPY t FROM '{}'", world.url("box/a.csv"))), 1);
    session.run(&format!("ALTER SERVER {ACCOUNT} OPTIONS (SET access 'read-write')"));
    session.run(&to);
    session.run(&format!("ALTER SERVER {ACCOUNT} OPTIONS (ADD locations 'box/in/*, other')"));
    world.proxy().log().clear();
    for path in ["box/a.csv", "box/inn.csv", "box/in%2Fa.csv/../../a.csv", "boxx/in/a.csv"] {
        let error = session.error(&format!("COPY t FROM '{}'", world.url(path)));
        assert!(["42501", "22023"].contains(&error.code().code()), "{path}: {error:?}");
    }
    refused(&mut session, "42501", &to);
    assert_eq!(world.proxy().log().count(), 0, "nothing was sent for what is not allowed");
    for path in ["box/in/a.csv", "other/in/a.csv"] {
        assert_eq!(session.count(&format!("COPY t FROM '{}'", world.url(path))), 1, "{path}");
    }
    let asked = world.asked();
    refused(&mut session, "42501", "SELECT managed_identity.access_token('storage', 'keys')");
    session.run(&format!("ALTER SERVER {ACCOUNT} OPTIONS (ADD identity 'keys')"));
    refused(&mut session, "42501", &format!("COPY t FROM '{}'", world.url("box/in/a.csv")));
    session.run("ALTER SERVER vault OPTIONS (SET allow 'keys')");
    refused(&mut session, "42501", SECRET);
    session.run("ALTER SERVER vault OPTIONS (SET allow 'secrets', ADD names 'mail-*')");
    refused(&mut session, "42501", SECRET);
    assert_eq!((world.asked(), world.emulator.vault().log().count()), (asked, 0));
    session.run("ALTER SERVER vault OPTIONS (SET names 'mail-*, db-*')");
    assert_eq!(session.value(SECRET), "hunter2");
}

#[test]
fn a_server_must_exist_and_be_of_our_wrapper_when_it_is_used() {
    let world = World::with_storage();
    let mut session = world.session();
    world.azurite().put("box/a.csv", "1\n");
    // Another wrapper's server, and one whose wrapper only has our name.
    session.run(
        "CREATE TABLE t (a int);
         CREATE EXTENSION file_fdw;
         CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
         ALTER FOREIGN DATA WRAPPER azure_storage RENAME TO renamed;
         CREATE FOREIGN DATA WRAPPER azure_storage VALIDATOR azure_storage.azure_storage_validator;
         CREATE SERVER fake FOREIGN DATA WRAPPER azure_storage OPTIONS (account 'devstoreaccount1')",
    );
    let copy = |server: &str| format!("COPY t FROM '{}' WITH (server '{server}')", world.url("box/a.csv"));
    for server in ["files", "fake", "keys", "vault", "machine"] {
        refused(&mut session, "42809", &copy(server));
    }
    for server in ["files", "fake", "vault", ACCOUNT] {
        refused(&mut session, "42809", &format!("SELECT managed_identity.access_token('storage', '{server}')"));
    }
    for server in ["files", "keys", ACCOUNT] {
        refused(&mut session, "42809", &format!("SELECT azure_key_vault.secret('{server}', 'db-password')"));
    }
    refused(&mut session, "42704", &copy("nobody"));
    refused(&mut session, "42704", "SELECT managed_identity.access_token('storage', 'nobody')");
    refused(&mut session, "42704", "SELECT azure_key_vault.secret('nobody', 'db-password')");
    // An identity that is named but missing, or no identity: known at use only.
    for (identity, sqlstate) in [("later", "42704"), ("files", "42809"), ("vault", "42809")] {
        session.run(&format!("ALTER SERVER vault OPTIONS (SET identity '{identity}')"));
        refused(&mut session, sqlstate, SECRET);
        session.run(&format!("ALTER SERVER {ACCOUNT} OPTIONS (ADD identity '{identity}')"));
        let error = refused(&mut session, sqlstate, &copy(ACCOUNT));
        assert!(error.message().contains(identity), "{error:?}");
        session.run(&format!("ALTER SERVER {ACCOUNT} OPTIONS (DROP identity)"));
    }
    session.run("ALTER SERVER vault OPTIONS (SET identity 'keys'); ALTER SERVER keys RENAME TO gone");
    assert!(!hint(&refused(&mut session, "42704", SECRET)).is_empty());
    assert_eq!((world.asked(), world.emulator.vault().log().count(), world.proxy().log().count()), (0, 0, 0));
    session.run("ALTER SERVER gone RENAME TO keys");
    assert_eq!(session.value(SECRET), "hunter2");
    assert_eq!(session.count(&copy(ACCOUNT)), 1, "our wrapper is known by more than its name");
    session.run("DROP SERVER keys");
    refused(&mut session, "42704", SECRET);
}

#[test]
fn a_url_that_several_servers_reach_needs_one_choice() {
    let world = World::with_storage();
    let mut session = world.session();
    let mut etl = world.role("etl");
    // Which server was used shows in what it allows.
    session.run(&format!(
        "CREATE TABLE t (a int); GRANT ALL ON t TO etl;
         CREATE SERVER second FOREIGN DATA WRAPPER azure_storage
             OPTIONS (account '{ACCOUNT}', endpoint '{0}/{ACCOUNT}', locations 'box/second/*');
         ALTER SERVER {ACCOUNT} OPTIONS (ADD account '{ACCOUNT}', ADD locations 'box/first/*')",
        world.proxy().endpoint()
    ));
    let (first, second) = (world.url("box/first/a.csv"), world.url("box/second/a.csv"));
    let to = |url: &str| format!("COPY t TO '{url}'");
    let by = |url: &str, server: &str| format!("COPY t TO '{url}' WITH (server '{server}')");
    session.run(&to(&first));
    refused(&mut session, "42501", &to(&second));
    session.run(&by(&second, "second"));
    let error = refused(&mut etl, "42501", &to(&second));
    assert!(hint(&error).contains("GRANT USAGE"), "{error:?}");
    session.run("GRANT USAGE ON FOREIGN SERVER second TO etl");
    etl.run(&to(&second));
    refused(&mut etl, "42501", &to(&first));
    refused(&mut etl, "42501", &by(&first, ACCOUNT));
    session.run(&format!("ALTER SERVER {ACCOUNT} RENAME TO first"));
    for url in [&first, &second] {
        assert!(hint(&refused(&mut session, "42725", &to(url))).contains("server"));
    }
    session.run(&by(&first, "first"));
    etl.run(&to(&second));
    session.run("DROP SERVER first");
    session.run(&to(&second));
}

#[test]
fn a_default_identity_that_is_not_there_is_told_by_how_it_was_lost() {
    let world = World::new();
    let mut session = world.session();
    session.run("ALTER SERVER machine RENAME TO renamed");
    for call in ["('storage')", "('storage', 'machine')"] {
        let error = session.error(&format!("SELECT managed_identity.access_token{call}"));
        assert_eq!(error.code().code(), "42704", "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("was renamed")), "{error:?}");
    }
    session.run("ALTER SERVER renamed RENAME TO machine; SET managed_identity.default_identity = 'nobody'");
    let error = session.error("SELECT managed_identity.access_token('storage')");
    assert_eq!((error.code().code(), error.message()), ("42704", "server \"nobody\" does not exist"), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("managed_identity.default_identity")), "{error:?}");
    let error = session.error("SELECT managed_identity.access_token('storage', 'somebody')");
    assert!(error.hint().is_some_and(|hint| hint.contains("CREATE SERVER")), "{error:?}");
    assert_eq!(world.asked(), 0);
}
