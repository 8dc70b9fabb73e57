//! Versions: the script of every version works with this library and can be brought to the newest, and what
//! CREATE EXTENSION brings DROP EXTENSION takes away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use server_tests::{ACCOUNT, Cluster, Options, Session, World, pg_config};

/// The committed scripts: version and path.
fn scripts() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sql");
    let mut scripts = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let version = name.strip_prefix("managed_identity--").and_then(|rest| rest.strip_suffix(".sql"));
        if let Some(version) = version.filter(|version| !version.contains("--")) {
            scripts.push((version.to_owned(), path.clone()));
        }
    }
    assert!(scripts.iter().any(|(version, _)| version == env!("CARGO_PKG_VERSION")), "{scripts:?}");
    scripts
}

/// The objects of the extension, as they are defined and as they are granted.
fn members(session: &mut Session) -> Vec<String> {
    session.rows(
        "SELECT pg_describe_object(classid, objid, 0), f.proacl, s.srvacl, s.srvoptions, w.fdwacl, w.fdwvalidator::regproc,
                n.nspacl, c.relacl, obj_description(objid, classid::regclass::name),
                CASE WHEN f.oid IS NOT NULL THEN pg_get_functiondef(objid) END,
                CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(objid) END
         FROM pg_depend
              LEFT JOIN pg_proc f ON classid = 'pg_proc'::regclass AND f.oid = objid
              LEFT JOIN pg_foreign_server s ON classid = 'pg_foreign_server'::regclass AND s.oid = objid
              LEFT JOIN pg_foreign_data_wrapper w ON classid = 'pg_foreign_data_wrapper'::regclass AND w.oid = objid
              LEFT JOIN pg_namespace n ON classid = 'pg_namespace'::regclass AND n.oid = objid
              LEFT JOIN pg_class c ON classid = 'pg_class'::regclass AND c.oid = objid
         WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
               AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'managed_identity')
         ORDER BY 1",
    )
}

#[test]
fn the_script_of_every_version_works_with_this_library_and_can_be_updated() {
    let world = World::with_storage();
    let installed = Path::new(&pg_config("--sharedir")).join("extension");
    let newest = members(&mut world.session());
    assert!(newest.len() > 10, "{newest:?}");
    for (version, script) in scripts() {
        let copy = installed.join(script.file_name().unwrap());
        assert_eq!(fs::read_to_string(copy).unwrap(), fs::read_to_string(script).unwrap(), "install.sh copies it");
        let database = format!("version {version}");
        world.session().run(&format!("CREATE DATABASE \"{database}\""));
        let mut session = world.cluster.session_in(&database);
        session.run(&format!("CREATE EXTENSION managed_identity VERSION '{version}'; CREATE TABLE t (a int)"));
        world.create_servers(&mut session);
        world.azurite().put("box/a.csv", "1\n2\n");
        let uses = |session: &mut Session| {
            assert!(session.value("SELECT managed_identity.access_token('storage')").starts_with("ey"));
            assert!(session.value("SELECT managed_identity.authorization_header('storage')").starts_with("Bearer ey"));
            assert_eq!(session.value("SELECT azure_key_vault.secret('vault', 'db-password')"), "hunter2");
            assert_eq!(session.count(&format!("COPY t FROM '{}'", world.url("box/a.csv"))), 2);
            session.run(&format!("COPY t TO '{}'", world.url("box/out.csv.gz")));
            assert!(session.rows("SELECT * FROM managed_identity.cached_tokens").len() > 1);
            session.value("SELECT managed_identity.forget_tokens()").parse::<i32>().unwrap();
        };
        uses(&mut session);
        let path = format!(
            "SELECT path FROM pg_extension_update_paths('managed_identity')
             WHERE source = '{version}' AND target = '{}'",
            env!("CARGO_PKG_VERSION")
        );
        if version != env!("CARGO_PKG_VERSION") {
            assert_ne!(session.value(&path), "", "sql/ has no upgrade script from {version}");
            session.run("ALTER EXTENSION managed_identity UPDATE");
            uses(&mut session);
        }
        assert_eq!(members(&mut session), newest, "{version}");
    }
}

/// Every row of every catalog.
fn catalogs(session: &mut Session) -> BTreeMap<String, BTreeSet<String>> {
    let names = session.rows(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' ORDER BY 1",
    );
    assert!(names.len() > 50, "{names:?}");
    let rows = |session: &mut Session, name: &str| session.rows(&format!("SELECT c::text FROM pg_catalog.{name} c"));
    names.into_iter().map(|name| (name.clone(), rows(session, &name).into_iter().collect())).collect()
}

#[test]
fn drop_extension_cascade_leaves_nothing_behind() {
    // Vacuum writes into pg_class and pg_statistic.
    let cluster = Cluster::start(Options::default().conf("autovacuum = off"));
    let mut session = cluster.session();
    session.run("CREATE ROLE etl; CREATE ROLE boss LOGIN");
    let before = catalogs(&mut session);
    session.run(&format!(
        "CREATE EXTENSION managed_identity;
         CREATE SERVER keys FOREIGN DATA WRAPPER managed_identity OPTIONS (resources 'key-vault');
         CREATE SERVER {ACCOUNT} FOREIGN DATA WRAPPER azure_storage OPTIONS (identity 'keys');
         CREATE SERVER vault FOREIGN DATA WRAPPER azure_key_vault OPTIONS (identity 'keys');
         CREATE USER MAPPING FOR PUBLIC SERVER {ACCOUNT}; CREATE USER MAPPING FOR boss SERVER machine;
         ALTER SERVER vault OWNER TO boss;
         GRANT USAGE ON FOREIGN SERVER machine, keys, vault, {ACCOUNT} TO etl;
         GRANT USAGE ON FOREIGN SERVER machine TO boss WITH GRANT OPTION;
         GRANT USAGE ON FOREIGN DATA WRAPPER azure_storage TO boss;
         GRANT EXECUTE ON FUNCTION managed_identity.access_token, azure_key_vault.secret TO etl;
         GRANT SELECT ON managed_identity.cached_tokens TO etl; REVOKE SELECT ON managed_identity.cached_tokens FROM PUBLIC;
         COMMENT ON SERVER machine IS 'ours'; COMMENT ON SERVER vault IS 'ours';
         CREATE VIEW tokens AS SELECT * FROM managed_identity.cached_tokens"
    ));
    assert_ne!(catalogs(&mut session), before);
    session.run("DROP EXTENSION managed_identity CASCADE");
    let after = catalogs(&mut session);
    for (catalog, rows) in &before {
        let after = &after[catalog];
        let left: Vec<_> = after.symmetric_difference(rows).collect();
        assert!(left.is_empty(), "{catalog}: {left:#?}");
    }
}
