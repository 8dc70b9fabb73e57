//! What the extension costs a server: when it starts, while it idles, and in sessions that never use it.

use std::fs;
use std::time::Duration;

use emulator::Identity;
use server_tests::{Options, Session, World};

use crate::measure::{figure, line, median, own_memory, processor_seconds, seconds};

pub fn run() {
    let identities = vec![Identity::system()];
    let world = World::with(Options::default(), identities.clone());
    let bare = World::with(Options { not_preloaded: true, ..Options::default() }, identities);
    first_token(&world);
    idle_worker(&world);
    idle_session(&world, &bare);
}

fn first_token(world: &World) {
    let started = |sql: &str| {
        world.cluster.stop("fast");
        seconds(|| {
            world.cluster.start_again();
            world.session().run(sql);
        })
    };
    let (mut tokens, mut ones) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        tokens.push(started("SELECT managed_identity.access_token('storage')"));
        ones.push(started("SELECT 1"));
    }
    let (token, one) = (median(tokens), median(ones));
    figure("seconds from server start to the first token", token, "s", "");
    line("  the same / to the first SELECT 1", token / one, "");
}

fn idle_worker(world: &World) {
    let mut session = world.session();
    session.run("SELECT managed_identity.access_token('storage')");
    let worker = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'managed_identity renewal'";
    let pid: i32 = session.value(worker).parse().expect("a worker");
    // It looks around once a minute.
    const WATCHED: Duration = Duration::from_secs(61);
    let before = processor_seconds(pid);
    std::thread::sleep(WATCHED);
    let spent = processor_seconds(pid) - before;
    figure("CPU seconds an hour of the worker of an idle server", spent * 3600.0 / WATCHED.as_secs_f64(), "s", "");
}

/// A backend's own memory in MB, its threads, its sockets beside the client's.
fn held(session: &mut Session) -> (f64, usize, usize) {
    session.run("SELECT count(*) FROM pg_class");
    let pid = session.pid();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process").count();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").filter_map(|file| file.ok());
    let is_socket = |file: &fs::DirEntry| {
        fs::read_link(file.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    (own_memory(pid), threads, files.filter(is_socket).count())
}

fn idle_session(world: &World, bare: &World) {
    let with = held(&mut world.session());
    let without = held(&mut bare.session());
    figure("memory of a session that never uses it, preloaded - not", with.0 - without.0, "MB", "<= 1 MB");
    figure("  threads more", (with.1 - without.1) as f64, "", "0");
    figure("  sockets more", (with.2 - without.2) as f64, "", "0");
}
