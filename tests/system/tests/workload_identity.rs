//! Workload identity: a pod's federated token, or any other issuer's, is exchanged for access tokens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use emulator::{EXCHANGE, Fault, Filter, Identity, Issuer, OidcIssuer, Reply, Rule, TENANT};
use postgres::error::DbError;
use serde_json::{Value, json};
use server_tests::{ACCOUNT, Options, Pod, SUBJECT, Session, World, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";
const OTHER_TENANT: &str = "9d2a77c0-55f1-4a0e-8a3e-1b7d5c3f0a11";

/// The error of `sql`, which must have this SQLSTATE and a HINT that holds `word`.
fn refused(session: &mut Session, sqlstate: &str, word: &str, sql: &str) -> DbError {
    let error = session.error(sql);
    assert_eq!(error.code().code(), sqlstate, "{sql}: {error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains(word)), "{sql}: no \"{word}\": {error:?}");
    error
}

/// A claim of the token that `identity` gives for storage.
fn claim(session: &mut Session, identity: &str, name: &str) -> String {
    session.value(&format!(
        "SELECT convert_from(decode(rpad(translate(part, '-_', '+/'), (length(part) + 3) / 4 * 4, '='), 'base64'),
                             'UTF8')::json ->> '{name}'
         FROM split_part(managed_identity.access_token('storage', '{identity}'), '.', 2) part"
    ))
}

fn client(name: &str) -> String {
    Identity::user(name).client_id
}

/// Nothing that was shown to the authority, or that it gave, stands in the server's log.
fn nothing_leaked(pod: &Pod) {
    let log = pod.world.cluster.log();
    let secrets = pod.assertions().into_iter().chain(pod.world.emulator.issued_tokens());
    for secret in secrets.filter(|secret| secret.len() > 20) {
        assert!(!log.contains(&secret), "the log holds {secret}");
    }
    assert!(!log.contains("Trace ID"), "the log holds the authority's own text");
}

#[test]
fn the_statements_of_the_readme_work_with_workload_identity_alone() {
    let pod = Pod::with_storage();
    let world = &pod.world;
    let mut etl = world.role("etl");
    let mut session = world.session();
    session.run(&format!(
        "CREATE TABLE orders (a int); INSERT INTO orders VALUES (1), (2); GRANT ALL ON orders TO etl;
         GRANT USAGE ON FOREIGN SERVER {ACCOUNT} TO etl"
    ));
    let url = world.url("box/orders.csv.gz");
    assert_eq!(etl.count(&format!("COPY orders TO '{url}' WITH (HEADER)")), 2);
    assert_eq!(etl.count(&format!("COPY orders FROM '{url}' WITH (HEADER)")), 2);
    assert_eq!(session.value("SELECT azure_key_vault.secret('vault', 'db-password')"), "hunter2");
    // No selector means the environment's client id; a selector means that one, by the same file.
    let (own, keys) = (client("pod"), client("keys"));
    assert_eq!(
        session
            .rows("SELECT identity, kind, id, resource, source, state FROM managed_identity.cached_tokens ORDER BY 1"),
        [
            format!("keys|workload-identity|{keys}|https://vault.azure.net|workload_identity|ready"),
            format!("machine|workload-identity|{own}|https://storage.azure.com/|workload_identity|ready"),
        ]
    );
    let asked = pod.entra.log().requests();
    assert!(
        asked.iter().all(|entry| entry.path == format!("/{TENANT}/oauth2/v2.0/token") && entry.raw_query.is_empty())
    );
    let form = |at: usize, name: &str| asked[at].form(name).unwrap().to_owned();
    assert_eq!(
        [form(0, "client_id"), form(0, "scope"), form(0, "grant_type")],
        [own.as_str(), "https://storage.azure.com//.default", "client_credentials"]
    );
    assert_eq!([form(1, "client_id"), form(1, "scope")], [keys.as_str(), "https://vault.azure.net/.default"]);
    assert_eq!((asked.len(), world.asked()), (2, 0), "the node's identity is not asked");
    nothing_leaked(&pod);
}

