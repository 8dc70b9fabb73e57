//! Tokens: which identity, for what, and what a user is told when there is none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::{Fault, Identity, Reply};
use server_tests::World;

#[test]
fn the_machines_identity_and_a_chosen_one() {
    let world = World::new();
    let mut session = world.session();
    let token = session.value("SELECT managed_identity.access_token('storage')");
    let entry = &world.emulator.identity().log().requests()[0];
    assert_eq!(entry.token.as_deref(), Some(token.as_str()));
    assert_eq!(entry.query("resource"), Some("https://storage.azure.com/"));
    assert_eq!(session.value("SELECT managed_identity.authorization_header('storage')"), format!("Bearer {token}"));
    session.run("SELECT managed_identity.access_token('key-vault', 'keys')");
    let entry = &world.emulator.identity().log().requests()[1];
    assert_eq!(entry.query("client_id"), Some(Identity::user("keys").client_id.as_str()));
    assert_eq!(world.asked(), 2, "the header came from the cache");
}

#[test]
fn refusals_have_their_sqlstate_detail_and_hint() {
    let world = World::new();
    let mut session = world.session();
    let cases = [(400, "28000"), (401, "28000"), (403, "28000"), (418, "08P01"), (302, "08P01")];
    for (status, sqlstate) in cases {
        world.emulator.identity().faults().next(1, Fault::from(Reply::new(status).body("<html>canary</html>")));
        let error = session.error("SELECT managed_identity.access_token('storage')");
        assert_eq!(error.code().code(), sqlstate, "{status}: {error:?}");
        assert!(error.detail().is_some_and(|detail| detail.contains(&status.to_string())), "{error:?}");
        assert!(!format!("{error:?}").contains("canary"));
    }
}
