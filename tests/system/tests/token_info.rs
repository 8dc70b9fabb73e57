//! `token_info` and `resource_aliases`: what a token is for and whose it is, without the token.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::Identity;
use server_tests::{Options, World};

#[test]
fn a_token_is_described_to_whom_it_may_be_given_and_does_not_come_along() {
    let world = World::with(Options::default(), vec![Identity::system()]);
    let mut admin = world.session();
    let mut etl = world.role("etl");
    let info = "SELECT managed_identity.token_info('storage')";
    assert_eq!(etl.sqlstate(info), "42501");
    admin.run("GRANT EXECUTE ON FUNCTION managed_identity.token_info TO etl");
    assert_eq!(etl.sqlstate(info), "42501", "USAGE on the identity is missing");
    admin.run("GRANT USAGE ON FOREIGN SERVER machine TO etl");
    let token = admin.value("SELECT managed_identity.access_token('storage')");
    let told = "SELECT source, claims->>'aud', client_id = claims->>'appid', object_id = claims->>'oid',
                       expires_at = to_timestamp((claims->>'exp')::bigint), refresh_at < expires_at,
                       claims ?& '{aud,iss,tid,appid,oid,exp,xms_mirid}'
                FROM managed_identity.token_info('storage')";
    assert_eq!(etl.rows(told), ["imds|https://storage.azure.com/|t|t|t|t|t"]);
    assert_eq!(world.asked(), 1, "it is the cached one");
    let signature = token.rsplit_once('.').unwrap().1;
    assert!(!etl.value("SELECT managed_identity.token_info('storage')::text").contains(signature));
    assert_eq!(etl.sqlstate("SELECT managed_identity.token_info(NULL)"), "22004");
    assert_eq!(etl.sqlstate("SELECT managed_identity.token_info('nothing')"), "22023");
    // In every place of a query, and for many rows.
    let many = "SELECT count(DISTINCT (managed_identity.token_info('storage')).object_id) FROM generate_series(1, 50)";
    assert_eq!(etl.value(many), "1");
}

#[test]
fn the_aliases_are_those_of_the_configured_cloud() {
    let world = World::with(Options::default().conf("managed_identity.cloud = 'china'"), vec![Identity::system()]);
    let mut anyone = world.role("anyone");
    let aliases = "SELECT count(*), min(resource) FILTER (WHERE alias = 'key-vault'), bool_and(description <> '')
                   FROM managed_identity.resource_aliases";
    assert_eq!(anyone.rows(aliases), ["11|https://vault.azure.cn|t"]);
}
