//! A secret from a vault: found, refused, and never asked for where a server's options do not allow it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::{Fault, Filter, Pki, Refuses, Reply, ResetOnAccept, Rule, Secret};
use reqwest::Certificate;
use reqwest::blocking::Client;
use server_tests::{ACCOUNT, Session, World};

fn secret(name: &str) -> String {
    format!("SELECT azure_key_vault.secret('vault', '{name}')")
}

/// The error's SQLSTATE, and its message, DETAIL and HINT in one text.
fn refused(session: &mut Session, sql: &str) -> (String, String) {
    let error = session.error(sql);
    let said = [Some(error.message()), error.detail(), error.hint()].map(Option::unwrap_or_default);
    (error.code().code().to_owned(), said.join("|"))
}

/// A vault's refusal as it writes it; without an inner code where that is empty.
fn error(code: &str, inner: &str) -> String {
    let inner = if inner.is_empty() { "null".to_owned() } else { format!("{{\"code\": \"{inner}\"}}") };
    format!("{{\"error\": {{\"code\": \"{code}\", \"message\": \"canary\", \"innererror\": {inner}}}}}")
}

#[test]
fn a_secret_is_found_by_name_and_by_version() {
    let world = World::new();
    let vault = world.emulator.vault();
    let odd = "two\nlines, 'quotes', \\, {\"json\": 1}, é, €, \u{1f511}";
    let long = "s".repeat(25_000);
    let old = vault.put(Secret::new("versions", "old")).unwrap();
    let new = vault.put(Secret::new("versions", "new")).unwrap();
    for (name, value) in [("odd", odd), ("long", &long), ("empty", "")] {
        vault.put(Secret::new(name, value)).unwrap();
    }
    let mut session = world.session();
    for (arguments, value) in [
        ("'vault', 'db-password'".to_owned(), "hunter2"),
        ("'vault', 'versions'".into(), "new"),
        ("'vault', 'versions', NULL".into(), "new"),
        (format!("'vault', 'versions', '{old}'"), "old"),
        (format!("name => 'versions', version => '{}', vault => 'vault'", new.to_uppercase()), "new"),
        ("'vault', 'odd'".into(), odd),
        ("'vault', 'long'".into(), &long),
        ("'vault', 'empty'".into(), ""),
    ] {
        assert_eq!(session.value(&format!("SELECT azure_key_vault.secret({arguments})")), value, "{arguments}");
    }
    session.run("BEGIN READ ONLY");
    assert_eq!(session.value(&secret("db-password")), "hunter2");
    session.run("COMMIT");
    let identity = world.emulator.identity().log().requests();
    assert_eq!(identity.len(), 1, "one token for all");
    assert_eq!(identity[0].query("resource"), Some("https://vault.azure.net"));
    for request in vault.log().requests() {
        assert_eq!(request.bearer, identity[0].token);
        assert_eq!(request.raw_query, "api-version=2025-07-01");
        assert!(request.path.starts_with("/secrets/"));
    }
    let paths: Vec<String> = vault.log().requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths[3].to_lowercase(), format!("/secrets/versions/{old}"));
    // A secret is not kept: what the vault has now is what comes.
    vault.put(Secret::new("db-password", "hunter3")).unwrap();
    assert_eq!(session.value(&secret("db-password")), "hunter3");
    vault.remove("db-password");
    assert_eq!(session.sqlstate(&secret("db-password")), "58P01");
}

