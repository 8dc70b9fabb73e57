//! CloudNativePG's Database resource makes what the README shows, with the statements that it knows: no TYPE, no OWNER,
//! no mapping, names in quotes, options in any order and changed one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::{Identity, TENANT};
use server_tests::{ACCOUNT, Pod, Session};

const README: &str = include_str!("../../../README.md");

/// What the README creates.
struct Server {
    name: &'static str,
    wrapper: &'static str,
    options: Vec<(&'static str, String)>,
}

/// Every statement in the README that begins like this, up to its semicolon.
fn statements(beginning: &'static str) -> impl Iterator<Item = &'static str> {
    README.split(beginning).skip(1).map(|rest| rest.split(';').next().unwrap())
}

/// The README's servers, with this world's places for Azure's.
fn servers(pod: &Pod) -> Vec<Server> {
    let mut servers: Vec<Server> = statements("CREATE SERVER ").map(|statement| server(pod, statement)).collect();
    let sales = servers.iter_mut().find(|server| server.name == "sales").expect("the README's sales");
    assert!(sales.options.is_empty(), "Azure itself needs none");
    sales.options.push(("account", ACCOUNT.into()));
    sales.options.push(("endpoint", format!("{}/{ACCOUNT}", pod.world.proxy().endpoint())));
    servers
}

fn server(pod: &Pod, statement: &'static str) -> Server {
    let (head, options) = statement.split_once("OPTIONS").unwrap_or((statement, ""));
    let words: Vec<&str> = head.split_whitespace().collect();
    let [name, "FOREIGN", "DATA", "WRAPPER", wrapper] = words[..] else {
        panic!("the resource cannot issue this: {statement}");
    };
    // Between quotes the values, before each its name.
    let parts: Vec<&str> = options.split('\'').collect();
    let option = |pair: &[&'static str]| {
        let name = pair[0].trim_matches([' ', '\n', ',', '(']);
        let value = match name {
            "client_id" => Identity::user("keys").client_id,
            "tenant_id" => TENANT.to_owned(),
            "token_file" => pod.token_file(),
            "vault_uri" => pod.world.emulator.vault_uri(),
            _ => pair[1].to_owned(),
        };
        (name, value)
    };
    Server { name, wrapper, options: parts.chunks_exact(2).map(option).collect() }
}

/// A server on which the extension was not created yet, and role `etl`.
fn world() -> (Pod, Session) {
    let pod = Pod::with_storage();
    drop(pod.world.role("etl"));
    let mut session = pod.world.session();
    session.run("DROP EXTENSION managed_identity CASCADE; CREATE TABLE orders AS SELECT 1 AS a");
    session.run("GRANT ALL ON orders TO etl");
    (pod, session)
}

/// What a server is for, done by `etl`: the SQLSTATE where it cannot be.
fn used(pod: &Pod, etl: &mut Session, server: &Server) -> Result<(), String> {
    let url = pod.world.url("box/orders.csv.gz");
    let statements = match server.wrapper {
        "azure_storage" => vec![format!("COPY orders TO '{url}'"), format!("COPY orders FROM '{url}'")],
        "azure_key_vault" => vec![format!("SELECT azure_key_vault.secret('{}', 'db-password')", server.name)],
        _ => vec![format!("SELECT managed_identity.access_token('key-vault', '{}')", server.name)],
    };
    let mut used = statements.iter().map(|sql| etl.try_rows(sql).map_err(|error| error.code().code().to_owned()));
    used.try_for_each(|rows| rows.map(drop))
}

fn create(server: &Server) -> String {
    let options: Vec<String> = server.options.iter().map(|(name, value)| format!("\"{name}\" '{value}'")).collect();
    let create = format!("CREATE SERVER \"{}\" FOREIGN DATA WRAPPER \"{}\"", server.name, server.wrapper);
    if options.is_empty() { create } else { format!("{create} OPTIONS ({})", options.join(", ")) }
}

/// All orders of `0..n`.
fn orders(n: usize) -> Vec<Vec<usize>> {
    let Some(last) = n.checked_sub(1) else { return vec![Vec::new()] };
    let with_last = |order: Vec<usize>| (0..n).map(move |at| [&order[..at], &[last], &order[at..]].concat());
    orders(last).into_iter().flat_map(with_last).collect()
}

#[test]
fn all_that_the_readme_creates_comes_from_the_resources_statements_and_works() {
    let (pod, mut session) = world();
    let servers = servers(&pod);
    assert_eq!(
        servers.iter().map(|server| server.name).collect::<Vec<_>>(),
        ["sales", "vault_identity", "payroll", "deploy"]
    );
    session.run("CREATE EXTENSION \"managed_identity\"");
    // Backwards: a server may name one that does not exist yet.
    for server in servers.iter().rev() {
        session.run(&create(server));
    }
    // Which functions a role may call is not the resource's to say.
    session.run("GRANT EXECUTE ON FUNCTION azure_key_vault.secret, managed_identity.access_token TO etl");
    assert!(statements("GRANT USAGE ON FOREIGN SERVER ").any(|grant| grant == "sales TO etl"));
    let mut etl = pod.world.cluster.session_as("etl");
    for server in &servers {
        assert_eq!(used(&pod, &mut etl, server), Err("42501".into()), "{}", server.name);
        session.run(&format!("GRANT USAGE ON FOREIGN SERVER \"{}\" TO \"etl\"", server.name));
        assert_eq!(used(&pod, &mut etl, server), Ok(()), "{}", server.name);
        session.run(&format!("REVOKE USAGE ON FOREIGN SERVER \"{}\" FROM \"etl\"", server.name));
        assert_eq!(used(&pod, &mut etl, server), Err("42501".into()), "{}", server.name);
    }
    for server in &servers {
        session.run(&format!("DROP SERVER IF EXISTS \"{}\"", server.name));
    }
    session.run("DROP EXTENSION IF EXISTS \"managed_identity\"");
}

#[test]
fn options_may_come_change_and_go_one_by_one_in_any_order() {
    let (pod, mut session) = world();
    session.run("CREATE EXTENSION \"managed_identity\"");
    session.run("GRANT EXECUTE ON FUNCTION azure_key_vault.secret, managed_identity.access_token TO etl");
    let servers = servers(&pod);
    for server in &servers {
        session.run(&create(server));
        session.run(&format!("GRANT USAGE ON FOREIGN SERVER \"{}\" TO \"etl\"", server.name));
    }
    let mut etl = pod.world.cluster.session_as("etl");
    for server in &servers {
        let options = |name| format!("SELECT srvoptions FROM pg_foreign_server WHERE srvname = '{name}'");
        for order in orders(server.options.len()) {
            let mut alter =
                |change: String| session.run(&format!("ALTER SERVER \"{}\" OPTIONS ({change})", server.name));
            let ordered = || order.iter().map(|at| &server.options[*at]);
            ordered().for_each(|(name, _)| alter(format!("DROP \"{name}\"")));
            ordered().for_each(|(name, value)| alter(format!("ADD \"{name}\" '{value}'")));
            assert_eq!(used(&pod, &mut etl, server), Ok(()), "{} {order:?}", server.name);
            ordered().for_each(|(name, value)| alter(format!("SET \"{name}\" '{value}'")));
            // All at once is one statement, in no order in particular.
            alter(ordered().map(|(name, _)| format!("DROP \"{name}\"")).collect::<Vec<_>>().join(", "));
            assert_eq!(session.value(&options(server.name)), "");
            let all = ordered().map(|(name, value)| format!("ADD \"{name}\" '{value}'")).collect::<Vec<_>>().join(", ");
            session.run(&format!("ALTER SERVER \"{}\" OPTIONS ({all})", server.name));
            assert_eq!(used(&pod, &mut etl, server), Ok(()), "{} {order:?}", server.name);
        }
    }
}
