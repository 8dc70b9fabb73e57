//! The ends that take many sessions at once: of the server, of its postmaster, of one of its processes.

use std::path::Path;
use std::process::Command;
use std::thread;

use server_tests::{major, wait};

use crate::copy::spooled;
use crate::hang::{Hang, lives};
use crate::stage::{COPY_PLACES, Place, Stage, TOKEN_PLACES, call, one_put};

/// A session in every place, and one that fetches what another waits for.
fn hang_everywhere(stage: &Stage, name: &str) -> Vec<Hang> {
    let places = COPY_PLACES.into_iter().chain(TOKEN_PLACES);
    let mut hangs: Vec<Hang> =
        places.map(|place| stage.hang(place, &format!("{place:?}-{name}").to_lowercase())).collect();
    let leaders: Vec<Hang> = hangs.iter_mut().filter_map(|hang| hang.leader.take()).map(|leader| *leader).collect();
    hangs.extend(leaders);
    assert_eq!(hangs.len(), 12);
    assert!(hangs.iter().all(|hang| !hang.running.is_over()), "all at once");
    if major() == 15 {
        assert_eq!(spooled(&stage.world).len(), 2, "what both COPY TO have to send");
    }
    hangs
}

fn kill(pid: i32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// Waits until all have gone; the endpoints still hold on to what they held. Gives back what was said.
fn all_are_gone(stage: &Stage, hangs: Vec<Hang>, held: &[usize]) -> Vec<Option<String>> {
    for hang in &hangs {
        wait::until(&format!("{:?} is gone", hang.place), || !lives(hang.running.pid));
    }
    let said = hangs.into_iter().map(|hang| {
        let (succeeded, said, _) = hang.running.end();
        assert!(!succeeded);
        said.map(|said| said.0)
    });
    let said = said.collect();
    for (now, before) in all_held(stage).iter().zip(held) {
        assert!(now >= before && *before > 0, "{now} of {before} are still held");
    }
    said
}

fn all_held(stage: &Stage) -> Vec<usize> {
    let places = [Place::Resolving, Place::Connecting, Place::Handshake, Place::Headers, Place::CopyFromHeaders];
    places.into_iter().map(|place| stage.held(place)).collect()
}

/// The server does all of it again.
fn all_is_well(stage: &Stage, name: &str) {
    let one = one_put(&format!("{:?}-{name}", Place::CopyToOnePut).to_lowercase());
    assert_eq!(stage.world.azurite().get(&one), None);
    stage.release();
    stage.release_storage();
    stage.point(Place::Headers);
    let mut session = stage.world.session();
    assert_eq!(spooled(&stage.world), [""; 0]);
    assert_eq!(session.value("SELECT count(*) FROM t"), "0");
    stage.assert_no_slot_is_owned();
    for place in TOKEN_PLACES {
        session.run(&call(&format!("{place:?}-{name}").to_lowercase()));
    }
    let url = stage.world.url("box/out.csv");
    assert_eq!(session.count(&format!("COPY (SELECT 'out') TO '{url}'")), 1);
    assert_eq!(session.count(&format!("COPY t FROM '{url}'")), 1);
    session.run("TRUNCATE t");
    assert_eq!(stage.world.azurite().text("box/blocks.csv"), "old\n");
}

#[test]
fn no_place_holds_up_a_shutdown_the_postmasters_death_or_a_crash_of_another() {
    let stage = Stage::with_storage();
    let cluster = &stage.world.cluster;

    let hangs = hang_everywhere(&stage, "stopped");
    let held = all_held(&stage);
    cluster.stop("fast");
    for said in all_are_gone(&stage, hangs, &held).into_iter().flatten() {
        assert_eq!(said, "57P01");
    }
    assert_eq!(spooled(&stage.world), [""; 0], "removed by the sessions themselves");
    cluster.start_again();
    all_is_well(&stage, "stopped");
    stage.assert_no_crash();

    let hangs = hang_everywhere(&stage, "orphaned");
    let held = all_held(&stage);
    let postmaster = cluster.postmaster();
    kill(postmaster);
    all_are_gone(&stage, hangs, &held);
    // PostgreSQL takes one that is dead and not yet reaped for one that runs.
    wait::until("the postmaster is reaped", || !Path::new(&format!("/proc/{postmaster}")).exists());
    cluster.start_again();
    all_is_well(&stage, "orphaned");
    assert!(!cluster.log().contains("terminated by signal"), "none of them crashed");

    let died = || cluster.log().matches("was terminated by signal 9").count();
    for (count, place) in [Place::CopyFromBody, Place::CopyToOnePut].into_iter().enumerate() {
        let name = format!("killed{count}");
        let hangs = hang_everywhere(&stage, &name);
        let held = all_held(&stage);
        kill(hangs.iter().find(|hang| hang.place == place).unwrap().running.pid);
        all_are_gone(&stage, hangs, &held);
        wait::until("the server knows", || died() == count + 1);
        cluster.wait_until_back();
        all_is_well(&stage, &name);
    }
    assert_eq!(cluster.log().matches("was terminated by signal").count(), 2, "those that were killed, and no other");
}

#[test]
fn an_immediate_stop_waits_for_nobody_and_a_smart_one_for_a_fetch_to_end_well() {
    let stage = Stage::with_storage();
    let cluster = &stage.world.cluster;
    let hangs = hang_everywhere(&stage, "quit");
    let held = all_held(&stage);
    cluster.stop("immediate");
    all_are_gone(&stage, hangs, &held);
    cluster.start_again();
    all_is_well(&stage, "quit");

    let hang = stage.hang(Place::Headers, "smart");
    thread::scope(|scope| {
        let stop = scope.spawn(|| cluster.stop("smart"));
        wait::until("the server is to stop", || cluster.log().contains("received smart shutdown request"));
        assert!(!hang.running.is_over());
        stage.release();
        let (succeeded, said, session) = hang.running.end();
        assert!(succeeded, "{said:?}");
        assert!(!stop.is_finished(), "its session is still there");
        drop(session);
        stop.join().unwrap();
    });
    cluster.start_again();
    all_is_well(&stage, "smart");
    assert!(!cluster.log().contains("terminated by signal"));
}
