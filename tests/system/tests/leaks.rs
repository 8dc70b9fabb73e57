//! No token, secret or answer of a service ever shows: not in the log at its most talkative, not in a view, not
//! in what a client is told, and not on disk. The search is shown to find what is there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fmt::Write;
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;

use emulator::{Fault, Filter, Key, Pki, Refuses, Reply, Rule, Secret, TlsNeverAnswers};
use postgres::NoTls;
use server_tests::wait::LONG;
use server_tests::{ACCOUNT, Options, Session, World};

/// An answer of each status, each with a canary where a service could put one.
const STATUSES: [u16; 15] = [302, 400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 418, 429, 500, 503];

/// A text that nothing else holds.
fn canary(what: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    format!("canary{what}{now:x}{:x}", std::process::id())
}

fn talkative() -> Options {
    Options::default()
        .conf("log_min_messages = debug5")
        .conf("log_statement = all")
        .conf("log_min_error_statement = debug5")
        .conf("log_error_verbosity = verbose")
        .conf("log_duration = on")
        .conf("client_min_messages = debug5")
        .conf("managed_identity.acquire_timeout = '1s'")
}

/// A world, its canary, and everything that clients were told.
struct Stage {
    world: World,
    canary: String,
    heard: Mutex<String>,
}

impl Stage {
    fn session(&self) -> Session {
        self.world.session()
    }

    /// Keeps what a session is told.
    fn hear(&self, session: &Session, said: &str) {
        let mut heard = self.heard.lock().unwrap();
        writeln!(heard, "{said} {:?}", session.notices()).unwrap();
    }

    fn fails(&self, session: &mut Session, sql: &str) -> String {
        let error = session.error(sql);
        self.hear(session, &format!("{error:?}"));
        error.code().code().to_owned()
    }

    fn works(&self, session: &mut Session, sql: &str) {
        session.run(sql);
        self.hear(session, "");
    }

    /// Keeps what the views say of all sessions and tokens.
    fn look(&self) {
        let mut session = self.session();
        let ours = ["cached_tokens", "stat_requests", "status"].map(|view| format!("managed_identity.{view}"));
        let cores = ["pg_stat_activity", "pg_stat_progress_copy", "pg_settings"].map(str::to_owned);
        for view in ours.iter().chain(&cores) {
            let rows = session.rows(&format!("SELECT to_json(v) FROM {view} v"));
            self.hear(&session, &rows.join("\n"));
        }
    }

    /// Answers that hold the canary in every place a careless client could quote.
    fn reply(&self, status: u16) -> Reply {
        let canary = &self.canary;
        Reply::new(status)
            .header("location", &format!("https://127.0.0.1:1/?sig={canary}"))
            .header("retry-after", canary)
            .header("www-authenticate", &format!("Bearer authorization=\"https://127.0.0.1:1/{canary}\""))
            .header("x-ms-request-id", &format!("id of <{canary}>"))
            .header("x-ms-error-code", &format!("code of <{canary}>"))
            .body(format!(
                "{{\"error\": {{\"code\": \"a {canary}\", \"message\": \"{canary}\"}}, \"access_token\": \"{canary}\", \
                 \"error_description\": \"{canary}\", \"value\": 7}}"
            ))
    }

