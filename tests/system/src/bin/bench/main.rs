//! `make bench`: the comparisons, each pair measured side by side in one run and printed as a ratio. It
//! judges nothing: machines differ, ratios less so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark that cannot run says where")]

mod copy;
mod measure;
mod server;
mod tokens;

use server_tests::{Options, World, major};

fn main() {
    println!("PostgreSQL {}, {} processors\n", major(), std::thread::available_parallelism().map_or(1, usize::from));
    println!("{:<64} {:>10}   to reach", "what, against what", "ratio");
    let world = World::with_storage_and(
        Options::default().conf("shared_buffers = '512MB'").conf("max_wal_size = '8GB'").conf("autovacuum = off"),
    );
    tokens::run(&world);
    copy::run(&world);
    drop(world);
    tokens::run_crowded();
    server::run();
}