#[test]
fn the_file_is_read_at_each_fetch_and_the_authoritys_times_are_kept() {
    let pod = Pod::new();
    let mut session = pod.world.session();
    let mut shown = Vec::new();
    for resource in ["storage", "key-vault", "management"] {
        let token = pod.issuer.token(SUBJECT).unwrap();
        pod.write(&token);
        shown.push(token);
        session.run(&format!("SELECT managed_identity.access_token('{resource}')"));
    }
    assert_eq!(pod.assertions(), shown);
    // A second can pass between the answer and its being kept.
    let times = "SELECT 60 * round(extract(epoch FROM expires_at - fetched_at) / 60),
                        extract(epoch FROM refresh_at - fetched_at) BETWEEN 0 AND 600
                 FROM managed_identity.cached_tokens";
    assert_eq!(session.rows(times), ["86400|f"; 3]);
    session.run("SELECT managed_identity.forget_tokens()");
    pod.world.emulator.issuer().set_token_life(3_600);
    pod.entra.set_refresh_in(Some(600));
    session.run(TOKEN);
    assert_eq!(session.rows(times), ["3600|t"]);
}

#[test]
fn a_file_that_cannot_be_used_says_what_to_change_and_heals_at_once() {
    let pod = Pod::new();
    let mut session = pod.world.session();
    let file = pod.token_file();
    fs::remove_file(&file).unwrap();
    let missing = refused(&mut session, "58000", "azure.workload.identity/use", TOKEN);
    let message = format!("could not open federated token file \"{file}\": No such file or directory");
    assert_eq!(missing.message(), message);
    pod.write("canary of a federated token");
    refused(&mut session, "58000", "nothing else", TOKEN);
    pod.write("");
    refused(&mut session, "58000", "again", TOKEN);
    pod.write(&"canary".repeat(20_000));
    assert_eq!(session.sqlstate(TOKEN), "54000");
    pod.write(&pod.issuer.token(SUBJECT).unwrap());
    fs::set_permissions(&file, Permissions::from_mode(0o000)).unwrap();
    refused(&mut session, "58000", "fsGroup", TOKEN);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused(&mut session, "58000", "holds the federated token", TOKEN);
    fs::remove_dir(&file).unwrap();
    // To open it would block until somebody writes to it.
    assert!(Command::new("mkfifo").args(["-m", "666", &file]).status().unwrap().success());
    refused(&mut session, "58000", "holds the federated token", TOKEN);
    assert_eq!(pod.entra.log().count(), 0, "nothing was sent");
    let mut stale = pod.issuer.claims(SUBJECT);
    stale["exp"] = json!(1);
    pod.write(&pod.issuer.sign(&stale).unwrap());
    let error = refused(&mut session, "28000", "subPath", TOKEN);
    assert!(error.detail().is_some_and(|detail| detail.contains("AADSTS700024")), "{error:?}");
    let last = "SELECT state, failures > 0, last_error IS NOT NULL FROM managed_identity.cached_tokens";
    assert_eq!(session.rows(last), ["failed|t|t"]);
    pod.write(&pod.issuer.token(SUBJECT).unwrap());
    session.run(TOKEN);
    nothing_leaked(&pod);
    assert!(!pod.world.cluster.log().contains("canary"));
}

#[test]
fn refusals_of_the_authority_are_told_apart_and_never_quoted() {
    let pod = Pod::new();
    let mut session = pod.world.session();
    session.run(&format!(
        "CREATE SERVER nowhere FOREIGN DATA WRAPPER managed_identity OPTIONS (tenant_id '{OTHER_TENANT}');
         CREATE SERVER nobody FOREIGN DATA WRAPPER managed_identity OPTIONS (client_id '{}')",
        client("nobody")
    ));
    let mut told = |word: &str, number: &str, identity: &str| {
        let sql = format!("SELECT managed_identity.access_token('storage', '{identity}')");
        let error = refused(&mut session, "28000", word, &sql);
        let detail = error.detail().expect("a DETAIL");
        assert!(detail.contains(&format!("AADSTS{number}, request id ")), "{error:?}");
        assert!(!format!("{error:?}").contains("Correlation"), "{error:?}");
        error.message().to_owned()
    };
    let mut messages = vec![told("tenant_id", "90002", "nowhere"), told("client_id", "700016", "nobody")];
    let changed = |claim: &str, value: Value| {
        let mut claims = pod.issuer.claims(SUBJECT);
        claims[claim] = value;
        pod.write(&pod.issuer.sign(&claims).unwrap());
    };
    changed("sub", json!("system:serviceaccount:default:other"));
    messages.push(told("subject", "700213", "machine"));
    changed("aud", json!("https://storage.azure.com"));
    messages.push(told("AzureADTokenExchange", "700212", "machine"));
    changed("iss", json!("https://oidc.test/another/"));
    messages.push(told("issuer", "700211", "machine"));
    pod.write("no.jwt.at-all");
    messages.push(told("issuer", "50027", "machine"));
    let unknown = json!({"error": "canary", "error_description": "AADSTS987654: canary", "trace_id": "id-1"});
    pod.entra.faults().next(1, Reply::new(400).body(unknown.to_string()));
    messages.push(told("sign-in logs", "987654", "machine"));
    messages.sort();
    messages.dedup();
    assert_eq!(messages.len(), 7, "each has a text of its own: {messages:?}");
    pod.entra.faults().next(1, Reply::new(404).body("canary"));
    refused(&mut session, "08P01", "authority", TOKEN);
    assert!(!pod.world.cluster.log().contains("canary"));
    nothing_leaked(&pod);
}