    /// Each status and each kind of nonsense; all but the plain faults carry the canary.
    fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = STATUSES.iter().map(|status| self.reply(*status).into()).collect();
        let canary = &self.canary;
        for body in [
            canary.clone(),
            format!("<html>{canary}</html>"),
            format!("{{\"{canary}\": \"{canary}\"}}"),
            format!("{{\"access_token\": \"{canary}\""),
            format!("{{\"access_token\": \"{canary}\", \"expires_on\": \"{canary}\", \"value\": [\"{canary}\"]}}"),
            format!("{{\"access_token\": \"{canary}\", \"expires_on\": \"1\", \"token_type\": \"Bearer\"}}"),
            format!(
                "{{\"access_token\": \"{canary}\\u0000\\n\", \"expires_on\": \"9999999999\", \"value\": \"{canary}\\u0000\"}}"
            ),
            canary.repeat(200_000),
        ] {
            faults.push(Reply::new(200).header("content-type", "application/json").body(body).into());
        }
        faults.extend([Fault::Reset, Fault::Truncate { after: 90 }, Fault::Cut { after: 90 }]);
        faults
    }

    /// Cancels `sql` once a peer holds its request.
    fn cancelled(&self, sql: &str, held: &emulator::Log) {
        let mut session = self.session();
        let cancel = session.client().cancel_token();
        std::thread::scope(|scope| {
            let running = scope.spawn(move || (self.fails(&mut session, sql), session));
            held.wait_for_held(1, LONG).unwrap();
            self.look();
            cancel.cancel_query(NoTls).unwrap();
            let (sqlstate, mut session) = running.join().unwrap();
            assert_eq!(sqlstate, "57014", "{sql}");
            self.works(&mut session, "SELECT 1");
        });
    }

    /// What must not show: the canary, and of each token all of it, its claims, its signature and parts of that.
    fn hidden(&self) -> Vec<String> {
        let mut hidden = vec![self.canary.clone()];
        let tokens = self.world.emulator.issued_tokens();
        assert!(tokens.len() > 20, "too few tokens for a search: {}", tokens.len());
        for token in tokens {
            let parts: Vec<&str> = token.split('.').collect();
            let signature = parts[2];
            hidden.extend([token.as_str(), parts[1], signature, &signature[..20]].map(str::to_owned));
            hidden.push(signature[signature.len() - 20..].to_owned());
        }
        hidden
    }

    /// The files of the server (its log, its data, its write-ahead log) that hold any of these.
    fn files_with(&self, hidden: &[String]) -> Vec<String> {
        let list = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(list.path(), hidden.join("\n")).unwrap();
        let mut grep = Command::new("grep");
        grep.env("LC_ALL", "C").args(["-r", "-l", "-a", "-F", "-f"]).arg(list.path()).arg(self.world.cluster.folder());
        let output = grep.output().expect("grep runs");
        // 2 is also said of a file that went away meanwhile or of a socket.
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.lines().all(|line| line.contains("No such ") || line.contains(".PGSQL.")), "{errors}");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}

fn stage() -> Stage {
    let stage = Stage { world: World::with_storage_and(talkative()), canary: canary("value"), heard: Mutex::default() };
    stage.world.emulator.vault().put(Secret::new("secret", &stage.canary)).unwrap();
    stage.world.azurite().put("box/good.csv", "1\n2\n");
    stage.world.emulator.vault().put_key(Key::rsa("kek", 2048)).unwrap();
    stage.session().run(
        "CREATE TABLE t (a int); INSERT INTO t VALUES (1);
         ALTER SERVER vault OPTIONS (SET allow 'secrets,keys,wrap,unwrap,encrypt,decrypt')",
    );
    stage
}

/// A secret, and the same wrapped by a key of its vault.
const SECRET: &str = "convert_to(azure_key_vault.secret('vault', 'secret'), 'UTF8')";
const WRAPPED: &str =
    "azure_key_vault.wrap_key('vault', 'kek', convert_to(azure_key_vault.secret('vault', 'secret'), 'UTF8'))";

/// Tokens and secrets pass through SQL without being any statement's result.
fn successes(stage: &Stage) {
    let mut session = stage.session();
    let (from, to) = (stage.world.url("box/good.csv"), stage.world.url("box/out.csv.gz"));
    for sql in [
        format!("COPY t FROM '{from}'"),
        format!("COPY t TO '{to}'"),
        format!("COPY t FROM '{to}'"),
        "DO $$ BEGIN PERFORM managed_identity.access_token('storage'); END $$".into(),
        "DO $$ BEGIN PERFORM managed_identity.access_token('storage', NULL, true); END $$".into(),
        "SELECT * FROM managed_identity.diagnose('key-vault', 'keys')".into(),
        "DO $$ BEGIN PERFORM managed_identity.authorization_header('key-vault', 'keys'); END $$".into(),
        "DO $$ DECLARE s text := azure_key_vault.secret('vault', 'secret'); BEGIN PERFORM length(s); END $$".into(),
        "DO $$ BEGIN PERFORM azure_key_vault.secret_properties('vault', 'secret'); END $$".into(),
        format!(
            "DO $$ BEGIN PERFORM length(azure_key_vault.unwrap_key('vault', kid, ciphertext)) FROM {WRAPPED}; END $$"
        ),
        format!("DO $$ BEGIN PERFORM length(azure_key_vault.decrypt('vault', kid, ciphertext)) FROM {WRAPPED}; END $$"),
        "SELECT * FROM azure_key_vault.diagnose('vault', 'kek')".into(),
    ] {
        stage.works(&mut session, &sql);
    }
    // An error elsewhere in a statement that holds them.
    stage.fails(&mut session, "SELECT length(azure_key_vault.secret('vault', 'secret')) / (random() * 0)::int");
    stage.fails(&mut session, "SELECT length(managed_identity.access_token('storage')) / (random() * 0)::int");
    let unwrapped = "length(azure_key_vault.unwrap_key('vault', kid, ciphertext))";
    stage.fails(&mut session, &format!("SELECT {unwrapped} / (random() * 0)::int FROM {WRAPPED}"));
    // The plaintext has another key's length.
    stage.fails(&mut session, &format!("SELECT azure_key_vault.unwrap_key('vault', kid, {SECRET}) FROM {WRAPPED}"));
}

