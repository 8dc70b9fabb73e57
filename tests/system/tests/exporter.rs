//! What Prometheus' postgres_exporter publishes of this extension, by the queries that are installed with it: `make
//! test-peers`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use emulator::Reply;
use server_tests::{ACCOUNT, World, given, pg_config, wait};

/// A running exporter. Ended when dropped.
struct Exporter {
    process: Child,
    address: String,
}

impl Exporter {
    /// Starts it as this role, with the queries beside the installed scripts.
    fn start(world: &World, role: &str) -> Self {
        let queries = Path::new(&pg_config("--sharedir")).join("extension/managed_identity/postgres_exporter.yml");
        assert!(queries.exists(), "install.sh brings {}", queries.display());
        let source = format!("host={} user={role} dbname=postgres sslmode=disable", world.cluster.folder().display());
        let mut process = Command::new(given("MI_POSTGRES_EXPORTER"))
            .args(["--web.listen-address=127.0.0.1:0", "--extend.query-path"])
            .arg(queries)
            .env("DATA_SOURCE_NAME", source)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the exporter starts");
        let lines = BufReader::new(process.stderr.take().expect("its log")).lines();
        let (say, hear) = channel();
        // Reads on for as long as it writes: a full pipe would stop it.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("{line}");
                if let Some((_, address)) = line.split_once("address=127.0.0.1:") {
                    let _ = say.send(format!("127.0.0.1:{}", address.trim()));
                }
            }
        });
        let address = hear.recv_timeout(wait::LONG).expect("it says where it listens");
        Self { process, address }
    }

    fn metrics(&self) -> String {
        let client = reqwest::blocking::Client::builder().no_proxy().timeout(wait::LONG).build().unwrap();
        client.get(format!("http://{}/metrics", self.address)).send().unwrap().text().unwrap()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Our metrics: name and labels, without those that the exporter adds of itself, and value.
fn ours(metrics: &str) -> BTreeMap<String, f64> {
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
        let labels = labels.strip_suffix('}')?.split(',').filter(|label| !label.starts_with("server="));
        Some((format!("{name}{{{}}}", labels.collect::<Vec<_>>().join(",")), value.parse().ok()?))
    };
    metrics.lines().filter(|line| line.starts_with("managed_identity_")).filter_map(sample).collect()
}

#[test]
fn a_role_with_pg_monitor_publishes_our_metrics_and_nothing_that_is_secret_or_of_a_urls_path() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("CREATE TABLE t (a int); CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher");
    world.azurite().put("box/path-of-a-blob.csv", "1\n2\n");
    assert_eq!(session.count(&format!("COPY t FROM '{}'", world.url("box/path-of-a-blob.csv"))), 2);
    session.run(&format!("COPY t TO '{}'", world.url("box/path-of-another.csv")));
    session.run("SELECT azure_key_vault.secret('vault', 'db-password')");
    session.run("SELECT managed_identity.access_token('https://canary.example.com/path-of-a-resource')");
    session.run("SELECT managed_identity.access_token('https://canary.example.com/another-path-of-it')");
    session.sqlstate(&format!("COPY t FROM '{}?sig=path-of-a-query'", world.url("box/a.csv")));
    world.proxy().faults().next(1, Reply::new(403).body("canary"));
    session.sqlstate(&format!("COPY t FROM '{}'", world.url("box/path-of-a-blob.csv")));

    let exporter = Exporter::start(&world, "watcher");
    let metrics = exporter.metrics();
    let ours = ours(&metrics);
    let value = |name: &str| *ours.get(name).unwrap_or_else(|| panic!("{name} is not in {ours:#?}"));
    let of = |metric: &str, kind: &str, server: &str, operation: &str| {
        value(&format!(
            "managed_identity_endpoint_{metric}{{database=\"postgres\",foreign_server=\"{server}\",kind=\"{kind}\",\
             operation=\"{operation}\"}}"
        ))
    };
    assert_eq!(of("requests_total", "azure_storage", ACCOUNT, "get"), 2.0);
    assert_eq!(of("errors_total", "azure_storage", ACCOUNT, "get"), 1.0);
    assert!(of("last_error_timestamp_seconds", "azure_storage", ACCOUNT, "get") > 0.0);
    assert_eq!(of("received_bytes_total", "azure_storage", ACCOUNT, "get"), 4.0);
    assert_eq!(of("sent_bytes_total", "azure_storage", ACCOUNT, "put"), 4.0);
    assert_eq!(of("requests_total", "azure_key_vault", "vault", "secret"), 1.0);
    assert_eq!(of("requests_total", "managed_identity", "machine", "token"), 3.0);
    assert!(of("wait_seconds_total", "managed_identity", "machine", "token") > 0.0);
    let version = env!("CARGO_PKG_VERSION");
    let info = format!("managed_identity_info{{roots=\"tls_ca_file\",source=\"imds\",version=\"{version}\"}}");
    assert_eq!(value(&info), 1.0);
    for (metric, expected) in [("preloaded", 1.0), ("slots_used", 4.0), ("slots_total", 256.0)] {
        assert_eq!(value(&format!("managed_identity_cache_{metric}{{}}")), expected, "{metric}");
    }
    assert!(value("managed_identity_cache_next_expiry_seconds{}") > 0.0);
    let token = |metric: &str, host: &str| {
        value(&format!(
            "managed_identity_token_{metric}{{identity=\"machine\",kind=\"automatic\",resource_host=\"{host}\",\
             source=\"imds\"}}"
        ))
    };
    assert_eq!((token("ready", "storage.azure.com"), token("fetches_total", "canary.example.com")), (1.0, 2.0));
    assert_eq!((token("ready", "canary.example.com"), token("failures_total", "storage.azure.com")), (2.0, 0.0));

    // The exporter's own word: nothing failed.
    assert!(metrics.contains("\npg_exporter_last_scrape_error 0\n"), "{metrics}");
    assert!(
        !metrics.lines().any(|line| line.starts_with("pg_exporter_user_queries_load_error") && !line.ends_with(" 0"))
    );
    for secret in world.emulator.issued_tokens() {
        assert!(!metrics.contains(&secret));
    }
    for hidden in ["hunter2", "db-password", "path-of", "sig=", "box/", "/devstoreaccount1"] {
        assert!(!metrics.contains(hidden), "{hidden}");
    }
    for label in ours.keys() {
        assert!(!label.contains('/') && !label.contains('?') && !label.contains("canary\""), "{label}");
    }
}