#[test]
fn an_authority_that_fails_for_a_moment_is_asked_again() {
    let pod = Pod::new();
    pod.entra.faults().next(1, Reply::new(429).header("Retry-After", "0"));
    pod.entra.faults().next(1, Fault::status(503));
    let mut session = pod.world.session();
    session.run(TOKEN);
    assert_eq!(pod.entra.log().count(), 3);
    pod.entra.faults().add(Rule::new(Fault::HangBeforeHeaders).times(1).when(Filter::method("POST")));
    session.run("SET statement_timeout = '500ms'");
    assert_eq!(session.sqlstate("SELECT managed_identity.access_token('key-vault')"), "57014");
}

#[test]
fn servers_of_two_tenants_share_no_token_and_equal_ones_share_one() {
    let pod = Pod::new();
    let (world, entra) = (&pod.world, &pod.entra);
    entra.add_tenant(Issuer::new(OTHER_TENANT).unwrap());
    entra.trust(OTHER_TENANT, &Identity::user("pod"), &pod.issuer, SUBJECT).unwrap();
    let second = world.emulator.entra().unwrap();
    second.trust(TENANT, &Identity::user("pod"), &pod.issuer, SUBJECT).unwrap();
    let copy = world.cluster.file("copy-of-the-token", pod.issuer.token(SUBJECT).unwrap());
    let (own, file, authority) = (client("pod"), pod.token_file(), entra.authority());
    let mut session = world.session();
    for (name, options) in [
        ("a", format!("tenant_id '{TENANT}'")),
        ("b", format!("tenant_id '{OTHER_TENANT}'")),
        ("c", format!("authority '{}'", second.authority())),
        ("d", format!("token_file '{copy}'")),
        ("e", format!("client_id '{}', token_file '{file}', authority '{authority}'", own.to_uppercase())),
    ] {
        session.run(&format!("CREATE SERVER {name} FOREIGN DATA WRAPPER managed_identity OPTIONS ({options})"));
    }
    let token = |session: &mut Session, name: &str| {
        session.value(&format!("SELECT managed_identity.access_token('storage', '{name}')"))
    };
    let tokens: Vec<String> = ["a", "b", "c", "d"].iter().map(|name| token(&mut session, name)).collect();
    let mut different = tokens.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 4, "each differs in what shapes its request");
    assert_eq!(claim(&mut session, "a", "tid"), TENANT);
    assert_eq!(claim(&mut session, "b", "tid"), OTHER_TENANT);
    assert_eq!((entra.log().count(), second.log().count()), (3, 1), "a token is asked for where its server says");
    for equal in ["machine", "e"] {
        assert_eq!(token(&mut world.session(), equal), tokens[0]);
    }
    assert_eq!(entra.log().count(), 3, "equal identities share a token");
    // A change of an option takes effect at once, in a session that has used the server, too.
    let mut other = world.session();
    assert_eq!(claim(&mut other, "a", "tid"), TENANT);
    session.run(&format!("ALTER SERVER a OPTIONS (SET tenant_id '{OTHER_TENANT}')"));
    assert_eq!(claim(&mut other, "a", "tid"), OTHER_TENANT);
    assert_eq!(token(&mut session, "a"), tokens[1]);
}

