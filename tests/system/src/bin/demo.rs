//! `make demo`: a real server exports a table to a blob, imports it again and reads a secret from a vault,
//! with tokens that it fetched for its managed identities. Fails where anything is not as it should be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a demo that fails says where")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use emulator::{CA_CERTIFICATE, Config, Emulator, Identity, Pki, Proxy, Secret};
use reqwest::Certificate;
use reqwest::blocking::Client;
use server_tests::{ACCOUNT, Azurite, Cluster, Options, given};

const SECRET: &str = "correct horse battery staple";

/// Fetches the blob as any client of Azure would, with a token that it is given, and prints the MD5 of
/// its lines.
const MICROSOFTS_CLIENT: &str = r#"
import gzip, hashlib, sys, time
from azure.core.credentials import AccessToken
from azure.storage.blob import BlobClient
class Given:
    def get_token(self, *scopes, **kwargs):
        return AccessToken(token, int(time.time()) + 3600)
token = sys.stdin.readline().strip()
account, container, name, ca = sys.argv[1:]
blob = BlobClient(account, container, name, credential=Given(), connection_verify=ca, api_version="2023-11-03")
lines = gzip.decompress(blob.download_blob().readall()).decode().split("\n")
print(hashlib.md5("\n".join(lines[1:-1]).encode()).hexdigest())
"#;

fn main() {
    title("Peers on this machine: the identity endpoint and a vault (an emulator), and Azurite, which checks tokens");
    let mut config = Config::new(Pki::create().expect("certificates"));
    let vault_identity = Identity::user("vault-reader");
    config.identities = vec![Identity::system(), vault_identity.clone()];
    config.secrets = vec![Secret::new("mail-password", SECRET)];
    let emulator = Emulator::start(config).expect("the emulator");
    let azurite = Azurite::start(emulator.pki(), emulator.issuer());
    // In front of Azurite for its log of requests; it changes nothing.
    let proxy = emulator.proxy(azurite.endpoint()).expect("a proxy");
    azurite.create_container("export");
    println!("identity endpoint  {}", emulator.imds_endpoint());
    println!("vault              {}", emulator.vault_uri());
    println!("blob service       {}/{ACCOUNT}", proxy.endpoint());

    title("PostgreSQL, with the extension in shared_preload_libraries and these lines in postgresql.conf");
    let lines = [
        format!("managed_identity.imds_endpoint = '{}'", emulator.imds_endpoint()),
        "managed_identity.key_vault_hosts = '127.0.0.1'".to_owned(),
    ];
    println!("{}", lines.join("\n"));
    let cluster = Cluster::start(Options { conf: lines.into(), ..Options::default() });
    let ca = cluster.file(CA_CERTIFICATE, emulator.pki().ca_pem());
    show(
        &cluster,
        "postgres",
        &format!("ALTER SYSTEM SET managed_identity.tls_ca_file = '{ca}';\nSELECT pg_reload_conf();"),
    );

    title("What a DBA sets up");
    show(
        &cluster,
        "postgres",
        &format!(
            "CREATE EXTENSION managed_identity;
CREATE SERVER sales FOREIGN DATA WRAPPER azure_storage
    OPTIONS (account '{ACCOUNT}', endpoint '{}/{ACCOUNT}');
CREATE SERVER vault_identity FOREIGN DATA WRAPPER managed_identity
    OPTIONS (client_id '{}', resources 'key-vault');
CREATE SERVER payroll FOREIGN DATA WRAPPER azure_key_vault
    OPTIONS (vault_uri '{}', identity 'vault_identity', allow 'secrets');
CREATE ROLE etl LOGIN;
GRANT USAGE ON FOREIGN SERVER sales TO etl;
GRANT CREATE ON SCHEMA public TO etl;",
            proxy.endpoint(),
            vault_identity.client_id,
            emulator.vault_uri(),
        ),
    );

    title("A table goes to a blob");
    let url = format!("{}/{ACCOUNT}/export/orders.csv.gz", proxy.endpoint());
    let checksum =
        "SELECT count(*), md5(string_agg(concat_ws(',', id, customer, amount), E'\\n' ORDER BY id)) FROM orders";
    let table = "CREATE TABLE orders (id int PRIMARY KEY, customer text, amount numeric(10,2));";
    show(
        &cluster,
        "postgres",
        &format!(
            "{table}
INSERT INTO orders SELECT i, 'customer ' || i % 97, i * 0.01 FROM generate_series(1, 100000) i;
{checksum};
COPY orders TO '{url}' WITH (HEADER);
DROP TABLE orders;"
        ),
    );

    title("and comes back, by a role that holds USAGE on the server and can read no token");
    show(
        &cluster,
        "etl",
        &format!(
            "{table}\nCOPY orders FROM '{url}' WITH (HEADER);\n{checksum};\nSELECT managed_identity.access_token('storage');"
        ),
    );
    let mut session = cluster.session();
    let ours = session.value(checksum);
    let storage_token = session.value("SELECT managed_identity.access_token('storage')");
    let theirs = microsofts_client(&proxy, &storage_token, &ca);
    println!(
        "the table's checksum, and the blob's as Microsoft's azure-storage-blob reads it with the server's token:"
    );
    println!("{ours}\n       {theirs}");
    check(ours == format!("100000|{theirs}"), "both are equal");

    title("A secret, with a user-assigned identity");
    show(&cluster, "postgres", "SELECT azure_key_vault.secret('payroll', 'mail-password');");
    check(session.value("SELECT azure_key_vault.secret('payroll', 'mail-password')") == SECRET, "it is the vault's");

    title("A token opens only what it was made for");
    let vault_token = session.value("SELECT managed_identity.access_token('key-vault', 'vault_identity')");
    let authority = Certificate::from_pem(emulator.pki().ca_pem().as_bytes()).expect("a certificate");
    let client = Client::builder().tls_certs_only([authority]).no_proxy().build().expect("a client");
    let ask = |url: String, token: &str| {
        let request = client.get(url).header("x-ms-version", "2023-11-03").bearer_auth(token);
        request.send().expect("an answer").status().as_u16()
    };
    let secret_url = format!("{}/secrets/mail-password?api-version=2025-07-01", emulator.vault_uri());
    let (at_vault, at_storage) = (ask(secret_url, &storage_token), ask(url, &vault_token));
    println!("the vault answers the storage token {at_vault}, Azurite answers the vault token {at_storage}");
    check(matches!(at_vault, 401 | 403) && matches!(at_storage, 401 | 403), "both are refused");

    title("The cache that all sessions share");
    show(
        &cluster,
        "postgres",
        "SELECT identity, kind, resource, state, expires_at, hits, fetches FROM managed_identity.cached_tokens;",
    );

    title("What the peers have logged");
    requests(&emulator, &proxy);
    println!("\nAll is well. Nothing is left running.");
}

