//! COPY: its helper thread goes with the statement, and what was there stays.

use server_tests::{World, wait};

use crate::hang::{ENDS, threads};
use crate::stage::{COPY_PLACES, Stage, one_put};

/// What is in the server's folder for temporary files.
pub fn spooled(world: &World) -> Vec<String> {
    let folder = world.cluster.data_folder().join("base/pgsql_tmp");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.map(|file| file.file_name().into_string().unwrap()).collect()
}

#[test]
fn in_every_place_a_copy_ends_while_the_service_holds_on() {
    let stage = Stage::with_storage();
    let world = &stage.world;
    world.azurite().put("box/fine.csv", "1\n2\n");
    for place in COPY_PLACES {
        for end in ENDS {
            let what = format!("{place:?} {end:?}");
            let name = format!("{place:?}-{end:?}").to_lowercase();
            let hang = stage.hang_until(place, &name, Some(end));
            let pid = hang.running.pid;
            assert_eq!(threads(pid), 2, "{what}: one helper thread");
            let (session, _) = stage.interrupt(hang, end);
            let held = stage.held(place);
            let lives = session.is_some();
            let mut session = session.unwrap_or_else(|| world.session());
            assert_eq!(spooled(world), [""; 0], "{what}");
            assert_eq!(session.value("SELECT count(*) FROM t"), "0", "{what}");
            assert_eq!(session.rows("SELECT pid FROM pg_stat_progress_copy"), [""; 0], "{what}");
            assert_eq!(world.azurite().get(&one_put(&name)), None, "{what}");
            assert_eq!(world.azurite().text("box/blocks.csv"), "old\n", "{what}");
            stage.assert_no_slot_is_owned();
            if lives {
                wait::until("no thread is left", || threads(pid) == 1);
            }
            // The same session copies, while the old connection is still held.
            assert_eq!(session.count(&format!("COPY t FROM '{}'", world.url("box/fine.csv"))), 2, "{what}");
            assert_eq!(session.count(&format!("COPY t TO '{}'", world.url("box/out.csv"))), 2, "{what}");
            session.run("TRUNCATE t");
            assert!(held > 0 && stage.held(place) >= held, "{what}");
            stage.release();
            stage.release_storage();
            if lives {
                wait::until("no thread is left", || threads(pid) == 1);
            }
        }
    }
    // What hung works, now that nobody holds on.
    let mut session = world.session();
    assert_eq!(session.count(&format!("COPY t FROM '{}'", world.url("box/body.csv"))), 20 * 10_486);
    assert_eq!(session.count(&format!("COPY (SELECT 'new') TO '{}'", world.url(&one_put("last")))), 1);
    assert_eq!(world.azurite().text(&one_put("last")), "new\n");
    assert_eq!(world.asked(), 1, "one token for all of them");
    stage.assert_no_crash();
}
