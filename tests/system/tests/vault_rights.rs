//! Two servers over one vault and six roles: who may have which key do what, and that nothing secret is seen where
//! others look.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;

use emulator::{Fault, Filter, Key, Reply, Rule, Secret};
use postgres::types::ToSql;
use server_tests::{Options, Session, World, wait};

/// Each role with what makes it what it is. Both servers are `keeper`'s.
const ROLES: [(&str, &str); 6] = [
    ("root", "ALTER ROLE root SUPERUSER"),
    ("keeper", "GRANT callers TO keeper"),
    ("payroll", "GRANT callers TO payroll; GRANT USAGE ON FOREIGN SERVER pay TO payroll"),
    ("mailer", "GRANT callers TO mailer; GRANT USAGE ON FOREIGN SERVER mail TO mailer"),
    ("caller", "GRANT callers TO caller"),
    ("nobody", "GRANT USAGE ON FOREIGN SERVER pay, mail TO nobody"),
];

/// What each server allows, of one vault: `pay` wraps and unwraps with keys named pay-…, `mail` does everything else
/// with what is named mail-….
const SERVERS: [(&str, &str, &str); 2] =
    [("pay", "keys,wrap,unwrap", "pay-*"), ("mail", "secrets,encrypt,decrypt,sign,verify", "mail-*")];

/// Each function with the word of `allow` that it needs. `$` is the server, `#` the name of a key and of a secret, `@`
/// the identifier of the key.
const CALLS: [(&str, &str); 11] = [
    ("secrets", "secret('$', '#')"),
    ("secrets", "secret_properties('$', '#')"),
    ("keys", "key('$', '#')"),
    ("keys", "key_versions('$', '#')"),
    ("wrap", "wrap_key('$', '#', 'x')"),
    ("unwrap", "unwrap_key('$', '@', 'x')"),
    ("encrypt", "encrypt('$', '#', 'x')"),
    ("decrypt", "decrypt('$', '@', 'x')"),
    ("sign", "sign('$', '#', sha256('x'))"),
    ("verify", "verify('$', '@', sha256('x'), 'x')"),
    ("", "diagnose('$')"),
];

fn world() -> World {
    let world = World::with(Options::default(), vec![emulator::Identity::system(), emulator::Identity::user("keys")]);
    let vault = world.emulator.vault();
    let mut session = world.session();
    session.run("CREATE ROLE callers; CREATE ROLE keeper LOGIN; GRANT USAGE ON FOREIGN SERVER keys TO keeper");
    session.run("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA azure_key_vault TO callers");
    for (name, allow, names) in SERVERS {
        session.run(&format!(
            "CREATE SERVER {name} FOREIGN DATA WRAPPER azure_key_vault
                 OPTIONS (vault_uri '{}', identity 'keys', allow '{allow}', names '{names}');
             ALTER SERVER {name} OWNER TO keeper",
            vault.uri()
        ));
        vault.put_key(Key::rsa(&format!("{name}-key"), 2048)).unwrap();
        vault.put(Secret::new(&format!("{name}-key"), "canary")).unwrap();
    }
    for (role, rights) in ROLES {
        session.run(&format!("DO $$BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN END$$"));
        session.run(&format!("ALTER ROLE {role} LOGIN; {rights}"));
    }
    world
}

