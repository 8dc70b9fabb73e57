//! Tokens: which identity, for what, and what a user is told when there is none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::thread;

use emulator::{Config, Emulator, Fault, Filter, Identity, Pki, Refuses, Reply, ResetOnAccept, Rule};
use server_tests::{Options, Session, World, wait};

const TOKEN: &str = "SELECT managed_identity.access_token('storage')";

fn token(resource: &str, identity: &str) -> String {
    format!("SELECT managed_identity.access_token('{resource}', '{identity}')")
}

/// The identity that the endpoint was last asked for, and the resource.
fn last(world: &World) -> (String, String) {
    let entry = world.emulator.identity().log().requests().pop().expect("a request");
    (entry.identity.unwrap_or_default(), entry.resource.unwrap_or_default())
}

/// The SQLSTATE, and a DETAIL and HINT that hold these texts (none where it is empty).
fn refused(session: &mut Session, sql: &str, (sqlstate, detail, hint): (&str, &str, &str)) {
    let error = session.error(sql);
    assert_eq!(error.code().code(), sqlstate, "{sql}: {error:?}");
    for (what, said, wanted) in [("detail", error.detail(), detail), ("hint", error.hint(), hint)] {
        let fits = said.map_or(wanted.is_empty(), |said| said.contains(wanted) && !wanted.is_empty());
        assert!(fits, "{sql}: {what} is {said:?}, wanted {wanted:?}: {error:?}");
    }
}

#[test]
fn the_machines_identity_and_one_chosen_by_each_selector() {
    let world = World::new();
    let mut session = world.session();
    let token_text = session.value(TOKEN);
    let entry = &world.emulator.identity().log().requests()[0];
    assert_eq!(entry.token.as_deref(), Some(token_text.as_str()));
    assert_eq!(entry.identity.as_deref(), Some("system"));
    assert_eq!(entry.query("resource"), Some("https://storage.azure.com/"));
    assert_eq!(
        session.value("SELECT managed_identity.authorization_header('storage')"),
        format!("Bearer {token_text}")
    );
    assert_eq!(world.asked(), 1, "the header came from the cache");

    let keys = Identity::user("keys");
    let selectors = [
        ("client_id", "client_id", &keys.client_id),
        ("object_id", "object_id", &keys.object_id),
        ("resource_id", "msi_res_id", &keys.resource_id),
    ];
    for (option, parameter, id) in selectors {
        // Azure compares ids without regard to case: so do we, and equal identities share a token.
        let wrapper = "FOREIGN DATA WRAPPER managed_identity OPTIONS";
        session.run(&format!("CREATE SERVER by_{option} {wrapper} ({option} '{}')", id.to_uppercase()));
        session.run(&format!("CREATE SERVER again_{option} {wrapper} ({option} '{id}')"));
        let chosen = session.value(&token("storage", &format!("by_{option}")));
        assert_eq!(last(&world).0, "keys", "{option}");
        let entry = world.emulator.identity().log().requests().pop().expect("a request");
        assert_eq!(entry.query(parameter), Some(id.to_lowercase().as_str()), "{option}");
        let asked = world.asked();
        assert_eq!(session.value(&token("storage", &format!("again_{option}"))), chosen, "{option}");
        assert_eq!(world.asked(), asked, "{option}: one identity, one token");
    }
    // Automatic means what the machine gives: without one of its own, the only one it was assigned.
    let only = Identity::user("only");
    world.emulator.identity().assign(vec![only]).expect("an identity");
    session.run("SELECT managed_identity.access_token('sql')");
    assert_eq!(last(&world).0, "only");
}