#[test]
fn a_token_for_one_service_opens_no_other() {
    let world = World::with_storage();
    world.azurite().put("box/a.csv", "1\n");
    let mut session = world.session();
    let storage = session.value("SELECT managed_identity.access_token('storage')");
    let vault = session.value("SELECT managed_identity.access_token('key-vault', 'keys')");
    let ca = Certificate::from_pem(world.emulator.pki().ca_pem().as_bytes()).unwrap();
    let client = Client::builder().tls_certs_only([ca]).no_proxy().build().unwrap();
    let blob = format!("{}/{ACCOUNT}/box/a.csv", world.azurite().endpoint());
    let object = format!("{}/secrets/db-password?api-version=2025-07-01", world.emulator.vault_uri());
    let get = |url: &str, token: &str| {
        let answer = client.get(url).bearer_auth(token).header("x-ms-version", "2023-11-03").send().unwrap();
        answer.status().as_u16()
    };
    assert_eq!((get(&blob, &storage), get(&object, &vault)), (200, 200));
    assert_eq!(get(&object, &storage), 401);
    assert!([401, 403].contains(&get(&blob, &vault)));
    // Nor does the extension ask by the wrong one: each server's resource is its wrapper's.
    session.run("ALTER SERVER vault OPTIONS (DROP identity)");
    assert_eq!(session.value(&secret("db-password")), "hunter2");
    let last = world.emulator.identity().log().requests().pop().unwrap();
    assert_eq!((last.identity.as_deref(), last.query("resource")), (Some("system"), Some("https://vault.azure.net")));
}

#[test]
fn each_refusal_has_its_sqlstate_and_says_what_to_change() {
    let world = World::new();
    let vault = world.emulator.vault();
    vault.put(Secret::new("off", "canary").disabled()).unwrap();
    let mut session = world.session();
    let absent = "0123456789abcdef0123456789abcdef";
    for (arguments, sqlstate, words) in [
        ("'off'".to_owned(), "28000", vec!["403", "SecretDisabled", "disabled"]),
        ("'nothing-there'".into(), "58P01", vec!["404", "SecretNotFound", "nothing-there"]),
        (format!("'db-password', '{absent}'"), "58P01", vec!["404", "db-password"]),
    ] {
        let (code, said) = refused(&mut session, &format!("SELECT azure_key_vault.secret('vault', {arguments})"));
        assert_eq!(code, sqlstate, "{said}");
        assert!(words.iter().all(|words| said.contains(words)), "{said}");
        assert!(said.contains("request id") && !said.contains("canary"), "{said}");
    }
    let json = |status: u16, body: String| Reply::new(status).header("x-ms-request-id", "id-7").body(body);
    let cases: [(Reply, &str, &str); 16] = [
        (json(400, error("BadParameter", "")), "08P01", "BadParameter"),
        (json(401, error("Unauthorized", "")), "28000", "401"),
        (json(403, error("Forbidden", "ForbiddenByRbac")), "28000", "Key Vault Secrets User"),
        (json(403, error("Forbidden", "ForbiddenByRbac")), "28000", "ForbiddenByRbac"),
        (json(403, error("Forbidden", "AccessDenied")), "28000", "AccessDenied"),
        (json(403, error("Forbidden", "ForbiddenByFirewall")), "28000", "network"),
        (json(403, error("Forbidden", "ForbiddenByConnection")), "28000", "network"),
        (json(403, "<html>canary".into()), "28000", "403"),
        (json(409, error("Conflict", "")), "55006", "409"),
        (json(418, String::new()), "08P01", "418"),
        (json(200, String::new()), "08P01", ""),
        (json(200, "canary".into()), "08P01", ""),
        (json(200, "{\"value\": {\"canary\": 1}}".into()), "08P01", ""),
        (json(200, "{\"value\": null, \"x\": \"canary\"}".into()), "08P01", ""),
        (json(200, "{\"value\": \"canary".into()), "08P01", ""),
        (json(200, format!("{{\"value\": \"{}\"}}", "canary".repeat(300_000))), "54000", "large"),
    ];
    for (reply, sqlstate, words) in cases {
        vault.log().clear();
        let (status, told) = (reply.status, !reply.body.is_empty());
        vault.faults().next(1, reply);
        let (code, said) = refused(&mut session, &secret("db-password"));
        assert_eq!(code, sqlstate, "{status} {said}");
        assert!(said.contains(words) && !said.contains("canary"), "{status} {said}");
        assert!(status == 200 || !told || (said.contains(&status.to_string()) && said.contains("id-7")), "{said}");
        assert_eq!(vault.log().count(), 1, "{status} is not tried again");
    }
    // A redirect is an answer like any other: nobody is asked where it points to.
    let elsewhere = ResetOnAccept::start().unwrap();
    for status in [301, 302, 303, 307, 308] {
        let location = format!("https://{}/secrets/db-password", elsewhere.address());
        vault.faults().next(1, Reply::new(status).header("location", &location));
        let (code, said) = refused(&mut session, &secret("db-password"));
        assert_eq!(code, "08P01", "{status} {said}");
    }
    assert_eq!(elsewhere.log().counters().accepted, 0);
    assert_eq!(session.value(&secret("db-password")), "hunter2");
}

