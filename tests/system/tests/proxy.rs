//! Behind a forward proxy that the environment names: Azure's services are reached by way of it, the machine's own
//! endpoint is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::Tunnels;
use server_tests::{Options, Pod, World};

/// The environment of a server behind it.
fn behind(proxy: &Tunnels, except: &str) -> Options {
    let url = proxy.url();
    let all = [("HTTPS_PROXY", url.as_str()), ("http_proxy", &url), ("NO_PROXY", except), ("no_proxy", except)];
    all.into_iter().fold(Options::default(), |options, (name, value)| options.environment(name, value))
}

fn host(url: &str) -> &str {
    url.strip_prefix("https://").unwrap()
}

#[test]
fn services_are_reached_through_it_unless_they_are_excepted_and_the_machines_endpoint_never_is() {
    for (except, through) in [("", true), ("127.0.0.1", false)] {
        let proxy = Tunnels::start().unwrap();
        let world = World::with_storage_and(behind(&proxy, except));
        let mut session = world.session();
        session.run("CREATE TABLE t AS SELECT 1 AS a");
        let url = world.url("box/a.csv");
        assert_eq!(session.count(&format!("COPY t TO '{url}'")), 1);
        assert_eq!(session.count(&format!("COPY t FROM '{url}'")), 1);
        assert_eq!(session.value("SELECT azure_key_vault.secret('vault', 'db-password')"), "hunter2");
        assert_eq!(world.asked(), 2);
        let asked = proxy.asked();
        for service in [world.proxy().endpoint(), world.emulator.vault_uri()] {
            let line = format!("CONNECT {} HTTP/1.1", host(&service));
            assert_eq!(asked.contains(&line), through, "{service}: {asked:?}");
        }
        assert_eq!(asked.is_empty(), !through);
        assert!(asked.iter().all(|line| line.starts_with("CONNECT ")), "it sees names of hosts: {asked:?}");
        let imds = world.emulator.imds_endpoint();
        assert!(!asked.iter().any(|line| line.contains(imds.strip_prefix("http://").unwrap())), "{asked:?}");
    }
}

#[test]
fn so_is_the_authority_of_workload_identity_by_a_name_that_only_the_proxy_knows() {
    let proxy = Tunnels::start().unwrap();
    let pod = Pod::with(behind(&proxy, ""));
    let authority = pod.entra.authority().replace("127.0.0.1", "login.test");
    pod.world.session().run(&format!(
        "CREATE SERVER away FOREIGN DATA WRAPPER managed_identity OPTIONS (authority '{authority}');
         SELECT managed_identity.access_token('storage', 'away')"
    ));
    assert_eq!(proxy.asked(), [format!("CONNECT {} HTTP/1.1", host(&authority))]);
    assert_eq!(pod.assertions().len(), 1);
}
