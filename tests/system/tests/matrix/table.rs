//! The matrix: what each kind of role can do through each kind of server, and a run of all of it in one database.

use emulator::Identity;
use server_tests::{Session, World};

/// One column each of the matrix, and what makes the role what it is. `callers` may execute all functions of the
/// extension, `team` may use all servers, too.
pub const ROLES: [(&str, &str); 9] = [
    ("super", "ALTER ROLE super SUPERUSER"),
    // Of all servers but "machine": what it owns is all that it may use.
    ("owner", "GRANT callers TO owner"),
    ("given", "GRANT callers TO given; GRANT USAGE ON FOREIGN SERVER {servers} TO given"),
    ("heir", "GRANT team TO heir"),
    ("exec", "GRANT callers TO exec"),
    ("usage", "GRANT USAGE ON FOREIGN SERVER {servers} TO usage"),
    ("watch", "GRANT pg_monitor TO watch"),
    ("stats", "GRANT pg_read_all_stats TO stats"),
    ("other", ""),
];

/// Identities: `kv` is for Key Vault alone. Accounts: `read` is for reading, `part` for box/out/* alone. Vaults: `shut`
/// allows no secrets and has a data key, `mail` the secret of that name, `crypt` to use keys and not to read them.
pub const SERVERS: [&str; 10] = ["machine", "app", "kv", "blob", "read", "part", "vault", "shut", "mail", "crypt"];

/// Outcome for each role | servers that `$` stands for, one after the other | what follows SELECT, or a COPY. Whatever
/// is new gets a line. An outcome is the value, `ok` for any, or the SQLSTATE, `-` for 42501: not allowed. Before each
/// there are three tokens in the cache, of "machine" and "app" for storage, and of "app" for Key Vault; after it what
/// it changed is rolled back.
const MATRIX: &str = "
super owner given heir  exec  usage watch stats other
ok    -     ok    ok    -     -     -     -     -     | machine          | managed_identity.access_token('storage', '$')
ok    ok    ok    ok    -     -     -     -     -     | app              | managed_identity.access_token('storage', '$')
ok    -     ok    ok    -     -     -     -     -     | machine          | managed_identity.access_token('sql', '$', true)
ok    ok    ok    ok    -     -     -     -     -     | app              | managed_identity.access_token('sql', '$', true)
-     -     -     -     -     -     -     -     -     | kv               | managed_identity.access_token('storage', '$')
ok    ok    ok    ok    -     -     -     -     -     | kv               | managed_identity.access_token('key-vault', '$')
42809 42809 42809 42809 -     -     -     -     -     | blob part vault  | managed_identity.access_token('storage', '$')
ok    -     ok    ok    -     -     -     -     -     |                  | managed_identity.access_token('storage')

ok    -     ok    ok    -     -     -     -     -     | machine          | managed_identity.authorization_header('storage', '$')
ok    ok    ok    ok    -     -     -     -     -     | app              | managed_identity.authorization_header('storage', '$')
-     -     -     -     -     -     -     -     -     | kv               | managed_identity.authorization_header('storage', '$')
ok    ok    ok    ok    -     -     -     -     -     | kv               | managed_identity.authorization_header('key-vault', '$')
42809 42809 42809 42809 -     -     -     -     -     | blob part vault  | managed_identity.authorization_header('storage', '$')

t     -     t     t     -     -     -     -     -     | machine          | client_id = '{system}' FROM managed_identity.token_info('storage', '$')
t     t     t     t     -     -     -     -     -     | app              | client_id = '{keys}' FROM managed_identity.token_info('storage', '$')
-     -     -     -     -     -     -     -     -     | kv               | managed_identity.token_info('storage', '$')
t     t     t     t     -     -     -     -     -     | kv               | client_id = '{keys}' FROM managed_identity.token_info('key-vault', '$')
42809 42809 42809 42809 -     -     -     -     -     | blob part vault  | managed_identity.token_info('storage', '$')