#[test]
fn what_passes_is_tried_four_times_and_no_more() {
    let world = World::new();
    let vault = world.emulator.vault();
    for name in ["throttled", "down", "again", "broken", "patience"] {
        vault.put(Secret::new(name, "value")).unwrap();
    }
    let of = |name: &str| Filter::path(&format!("/secrets/{name}"));
    vault.faults().add(Rule::new(Reply::new(429).body("canary")).when(of("throttled")));
    vault.faults().add(Rule::new(Reply::new(503).body("canary")).when(of("down")));
    vault.faults().add(Rule::new(Reply::new(500)).times(1).when(of("again")));
    vault.faults().add(Rule::new(Fault::Reset).times(1).when(of("broken")));
    vault.faults().add(Rule::new(Reply::new(429)).when(of("patience")));
    std::thread::scope(|scope| {
        for (name, sqlstate) in [("throttled", "53400"), ("down", "58000")] {
            let mut session = world.session();
            scope.spawn(move || {
                let (code, said) = refused(&mut session, &secret(name));
                assert_eq!(code, sqlstate, "{said}");
                assert!(!said.contains("canary"), "{said}");
            });
        }
        for name in ["again", "broken"] {
            let mut session = world.session();
            scope.spawn(move || assert_eq!(session.value(&secret(name)), "value"));
        }
        // Between two tries the statement can be ended as at any time.
        let mut session = world.session();
        scope.spawn(move || {
            session.run("SET statement_timeout = '1500ms'");
            assert_eq!(session.sqlstate(&secret("patience")), "57014");
            assert_eq!(session.value(&secret("db-password")), "hunter2");
        });
    });
    let requests = vault.log().requests();
    let asked = |name: &str| requests.iter().filter(|request| request.path.ends_with(name)).count();
    assert_eq!((asked("throttled"), asked("down"), asked("again"), asked("broken")), (4, 4, 2, 2));
    assert!(asked("patience") < 4);
}

#[test]
fn a_vault_that_is_not_trusted_or_not_there_gets_no_token() {
    let world = World::new();
    let refuses = Refuses::start().unwrap();
    let mut session = world.session();
    let trusted = session.value("SHOW managed_identity.tls_ca_file");
    let other = world.cluster.file("other-ca.pem", Pki::create().unwrap().ca_pem());
    world.set("managed_identity.tls_ca_file", &other);
    let (code, said) = refused(&mut world.session(), &secret("db-password"));
    assert_eq!(code, "08001", "{said}");
    assert!(said.contains("tls_ca_file"), "{said}");
    assert_eq!(world.emulator.vault().log().count(), 0);
    world.set("managed_identity.tls_ca_file", &trusted);
    session.run(&format!(
        "CREATE SERVER away FOREIGN DATA WRAPPER azure_key_vault
             OPTIONS (vault_uri 'https://{}', identity 'keys', allow 'secrets')",
        refuses.address()
    ));
    let (code, said) = refused(&mut session, "SELECT azure_key_vault.secret('away', 'db-password')");
    assert_eq!(code, "08001", "{said}");
    // A host that the settings no longer cover is asked nothing, whatever its server says.
    assert_eq!(world.session().value(&secret("db-password")), "hunter2");
    let asked = world.emulator.vault().log().count();
    world.set("managed_identity.key_vault_hosts", "vaults.test");
    assert_eq!(world.session().sqlstate(&secret("db-password")), "22023");
    assert_eq!(world.emulator.vault().log().count(), asked);
}