#[test]
fn options_alone_are_enough_for_any_issuer() {
    let pod = Pod::without_environment();
    let github = OidcIssuer::new("https://token.actions.test").unwrap();
    let subject = "repo:contoso/orders:ref:refs/heads/main";
    pod.entra.trust(TENANT, &Identity::user("deploy"), &github, subject).unwrap();
    let mut claims = github.claims(subject);
    claims["aud"] = json!(EXCHANGE);
    claims["repository"] = json!("contoso/orders");
    let write = || pod.write(&github.sign(&claims).unwrap());
    write();
    let mut session = pod.world.session();
    let token = "SELECT managed_identity.access_token('storage', 'deploy')";
    session.run("CREATE SERVER deploy FOREIGN DATA WRAPPER managed_identity OPTIONS (kind 'workload-identity')");
    // Option by option, in any order: at each use the next one that is missing is named.
    for (option, value) in
        [("client_id", client("deploy")), ("tenant_id", TENANT.into()), ("token_file", pod.token_file())]
    {
        refused(&mut session, "22023", option, token);
        session.run(&format!("ALTER SERVER deploy OPTIONS (ADD {option} '{value}')"));
    }
    session.run(&format!("ALTER SERVER deploy OPTIONS (ADD authority '{}')", pod.entra.authority()));
    assert_eq!(claim(&mut session, "deploy", "appid"), client("deploy"));
    // The machine itself is none the wiser: its tokens come from its own endpoint.
    assert_eq!(claim(&mut session, "machine", "appid"), client("node"));
    assert_eq!((pod.entra.log().count(), pod.world.asked()), (1, 1));
    nothing_leaked(&pod);
}

#[test]
fn what_names_a_file_or_a_host_is_a_superusers() {
    let pod = Pod::new();
    let world = &pod.world;
    let mut maker = world.role("maker");
    let mut session = world.session();
    session.run(
        "GRANT USAGE ON FOREIGN DATA WRAPPER managed_identity TO maker;
         GRANT EXECUTE ON FUNCTION managed_identity.access_token TO maker",
    );
    let values = [
        ("token_file", "/etc/hostname".to_owned()),
        ("authority", "https://login.test".to_owned()),
        ("source", "imds".to_owned()),
    ];
    maker.run(&format!("CREATE SERVER mine FOREIGN DATA WRAPPER managed_identity OPTIONS (tenant_id '{TENANT}')"));
    for (option, value) in &values {
        let is_refused = |session: &mut Session, sql: &str| {
            let error = session.error(sql);
            assert_eq!(error.code().code(), "42501", "{sql}: {error:?}");
            assert!(error.message().contains(option), "{sql}: {error:?}");
        };
        is_refused(
            &mut maker,
            &format!("CREATE SERVER x FOREIGN DATA WRAPPER managed_identity OPTIONS ({option} '{value}')"),
        );
        is_refused(&mut maker, &format!("ALTER SERVER mine OPTIONS (ADD {option} '{value}')"));
        session.run(&format!("ALTER SERVER mine OPTIONS (ADD {option} '{value}')"));
        is_refused(&mut maker, &format!("ALTER SERVER mine OPTIONS (SET {option} '{value}')"));
        is_refused(&mut maker, &format!("ALTER SERVER mine OPTIONS (SET tenant_id '{OTHER_TENANT}')"));
        maker.run(&format!("ALTER SERVER mine OPTIONS (DROP {option})"));
    }
    maker.run("SELECT managed_identity.access_token('storage', 'mine')");
    // Nor can a session say where the file's content goes.
    for setting in ["source = 'imds'", "authority_host = 'https://login.test'"] {
        assert_eq!(session.sqlstate(&format!("SET managed_identity.{setting}")), "55P02");
    }
    for value in ["http://login.test", "https://login.test/x", "https://u@login.test", "login test"] {
        let sql = format!("ALTER SYSTEM SET managed_identity.authority_host = '{value}'");
        assert_eq!(session.sqlstate(&sql), "22023", "{value}");
    }
}

#[test]
fn the_settings_choose_source_and_authority_for_the_whole_server() {
    let pod = Pod::new();
    let world = &pod.world;
    let mut open = world.session();
    assert_eq!(claim(&mut open, "machine", "appid"), client("pod"));
    let second = world.emulator.entra().unwrap();
    second.trust(TENANT, &Identity::user("pod"), &pod.issuer, SUBJECT).unwrap();
    world.set("managed_identity.authority_host", &second.authority());
    let reloaded = |open: &mut Session, name: &str, value: &str| {
        wait::until("the open session has reloaded", || open.value(&format!("SHOW managed_identity.{name}")) == value);
    };
    reloaded(&mut open, "authority_host", &second.authority());
    open.run(TOKEN);
    assert_eq!((pod.entra.log().count(), second.log().count()), (1, 1));
    world.set("managed_identity.source", "imds");
    reloaded(&mut open, "source", "imds");
    assert_eq!(claim(&mut open, "machine", "appid"), client("node"));
    // A server's own words count more than the setting.
    open.run(
        "CREATE SERVER own FOREIGN DATA WRAPPER managed_identity OPTIONS (kind 'workload-identity');
         CREATE SERVER node FOREIGN DATA WRAPPER managed_identity OPTIONS (source 'imds')",
    );
    assert_eq!(claim(&mut open, "own", "appid"), client("pod"));
    world.set("managed_identity.source", "workload_identity");
    reloaded(&mut open, "source", "workload_identity");
    assert_eq!(claim(&mut open, "node", "appid"), client("node"));
    assert_eq!(claim(&mut open, "machine", "appid"), client("pod"));
}

