//! What documents say of the code is what the code says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::fs;
use std::path::Path;

use server_tests::World;

const SETTINGS: &str = "SELECT name,
        CASE WHEN coalesce(boot_val, '') = '' THEN 'empty'
             ELSE '`' || CASE unit WHEN 'ms' THEN
                     CASE WHEN boot_val::int % 60000 = 0 THEN boot_val::int / 60000 || 'min'
                          WHEN boot_val::int % 1000 = 0 THEN boot_val::int / 1000 || 's' ELSE boot_val || 'ms' END
                 WHEN 'MB' THEN boot_val || 'MB' ELSE boot_val END || '`' END,
        CASE WHEN vartype = 'enum' THEN array_to_string(enumvals, ', ')
             WHEN vartype = 'integer' THEN min_val || ' to ' || max_val || coalesce(' ' || unit, '')
             WHEN vartype = 'bool' THEN 'on, off' ELSE 'text' END,
        CASE context WHEN 'user' THEN 'any user' WHEN 'superuser' THEN 'superusers' WHEN 'sighup' THEN 'reload'
             ELSE 'restart' END,
        short_desc || coalesce(' ' || nullif(extra_desc, ''), '')
    FROM pg_settings WHERE name LIKE 'managed\\_identity.%' OR name LIKE 'azure\\_%' ORDER BY name COLLATE \"C\"";

#[test]
fn the_reference_of_settings_is_what_the_server_says() {
    let rows = World::new().session().rows(SETTINGS);
    let mut right = String::from(
        "# Settings\n\nWritten from what the library tells PostgreSQL; `make test` fails where the two differ.\n\n\
         | setting | default | values | takes effect, is set by | |\n|---|---|---|---|---|\n",
    );
    for row in rows {
        let [name, default, values, by, about] = row.splitn(5, '|').collect::<Vec<_>>().try_into().unwrap();
        right.push_str(&format!("| `{name}` | {default} | {values} | {by} | {about} |\n"));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if fs::read_to_string(root.join("docs/settings.md")).unwrap_or_default() != right {
        let written = root.join("target/settings.md");
        fs::write(&written, right).unwrap();
        panic!("docs/settings.md is not what the server says; {} is", written.display());
    }
}

#[test]
fn every_column_of_the_views_is_explained_in_their_order() {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md")).unwrap();
    let world = World::new();
    let mut session = world.session();
    for view in ["cached_tokens", "status", "stat_requests"] {
        let section = document.split(&format!("### `managed_identity.{view}`\n")).nth(1).expect(view);
        let table = section.split("| column | |\n|---|---|\n").nth(1).expect(view).split("\n\n").next().unwrap();
        let explained: Vec<&str> = table.lines().map(|line| line.split('`').nth(1).expect(line)).collect();
        let columns = session.rows(&format!(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'managed_identity.{view}'::regclass AND attnum > 0 ORDER BY attnum"
        ));
        assert_eq!(explained, columns, "{view}");
    }
}