t     f     t     t     f     -     -     -     -     | machine          | status = 'ok' FROM managed_identity.diagnose('storage', '$') LIMIT 1
t     t     t     t     f     -     -     -     -     | app              | status = 'ok' FROM managed_identity.diagnose('storage', '$') LIMIT 1
f     f     f     f     f     -     -     -     -     | kv               | status = 'ok' FROM managed_identity.diagnose('storage', '$') LIMIT 1
t     t     t     t     f     -     -     -     -     | kv               | status = 'ok' FROM managed_identity.diagnose('key-vault', '$') LIMIT 1
imds  imds  imds  imds  imds  -     imds  -     -     |                  | managed_identity.detected_source()

1     -     -     -     -     -     1     -     -     |                  | count(*) FROM managed_identity.status
1     1     1     1     1     -     1     -     -     |                  | count(*) FROM managed_identity.status()
ok    -     -     -     -     -     ok    -     -     |                  | count(*) FROM managed_identity.stat_requests
ok    ok    ok    ok    ok    -     ok    -     -     |                  | count(*) FROM managed_identity.stat_requests()
ok    ok    ok    ok    ok    -     -     -     -     |                  | managed_identity.stat_reset()

3     2     3     3     0     -     -     -     -     |                  | managed_identity.forget_tokens()
2     1     2     2     0     -     -     -     -     |                  | managed_identity.forget_tokens('storage')
1     -     1     1     -     -     -     -     -     | machine          | managed_identity.forget_tokens(NULL, '$')
2     2     2     2     -     -     -     -     -     | app              | managed_identity.forget_tokens(NULL, '$')
1     1     1     1     -     -     -     -     -     | kv               | managed_identity.forget_tokens(NULL, '$')
0     0     0     0     -     -     -     -     -     | kv               | managed_identity.forget_tokens('storage', '$')
42809 42809 42809 42809 -     -     -     -     -     | blob part vault  | managed_identity.forget_tokens(NULL, '$')

3     2     3     3     0     3     3     3     0     |                  | count(*) FROM managed_identity.cached_tokens
3     2     3     3     0     3     3     3     0     |                  | count(*) FROM managed_identity.cached_tokens()
11    11    11    11    11    11    11    11    11    |                  | count(*) FROM managed_identity.resource_aliases
11    11    11    11    11    11    11    11    11    |                  | count(*) FROM managed_identity.resource_aliases()

ok    -     -     -     -     -     -     -     -     |                  | managed_identity.configure('new', 'managed_identity', '{}')
ok    -     -     -     -     -     -     -     -     |                  | managed_identity.configure('new', 'azure_storage', '{}')
ok    ok    -     -     -     -     -     -     -     | app kv           | managed_identity.configure('$', 'managed_identity', '{}')
ok    ok    -     -     -     -     -     -     -     | blob part        | managed_identity.configure('$', 'azure_storage', '{}')
ok    ok    -     -     -     -     -     -     -     | vault shut       | managed_identity.configure('$', 'azure_key_vault', '{}')

