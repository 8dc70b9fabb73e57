//! Who may do what through which server: every function and view of the extension and COPY by URL, for each kind
//! of role and each kind of server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::Identity;
use server_tests::{ACCOUNT, Session, World};

/// One column each of the matrix, and what makes the role what it is; `team` and who may execute everything get
/// EXECUTE on all functions of the extension.
const ROLES: [(&str, &str); 9] = [
    ("super", "ALTER ROLE super SUPERUSER"),
    // Of all servers but "machine", with EXECUTE: what it owns is all that it may use.
    ("owner", "GRANT callers TO owner"),
    ("direct", "GRANT callers TO direct; GRANT USAGE ON FOREIGN SERVER {servers} TO direct"),
    ("member", "GRANT team TO member"),
    ("execute", "GRANT callers TO execute"),
    ("usage", "GRANT USAGE ON FOREIGN SERVER {servers} TO usage"),
    ("monitor", "GRANT pg_monitor TO monitor"),
    ("stats", "GRANT pg_read_all_stats TO stats"),
    ("nobody", ""),
];

const SERVERS: [&str; 9] =
    ["machine", "app", "limited", "store", "store_read", "store_at", "vault", "vault_closed", "vault_names"];

/// Outcome for each role, in the order of `ROLES` | servers that `$` stands for | statement; one line for each that
/// is new. An outcome is `ok`, the SQLSTATE or the value. Every statement begins with the same three tokens in the
/// cache, of "machine" and "app" for storage, and of "app" for vaults, and is rolled back.
const MATRIX: &str = "
super owner direct member execute usage monitor stats nobody
ok    42501 ok     ok     42501   42501 42501   42501 42501  | machine              | SELECT managed_identity.access_token('storage', '$')
ok    ok    ok     ok     42501   42501 42501   42501 42501  | app                  | SELECT managed_identity.access_token('storage', '$')
ok    42501 ok     ok     42501   42501 42501   42501 42501  | machine              | SELECT managed_identity.access_token('sql', '$', true)
ok    ok    ok     ok     42501   42501 42501   42501 42501  | app                  | SELECT managed_identity.access_token('sql', '$', true)
42501 42501 42501  42501  42501   42501 42501   42501 42501  | limited              | SELECT managed_identity.access_token('storage', '$')
ok    ok    ok     ok     42501   42501 42501   42501 42501  | limited              | SELECT managed_identity.access_token('key-vault', '$')
42809 42809 42809  42809  42501   42501 42501   42501 42501  | store store_at vault | SELECT managed_identity.access_token('storage', '$')
ok    42501 ok     ok     42501   42501 42501   42501 42501  |                      | SELECT managed_identity.access_token('storage')

ok    42501 ok     ok     42501   42501 42501   42501 42501  | machine              | SELECT managed_identity.authorization_header('storage', '$')
ok    ok    ok     ok     42501   42501 42501   42501 42501  | app                  | SELECT managed_identity.authorization_header('storage', '$')
42501 42501 42501  42501  42501   42501 42501   42501 42501  | limited              | SELECT managed_identity.authorization_header('storage', '$')
ok    ok    ok     ok     42501   42501 42501   42501 42501  | limited              | SELECT managed_identity.authorization_header('key-vault', '$')
42809 42809 42809  42809  42501   42501 42501   42501 42501  | store store_at vault | SELECT managed_identity.authorization_header('storage', '$')

ok    42501 ok     ok     42501   42501 42501   42501 42501  | machine              | SELECT managed_identity.token_info('storage', '$')
ok    ok    ok     ok     42501   42501 42501   42501 42501  | app                  | SELECT managed_identity.token_info('storage', '$')
42501 42501 42501  42501  42501   42501 42501   42501 42501  | limited              | SELECT managed_identity.token_info('storage', '$')
ok    ok    ok     ok     42501   42501 42501   42501 42501  | limited              | SELECT managed_identity.token_info('key-vault', '$')
42809 42809 42809  42809  42501   42501 42501   42501 42501  | store store_at vault | SELECT managed_identity.token_info('storage', '$')

3     2     3      3      0       42501 42501   42501 42501  |                      | SELECT managed_identity.forget_tokens()
2     1     2      2      0       42501 42501   42501 42501  |                      | SELECT managed_identity.forget_tokens('storage')
1     42501 1      1      42501   42501 42501   42501 42501  | machine              | SELECT managed_identity.forget_tokens(NULL, '$')
2     2     2      2      42501   42501 42501   42501 42501  | app                  | SELECT managed_identity.forget_tokens(NULL, '$')
1     1     1      1      42501   42501 42501   42501 42501  | limited              | SELECT managed_identity.forget_tokens(NULL, '$')
0     0     0      0      42501   42501 42501   42501 42501  | limited              | SELECT managed_identity.forget_tokens('storage', '$')
42809 42809 42809  42809  42501   42501 42501   42501 42501  | store store_at vault | SELECT managed_identity.forget_tokens(NULL, '$')