/// Each fault at each peer; those that are tried again for seconds run side by side.
fn refusals(stage: &Stage) {
    let world = &stage.world;
    std::thread::scope(|scope| {
        for (case, fault) in stage.faults().into_iter().enumerate() {
            let (name, resource) = (format!("case-{case:02}"), format!("https://case-{case:02}.test/"));
            world.emulator.identity().faults().add(Rule::new(fault.clone()).when(Filter::query(&resource)));
            world.emulator.vault().faults().add(Rule::new(fault.clone()).when(Filter::path(&format!("/{name}"))));
            world.emulator.vault().put(Secret::new(&name, &stage.canary)).unwrap();
            world.azurite().put(&format!("box/{name}-from.csv"), "1\n".repeat(1000));
            let storage = Filter::path(&format!("/{name}-"));
            let always_fails = matches!(&fault, Fault::Status(reply) if reply.status != 200);
            world.proxy().faults().add(Rule::new(fault).when(storage));
            let token = format!("SELECT managed_identity.access_token('{resource}')");
            let secret = format!("SELECT azure_key_vault.secret('vault', '{name}')");
            let from = format!("COPY t FROM '{}'", world.url(&format!("box/{name}-from.csv")));
            let to = format!("COPY t TO '{}'", world.url(&format!("box/{name}-to.csv")));
            let steps = format!("SELECT to_json(d) FROM managed_identity.diagnose('{resource}') d");
            let all = [(token, true), (secret, true), (steps, false), (from, always_fails), (to, always_fails)];
            for (sql, fails) in all {
                scope.spawn(move || {
                    let mut session = stage.session();
                    // A peer that breaks off again and again is given up by the statement.
                    session.run("SET statement_timeout = '20s'");
                    match session.try_rows(&sql) {
                        Ok(rows) => {
                            assert!(!fails, "{sql}: {rows:?}");
                            stage.hear(&session, &rows.join("\n"));
                        }
                        Err(error) => stage.hear(&session, &format!("{error:?}")),
                    }
                    stage.hear(&session, "");
                });
            }
        }
    });
    // The canaries were really there to be quoted.
    let proxied = world.proxy().log().counters().by_status;
    let vaults = world.emulator.vault().log().counters().by_status;
    let identities = world.emulator.identity().log().counters().by_status;
    for status in STATUSES {
        for counts in [&proxied, &vaults, &identities] {
            assert!(counts.contains_key(&status), "{status} {counts:?}");
        }
    }
    for faults in [world.emulator.identity().faults(), world.emulator.vault().faults(), world.proxy().faults()] {
        faults.clear();
    }
}

/// Nobody answers, or somebody else.
fn unreachable(stage: &Stage) {
    let world = &stage.world;
    let (refuses, silent) = (Refuses::start().unwrap(), TlsNeverAnswers::start().unwrap());
    let mut session = stage.session();
    session.run(&format!(
        "CREATE SERVER refuses FOREIGN DATA WRAPPER azure_storage
             OPTIONS (account '{ACCOUNT}', endpoint 'https://{0}/{ACCOUNT}');
         CREATE SERVER silent FOREIGN DATA WRAPPER azure_storage
             OPTIONS (account '{ACCOUNT}', endpoint '{1}/{ACCOUNT}');
         CREATE SERVER away FOREIGN DATA WRAPPER azure_key_vault
             OPTIONS (vault_uri 'https://{0}', identity 'keys', allow 'secrets')",
        refuses.address(),
        silent.endpoint()
    ));
    let copy = format!("COPY t FROM '{}'", world.url("box/good.csv"));
    let secret = "SELECT azure_key_vault.secret('vault', 'secret')";
    let hidden_token = "DO $$ BEGIN PERFORM managed_identity.access_token('sql'); END $$";
    stage.fails(&mut session, &format!("COPY t FROM 'https://{}/{ACCOUNT}/box/good.csv'", refuses.address()));
    stage.fails(&mut session, "SELECT azure_key_vault.secret('away', 'secret')");
    stage.cancelled(&format!("COPY t FROM '{}/{ACCOUNT}/box/good.csv'", silent.endpoint()), silent.log());
    for fault in [Fault::HangBeforeHeaders, Fault::HangInBody { after: 1 }] {
        for faults in [world.emulator.identity().faults(), world.emulator.vault().faults(), world.proxy().faults()] {
            faults.always(fault.clone());
        }
        session.run("SELECT managed_identity.forget_tokens('sql')");
        stage.cancelled(hidden_token, world.emulator.identity().log());
        stage.cancelled(secret, world.emulator.vault().log());
        stage.cancelled(&copy, world.proxy().log());
        for faults in [world.emulator.identity().faults(), world.emulator.vault().faults(), world.proxy().faults()] {
            faults.clear();
            faults.release();
        }
        for log in [world.emulator.identity().log(), world.emulator.vault().log(), world.proxy().log()] {
            log.wait_until("nothing held", LONG, |state| state.held() == 0).unwrap();
        }
    }
    // Expired when it comes, and expired while the peer is asked.
    world.emulator.identity().set_token_life(-10);
    stage.fails(&mut session, "SELECT managed_identity.access_token('graph')");
    world.emulator.identity().set_token_life(3600);
    let ours = session.value("SHOW managed_identity.tls_ca_file");
    let other = world.cluster.file("other-ca.pem", Pki::create().unwrap().ca_pem());
    world.set("managed_identity.tls_ca_file", &other);
    let mut session = stage.session();
    assert_eq!(stage.fails(&mut session, &copy), "08001");
    assert_eq!(stage.fails(&mut session, secret), "08001");
    world.set("managed_identity.tls_ca_file", &ours);
    world.set("managed_identity.imds_endpoint", &format!("http://{}", refuses.address()));
    assert_eq!(stage.fails(&mut stage.session(), "SELECT managed_identity.access_token('storage')"), "08001");
    world.set("managed_identity.imds_endpoint", &world.emulator.imds_endpoint());
}