ok    ok    ok    ok    -     -     -     -     -     | vault            | azure_key_vault.secret('$', 'db-password')
-     -     -     -     -     -     -     -     -     | shut             | azure_key_vault.secret('$', 'db-password')
-     -     -     -     -     -     -     -     -     | mail             | azure_key_vault.secret('$', 'db-password')
ok    ok    ok    ok    -     -     -     -     -     | mail             | azure_key_vault.secret('$', 'mail')
42809 42809 42809 42809 42809 -     -     -     -     | machine app blob | azure_key_vault.secret('$', 'db-password')
ok    ok    ok    ok    -     -     -     -     -     | vault            | azure_key_vault.secret_properties('$', 'db-password')
-     -     -     -     -     -     -     -     -     | shut mail crypt  | azure_key_vault.secret_properties('$', 'db-password')
ok    ok    ok    ok    -     -     -     -     -     | shut             | azure_key_vault.key('$', 'kek')
-     -     -     -     -     -     -     -     -     | vault mail crypt | azure_key_vault.key('$', 'kek')
42809 42809 42809 42809 42809 -     -     -     -     | machine app blob | azure_key_vault.key('$', 'kek')
1     1     1     1     -     -     -     -     -     | shut             | count(*) FROM azure_key_vault.key_versions('$', 'kek')
-     -     -     -     -     -     -     -     -     | vault mail crypt | azure_key_vault.key_versions('$', 'kek')
ok    ok    ok    ok    -     -     -     -     -     | crypt            | azure_key_vault.wrap_key('$', 'kek', 'x')
-     -     -     -     -     -     -     -     -     | vault shut       | azure_key_vault.wrap_key('$', 'kek', 'x')
ok    ok    ok    ok    -     -     -     -     -     | crypt            | azure_key_vault.encrypt('$', 'kek', 'x')
-     -     -     -     -     -     -     -     -     | vault shut       | azure_key_vault.encrypt('$', 'kek', 'x')
ok    ok    ok    ok    -     -     -     -     -     | crypt            | azure_key_vault.sign('$', 'kek', sha256('x'))
-     -     -     -     -     -     -     -     -     | vault shut       | azure_key_vault.sign('$', 'kek', sha256('x'))
22023 22023 22023 22023 -     -     -     -     -     | crypt            | azure_key_vault.unwrap_key('$', '{kid}', 'none')
-     -     -     -     -     -     -     -     -     | vault shut       | azure_key_vault.unwrap_key('$', '{kid}', 'none')
22023 22023 22023 22023 -     -     -     -     -     | crypt            | azure_key_vault.decrypt('$', '{kid}', 'none')
-     -     -     -     -     -     -     -     -     | vault shut       | azure_key_vault.decrypt('$', '{kid}', 'none')
f     f     f     f     -     -     -     -     -     | crypt            | azure_key_vault.verify('$', '{kid}', sha256('x'), 'none')
-     -     -     -     -     -     -     -     -     | vault shut       | azure_key_vault.verify('$', '{kid}', sha256('x'), 'none')
42809 42809 42809 42809 42809 -     -     -     -     | machine app blob | azure_key_vault.verify('$', '{kid}', sha256('x'), 'none')
t     t     t     t     f     -     -     -     -     | vault shut crypt | bool_and(status = 'ok') FROM azure_key_vault.diagnose('$')
t     t     t     t     f     -     -     -     -     | shut crypt       | bool_and(status = 'ok') FROM azure_key_vault.diagnose('$', 'kek')
f     f     f     f     f     -     -     -     -     | vault mail       | bool_and(status = 'ok') FROM azure_key_vault.diagnose('$', 'kek')

ok    ok    ok    ok    -     ok    -     -     -     |                  | azure_key_vault.encrypt_value('salary', 'x')
ok    ok    ok    ok    -     ok    -     -     -     |                  | azure_key_vault.encrypt_text('salary', 'x')
ok    ok    ok    ok    -     ok    -     -     -     |                  | azure_key_vault.data_key_of(azure_key_vault.encrypt_value('salary', 'x'))
ok    ok    ok    ok    -     -     -     -     -     |                  | azure_key_vault.decrypt_value(azure_key_vault.encrypt_value('salary', 'x'))
x     x     x     x     -     -     -     -     -     |                  | azure_key_vault.decrypt_text(azure_key_vault.encrypt_text('salary', 'x'))
ok    ok    -     -     -     -     -     -     -     | shut             | azure_key_vault.create_data_key('new', '$', 'wrapper')
-     -     -     -     -     -     -     -     -     | vault mail crypt | azure_key_vault.create_data_key('new', '$', 'wrapper')
42809 42809 42809 42809 42809 42809 42809 42809 42809 | machine app blob | azure_key_vault.create_data_key('new', '$', 'wrapper')
ok    ok    -     -     -     -     -     -     -     |                  | azure_key_vault.rotate_data_key('salary')
0     0     -     -     -     -     -     -     -     | shut             | azure_key_vault.rewrap_data_keys('$')
0     0     0     0     0     0     0     0     0     |                  | azure_key_vault.rewrap_data_keys()
2     2     -     -     -     -     -     -     -     | shut             | azure_key_vault.lock_data_keys('$') + azure_key_vault.revalidate_data_keys('$')
1     1     1     1     0     1     1     1     0     |                  | count(*) FROM azure_key_vault.data_keys
1     1     1     1     0     1     1     1     0     |                  | count(*) FROM azure_key_vault.data_keys()
1     -     -     -     -     -     -     -     -     |                  | count(*) FROM azure_key_vault.data_key
1     -     -     -     -     -     -     -     -     |                  | count(*) FROM azure_key_vault.data_key_database
t     -     -     -     -     -     -     -     -     |                  | count(*) > 0 FROM azure_key_vault.data_key_event
ok    -     -     -     -     -     -     -     -     |                  | count(*) FROM azure_key_vault.data_key_validated
t     t     t     t     f     t     t     t     f     |                  | count(*) > 0 FROM azure_key_vault.data_key_events
39P01 39P01 39P01 39P01 39P01 39P01 39P01 39P01 39P01 |                  | azure_key_vault.data_keys_changed()
ok    ok    -     -     -     -     -     -     -     | crypt            | azure_key_vault.wrap_key('$', 'wrapper', 'x')