#[test]
fn container_instances_give_the_identity_that_a_resource_id_names() {
    let [a, keys] = ["a", "keys"].map(Identity::user);
    let world = World::with(Options::default(), vec![Identity::system(), a, keys.clone()]);
    world.emulator.identity().set_container_instances(true);
    let mut session = world.session();
    for (option, id) in
        [("client_id", &keys.client_id), ("object_id", &keys.object_id), ("resource_id", &keys.resource_id)]
    {
        let wrapper = "FOREIGN DATA WRAPPER managed_identity OPTIONS";
        session.run(&format!("CREATE SERVER by_{option} {wrapper} ({option} '{id}')"));
        session.run(&token("storage", &format!("by_{option}")));
        assert_eq!(last(&world).0, "keys", "{option}");
    }
    session.run(TOKEN);
    assert_eq!(last(&world).0, "system");
    // What refuses in plain text is told as what refuses in JSON, and not quoted.
    let refusal = Reply::new(400).header("Content-Type", "text/plain; charset=utf-8");
    world.emulator.identity().faults().next(1, refusal.body("Required metadata header not specified canary"));
    let error = session.error(&token("sql", "machine"));
    assert_eq!(error.code().code(), "28000", "{error:?}");
    assert!(!format!("{error:?}").contains("canary"), "{error:?}");
}

#[test]
fn a_resource_is_an_alias_a_uri_an_application_or_a_scope() {
    let world = World::new();
    let mut session = world.session();
    let guid = "11111111-2222-3333-4444-555555555555";
    let cases = [
        ("storage", "https://storage.azure.com/"),
        ("key-vault", "https://vault.azure.net"),
        ("managed-hsm", "https://managedhsm.azure.net"),
        ("postgresql", "https://ossrdbms-aad.database.windows.net"),
        ("sql", "https://database.windows.net/"),
        ("management", "https://management.azure.com/"),
        ("graph", "https://graph.microsoft.com"),
        ("fabric", "https://api.fabric.microsoft.com"),
        ("cognitive-services", "https://cognitiveservices.azure.com"),
        ("service-bus", "https://servicebus.azure.net"),
        ("event-hubs", "https://eventhubs.azure.net"),
        ("https://a.example.com/.default", "https://a.example.com"),
        ("https://b.example.com//.default", "https://b.example.com/"),
        ("https://c.example.com/.default/.default", "https://c.example.com/.default"),
        ("https://d.example.com/Path/", "https://d.example.com/Path/"),
        ("https://d.example.com/Path", "https://d.example.com/Path"),
        ("api://e.example.com/app", "api://e.example.com/app"),
        ("api://11111111-2222-3333-4444-555555555555/.default", "api://11111111-2222-3333-4444-555555555555"),
        (guid, guid),
    ];
    for (written, sent) in cases {
        session.run(&format!("SELECT managed_identity.access_token('{written}')"));
        assert_eq!(last(&world).1, sent, "{written}");
    }
    let asked = world.asked();
    assert_eq!(asked, cases.len());
    session.run("SELECT managed_identity.access_token('https://storage.azure.com//.default')");
    assert_eq!(world.asked(), asked, "another spelling of a resource is the same token");
    for resource in ["Storage", "storage/.default/x", "a.example.com", "/.default", "", "11111111-2222-3333-4444"] {
        let sql = format!("SELECT managed_identity.access_token('{resource}')");
        refused(&mut session, &sql, ("22023", "an absolute URI, an application id or an alias", "storage, key-vault"));
    }
    refused(&mut session, &token("storage", "keys"), ("42501", "", "resources"));
    assert_eq!(world.asked(), asked, "nothing was sent for what is refused");
    // An entry means the service, with and without the slash that distinguishes tokens.
    session.run("ALTER SERVER keys OPTIONS (SET resources 'sql,https://x.example.com')");
    for resource in ["sql", "https://database.windows.net", "https://x.example.com/"] {
        session.run(&token(resource, "keys"));
    }
    for resource in ["key-vault", "https://x.example.com/a", "https://x.example.com.evil.test"] {
        refused(&mut session, &token(resource, "keys"), ("42501", "", "resources"));
    }
}

