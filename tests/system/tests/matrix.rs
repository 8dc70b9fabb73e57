//! Who may do what through which server: every function and view of the extension and COPY by URL, for each kind
//! of role and each kind of server; and the same of what a dump and pg_upgrade make of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed step is a failed test")]

#[path = "matrix/table.rs"]
mod table;

use emulator::Identity;
use server_tests::{ACCOUNT, Options, World, major, programs_of, successful};

use table::{ROLES, SERVERS, differences, rows};

fn world(options: Options) -> World {
    let world = World::with_storage_and(options);
    world.azurite().put("box/in/a.csv", "1\n");
    world.emulator.vault().put(emulator::Secret::new("mail", "x")).unwrap();
    for key in ["kek", "wrapper"] {
        world.emulator.vault().put_key(emulator::Key::rsa(key, 2048)).unwrap();
    }
    let mut session = world.session();
    let user = Identity::user("keys").client_id;
    let endpoint = format!("endpoint '{}/{ACCOUNT}', account '{ACCOUNT}', identity 'app'", world.proxy().endpoint());
    let vault = format!("vault_uri '{}', identity 'app'", world.emulator.vault_uri());
    session.run("CREATE TABLE t AS SELECT 1 AS a; GRANT ALL ON t TO PUBLIC; CREATE ROLE callers; CREATE ROLE team");
    session.run("DROP SERVER keys; DROP SERVER vault");
    let servers = [
        ("app", "managed_identity", format!("client_id '{user}'")),
        ("kv", "managed_identity", format!("client_id '{user}', resources 'key-vault'")),
        ("blob", "azure_storage", endpoint.clone()),
        ("read", "azure_storage", format!("{endpoint}, access 'read'")),
        ("part", "azure_storage", format!("{endpoint}, locations 'box/out/*'")),
        ("vault", "azure_key_vault", format!("{vault}, allow 'secrets'")),
        ("shut", "azure_key_vault", vault.clone()),
        ("mail", "azure_key_vault", format!("{vault}, allow 'secrets', names 'mail'")),
        ("crypt", "azure_key_vault", format!("{vault}, allow 'wrap,unwrap,encrypt,decrypt,sign,verify'")),
    ];
    let all = format!("{}, {ACCOUNT}", SERVERS.join(", "));
    for (name, wrapper, options) in &servers {
        session.run(&format!("CREATE SERVER {name} FOREIGN DATA WRAPPER {wrapper} OPTIONS ({options})"));
    }
    session.run(&format!(
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA managed_identity, azure_storage, azure_key_vault TO callers;
         GRANT callers TO team; GRANT USAGE ON FOREIGN SERVER {all} TO team"
    ));
    for (role, rights) in ROLES {
        session.run(&format!("CREATE ROLE {role} LOGIN; {}", rights.replace("{servers}", &all)));
    }
    for (name, ..) in &servers {
        session.run(&format!("ALTER SERVER {name} OWNER TO owner"));
    }
    session.run("SELECT azure_key_vault.create_data_key('salary', 'shut', 'wrapper')");
    world
}

