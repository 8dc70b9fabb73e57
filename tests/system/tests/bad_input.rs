//! Input that is wrong or hostile: told apart by SQLSTATE, and nothing is sent for what cannot be right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use server_tests::{ACCOUNT, Session, World};

/// How many requests the identity endpoint, the vault and the proxy have had.
fn sent(world: &World) -> (usize, usize, usize) {
    (world.asked(), world.emulator.vault().log().count(), world.proxy().log().count())
}

/// Runs each statement, which must fail with the SQLSTATE and say the words (in message, DETAIL or HINT).
/// All that differ are told together.
fn all_refused<S: AsRef<str>>(session: &mut Session, cases: impl IntoIterator<Item = (S, &'static str, &'static str)>) {
    let mut wrong = Vec::new();
    for (sql, sqlstate, words) in cases {
        match session.try_rows(sql.as_ref()) {
            Ok(_) => wrong.push(format!("{} succeeded", sql.as_ref())),
            Err(error) => {
                let said = [Some(error.message()), error.detail(), error.hint()].map(Option::unwrap_or_default);
                let said = said.join("|");
                if error.code().code() != sqlstate || !said.contains(words) || said.contains("canary") {
                    wrong.push(format!("{}: {} {said}", sql.as_ref(), error.code().code()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn urls_that_cannot_be_right_are_refused_before_any_request() {
    let world = World::with_storage();
    let mut session = world.session();
    world.azurite().put("box/a.csv", "1\n");
    session.run("CREATE TABLE t (a int)");
    let good = world.url("box/a.csv");
    let root = world.proxy().endpoint();
    let port = root.rsplit_once(':').unwrap().1;
    let at = |authority: &str| format!("https://{authority}/{ACCOUNT}/box/a.csv");
    let host = |host: &str| at(&format!("{host}:{port}"));
    let path = |path: &str| format!("{root}/{ACCOUNT}{path}");
    let cases: Vec<(String, &str, &str)> = vec![
        // What is missing.
        ("https://".into(), "22023", "URL"),
        ("https:///box/a.csv".into(), "22023", "URL"),
        ("https://.blob.core.windows.net/box/a.csv".into(), "42704", "CREATE SERVER"),
        (root.clone(), "42704", "CREATE SERVER"),
        (format!("{root}/"), "42704", "CREATE SERVER"),
        (format!("{root}/box/a.csv"), "42704", "CREATE SERVER"),
        (path(""), "22023", "container is missing"),
        (path("/"), "22023", "container is missing"),
        (path("//a.csv"), "22023", "container is missing"),
        (path("/box"), "22023", "blob is missing"),
        (path("/box/"), "22023", "blob is missing"),
        // Another host, port, account or scheme than any server names.
        ("https://nobody.blob.core.windows.net/box/a.csv".into(), "42704", "CREATE SERVER"),
        (at("127.0.0.1:1"), "42704", "CREATE SERVER"),
        (at("127.0.0.1"), "42704", "CREATE SERVER"),
        (host("127.0.0.2"), "42704", "CREATE SERVER"),
        (host("localhost"), "42704", "CREATE SERVER"),
        (host("[::1]"), "42704", "CREATE SERVER"),
        (host("[::ffff:127.0.0.1]"), "22023", "plain form"),
        (format!("{root}/{ACCOUNT}x/box/a.csv"), "42704", "CREATE SERVER"),
        (format!("{root}/{}/box/a.csv", ACCOUNT.to_uppercase()), "42704", "CREATE SERVER"),
        (good.replace("https:", "http:"), "42704", "CREATE SERVER"),
        // What a parser would tidy up.
        (host("u:canary@127.0.0.1"), "22023", "user"),
        (host("@127.0.0.1"), "22023", "user"),
        (host("127.0.0.1:canary@127.0.0.1"), "22023", "user"),
        (at(&format!("127.0.0.1:{port}@evil.test")), "22023", "user"),
        (host("127.0.0.1."), "22023", "URL"),
        (host("0x7f.1"), "22023", "URL"),
        (host("127.1"), "22023", "URL"),
        (host("2130706433"), "22023", "URL"),
        (host("0177.0.0.1"), "22023", "URL"),
        (host("%31%32%37.0.0.1"), "22023", "URL"),
        (host("１２７.0.0.1"), "22023", "URL"),
        (path("/box/../box/a.csv"), "22023", "dot segment"),
        (path("/box/./a.csv"), "22023", "dot segment"),
        (path("/box/%2e%2e/box/a.csv"), "22023", "dot segment"),
        (path("/box/.%2E/box/a.csv"), "22023", "dot segment"),
        (path("/box/x%2f..%2fa.csv"), "22023", "dot segment"),
        (path("/box/a.csv/.."), "22023", "dot segment"),
        (path("\\box\\a.csv"), "22023", "backslash"),
        (path("/box/a b.csv"), "22023", "space"),
        (path("/box/a\tb.csv"), "22023", "space"),
        (path("/box/a\nb.csv"), "22023", "space"),
        (path("/box/%00a.csv"), "22023", "control character"),
        (path("/box/%ffa.csv"), "22023", "UTF-8"),
        (path("/box//a.csv"), "22023", "empty part"),
        (format!("{good}?sig=canary"), "22023", "query"),
        (format!("{good}?"), "22023", "query"),
        (format!("{good}#canary"), "22023", "fragment"),
        // Containers that Azure does not have.
        (path("/ab/a.csv"), "22023", "container"),
        (path("/BOX/a.csv"), "22023", "container"),
        (path("/b--x/a.csv"), "22023", "container"),
        (path("/-box/a.csv"), "22023", "container"),
        (path("/b_x/a.csv"), "22023", "container"),
        (path(&format!("/{}/a.csv", "b".repeat(64))), "22023", "container"),
    ];
    world.proxy().log().clear();
    let accepted = world.proxy().log().counters().accepted;
    for way in ["FROM", "TO"] {
        all_refused(
            &mut session,
            cases.iter().map(|(url, code, words)| (format!("COPY t {way} '{url}'"), *code, *words)),
        );
    }
    // Naming the server gives a URL no more than it has.
    all_refused(
        &mut session,
        cases.iter().map(|(url, _, _)| (format!("COPY t FROM '{url}' WITH (server '{ACCOUNT}')"), "22023", "")),
    );
    assert_eq!(sent(&world), (0, 0, 0));
    assert_eq!(world.proxy().log().counters().accepted, accepted, "not even a connection");
    assert_eq!(session.count(&format!("COPY t FROM '{good}'")), 1);
}

#[test]
fn options_formats_and_suffixes_that_do_not_exist() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("CREATE TABLE t (a int)");
    let from = |path: &str, with: &str| format!("COPY t FROM '{}' {with}", world.url(path));
    let infer = "azure_storage: could not infer file encoding from extension: ";
    let cases = [
        (from("box/a.csv", "WITH (nonsense 1)"), "42601", "nonsense"),
        (from("box/a.csv", "WITH (server)"), "42601", "server"),
        (
            from("box/a.csv", &format!("WITH (server '{ACCOUNT}', server '{ACCOUNT}')")),
            "42601",
            "conflicting or redundant",
        ),
        (from("box/a.csv", "WITH (server '')"), "42704", "does not exist"),
        (from("box/a.csv", "WITH (server 'evil.com#x')"), "42704", "does not exist"),
        (from("box/a.csv", "WITH (FORMAT 'avro')"), "22023", "avro"),
        (from("box/a.csv", "WITH (FORMAT csv, FORMAT csv)"), "42601", "conflicting or redundant"),
        (from("box/a.csv", "WITH (FORMAT binary, DELIMITER ',')"), "", "BINARY"),
        (from("box/a.csv", "WITH (ENCODING 'klingon')"), "22023", "encoding"),
        (from("box/a.csv", "(nosuchcolumn)"), "", ""),
        (from("box/a.zip", ""), "22023", infer),
        (from("box/a", ""), "22023", infer),
        (from("box/a.gz", ""), "22023", infer),
        (from("box/a.csv.zst", ""), "22023", "'zst'"),
        (from("box/.csv/a", ""), "22023", infer),
        (from("box/a.parquet", "WITH (HEADER)"), "22023", "'parquet'"),
    ];
    for (sql, sqlstate, words) in cases {
        let error = session.error(&sql);
        let said = format!("{} {}", error.message(), error.hint().unwrap_or_default());
        let code = error.code().code();
        // Core's own checks have core's SQLSTATE, which is not the same on every major.
        let fits =
            if sqlstate.is_empty() { code.starts_with("42") || code.starts_with("0A") } else { code == sqlstate };
        assert!(fits && said.contains(words), "{sql}: {code} {said}");
    }
    assert_eq!(sent(&world), (0, 0, 0));
}

#[test]
fn a_url_that_is_almost_one_of_a_blob_says_what_to_write() {
    let world = World::new();
    let mut session = world.session();
    session.run("CREATE TABLE t (a int); CREATE SERVER sales FOREIGN DATA WRAPPER azure_storage");
    let hint = "https://sales.blob.core.windows.net/<container>/<blob>";
    for place in ["http://sales.blob.core.windows.net", "https://sales.dfs.core.windows.net"] {
        for (with, sqlstate) in [("", "42704"), ("WITH (server 'sales')", "22023")] {
            let error = session.error(&format!("COPY t FROM '{place}/box/a.csv' {with}"));
            assert_eq!(error.code().code(), sqlstate, "{error:?}");
            assert!(error.hint().is_some_and(|said| said.contains(hint)), "{place} {with}: {error:?}");
        }
    }
    let unknown = session.error("COPY t FROM 'https://other.blob.core.windows.net/box/a.csv'");
    assert!(unknown.hint().is_some_and(|said| said.contains("CREATE SERVER")), "{unknown:?}");
    assert_eq!(world.asked(), 0);
}

#[test]
fn gzip_that_is_not_whole_is_22p04_and_loads_nothing() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("CREATE TABLE t (a int)");
    let text: String = (0..100_000).map(|i| format!("{}\n", i * 7919 % 100_003)).collect();
    let whole = gzip(&text);
    let half = whole.len() / 2;
    let mut corrupt = whole.clone();
    corrupt[half..half + 64].fill(0xff);
    let mut checksum = whole.clone();
    let trailer = checksum.len() - 8;
    checksum[trailer] ^= 1;
    let cases: [(&str, Vec<u8>); 7] = [
        ("truncated", whole[..half].to_vec()),
        ("without-its-trailer", whole[..trailer].to_vec()),
        ("corrupt", corrupt),
        ("checksum", checksum),
        ("garbage-behind", [whole.as_slice(), b"1\n2\n"].concat()),
        ("no-gzip", b"1\n2\n3\n".to_vec()),
        ("empty", Vec::new()),
    ];
    for (name, content) in cases {
        world.azurite().put(&format!("box/{name}.csv.gz"), content);
        let error = session.error(&format!("COPY t FROM '{}'", world.url(&format!("box/{name}.csv.gz"))));
        assert_eq!(error.code().code(), "22P04", "{name}: {error:?}");
        assert!(error.hint().is_some(), "{name}: {error:?}");
        assert_eq!(session.value("SELECT count(*) FROM t"), "0", "{name}");
    }
    // Two members are one file.
    world.azurite().put("box/whole.csv.gz", [whole, gzip("1\n2\n")].concat());
    assert_eq!(session.count(&format!("COPY t FROM '{}'", world.url("box/whole.csv.gz"))), 100_002);
}

#[test]
fn a_servers_name_never_becomes_a_host() {
    let world = World::with_storage();
    let mut session = world.session();
    session.run("CREATE TABLE t (a int)");
    let endpoint = format!("{}/{ACCOUNT}", world.proxy().endpoint());
    session.run(&format!("DROP SERVER {ACCOUNT}"));
    world.proxy().log().clear();
    for name in ["evil.com#x", "x@evil.com", "evil.com/", "evil.com?x", "127.0.0.1", "a.b", "evil.com\\", "ab", "Sales"]
    {
        for creation in [
            format!("CREATE SERVER \"{name}\" FOREIGN DATA WRAPPER azure_storage"),
            format!("CREATE SERVER good FOREIGN DATA WRAPPER azure_storage; ALTER SERVER good RENAME TO \"{name}\""),
            format!("CREATE SERVER \"{name}\" FOREIGN DATA WRAPPER azure_storage OPTIONS (endpoint '{endpoint}')"),
        ] {
            session.run(&creation);
            let with = format!("WITH (server '{name}')");
            let mut urls = vec![
                format!("https://{name}.blob.core.windows.net/box/a.csv"),
                format!("https://{name}/box/a.csv"),
                "https://evil.com/box/a.csv".to_owned(),
                world.url("box/a.csv"),
            ];
            all_refused(&mut session, urls.iter().map(|url| (format!("COPY t FROM '{url}' {with}"), "22023", "")));
            // The name itself is what is wrong, where the URL is fine.
            let fine = urls.pop().unwrap();
            all_refused(&mut session, [(format!("COPY t FROM '{fine}' {with}"), "22023", "account")]);
            for url in urls.iter().chain([&fine]) {
                let error = session.error(&format!("COPY t FROM '{url}'"));
                assert!(["22023", "42704"].contains(&error.code().code()), "{creation} {url}: {error:?}");
            }
            session.run(&format!("DROP SERVER \"{name}\""));
        }
    }
    assert_eq!(sent(&world), (0, 0, 0));
}

#[test]
fn names_versions_and_resources_cannot_add_to_a_request() {
    let world = World::with_storage();
    let mut session = world.session();
    let long = "a".repeat(128);
    let names = [
        "",
        "a/b",
        "../keys/x",
        "..",
        "a?x=canary",
        "a#b",
        "a%2fb",
        "a b",
        "é",
        "a\r\nX: y",
        "db-password/",
        "a.b",
        "a_b",
        &long,
    ];
    let of_name = |name: &&str| (format!("SELECT azure_key_vault.secret('vault', '{name}')"), "22023", "name");
    all_refused(&mut session, names.iter().map(of_name));
    let short = "0123456789abcdef0123456789abcde";
    let versions = ["", "x", "../../keys/x", "latest", short, &format!("{short}g"), &format!("{short}00"), "?x=1"];
    let of_version =
        |version: &&str| (format!("SELECT azure_key_vault.secret('vault', 'a', '{version}')"), "22023", "version");
    all_refused(&mut session, versions.iter().map(of_version));
    let resources = [
        "",
        " ",
        "nonsense",
        "storage\n",
        " storage",
        "https://",
        "https://x.test/\r\nX-Evil: canary",
        "https://x.test/ y",
        "https://x.test/&client_id=canary\n",
        "https://x.test/\u{e9}",
        &format!("https://x.test/{}", "a".repeat(5000)),
    ];
    let of_resource = |resource: &&str| (format!("SELECT managed_identity.access_token('{resource}')"), "22023", "");
    all_refused(&mut session, resources.iter().map(of_resource));
    all_refused(
        &mut session,
        [
            ("SELECT managed_identity.access_token(NULL)", "22004", "resource"),
            ("SELECT azure_key_vault.secret(NULL, 'a')", "22004", "vault"),
            ("SELECT azure_key_vault.secret('vault', NULL)", "22004", "name"),
            ("SELECT managed_identity.access_token('storage', '')", "42704", "does not exist"),
        ],
    );
    assert_eq!(sent(&world), (0, 0, 0));
    // What is odd but right stays one parameter.
    session.run("SELECT managed_identity.access_token('https://x.test/a?b=c&client_id=d')");
    let request = &world.emulator.identity().log().requests()[0];
    assert_eq!(request.query("resource"), Some("https://x.test/a?b=c&client_id=d"));
    assert_eq!(request.query("client_id"), None);
}

#[test]
fn a_role_with_usage_cannot_widen_its_access() {
    let world = World::with_storage();
    let mut session = world.session();
    let mut etl = world.role("etl");
    session.run(&format!(
        "CREATE TABLE t (a int); GRANT ALL ON t TO etl;
         CREATE SERVER other FOREIGN DATA WRAPPER azure_storage
             OPTIONS (account '{ACCOUNT}', endpoint '{}/{ACCOUNT}');
         ALTER SERVER {ACCOUNT} OPTIONS (ADD locations 'box/in/*', ADD access 'read');
         GRANT USAGE ON FOREIGN SERVER {ACCOUNT}, vault TO etl",
        world.proxy().endpoint()
    ));
    let url = world.url("box/secret.csv");
    world.azurite().put("box/secret.csv", "1\n");
    let tries: Vec<(String, &str, &str)> = [
        (format!("COPY t FROM '{url}'"), "42501"),
        (format!("COPY t TO '{}'", world.url("box/in/a.csv")), "42501"),
        (format!("COPY t FROM '{url}' WITH (server 'other')"), "42501"),
        (format!("CREATE USER MAPPING FOR etl SERVER {ACCOUNT} OPTIONS (credential 'x')"), "HV00D"),
        (format!("CREATE USER MAPPING FOR etl SERVER {ACCOUNT} OPTIONS (identity 'keys')"), "HV00D"),
        (format!("CREATE USER MAPPING FOR etl SERVER {ACCOUNT} OPTIONS (locations 'box')"), "HV00D"),
        (format!("CREATE USER MAPPING FOR PUBLIC SERVER {ACCOUNT}"), "42501"),
        ("CREATE USER MAPPING FOR postgres SERVER vault".into(), "42501"),
        ("CREATE USER MAPPING FOR etl SERVER other".into(), "42501"),
        (format!("ALTER SERVER {ACCOUNT} OPTIONS (DROP locations)"), "42501"),
        (format!("ALTER SERVER {ACCOUNT} OWNER TO etl"), "42501"),
        (format!("ALTER SERVER {ACCOUNT} RENAME TO mine"), "42501"),
        (format!("DROP SERVER {ACCOUNT}"), "42501"),
        ("ALTER SERVER vault OPTIONS (SET vault_uri 'https://127.0.0.1:1')".into(), "42501"),
        ("ALTER FOREIGN DATA WRAPPER azure_storage OPTIONS (ADD x 'y')".into(), "42501"),
        ("CREATE FOREIGN DATA WRAPPER mine".into(), "42501"),
        ("CREATE SERVER mine FOREIGN DATA WRAPPER azure_storage".into(), "42501"),
        ("CREATE SERVER mine FOREIGN DATA WRAPPER managed_identity".into(), "42501"),
        ("CREATE SERVER mine FOREIGN DATA WRAPPER azure_key_vault".into(), "42501"),
        ("SET ROLE postgres".into(), "42501"),
        ("SET SESSION AUTHORIZATION postgres".into(), "42501"),
        ("SET managed_identity.default_identity = 'keys'".into(), "42501"),
        ("SELECT set_config('managed_identity.default_identity', 'keys', false)".into(), "42501"),
        ("ALTER ROLE etl SET managed_identity.default_identity = 'keys'".into(), "42501"),
        ("SET managed_identity.imds_endpoint = 'http://127.0.0.1:1'".into(), "55P02"),
        ("SET managed_identity.storage_hosts = '127.0.0.1'".into(), "55P02"),
        ("SET managed_identity.key_vault_hosts = 'evil.test'".into(), "55P02"),
        ("SET managed_identity.tls_ca_file = '/tmp/x'".into(), "55P02"),
        ("SET managed_identity.cloud = 'china'".into(), "55P02"),
        ("ALTER SYSTEM SET managed_identity.imds_endpoint = 'http://127.0.0.1:1'".into(), "42501"),
        ("GRANT USAGE ON FOREIGN SERVER other TO etl".into(), "42501"),
        ("GRANT EXECUTE ON FUNCTION managed_identity.access_token TO etl".into(), "42501"),
        ("SELECT managed_identity.access_token('storage')".into(), "42501"),
        ("SELECT managed_identity.authorization_header('storage')".into(), "42501"),
        ("SELECT managed_identity.forget_tokens()".into(), "42501"),
        ("SELECT azure_key_vault.secret('vault', 'db-password')".into(), "42501"),
    ]
    .into_iter()
    .map(|(sql, sqlstate)| (sql, sqlstate, ""))
    .collect();
    all_refused(&mut etl, tries.iter().map(|(sql, sqlstate, words)| (sql, *sqlstate, *words)));
    // What core lets it do with its own mapping changes nothing.
    etl.run(&format!("CREATE USER MAPPING FOR CURRENT_USER SERVER {ACCOUNT}"));
    all_refused(
        &mut etl,
        [(format!("ALTER USER MAPPING FOR CURRENT_USER SERVER {ACCOUNT} OPTIONS (ADD credential 'x')"), "HV00D", "")],
    );
    all_refused(&mut etl, tries.iter().take(3).map(|(sql, sqlstate, words)| (sql, *sqlstate, *words)));
    etl.run(&format!("DROP USER MAPPING FOR CURRENT_USER SERVER {ACCOUNT}"));
    all_refused(&mut etl, tries.iter().take(3).map(|(sql, sqlstate, words)| (sql, *sqlstate, *words)));
    assert_eq!(sent(&world), (0, 0, 0));
    assert_eq!(session.value("SELECT count(*) FROM pg_user_mapping"), "0");
    assert_eq!(etl.rows("SELECT * FROM managed_identity.cached_tokens"), Vec::<String>::new());
    world.azurite().put("box/in/a.csv", "1\n");
    assert_eq!(etl.count(&format!("COPY t FROM '{}'", world.url("box/in/a.csv"))), 1);
}
