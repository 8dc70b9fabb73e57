//! What a dump and pg_upgrade take along: afterwards nobody may do more than before, and nobody less.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

use emulator::Identity;
use server_tests::{ACCOUNT, Options, Session, World, major, programs_of, successful};

const ROLES: [&str; 6] = ["etl", "reader", "boss", "nobody", "member", "postgres"];

const TABLE: &str = "CREATE TABLE t (a int); GRANT ALL ON t TO PUBLIC";

/// ALTER, GRANT, REVOKE and COMMENT on every server and on what else can be granted.
fn world_with_grants(options: Options) -> World {
    // A restore checks vault_uri against it, so it must stand in the new server's settings before.
    let world = World::with_storage_and(options.conf("managed_identity.key_vault_hosts = '127.0.0.1'"));
    world.azurite().put("box/a.csv", "1\n");
    let mut session = world.session();
    for role in &ROLES[..5] {
        session.run(&format!("CREATE ROLE {role} LOGIN"));
    }
    session.run(&format!(
        "{TABLE}; CREATE ROLE team; GRANT team TO member;
         CREATE SERVER alone FOREIGN DATA WRAPPER azure_storage OPTIONS (identity 'zoo', locations 'box/in/*');
         CREATE SERVER lent FOREIGN DATA WRAPPER azure_storage OPTIONS (account '{ACCOUNT}', endpoint '{0}/{ACCOUNT}');
         CREATE SERVER closed FOREIGN DATA WRAPPER azure_storage OPTIONS (account '{ACCOUNT}', endpoint '{0}/{ACCOUNT}');
         CREATE SERVER was FOREIGN DATA WRAPPER managed_identity OPTIONS (client_id '{1}')",
        world.proxy().endpoint(),
        Identity::user("keys").client_id,
    ));
    session.run(&format!(
        "ALTER SERVER was RENAME TO zoo; ALTER SERVER zoo OPTIONS (DROP client_id, ADD resources 'storage');
         ALTER SERVER keys OPTIONS (SET resources 'key-vault, storage'); ALTER SERVER keys VERSION '2';
         ALTER SERVER vault OPTIONS (ADD names 'db-*'); ALTER SERVER vault OWNER TO boss;
         ALTER SERVER {ACCOUNT} OPTIONS (ADD access 'read');
         ALTER SERVER alone OPTIONS (SET locations 'box'); ALTER SERVER machine VERSION '2';
         ALTER SERVER lent OWNER TO boss; ALTER SERVER closed OWNER TO boss;

         GRANT EXECUTE ON FUNCTION managed_identity.access_token TO PUBLIC;
         GRANT EXECUTE ON FUNCTION azure_key_vault.secret TO etl, boss, nobody, member;
         REVOKE EXECUTE ON FUNCTION azure_key_vault.secret FROM nobody;
         GRANT EXECUTE ON FUNCTION managed_identity.forget_tokens TO reader;
         REVOKE SELECT ON managed_identity.cached_tokens FROM PUBLIC; GRANT SELECT ON managed_identity.cached_tokens TO reader;
         REVOKE USAGE ON SCHEMA azure_key_vault FROM PUBLIC; GRANT USAGE ON SCHEMA azure_key_vault TO etl, boss, team;

         GRANT USAGE ON FOREIGN SERVER machine, keys, vault, {ACCOUNT}, alone, lent, closed, zoo TO nobody;
         REVOKE USAGE ON FOREIGN SERVER machine, keys, vault, {ACCOUNT}, alone, lent, closed, zoo FROM nobody;
         GRANT USAGE ON FOREIGN SERVER machine TO reader, boss WITH GRANT OPTION;
         SET ROLE boss; GRANT USAGE ON FOREIGN SERVER machine TO team; RESET ROLE;
         REVOKE GRANT OPTION FOR USAGE ON FOREIGN SERVER machine FROM reader;
         GRANT USAGE ON FOREIGN SERVER keys, zoo TO PUBLIC; REVOKE USAGE ON FOREIGN SERVER keys FROM PUBLIC;
         GRANT USAGE ON FOREIGN SERVER keys TO boss, etl; GRANT USAGE ON FOREIGN SERVER vault TO etl, team;
         GRANT USAGE ON FOREIGN SERVER {ACCOUNT} TO etl; GRANT USAGE ON FOREIGN SERVER lent TO team;
         GRANT USAGE ON FOREIGN SERVER closed TO reader; REVOKE USAGE ON FOREIGN SERVER closed FROM boss;
         GRANT USAGE ON FOREIGN DATA WRAPPER azure_storage TO etl WITH GRANT OPTION;
         GRANT USAGE ON FOREIGN DATA WRAPPER managed_identity TO boss; REVOKE USAGE ON FOREIGN DATA WRAPPER managed_identity FROM boss;
         CREATE USER MAPPING FOR PUBLIC SERVER {ACCOUNT}; CREATE USER MAPPING FOR etl SERVER machine"
    ));
    for server in session.rows("SELECT srvname FROM pg_foreign_server") {
        session.run(&format!("COMMENT ON SERVER {server} IS 'what {server} is for'"));
    }
    world
}

