//! Many interrupts, at any point of a fetch.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use emulator::Fault;
use server_tests::wait;

use crate::hang::{End, Running, lives, threads};
use crate::stage::{Place, Stage, call};

fn sockets(pid: i32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))).count()
}

#[test]
fn forty_cancels_at_random_points_of_fetches_leave_nothing() {
    let stage = Stage::new();
    let identity = stage.world.emulator.identity();
    identity.faults().always(Fault::delay(Duration::from_millis(10)));
    let (cancelled, served, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let sessions: Vec<_> = (0..4)
        .map(|_| {
            let mut session = stage.world.session();
            (session.pid(), session)
        })
        .collect();
    let pids: Vec<i32> = sessions.iter().map(|(pid, _)| *pid).collect();
    thread::scope(|scope| {
        for (at, (_, mut session)) in sessions.into_iter().enumerate() {
            let (cancelled, served, stop) = (&cancelled, &served, &stop);
            // Two sessions share a resource: one of them waits for the other now and then.
            let fetch = call(&format!("shared{}", at / 2));
            let forget = format!("SELECT managed_identity.forget_tokens('https://shared{}.example.com')", at / 2);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for sql in [&fetch, &forget] {
                        match session.try_rows(sql) {
                            Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                            Err(error) => {
                                assert_eq!(error.code().code(), "57014", "{error:?}");
                                cancelled.fetch_add(1, Ordering::Relaxed)
                            }
                        };
                    }
                }
                session
            });
        }
        let mut canceller = stage.world.session();
        canceller.run("SELECT setseed(0.5)");
        wait::until("forty are cancelled", || {
            let pid = pids[cancelled.load(Ordering::Relaxed) % pids.len()];
            canceller.run(&format!("SELECT pg_cancel_backend({pid}), pg_sleep(random() * 0.03)"));
            cancelled.load(Ordering::Relaxed) >= 40
        });
        // All are alive and go on.
        let before = served.load(Ordering::Relaxed);
        wait::until("the sessions go on", || served.load(Ordering::Relaxed) >= before + 40);
        stage.assert_no_crash();
        for pid in &pids {
            wait::until("no thread is left", || threads(*pid) == 1);
            let open = sockets(*pid);
            assert!(open < 10, "cancelled requests leave their sockets: {open}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    stage.assert_no_slot_is_owned();
    identity.faults().clear();
    stage.world.session().run(&call("after"));
    stage.assert_no_crash();
}

#[test]
fn ten_terminations_at_once_leave_nothing() {
    let stage = Stage::new();
    let hangs: Vec<_> = (0..5).map(|count| stage.hang(Place::Waiting, &format!("five{count}"))).collect();
    let running = hangs.into_iter().flat_map(|hang| [Some(hang.running), hang.leader.map(|leader| leader.running)]);
    let running: Vec<Running> = running.flatten().collect();
    assert_eq!((running.len(), stage.held(Place::Headers)), (10, 5));
    let pids: Vec<i32> = running.iter().map(|running| running.pid).collect();
    stage.world.session().run(&format!("SELECT pg_terminate_backend(pid) FROM unnest(ARRAY{pids:?}) pid"));
    for running in running {
        let (succeeded, said, _) = running.end();
        assert!(!succeeded);
        assert!(said.is_none_or(|said| said.0 == End::Terminate.says().0));
    }
    wait::until("all processes are gone", || !pids.iter().any(|pid| lives(*pid)));
    assert!(stage.held(Place::Headers) >= 5, "the endpoint still holds its connections");
    stage.assert_no_slot_is_owned();
    stage.release();
    let mut session = stage.world.session();
    for count in 0..5 {
        session.run(&call(&format!("five{count}")));
    }
    stage.assert_no_crash();
}
