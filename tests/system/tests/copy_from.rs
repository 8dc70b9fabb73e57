//! COPY FROM a blob.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use server_tests::World;

#[test]
fn a_csv_blob_is_loaded_by_a_role_that_holds_usage_only() {
    let world = World::with_storage();
    world.azurite().put("box/a.csv", "1,one\n2,two\n");
    let mut etl = world.role("etl");
    world.session().run(
        "CREATE TABLE t (a int, b text); GRANT INSERT ON t TO etl;
         GRANT USAGE ON FOREIGN SERVER devstoreaccount1 TO etl",
    );
    assert_eq!(etl.count(&format!("COPY t FROM '{}'", world.url("box/a.csv"))), 2);
    assert_eq!(world.session().rows("SELECT * FROM t ORDER BY a"), ["1|one", "2|two"]);
    assert_eq!(etl.sqlstate("SELECT managed_identity.access_token('storage')"), "42501");
    assert!(world.proxy().log().without_bearer().is_empty());
}