/// ALTER, GRANT, REVOKE and COMMENT on every server, by which in the end nobody can do more or less.
fn change_back_and_forth(world: &World) {
    let mut session = world.session();
    for server in SERVERS.into_iter().chain([ACCOUNT]) {
        let owner =
            session.value(&format!("SELECT srvowner::regrole FROM pg_foreign_server WHERE srvname = '{server}'"));
        session.run(&format!(
            "COMMENT ON SERVER {server} IS 'what {server} is for'; ALTER SERVER {server} VERSION '2';
             ALTER SERVER {server} RENAME TO renamed; ALTER SERVER renamed RENAME TO {server};
             GRANT USAGE ON FOREIGN SERVER {server} TO PUBLIC;
             GRANT USAGE ON FOREIGN SERVER {server} TO other, exec WITH GRANT OPTION;
             SET ROLE other; GRANT USAGE ON FOREIGN SERVER {server} TO watch; RESET ROLE;
             ALTER SERVER {server} OWNER TO stats; ALTER SERVER {server} OWNER TO {owner};
             REVOKE USAGE ON FOREIGN SERVER {server} FROM PUBLIC, exec, stats, given;
             REVOKE USAGE ON FOREIGN SERVER {server} FROM other CASCADE;
             GRANT USAGE ON FOREIGN SERVER {server} TO given WITH GRANT OPTION;
             REVOKE GRANT OPTION FOR USAGE ON FOREIGN SERVER {server} FROM given"
        ));
    }
    session.run(
        "ALTER SERVER machine OPTIONS (ADD resources 'key-vault'); ALTER SERVER machine OPTIONS (DROP resources);
         ALTER SERVER app OPTIONS (ADD resources 'key-vault'); ALTER SERVER app OPTIONS (DROP resources);
         ALTER SERVER kv OPTIONS (SET resources 'storage'); ALTER SERVER kv OPTIONS (SET resources 'key-vault');
         ALTER SERVER blob OPTIONS (ADD access 'read'); ALTER SERVER blob OPTIONS (SET access 'read-write');
         ALTER SERVER read OPTIONS (DROP access); ALTER SERVER read OPTIONS (ADD access 'read');
         ALTER SERVER part OPTIONS (SET locations 'box'); ALTER SERVER part OPTIONS (SET locations 'box/out/*');
         ALTER SERVER shut OPTIONS (ADD allow 'secrets'); ALTER SERVER shut OPTIONS (DROP allow);
         ALTER SERVER mail OPTIONS (DROP names); ALTER SERVER mail OPTIONS (ADD names 'mail')",
    );
}

#[track_caller]
fn assert_as_the_matrix_says(world: &World, database: &str) {
    let differences = differences(world, database);
    assert!(differences.is_empty(), "{database}: {}", differences.join("\n"));
}

#[test]
fn every_role_can_do_through_each_server_what_it_was_granted_and_nothing_else() {
    assert_as_the_matrix_says(&world(Options::default()), "postgres");
}

#[test]
fn in_a_database_restored_from_a_dump_every_role_can_do_the_same() {
    let world = world(Options::default());
    change_back_and_forth(&world);
    assert_as_the_matrix_says(&world, "postgres");
    let dump = world.cluster.file("dump", "");
    successful(world.cluster.program("pg_dump").args(["-d", "postgres", "-F", "custom", "-f", &dump]));
    let mut session = world.session();
    session.run("CREATE DATABASE restored");
    // So that no role and no identity is what it is by the first database.
    session.run("DROP EXTENSION managed_identity CASCADE");
    successful(world.cluster.program("pg_restore").args(["--exit-on-error", "-d", "restored", &dump]));
    assert_as_the_matrix_says(&world, "restored");
}

#[test]
fn after_pg_upgrade_from_15_every_role_can_do_the_same() {
    if major() == 15 {
        eprintln!("left out on 15: pg_upgrade (it runs on the newer server)");
        return;
    }
    // The new server checks vault_uri against it, so it must stand in its settings before.
    let hosts = "managed_identity.key_vault_hosts = '127.0.0.1'".to_owned();
    let old = Options { programs: Some(programs_of("PG15_CONFIG")), conf: vec![hosts], ..Options::default() };
    let world = world(old);
    change_back_and_forth(&world);
    let world = world.upgraded();
    assert_as_the_matrix_says(&world, "postgres");
}

#[test]
fn no_function_and_no_view_of_the_extension_is_without_a_row() {
    let world = World::new();
    let members = world.session().rows(
        "SELECT regexp_replace(object.identity, '\\(.*', '(')
         FROM pg_depend d, pg_identify_object(d.classid, d.objid, d.objsubid) object
         WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'managed_identity')
           AND (d.classid = 'pg_proc'::regclass OR d.classid = 'pg_class'::regclass) ORDER BY 1",
    );
    assert!(members.len() > 10, "{members:?}");
    let rows = rows();
    let has = |member: &str| {
        let end = |rest: &str| {
            member.ends_with('(') || !rest.starts_with(|c: char| c == '(' || c == '_' || c.is_alphanumeric())
        };
        rows.iter().any(|row| row.sql.match_indices(member).any(|(at, _)| end(&row.sql[at + member.len()..])))
    };
    let without: Vec<&String> = members.iter().filter(|member| !has(member)).collect();
    assert!(without.is_empty(), "MATRIX has no row for {without:?}");
    for server in SERVERS {
        assert!(rows.iter().any(|row| row.servers.contains(&server)), "{server}");
    }
}