#[test]
fn an_environment_that_cannot_be_right_is_told_by_its_variable() {
    let no_tls = Options::default()
        .environment("AZURE_CLIENT_ID", &client("pod"))
        .environment("AZURE_TENANT_ID", TENANT)
        .environment("AZURE_FEDERATED_TOKEN_FILE", "/etc/hostname")
        .environment("AZURE_AUTHORITY_HOST", "http://login.test/");
    let world = World::with(no_tls, vec![Identity::system()]);
    let error = world.session().error(TOKEN);
    assert_eq!(error.code().code(), "22023", "{error:?}");
    assert!(error.message().contains("AZURE_AUTHORITY_HOST"), "{error:?}");
    // Two of three variables, and one that is empty, are not workload identity.
    let half = Options::default()
        .environment("AZURE_CLIENT_ID", &client("pod"))
        .environment("AZURE_TENANT_ID", TENANT)
        .environment("AZURE_FEDERATED_TOKEN_FILE", "");
    let world = World::with(half, vec![Identity::system()]);
    world.session().run(TOKEN);
    assert_eq!(world.asked(), 1);
}

#[test]
fn a_kind_is_strict() {
    let pod = Pod::new();
    let mut session = pod.world.session();
    let create = |name: &str, kind: &str, options: &str| {
        format!("CREATE SERVER {name} {kind} FOREIGN DATA WRAPPER managed_identity {options}")
    };
    let object_id = Identity::user("pod").object_id;
    for (name, kind, options, word) in [
        ("a", "", "OPTIONS (kind 'system-assigned')".to_owned(), "source"),
        ("b", "TYPE 'system-assigned'", String::new(), "source"),
        ("c", "TYPE 'system-assigned'", "OPTIONS (kind 'workload-identity')".to_owned(), "TYPE"),
        ("d", "", format!("OPTIONS (object_id '{object_id}')"), "client_id"),
        ("e", "", "OPTIONS (kind 'user-assigned')".to_owned(), "client_id"),
        ("f", "", "OPTIONS (kind 'workload-identity', source 'imds')".to_owned(), "source"),
        ("g", "TYPE 'nonsense'", String::new(), "workload-identity"),
    ] {
        session.run(&create(name, kind, &options));
        refused(&mut session, "22023", word, &format!("SELECT managed_identity.access_token('storage', '{name}')"));
    }
    assert_eq!((pod.entra.log().count(), pod.world.asked()), (0, 0), "nothing was asked");
    // A server that cannot be used hides no other from the view.
    session.run(&create("h", "TYPE 'workload-identity'", "OPTIONS (kind 'workload-identity')"));
    session.run("SELECT managed_identity.access_token('storage', 'h')");
    assert_eq!(session.value("SELECT count(*) FROM managed_identity.cached_tokens"), "1");

    let vm = World::with(Options::default(), vec![Identity::user("only")]);
    let mut session = vm.session();
    session.run(&create("strict", "", "OPTIONS (kind 'system-assigned')"));
    session.run(TOKEN);
    let strict = "SELECT managed_identity.access_token('storage', 'strict')";
    let error = refused(&mut session, "28000", "system-assigned", strict);
    assert!(error.detail().is_some_and(|detail| detail.contains("\"only\"")), "{error:?}");
    vm.emulator.identity().assign(vec![Identity::system(), Identity::user("only")]).unwrap();
    assert_eq!(claim(&mut session, "strict", "appid"), Identity::system().client_id);
    let kinds = "SELECT identity, kind FROM managed_identity.cached_tokens ORDER BY identity";
    assert_eq!(session.rows(kinds), ["machine|automatic", "strict|system-assigned"]);
}