/// A refused URL's query: the statement has it, so that log lines of statements are left out.
fn queries_of_urls(stage: &Stage) {
    let signature = canary("sig");
    let mut session = stage.session();
    for (url, option) in [
        (format!("{}?sig={signature}", stage.world.url("box/good.csv")), ""),
        (format!("{}#{signature}", stage.world.url("box/good.csv")), ""),
        (format!("https://u:{signature}@127.0.0.1/box/good.csv"), "WITH (FORMAT csv)"),
        (format!("https://nobody.blob.core.windows.net/box/good.csv?{signature}"), ""),
    ] {
        let create = format!("CREATE SERVER x FOREIGN DATA WRAPPER azure_storage OPTIONS (endpoint '{url}')");
        for sql in [format!("COPY t FROM '{url}' {option}"), format!("COPY t TO '{url}' {option}"), create] {
            let error = session.error(&sql);
            assert_eq!(error.code().code(), "22023", "{error:?}");
            let said = [Some(error.message()), error.detail(), error.hint()].map(Option::unwrap_or_default).join("");
            assert!(!said.contains(&signature), "{said}");
        }
    }
    let log = stage.world.cluster.log();
    let statement = |line: &&str| line.contains("STATEMENT:") || line.contains("statement: ");
    assert!(log.lines().filter(statement).any(|line| line.contains(&signature)), "the search finds it");
    let leaked: Vec<&str> = log.lines().filter(|line| !statement(line) && line.contains(&signature)).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

#[test]
fn nothing_secret_shows_on_any_path_at_debug5_and_the_search_would_find_it() {
    let stage = stage();
    successes(&stage);
    refusals(&stage);
    unreachable(&stage);
    successes(&stage);
    queries_of_urls(&stage);
    stage.look();
    let log = stage.world.cluster.log();
    assert!(log.contains("DEBUG:") && log.contains("LOG:  00000: statement: COPY"), "the log is at its most talkative");
    for text in ["panicked at", "stack backtrace", "RUST_BACKTRACE", "was terminated by signal"] {
        assert!(!log.contains(text), "{text}");
    }
    let heard = stage.heard.lock().unwrap().clone();
    assert!(heard.contains("DEBUG") && !heard.contains("panicked at"));
    let hidden = stage.hidden();
    let shown: Vec<&String> = hidden.iter().filter(|hidden| heard.contains(hidden.as_str())).collect();
    assert!(shown.is_empty(), "clients were told {shown:?}");
    assert_eq!(stage.files_with(&hidden), Vec::<String>::new());

    // What the test itself puts there is found: one token in the log, one in the database.
    let mut session = stage.session();
    session.run("DO $$ BEGIN RAISE LOG '%', managed_identity.access_token('storage'); END $$");
    let found = stage.files_with(&hidden);
    assert_eq!(found, [stage.world.cluster.folder().join("log").to_str().unwrap()]);
    session.run("CREATE TABLE kept AS SELECT managed_identity.access_token('storage')");
    assert!(stage.files_with(&hidden).len() > 1);
    session.run("DO $$ BEGIN RAISE NOTICE '%', managed_identity.access_token('storage'); END $$");
    let told = format!("{:?}", session.notices());
    assert!(hidden.iter().any(|hidden| told.contains(hidden.as_str())));
}