1     1     1     1     -     1     -     -     -     | blob read        | COPY t FROM '{in}' WITH (server '$')
1     1     1     1     -     1     -     -     -     | blob part        | COPY t TO '{out}' WITH (server '$')
1     1     1     1     -     1     -     -     -     | part             | COPY (SELECT 1) TO '{out}' WITH (server '$')
-     -     -     -     -     -     -     -     -     | part             | COPY t FROM '{in}' WITH (server '$')
-     -     -     -     -     -     -     -     -     | read             | COPY t TO '{out}' WITH (server '$')
42809 42809 42809 42809 42809 42809 42809 42809 42809 | machine vault    | COPY t FROM '{in}' WITH (server '$')
1     42725 1     1     -     1     -     -     -     |                  | COPY t FROM '{in}'

ok    ok    ok    ok    ok    ok    ok    ok    ok    |                  | managed_identity.managed_identity_validator('{}', 0)
ok    ok    ok    ok    ok    ok    ok    ok    ok    |                  | azure_storage.azure_storage_validator('{}', 0)
ok    ok    ok    ok    ok    ok    ok    ok    ok    |                  | azure_key_vault.azure_key_vault_validator('{}', 0)
";

pub struct Row {
    outcomes: Vec<&'static str>,
    pub servers: Vec<&'static str>,
    pub sql: String,
}

pub fn rows() -> Vec<Row> {
    let mut lines = MATRIX.lines().filter(|line| !line.is_empty());
    let head: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(head, ROLES.map(|(role, _)| role));
    let row = |line: &'static str| {
        let [outcomes, servers, sql] = line.splitn(3, '|').collect::<Vec<_>>().try_into().expect(line);
        let outcomes = outcomes.split_whitespace().map(|outcome| if outcome == "-" { "42501" } else { outcome });
        let outcomes: Vec<&str> = outcomes.collect();
        let sql = sql.trim();
        let sql = if sql.starts_with("COPY ") { sql.to_owned() } else { format!("SELECT {sql}") };
        assert_eq!(outcomes.len(), ROLES.len(), "{line}");
        let servers: Vec<&str> = servers.split_whitespace().collect();
        assert!(servers.iter().all(|server| SERVERS.contains(server)), "{line}");
        assert_eq!(servers.is_empty(), !sql.contains('$'), "{line}");
        Row { outcomes, servers: if servers.is_empty() { vec![""] } else { servers }, sql }
    };
    lines.map(row).collect()
}

/// Exactly the three tokens of which the matrix speaks are in the cache.
fn fill(session: &mut Session) {
    // No statement of the matrix both adds one and takes one away.
    if session.value("SELECT count(*) FROM managed_identity.cached_tokens") == "3" {
        return;
    }
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

/// What is not as the matrix says, when every role does in this database what it says.
pub fn differences(world: &World, database: &str) -> Vec<String> {
    let mut admin = world.cluster.session_in(database);
    let mut sessions = ROLES.map(|(role, _)| world.cluster.session_of(role, database));
    let [source, target] = ["box/in/a.csv", "box/out/a.csv"].map(|path| world.url(path));
    let [system, keys] = [Identity::system(), Identity::user("keys")].map(|identity| identity.client_id);
    let vault = world.emulator.vault();
    let kid = format!("{}/keys/kek/{}", vault.uri(), vault.key_versions("kek")[0]);
    let mut wrong = Vec::new();
    for row in rows() {
        for server in &row.servers {
            let mut sql = row.sql.replace('$', server);
            let places =
                [("{in}", &source), ("{out}", &target), ("{system}", &system), ("{keys}", &keys), ("{kid}", &kid)];
            for (place, value) in places {
                sql = sql.replace(place, value);
            }
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
    wrong
}
