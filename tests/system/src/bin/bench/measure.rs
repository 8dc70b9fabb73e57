//! Times, ratios and what a process uses.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use server_tests::Session;

/// Rounds of every comparison; the two or three sides take turns, so that a machine whose speed drifts
/// treats them alike.
const ROUNDS: usize = 5;

/// Prints one line of the table.
pub fn line(what: &str, ratio: f64, target: &str) {
    println!("{what:<64} {ratio:>10.2}   {target}");
}

/// Prints a line that is no ratio.
pub fn figure(what: &str, value: f64, unit: &str, target: &str) {
    println!("{what:<64} {value:>10.2} {unit:<2} {target}");
}

pub fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs the sides in turn, once uncounted and then counted; returns each side's median.
pub fn in_turn<const N: usize>(sides: &mut [&mut dyn FnMut() -> f64; N]) -> [f64; N] {
    let mut values = [const { Vec::new() }; N];
    for round in 0..=ROUNDS {
        for (side, values) in sides.iter_mut().zip(&mut values) {
            let value = side();
            if round > 0 {
                values.push(value);
            }
        }
    }
    values.map(median)
}

/// Processor seconds of a process's main thread so far.
pub fn main_thread_seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).expect("a process");
    // Behind the name, which is in parentheses: utime is field 14, stime 15; in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

/// Processor seconds of a process so far, to the nanosecond.
pub fn processor_seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("a process");
    stat.split(' ').next().and_then(|spent| spent.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}

/// A process's own resident memory in MB, shared memory left out.
pub fn own_memory(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).and_then(|text| text.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}

/// The most resident memory that `sql` adds to its backend, in MB.
pub fn memory_added(session: &mut Session, sql: &str) -> f64 {
    let pid = session.pid();
    let before = own_memory(pid);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = before;
            while !done.load(Ordering::Relaxed) {
                most = most.max(own_memory(pid));
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
            most
        });
        session.run(sql);
        done.store(true, Ordering::Relaxed);
        watch.join().expect("the watch") - before
    })
}