3     2     3      3      0       3     3       3     0      |                      | SELECT count(*) FROM managed_identity.cached_tokens
3     2     3      3      0       3     3       3     0      |                      | SELECT count(*) FROM managed_identity.cached_tokens()
11    11    11     11     11      11    11      11    11     |                      | SELECT count(*) FROM managed_identity.resource_aliases
11    11    11     11     11      11    11      11    11     |                      | SELECT count(*) FROM managed_identity.resource_aliases()

ok    42501 42501  42501  42501   42501 42501   42501 42501  |                      | SELECT managed_identity.configure('new', 'managed_identity', '{}')
ok    42501 42501  42501  42501   42501 42501   42501 42501  |                      | SELECT managed_identity.configure('new', 'azure_storage', '{}')
ok    ok    42501  42501  42501   42501 42501   42501 42501  | app limited          | SELECT managed_identity.configure('$', 'managed_identity', '{\"kind\": \"system-assigned\"}')
ok    ok    42501  42501  42501   42501 42501   42501 42501  | store store_at       | SELECT managed_identity.configure('$', 'azure_storage', '{\"access\": \"read\"}')
ok    ok    42501  42501  42501   42501 42501   42501 42501  | vault vault_closed   | SELECT managed_identity.configure('$', 'azure_key_vault', '{\"vault_uri\": \"https://a.vault.azure.net\"}')

ok    ok    ok     ok     42501   42501 42501   42501 42501  | vault                | SELECT azure_key_vault.secret('$', 'db-password')
42501 42501 42501  42501  42501   42501 42501   42501 42501  | vault_closed         | SELECT azure_key_vault.secret('$', 'db-password')
42501 42501 42501  42501  42501   42501 42501   42501 42501  | vault_names          | SELECT azure_key_vault.secret('$', 'db-password')
ok    ok    ok     ok     42501   42501 42501   42501 42501  | vault_names          | SELECT azure_key_vault.secret('$', 'mail')
42809 42809 42809  42809  42809   42501 42501   42501 42501  | machine app store    | SELECT azure_key_vault.secret('$', 'db-password')

1     1     1      1      42501   1     42501   42501 42501  | store store_read     | COPY t FROM '{url}/box/in/a.csv' WITH (server '$')
1     1     1      1      42501   1     42501   42501 42501  | store store_at       | COPY t TO '{url}/box/out/a.csv' WITH (server '$')
1     1     1      1      42501   1     42501   42501 42501  | store_at             | COPY (SELECT 1) TO '{url}/box/out/a.csv' WITH (server '$')
42501 42501 42501  42501  42501   42501 42501   42501 42501  | store_at             | COPY t FROM '{url}/box/in/a.csv' WITH (server '$')
42501 42501 42501  42501  42501   42501 42501   42501 42501  | store_read           | COPY t TO '{url}/box/out/a.csv' WITH (server '$')
42809 42809 42809  42809  42809   42809 42809   42809 42809  | machine vault        | COPY t FROM '{url}/box/in/a.csv' WITH (server '$')
1     42725 1      1      42501   1     42501   42501 42501  |                      | COPY t FROM '{url}/box/in/a.csv'

ok    ok    ok     ok     ok      ok    ok      ok    ok     |                      | SELECT managed_identity.managed_identity_validator('{}', 'pg_foreign_server'::regclass)
ok    ok    ok     ok     ok      ok    ok      ok    ok     |                      | SELECT azure_storage.azure_storage_validator('{}', 'pg_foreign_server'::regclass)
ok    ok    ok     ok     ok      ok    ok      ok    ok     |                      | SELECT azure_key_vault.azure_key_vault_validator('{}', 'pg_foreign_data_wrapper'::regclass)
";

struct Row {
    outcomes: Vec<&'static str>,
    servers: Vec<&'static str>,
    sql: &'static str,
}

fn rows() -> Vec<Row> {
    let mut lines = MATRIX.lines().filter(|line| !line.is_empty());
    let head: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(head, ROLES.map(|(role, _)| role));
    let row = |line: &'static str| {
        let [outcomes, servers, sql] = line.splitn(3, '|').collect::<Vec<_>>().try_into().expect(line);
        let outcomes: Vec<&str> = outcomes.split_whitespace().collect();
        assert_eq!(outcomes.len(), ROLES.len(), "{line}");
        let servers: Vec<&str> = servers.split_whitespace().collect();
        assert!(servers.iter().all(|server| SERVERS.contains(server)), "{line}");
        assert_eq!(servers.is_empty(), !sql.contains('$'), "{line}");
        Row { outcomes, servers: if servers.is_empty() { vec![""] } else { servers }, sql: sql.trim() }
    };
    lines.map(row).collect()
}