#[test]
fn every_refusal_has_its_sqlstate_detail_and_hint() {
    let world = World::new();
    let mut session = world.session();
    session.run("SET managed_identity.acquire_timeout = '1s'");
    let reply = |status, body: &str| Fault::from(Reply::new(status).body(body));
    let status = |status| {
        let said = r#"{"error": "some_code", "error_description": "canary"}"#;
        Fault::from(Reply::new(status).header("x-ms-request-id", "id-17").body(said))
    };
    let other = Identity::user("other").client_id;
    let others = format!(r#"{{"access_token": "canary", "expires_in": "3600", "client_id": "{other}"}}"#);
    let answered = |status: u16| format!("answered {status}, error code some_code, request id id-17.");
    let (wrong, endpoint) = ("What is wrong", "correct managed_identity.imds_endpoint");
    let cases = [
        (status(400), "28000", answered(400), ""),
        (status(401), "28000", answered(401), "primary network interface"),
        (status(403), "28000", answered(403), "proxy"),
        (status(404), "58000", answered(404), "try again in a minute"),
        (status(410), "58000", answered(410), "try again in a minute"),
        (status(429), "53400", answered(429), "share the endpoint's limit"),
        (status(500), "58000", answered(500), "Try again in a minute"),
        (status(503), "58000", answered(503), "Try again in a minute"),
        (status(418), "08P01", answered(418), endpoint),
        (Reply::new(302).header("location", "http://127.0.0.1:1/").into(), "08P01", "answered 302".into(), endpoint),
        (reply(401, "<html>canary</html>"), "28000", "answered 401.".into(), "such as a transparent proxy"),
        (reply(200, ""), "08P01", wrong.into(), endpoint),
        (reply(200, "<html>canary</html>"), "08P01", wrong.into(), "such as a transparent proxy"),
        (reply(200, "[]"), "08P01", wrong.into(), endpoint),
        (reply(200, r#"{"access_token": 1, "expires_in": "3600"}"#), "08P01", wrong.into(), endpoint),
        (
            reply(200, r#"{"access_token": "", "expires_in": "3600"}"#),
            "08P01",
            "\"access_token\" is empty".into(),
            endpoint,
        ),
        (reply(200, r#"{"access_token": "canary", "expires_on": "soon"}"#), "08P01", wrong.into(), endpoint),
        (reply(200, r#"{"access_token": "canary", "expires_on": "1000000000"}"#), "08P01", "ended".into(), "clock"),
        (reply(200, &others), "28000", format!("client_id {other}"), "assign the identity"),
        (Fault::Reset, "08001", String::from("reset"), ""),
        (Fault::Truncate { after: 20 }, "08001", String::new(), ""),
    ];
    let faults = world.emulator.identity().faults();
    session.run("ALTER SERVER keys OPTIONS (DROP resources)");
    for (case, (fault, sqlstate, detail, hint)) in cases.into_iter().enumerate() {
        // A resource of its own, so that no pause after a failure touches the next case.
        faults.next(1, fault);
        let asked = world.asked();
        let sql = token(&format!("https://case{case}.example.com"), "keys");
        let error = session.error(&sql);
        assert_eq!(error.code().code(), sqlstate, "{case}: {error:?}");
        assert!(error.detail().is_some_and(|said| said.contains(&detail)), "{case}: {error:?}");
        let hinted = error.hint().map_or(hint.is_empty(), |said| !hint.is_empty() && said.contains(hint));
        assert!(hinted, "{case}: {error:?}");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        assert_eq!(world.asked(), asked + 1, "{case}: one request within one second");
    }
    // What the machine itself says.
    let unknown = "SELECT managed_identity.access_token('sql', 'unknown')";
    session.run(&format!("CREATE SERVER unknown FOREIGN DATA WRAPPER managed_identity OPTIONS (client_id '{other}')"));
    refused(&mut session, unknown, ("28000", "answered 400, error code invalid_request", "Assign this identity"));
    let identity = world.emulator.identity();
    identity.assign(vec![Identity::user("a"), Identity::user("b")]).expect("identities");
    refused(&mut session, TOKEN, ("28000", "answered 400", "client_id"));
    identity.assign(Vec::new()).expect("no identities");
    refused(&mut session, TOKEN, ("28000", "answered 400", "Assign a managed identity to this machine"));
    identity.assign(vec![Identity::system()]).expect("an identity");
    session.run(TOKEN);
}

#[test]
fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
    let world = World::new();
    let requests = |resource: &str| {
        let log = world.emulator.identity().log().requests();
        log.iter().filter(|entry| entry.raw_query.contains(resource)).count()
    };
    let asked_to_wait = |wish: &str| Fault::from(Reply::new(429).header("retry-after", wish));
    let date = |seconds: u32| {
        let date = "to_char(now() AT TIME ZONE 'UTC' + interval '1 second' * ";
        world.session().value(&format!("SELECT {date} {seconds}, 'Dy, DD Mon YYYY HH24:MI:SS \"GMT\"')"))
    };
    let cases = [
        ("r404", Fault::status(404), None, 2),
        ("r410", Fault::status(410), None, 2),
        ("r429", Fault::status(429), None, 2),
        ("r500", Fault::status(500), None, 2),
        ("r503", Fault::status(503), None, 2),
        ("reset", Fault::Reset, None, 2),
        ("asks1", asked_to_wait("1"), None, 2),
        // Longer than the caller would wait: no request comes too early.
        ("asks30", asked_to_wait("30"), Some("53400"), 1),
        ("date2", asked_to_wait(&date(2)), None, 2),
        ("date30", asked_to_wait(&date(30)), Some("53400"), 1),
        ("garbage", Reply::new(200).body("garbage").into(), Some("08P01"), 1),
        ("large", Reply::new(200).body("x".repeat(10 << 20)).into(), Some("54000"), 1),
        ("r400", Fault::status(400), Some("28000"), 1),
        ("r401", Fault::status(401), Some("28000"), 1),
        ("r403", Fault::status(403), Some("28000"), 1),
        ("r418", Fault::status(418), Some("08P01"), 1),
    ];
    thread::scope(|scope| {
        for (resource, fault, sqlstate, count) in cases {
            world.emulator.identity().faults().add(Rule::new(fault).times(1).when(Filter::query(resource)));
            let (requests, mut session) = (&requests, world.session());
            scope.spawn(move || {
                let sql = format!("SELECT managed_identity.access_token('https://{resource}.example.com')");
                let outcome = session.try_rows(&sql).map_err(|error| error.code().code().to_owned());
                assert_eq!(outcome.err().as_deref(), sqlstate, "{resource}");
                assert_eq!(requests(resource), count, "{resource}");
            });
        }
    });
}

#[test]
fn an_endpoint_that_cannot_be_reached_or_hangs_is_08001() {
    let world = World::new();
    let mut session = world.session();
    let faults = world.emulator.identity().faults();
    session.run("SET managed_identity.acquire_timeout = '300ms'");
    for (fault, resource) in [(Fault::HangBeforeHeaders, "graph"), (Fault::HangInBody { after: 5 }, "sql")] {
        faults.next(1, fault);
        let sql = format!("SELECT managed_identity.access_token('{resource}')");
        refused(&mut session, &sql, ("08001", "300 ms", "managed_identity.acquire_timeout"));
        assert_eq!(session.value("SELECT 1"), "1");
        // It says nothing about the endpoint to others, nor to this session.
        session.run("SET managed_identity.acquire_timeout = '10s'");
        session.run(&sql);
        session.run("SET managed_identity.acquire_timeout = '300ms'");
    }
    let nobody = Refuses::start().expect("a port");
    world.set("managed_identity.imds_endpoint", &format!("http://{}", nobody.address()));
    let error = world.session().error(TOKEN);
    assert_eq!(error.code().code(), "08001");
    assert!(error.message().contains(&nobody.address().to_string()), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("managed_identity.imds_endpoint")), "{error:?}");
    assert!(!format!("{error:?}").contains("resource="), "no query of a URL: {error:?}");
}

#[test]
fn another_endpoint_takes_effect_by_reload_and_one_that_cannot_work_is_refused() {
    let world = World::new();
    let second = Emulator::start(Config::new(Pki::create().expect("certificates"))).expect("an emulator");
    let mut open = world.session();
    let old = open.value(TOKEN);
    let before = open.value("SHOW managed_identity.imds_endpoint");
    world.set("managed_identity.imds_endpoint", &second.imds_endpoint());
    wait::until("the open session has reloaded", || {
        open.value("SHOW managed_identity.imds_endpoint") == second.imds_endpoint()
    });
    let new = open.value(TOKEN);
    assert_ne!(new, old, "a cached token of another endpoint is never served");
    assert_eq!(second.issued_tokens(), [new]);
    world.set("managed_identity.imds_endpoint", &before);
    wait::until("the open session has reloaded", || open.value("SHOW managed_identity.imds_endpoint") == before);
    assert_eq!(open.value(TOKEN), old);
    assert_eq!(world.asked(), 1);

    assert_eq!(open.sqlstate("SET managed_identity.imds_endpoint = 'http://127.0.0.1'"), "55P02");
    for (name, value) in [
        ("imds_endpoint", "ftp://127.0.0.1"),
        ("imds_endpoint", "http://127.0.0.1/path"),
        ("imds_endpoint", "http://user@127.0.0.1"),
        ("imds_endpoint", "http://127.0.0.1?a=b"),
        ("imds_endpoint", "127.0.0.1"),
        ("imds_endpoint", ""),
        ("imds_api_version", "2018-02-01&resource=x"),
        ("imds_api_version", ""),
        ("acquire_timeout", "99ms"),
        ("tls_ca_file", "/nowhere/ca.pem"),
    ] {
        assert_eq!(open.sqlstate(&format!("ALTER SYSTEM SET managed_identity.{name} = '{value}'")), "22023", "{value}");
    }
    // The same in the file, which ALTER SYSTEM did not check: the old value stays.
    world.cluster.session().run("ALTER SYSTEM RESET managed_identity.imds_endpoint");
    let file = world.cluster.data_folder().join("postgresql.conf");
    let text = std::fs::read_to_string(&file).expect("a file");
    std::fs::write(&file, text + "managed_identity.imds_endpoint = 'ftp://canary'\n").expect("a file");
    open.run("SELECT pg_reload_conf()");
    wait::until("the server has seen the file", || {
        world.cluster.log().contains("invalid value for parameter \"managed_identity.imds_endpoint\"")
    });
    assert_eq!(world.session().value("SHOW managed_identity.imds_endpoint"), before);
}

#[test]
fn a_proxy_of_the_environment_never_sees_a_token() {
    let proxy = ResetOnAccept::start().expect("a listener");
    let url = format!("http://{}", proxy.address());
    let mut options = Options::default();
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        options = options.environment(name, &url);
    }
    let world = World::with(options, vec![Identity::system(), Identity::user("keys")]);
    let mut session = world.session();
    session.run(TOKEN);
    session
        .run("SET managed_identity.acquire_timeout = '1s'; SELECT managed_identity.access_token('key-vault', 'keys')");
    assert_eq!(world.asked(), 2);
    assert_eq!(proxy.log().counters().accepted, 0);
    // Over plain http it could read the token of a storage request; nobody listens there, and nobody else is asked.
    session.run(
        "CREATE SERVER clear FOREIGN DATA WRAPPER azure_storage OPTIONS (endpoint 'http://127.0.0.1:9/clear');
         CREATE TABLE t (a int)",
    );
    assert_eq!(session.sqlstate("COPY t FROM 'http://127.0.0.1:9/clear/box/a.csv'"), "08001");
    assert_eq!(proxy.log().counters().accepted, 0);
    // The positive control: the server has these variables, and a service is asked by way of them.
    assert_eq!(session.sqlstate("SELECT azure_key_vault.secret('vault', 'db-password')"), "08001");
    assert_ne!(proxy.log().counters().accepted, 0);
    assert_eq!(world.emulator.vault().log().count(), 0);
}