/// What each role may do, as the catalogs say.
fn rights(session: &mut Session) -> Vec<String> {
    let roles = "pg_roles r WHERE rolname !~ '^pg_'";
    session.rows(&format!(
        "SELECT rolname, 'server', srvname, has_server_privilege(r.oid, s.oid, 'USAGE'),
                has_server_privilege(r.oid, s.oid, 'USAGE WITH GRANT OPTION'), pg_has_role(r.oid, srvowner, 'USAGE')
         FROM pg_foreign_server s, {roles}
         UNION ALL
         SELECT rolname, 'wrapper', fdwname, has_foreign_data_wrapper_privilege(r.oid, w.oid, 'USAGE'),
                has_foreign_data_wrapper_privilege(r.oid, w.oid, 'USAGE WITH GRANT OPTION'), pg_has_role(r.oid, fdwowner, 'USAGE')
         FROM pg_foreign_data_wrapper w, {roles}
         UNION ALL
         SELECT rolname, 'function', f.oid::regprocedure::text, has_function_privilege(r.oid, f.oid, 'EXECUTE'),
                has_function_privilege(r.oid, f.oid, 'EXECUTE WITH GRANT OPTION'), pg_has_role(r.oid, proowner, 'USAGE')
         FROM pg_proc f JOIN pg_namespace n ON n.oid = pronamespace AND nspname ~ '^(managed|azure)_', {roles}
         UNION ALL
         SELECT rolname, 'schema', nspname, has_schema_privilege(r.oid, n.oid, 'USAGE'),
                has_schema_privilege(r.oid, n.oid, 'CREATE'), pg_has_role(r.oid, nspowner, 'USAGE')
         FROM pg_namespace n, {roles} AND nspname ~ '^(managed|azure)_'
         UNION ALL
         SELECT rolname, 'view', 'cached_tokens', has_table_privilege(r.oid, v, 'SELECT'),
                has_table_privilege(r.oid, v, 'INSERT, UPDATE, DELETE'), NULL
         FROM CAST('managed_identity.cached_tokens' AS regclass) v, {roles}
         ORDER BY 1, 2, 3"
    ))
}

/// What each role gets when it tries.
fn deeds(world: &World, session: &mut Session) -> Vec<String> {
    let url = world.url("box/a.csv");
    let mut statements = vec![
        "SELECT azure_key_vault.secret('vault', 'db-password')".to_owned(),
        "SELECT FROM managed_identity.cached_tokens".to_owned(),
        "SELECT managed_identity.forget_tokens()".to_owned(),
    ];
    for identity in ["machine", "keys", "zoo"] {
        statements.push(format!("SELECT managed_identity.access_token('storage', '{identity}') ~ '^ey'"));
    }
    for server in [ACCOUNT, "alone", "lent", "closed"] {
        statements.push(format!("COPY t FROM '{url}' WITH (server '{server}')"));
        statements.push(format!("COPY t TO '{}' WITH (server '{server}')", world.url(&format!("box/{server}.csv"))));
    }
    let mut deeds = Vec::new();
    for role in ROLES {
        for sql in &statements {
            session.run(&format!("SET ROLE {role}"));
            let outcome = session.try_rows(sql).map_or_else(|error| error.code().code().to_owned(), |_| "done".into());
            session.run("RESET ROLE");
            deeds.push(format!("{role}: {sql}: {outcome}"));
        }
    }
    deeds
}

/// The servers with all that is said of them. What a dump leaves out of `machine` and nobody's right depends on,
/// comment, version and mappings, is left out here.
fn inventory(session: &mut Session) -> Vec<String> {
    session.rows(
        "SELECT srvname, fdwname, srvowner::regrole, array(SELECT unnest(srvoptions) ORDER BY 1),
                array(SELECT umuser FROM pg_user_mapping WHERE umserver = s.oid AND srvname <> 'machine' ORDER BY 1),
                CASE WHEN srvname <> 'machine' THEN srvversion END,
                CASE WHEN srvname <> 'machine' THEN obj_description(s.oid, 'pg_foreign_server') END
         FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = srvfdw ORDER BY srvname",
    )
}

