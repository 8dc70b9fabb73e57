//! COPY TO a blob.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use server_tests::World;

#[test]
fn a_query_is_written_as_a_csv_blob() {
    let world = World::with_storage();
    let mut session = world.session();
    let sql = format!(
        "COPY (SELECT i, i * 2 AS j FROM generate_series(1, 3) i) TO '{}' WITH (HEADER)",
        world.url("box/q.csv")
    );
    assert_eq!(session.count(&sql), 3);
    assert_eq!(world.azurite().text("box/q.csv"), "i,j\n1,2\n2,4\n3,6\n");
}
