//! An application of one's own that accepts Entra's tokens, called from SQL.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use emulator::{Identity, TokenRequest};
use server_tests::{Options, Session, World, given, has_extension};

const README: &str = include_str!("../../../README.md");

/// The running application. Ended when dropped.
struct Orders {
    process: Child,
    url: String,
}

impl Orders {
    fn start(world: &World) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/orders_api.py");
        let mut process = Command::new(given("MI_PYTHON"))
            .args([script, &world.emulator.jwks_uri(), &world.emulator.issuer().issuer(), "api://orders"])
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Python starts");
        let mut url = String::new();
        BufReader::new(process.stdout.take().expect("its output")).read_line(&mut url).expect("its URL");
        assert!(url.starts_with("http://"), "{script} does not start");
        Self { process, url: url.trim().to_owned() }
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whatever proxy the environment names: the application is here.
fn world() -> World {
    World::with(Options::default().environment("no_proxy", "127.0.0.1"), vec![Identity::system()])
}

/// `get(header)` is a query for what the application answers: status and content.
fn it_answers_to_its_own_tokens_alone(world: &World, session: &mut Session, get: impl Fn(&str) -> String) {
    let caller = Identity::system().client_id;
    let header = |resource: &str| format!("managed_identity.authorization_header('{resource}')");
    let answered = [format!("200|{{\"orders\": [17], \"caller\": \"{caller}\"}}")];
    assert_eq!(session.rows(&get(&header("api://orders"))), answered);
    assert_eq!(session.rows(&get(&header("api://orders"))), answered);
    assert_eq!(world.asked(), 1, "the second came from the cache");
    let refused = |why: &str| [format!("401|{{\"error\": \"{why}\"}}")];
    assert_eq!(session.rows(&get(&header("storage"))), refused("InvalidAudienceError"));
    assert_eq!(session.rows(&get("'Basic x'")), refused("InvalidTokenError"));
    // It does look at what it is shown.
    let issued = |request: TokenRequest| format!("'Bearer {}'", world.emulator.issuer().issue(&request).unwrap().text);
    let own = || TokenRequest::new("api://orders");
    assert_eq!(session.rows(&get(&issued(own().life(-600)))), refused("ExpiredSignatureError"));
    assert_eq!(session.rows(&get(&issued(own().claim("iss", "https://evil.test/")))), refused("InvalidIssuerError"));
    let mut nobody = world.role("nobody");
    assert_eq!(nobody.sqlstate(&get(&header("api://orders"))), "42501");
}

#[test]
fn an_own_application_is_called_by_pl_python() {
    if !has_extension("plpython3u", "an own application is called by PL/Python") {
        return;
    }
    let world = world();
    let orders = Orders::start(&world);
    let mut session = world.session();
    session.run(
        r#"CREATE EXTENSION plpython3u;
           CREATE FUNCTION get(url text, header text, OUT status int, OUT content text) LANGUAGE plpython3u AS $$
               from urllib import error, request
               try:
                   answer = request.urlopen(request.Request(url, headers={"Authorization": header}))
               except error.HTTPError as refusal:
                   answer = refusal
               return answer.status, answer.read().decode()
           $$"#,
    );
    let url = &orders.url;
    it_answers_to_its_own_tokens_alone(&world, &mut session, |header| format!("SELECT * FROM get('{url}', {header})"));
}

#[test]
fn an_own_application_is_called_by_pgsql_http_as_the_readme_shows() {
    if !has_extension("http", "an own application is called by pgsql-http") {
        return;
    }
    let world = world();
    let orders = Orders::start(&world);
    let mut session = world.session();
    session.run("CREATE EXTENSION http");
    let shown = README.split_once("SELECT status, content FROM http(").expect("the README's call").1;
    let shown = format!("SELECT status, content FROM http({}", shown.split_once(';').unwrap().0);
    let header = "managed_identity.authorization_header('api://orders')";
    let url = "https://orders.contoso.com/open";
    assert!(shown.contains(header) && shown.contains(url), "{shown}");
    let call = shown.replace(url, &orders.url);
    it_answers_to_its_own_tokens_alone(&world, &mut session, |other| call.replace(header, other));
}