#[test]
fn a_secret_needs_execute_usage_and_what_the_server_allows() {
    let world = World::new();
    for name in ["db-user", "mail", "mail-2", "other"] {
        world.emulator.vault().put(Secret::new(name, "value")).unwrap();
    }
    let mut session = world.session();
    let mut etl = world.role("etl");
    session.run("GRANT USAGE ON FOREIGN SERVER vault TO etl");
    let (code, said) = refused(&mut etl, &secret("mail"));
    assert!(code == "42501" && said.contains("function secret"), "EXECUTE is not PUBLIC's: {said}");
    session
        .run("GRANT EXECUTE ON FUNCTION azure_key_vault.secret TO etl; REVOKE USAGE ON FOREIGN SERVER vault FROM etl");
    let (code, said) = refused(&mut etl, &secret("mail"));
    assert!(code == "42501" && said.contains("foreign server vault"), "{said}");
    session.run("GRANT USAGE ON FOREIGN SERVER vault TO etl");
    assert_eq!(etl.value(&secret("mail")), "value");
    world.emulator.vault().log().clear();
    let asked = world.asked();
    for (option, allowed) in [
        ("SET allow 'keys,wrap,unwrap,encrypt,decrypt,sign,verify,data-keys'", ""),
        ("DROP allow", ""),
        ("ADD allow 'keys, secrets'", "db-password db-user mail mail-2 other"),
        ("ADD names 'mail'", "mail"),
        ("SET names 'MAIL, db-*'", "db-password db-user mail"),
        ("SET names 'mail*'", "mail mail-2"),
        ("SET names 'mail-*'", "mail-2"),
        ("SET names '*'", "db-password db-user mail mail-2 other"),
        ("SET names 'nothing'", ""),
    ] {
        session.run(&format!("ALTER SERVER vault OPTIONS ({option})"));
        let mut refusals = 0;
        for name in ["db-password", "db-user", "mail", "mail-2", "other"] {
            // The server's limits hold for its owner, a superuser, too.
            for who in [&mut etl, &mut session] {
                if allowed.split(' ').any(|allowed| allowed == name) {
                    who.value(&secret(name));
                    continue;
                }
                let (code, said) = refused(who, &secret(name));
                assert_eq!(code, "42501", "{option} {name}: {said}");
                refusals += 1;
            }
        }
        let answered = world.emulator.vault().log().count();
        assert_eq!(answered + refusals, 10, "{option}: nothing was sent for what is not allowed");
        world.emulator.vault().log().clear();
    }
    session.run("ALTER SERVER vault OPTIONS (DROP names)");
    assert_eq!(etl.value(&secret("Mail")), "value", "names know no case");
    assert_eq!(world.asked(), asked);
}

#[test]
fn a_secret_comes_in_the_databases_encoding_or_not_at_all() {
    let world = World::new();
    let vault = world.emulator.vault();
    for (name, value) in [("accent", "é"), ("euro", "canary€canary"), ("null", "canary\0canary")] {
        vault.put(Secret::new(name, value)).unwrap();
    }
    world.session().run("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
    let mut latin = world.cluster.session_in("latin");
    latin.run(&format!(
        "CREATE EXTENSION managed_identity;
         CREATE SERVER vault FOREIGN DATA WRAPPER azure_key_vault OPTIONS (vault_uri '{}', allow 'secrets')",
        world.emulator.vault_uri()
    ));
    assert_eq!(latin.value(&secret("accent")), "é");
    let measured = "SELECT octet_length(s), ascii(s) FROM azure_key_vault.secret('vault', 'accent') s";
    assert_eq!(latin.value(measured), "1|233");
    let mut utf8 = world.session();
    assert_eq!(utf8.value(measured), "2|233");
    assert_eq!(utf8.value(&secret("euro")), "canary€canary");
    for (session, name, sqlstate) in [(&mut latin, "euro", "22P05"), (&mut utf8, "null", "22021")] {
        let (code, said) = refused(session, &secret(name));
        assert_eq!(code, sqlstate, "{said}");
        assert!(!said.contains("canary"), "{said}");
    }
}