fn world() -> World {
    let world = World::with_storage();
    world.azurite().put("box/in/a.csv", "1\n");
    world.emulator.vault().put(emulator::Secret::new("mail", "x")).unwrap();
    let mut session = world.session();
    let user = Identity::user("keys").client_id;
    let endpoint = format!("endpoint '{}/{ACCOUNT}', account '{ACCOUNT}', identity 'app'", world.proxy().endpoint());
    let vault = format!("vault_uri '{}', identity 'app'", world.emulator.vault_uri());
    session.run("CREATE TABLE t AS SELECT 1 AS a; GRANT ALL ON t TO PUBLIC; CREATE ROLE callers; CREATE ROLE team");
    session.run("DROP SERVER keys; DROP SERVER vault");
    let servers = [
        ("app", "managed_identity", format!("client_id '{user}'")),
        ("limited", "managed_identity", format!("client_id '{user}', resources 'key-vault'")),
        ("store", "azure_storage", endpoint.clone()),
        ("store_read", "azure_storage", format!("{endpoint}, access 'read'")),
        ("store_at", "azure_storage", format!("{endpoint}, locations 'box/out/*'")),
        ("vault", "azure_key_vault", format!("{vault}, allow 'secrets'")),
        ("vault_closed", "azure_key_vault", vault.clone()),
        ("vault_names", "azure_key_vault", format!("{vault}, allow 'secrets', names 'mail'")),
    ];
    let all = format!("{}, {ACCOUNT}", SERVERS.join(", "));
    for (name, wrapper, options) in &servers {
        session.run(&format!("CREATE SERVER {name} FOREIGN DATA WRAPPER {wrapper} OPTIONS ({options})"));
    }
    session.run(&format!(
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA managed_identity, azure_storage, azure_key_vault TO callers;
         GRANT callers TO team; GRANT USAGE ON FOREIGN SERVER {all} TO team"
    ));
    for (role, rights) in ROLES {
        session.run(&format!("CREATE ROLE {role} LOGIN; {}", rights.replace("{servers}", &all)));
    }
    for (name, ..) in &servers {
        session.run(&format!("ALTER SERVER {name} OWNER TO owner"));
    }
    world
}

/// Exactly the three tokens of which the matrix speaks are in the cache.
fn fill(session: &mut Session) {
    session.run(
        "SELECT managed_identity.forget_tokens();
         SELECT managed_identity.access_token('storage', 'machine'), managed_identity.access_token('storage', 'app'),
                managed_identity.access_token('key-vault', 'app')",
    );
}

/// The SQLSTATE, or what came: a value, or the count of a COPY.
fn outcome(session: &mut Session, sql: &str) -> Result<String, String> {
    session.run("BEGIN");
    let done = if sql.starts_with("COPY") {
        let count = session.client().execute(sql, &[]);
        count.map(|count| count.to_string()).map_err(|error| error.code().unwrap().code().to_owned())
    } else {
        let rows = session.try_rows(sql);
        rows.map(|rows| rows.join("\n")).map_err(|error| error.code().code().to_owned())
    };
    session.run("ROLLBACK");
    done
}

#[test]
fn every_role_can_do_through_each_server_what_it_was_granted_and_nothing_else() {
    let world = world();
    let mut admin = world.session();
    let mut sessions = ROLES.map(|(role, _)| world.cluster.session_as(role));
    let url = world.url("");
    let url = url.trim_end_matches('/');
    let mut wrong = Vec::new();
    for row in rows() {
        for server in &row.servers {
            let sql = row.sql.replace('$', server).replace("{url}", url);
            for (((role, _), session), expected) in ROLES.iter().zip(&mut sessions).zip(&row.outcomes) {
                fill(&mut admin);
                let outcome = outcome(session, &sql);
                let as_expected = match &outcome {
                    Ok(value) => *expected == "ok" || value == expected,
                    Err(sqlstate) => sqlstate == expected,
                };
                if !as_expected {
                    wrong.push(format!("{role}: {sql}: {outcome:?}, not {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_function_and_no_view_of_the_extension_is_without_a_row() {
    let world = World::new();
    let members = world.session().rows(
        "SELECT regexp_replace(object.identity, '\\(.*', '(')
         FROM pg_depend d, pg_identify_object(d.classid, d.objid, d.objsubid) object
         WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'managed_identity')
           AND (d.classid = 'pg_proc'::regclass OR d.classid = 'pg_class'::regclass) ORDER BY 1",
    );
    assert!(members.len() > 10, "{members:?}");
    let rows = rows();
    let has = |member: &str| {
        let end = |rest: &str| {
            member.ends_with('(') || !rest.starts_with(|c: char| c == '(' || c == '_' || c.is_alphanumeric())
        };
        rows.iter().any(|row| row.sql.match_indices(member).any(|(at, _)| end(&row.sql[at + member.len()..])))
    };
    let without: Vec<&String> = members.iter().filter(|member| !has(member)).collect();
    assert!(without.is_empty(), "MATRIX has no row for {without:?}");
    for server in SERVERS {
        assert!(rows.iter().any(|row| row.servers.contains(&server)), "{server}");
    }
}