/// Everything that is compared. The deeds are checked to be a mixture: a comparison of refusals would prove nothing.
fn everything(world: &World, session: &mut Session) -> Vec<String> {
    let deeds = deeds(world, session);
    for who in ["etl", "reader", "boss", "member"] {
        for (outcome, least) in [(": done", 2), (": 42501", 2)] {
            let count = deeds.iter().filter(|deed| deed.starts_with(who) && deed.ends_with(outcome)).count();
            assert!(count >= least, "{who}{outcome}: {deeds:#?}");
        }
    }
    [inventory(session), rights(session), deeds].concat()
}

fn assert_same(before: &[String], after: &[String], what: &str) {
    let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    let come: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    assert!(lost.is_empty() && come.is_empty(), "{what}: before {lost:#?}, after {come:#?}");
}

#[test]
fn a_restored_dump_gives_nobody_more_and_nobody_less() {
    let world = world_with_grants(Options::default());
    let mut session = world.session();
    let before = everything(&world, &mut session);
    session.run("CREATE DATABASE plain");
    session.run("CREATE DATABASE custom");
    let dump = world.cluster.file("dump.sql", "");
    successful(world.cluster.program("pg_dump").args(["-d", "postgres", "-f", &dump]));
    successful(&mut world.cluster.psql(&["-v", "ON_ERROR_STOP=1", "-q", "-d", "plain", "-f", &dump]));
    successful(world.cluster.program("pg_dump").args(["-d", "postgres", "-F", "custom", "-f", &dump]));
    successful(world.cluster.program("pg_restore").args(["--exit-on-error", "-d", "custom", &dump]));
    for database in ["plain", "custom"] {
        assert_same(&before, &everything(&world, &mut world.cluster.session_in(database)), database);
    }
}

#[test]
fn what_a_dump_would_lose_of_the_extensions_own_server_is_refused_at_use() {
    let world = World::with_storage();
    let mut session = world.session();
    world.azurite().put("box/a.csv", "1\n");
    session.run("CREATE ROLE boss; CREATE TABLE t (a int)");
    let keys = Identity::user("keys").client_id;
    for (change, back, name) in [
        (format!("machine OPTIONS (ADD client_id '{keys}')"), "machine OPTIONS (DROP client_id)", "machine"),
        ("machine OWNER TO boss".to_owned(), "machine OWNER TO postgres", "machine"),
        ("machine RENAME TO renamed".to_owned(), "renamed RENAME TO machine", "renamed"),
    ] {
        let token = format!("SELECT managed_identity.access_token('storage', '{name}')");
        session.run(&format!("ALTER SERVER {ACCOUNT} OPTIONS (ADD identity '{name}'); ALTER SERVER {change}"));
        let asked = world.asked();
        for sql in [&token, &format!("COPY t FROM '{}'", world.url("box/a.csv"))] {
            let error = session.error(sql);
            assert_eq!(error.code().code(), "55000", "{change}: {error:?}");
            assert!(error.detail().is_some() && error.hint().is_some(), "{error:?}");
        }
        assert_eq!(world.asked(), asked);
        session.run(&format!("ALTER SERVER {ACCOUNT} OPTIONS (DROP identity); ALTER SERVER {back}"));
        session.run("SELECT managed_identity.access_token('storage')");
    }
}

#[test]
fn pg_upgrade_from_15_gives_nobody_more_and_nobody_less() {
    if major() == 15 {
        eprintln!("left out on 15: pg_upgrade (it runs on the newer server)");
        return;
    }
    let old = Options { programs: Some(programs_of("PG15_CONFIG")), ..Options::default() };
    let world = world_with_grants(old);
    let of_machine = "SELECT srvversion, srvacl, obj_description(oid, 'pg_foreign_server'),
                             array(SELECT usename FROM pg_user_mappings WHERE srvid = s.oid)
                      FROM pg_foreign_server s WHERE srvname = 'machine'";
    let mut session = world.session();
    assert!(session.value("SHOW server_version").starts_with("15."));
    let before = everything(&world, &mut session);
    let machine = session.value(of_machine);
    drop(session);
    let world = world.upgraded();
    let mut session = world.session();
    assert!(session.value("SHOW server_version").starts_with(&format!("{}.", major())));
    assert_eq!(session.value(of_machine), machine);
    assert_same(&before, &everything(&world, &mut session), "pg_upgrade");
    session.run("ALTER EXTENSION managed_identity UPDATE; DROP EXTENSION managed_identity CASCADE");
}