fn requests(emulator: &Emulator, proxy: &Proxy) {
    let asked = emulator.identity().log().requests();
    let mut seen: Vec<(String, String, usize)> = Vec::new();
    for entry in &asked {
        let key = (entry.identity.clone().unwrap_or_default(), entry.resource.clone().unwrap_or_default());
        match seen.iter_mut().find(|(identity, resource, _)| (identity, resource) == (&key.0, &key.1)) {
            Some((.., count)) => *count += 1,
            None => seen.push((key.0, key.1, 1)),
        }
    }
    println!("token requests, by identity and resource:");
    for (identity, resource, count) in &seen {
        println!("  {count}  {identity}  {resource}");
    }
    check(seen.len() == 2 && asked.len() == 2, "one for each identity and resource");
    for (name, log) in [("Azurite", proxy.log()), ("the vault", emulator.vault().log())] {
        println!("requests to {name}: {}, without a bearer token: {}", log.count(), log.without_bearer().len());
        check(log.count() > 0 && log.without_bearer().is_empty(), "none without a token");
    }
}

fn microsofts_client(proxy: &Proxy, token: &str, ca: &str) -> String {
    let account = format!("{}/{ACCOUNT}", proxy.endpoint());
    let mut python = Command::new(given("MI_PYTHON"))
        .args(["-c", MICROSOFTS_CLIENT, &account, "export", "orders.csv.gz", ca])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    // Not in its arguments, which every user of the machine can read.
    writeln!(python.stdin.take().expect("its input"), "{token}").expect("the token is sent");
    let output = python.wait_with_output().expect("Python ends");
    check(output.status.success(), "Microsoft's client reads the blob");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// Runs statements by psql, which shows each and its result.
fn show(cluster: &Cluster, role: &str, sql: &str) {
    let mut psql = cluster.psql(&["-a", "-U", role, "-f", "-"]);
    let mut process = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("psql");
    process.stdin.take().expect("its input").write_all(sql.as_bytes()).expect("the statements");
    let output = process.wait_with_output().expect("psql ends");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut text = String::new();
    for line in said.lines().filter(|line| !line.is_empty()) {
        let _ = writeln!(text, "{}{line}", if role == "postgres" { "" } else { "etl> " });
    }
    print!("{text}{complained}");
    let refused = complained.contains("permission denied for function access_token");
    check(complained.is_empty() || (role != "postgres" && refused), "each statement does what it should");
}

fn title(text: &str) {
    println!("\n\x1b[1m== {text}\x1b[0m");
}

fn check(held: bool, what: &str) {
    assert!(held, "NOT SO: {what}");
}