#[test]
fn six_roles_do_through_two_servers_of_one_vault_what_each_is_granted_and_nothing_else() {
    let world = world();
    let vault = world.emulator.vault();
    let mut wrong = Vec::new();
    for (role, _) in ROLES {
        let mut session = world.cluster.session_as(role);
        // The token, so that what is counted below is the vault's alone.
        let has_usage = |server: &str| match role {
            "root" | "keeper" => true,
            "payroll" => server == "pay",
            "mailer" => server == "mail",
            _ => false,
        };
        for (server, allow, names) in SERVERS {
            for object in ["pay-key", "mail-key"] {
                for (word, call) in CALLS {
                    let kid = format!("{}/keys/{object}/{}", vault.uri(), vault.key_versions(object)[0]);
                    let sql = call.replace('$', server).replace('#', object).replace('@', &kid);
                    let sql = format!("SELECT azure_key_vault.{sql}");
                    let named = object.starts_with(names.trim_end_matches('*'));
                    let may = has_usage(server) && named && allow.split(',').any(|allowed| allowed == word);
                    vault.log().clear();
                    let outcome = match session.try_rows(&sql) {
                        Ok(_) => "done".to_owned(),
                        Err(error) => error.code().code().to_owned(),
                    };
                    // What was wrapped by nobody cannot be unwrapped: the vault has said so.
                    let expected = match (word, may) {
                        // A diagnosis tells by rows.
                        ("", _) if role != "nobody" => "done",
                        (_, false) => "42501",
                        ("unwrap" | "decrypt", true) => "22023",
                        (_, true) => "done",
                    };
                    let sent = vault.log().count();
                    let expected_sent = match word {
                        "" => sent > 0 || !has_usage(server),
                        _ => (sent > 0) == may,
                    };
                    if outcome != expected || !expected_sent {
                        wrong.push(format!("{role}: {sql}: {outcome}, not {expected}; {sent} sent"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rights_are_those_of_the_current_role_and_of_the_servers_owner_at_each_use() {
    let world = world();
    let mut admin = world.session();
    let mut mailer = world.cluster.session_as("mailer");
    let sign = "SELECT kid FROM azure_key_vault.sign('mail', 'mail-key', sha256('x'))";
    mailer.run(sign);
    // SET ROLE and SECURITY DEFINER, as for tables.
    admin.run("SET ROLE caller");
    assert_eq!(admin.sqlstate(sign), "42501");
    admin.run("RESET ROLE");
    admin.run(&format!(
        "CREATE FUNCTION lent() RETURNS text SECURITY DEFINER LANGUAGE sql AS $${sign}$$;
         GRANT EXECUTE ON FUNCTION lent TO nobody"
    ));
    world.cluster.session_as("nobody").run("SELECT lent()");
    // What is taken back is gone for the next call of a running session.
    for (take, give) in [
        ("REVOKE USAGE ON FOREIGN SERVER mail FROM mailer", "GRANT USAGE ON FOREIGN SERVER mail TO mailer"),
        ("REVOKE USAGE ON FOREIGN SERVER keys FROM keeper", "GRANT USAGE ON FOREIGN SERVER keys TO keeper"),
        ("ALTER SERVER mail OPTIONS (SET allow 'encrypt')", "ALTER SERVER mail OPTIONS (SET allow 'sign')"),
        ("ALTER SERVER mail OPTIONS (SET names 'other')", "ALTER SERVER mail OPTIONS (SET names 'mail-*')"),
        ("REVOKE callers FROM mailer", "GRANT callers TO mailer"),
    ] {
        admin.run(take);
        assert_eq!(mailer.sqlstate(sign), "42501", "{take}");
        admin.run(give);
        mailer.run(sign);
    }
}

/// Runs with bound parameters; what stands in an error, if it is one.
fn said(session: &mut Session, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> String {
    match session.client().query(sql, parameters) {
        Ok(_) => String::new(),
        Err(error) => {
            let error = error.as_db_error().expect("the session lives").clone();
            format!("{error:?}")
        }
    }
}

#[test]
fn no_plaintext_no_token_and_no_text_of_the_service_is_seen_where_others_look() {
    let world = world();
    let vault = world.emulator.vault();
    world.set("managed_identity.log_access", "all");
    let mut admin = world.session();
    let mut session = world.session();
    session.run("ALTER SERVER pay OPTIONS (SET allow 'keys,wrap,unwrap,encrypt,decrypt,sign,verify')");
    let canary: &[u8] = b"canary-in-plaintext";
    let wrapped = session
        .client()
        .query_one("SELECT kid, ciphertext FROM azure_key_vault.wrap_key('pay', 'pay-key', $1)", &[&canary])
        .unwrap();
    let (kid, ciphertext): (String, Vec<u8>) = (wrapped.get(0), wrapped.get(1));
    let unwrap = "SELECT azure_key_vault.unwrap_key('pay', $1, $2)";
    let plain: Vec<u8> = session.client().query_one(unwrap, &[&kid, &ciphertext]).unwrap().get(0);
    assert_eq!(plain, canary);
    // Each way to fail, with the plaintext among the arguments and the service's own words in the answer.
    let mut seen = String::new();
    let text = "canary of the service: appid=1;oid=2;iss=3";
    let body = format!("{{\"error\": {{\"code\": \"Forbidden\", \"message\": \"{text}\"}}}}");
    for reply in [400, 401, 403, 404, 409, 418, 200] {
        for (sql, parameters) in [
            ("SELECT azure_key_vault.wrap_key('pay', 'pay-key', $1)", vec![&canary as &(dyn ToSql + Sync)]),
            ("SELECT azure_key_vault.encrypt('pay', 'pay-key', $1)", vec![&canary as _]),
            (unwrap, vec![&kid as _, &canary as _]),
        ] {
            vault.faults().next(1, Reply::new(reply).body(body.clone()));
            let error = said(&mut session, sql, &parameters);
            assert!(!error.is_empty(), "{reply} {sql}");
            seen.push_str(&error);
        }
    }
    seen.push_str(&said(&mut session, "SELECT azure_key_vault.wrap_key('pay', 'pay-key', $1, 'none')", &[&canary]));
    seen.push_str(&said(&mut session, "SELECT azure_key_vault.sign('pay', 'pay-key', $1)", &[&canary]));
    seen.push_str(&said(&mut session, unwrap, &[&"canary-kid", &canary]));
    // And while a call hangs.
    vault.faults().add(Rule::new(Fault::HangBeforeHeaders).when(Filter::path("/encrypt")));
    let held = vault.log().held();
    let mut hanging = world.session();
    let pid = hanging.pid();
    let hangs = std::thread::spawn(move || {
        let canary: &[u8] = b"canary-in-plaintext";
        said(&mut hanging, "SELECT azure_key_vault.encrypt('pay', 'pay-key', $1)", &[&canary])
    });
    vault.log().wait_for_held(held + 1, wait::LONG).unwrap();
    seen.push_str(&admin.rows("SELECT a::text FROM pg_stat_activity a").join("\n"));
    admin.run(&format!("SELECT pg_cancel_backend({pid})"));
    seen.push_str(&hangs.join().unwrap());
    seen.push_str(&admin.rows("SELECT s::text FROM managed_identity.stat_requests s").join("\n"));
    seen.push_str(&admin.rows("SELECT c::text FROM managed_identity.cached_tokens c").join("\n"));
    let log = world.cluster.log();
    assert!(log.contains("unwrap by key \"pay-key\" of server \"pay\", request id "), "the log tells who unwrapped");
    seen.push_str(&log);
    let hex: String = canary.iter().map(|byte| format!("{byte:02x}")).collect();
    for secret in ["canary-in", "canary of", "appid=1", &hex] {
        assert!(!seen.contains(secret), "{secret} is in {seen}");
    }
    let tokens: BTreeSet<String> = world.emulator.issued_tokens().into_iter().collect();
    assert!(!tokens.is_empty());
    for part in tokens.iter().flat_map(|token| token.split('.')).filter(|part| part.len() > 20) {
        assert!(!seen.contains(part), "a token is in {seen}");
    }
}
