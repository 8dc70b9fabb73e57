//! `make bench`: the comparisons, each pair measured side by side in one run and printed as a ratio. It
//! judges nothing: machines differ, ratios less so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark that cannot run says where")]

mod copy;
mod data_keys;
mod measure;
mod server;
mod tokens;

use server_tests::{Options, World, major};

fn main() {
    println!("PostgreSQL {}, {} processors\n", major(), std::thread::available_parallelism().map_or(1, usize::from));
    println!("{:<64} {:>10}   to reach", "what, against what", "ratio");
    // One part alone, where one is named.
    let part = std::env::args().nth(1);
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if wanted("tokens") || wanted("copy") {
        let world = World::with_storage_and(
            Options::default().conf("shared_buffers = '512MB'").conf("max_wal_size = '8GB'").conf("autovacuum = off"),
        );
        if wanted("tokens") {
            tokens::run(&world);
        }
        if wanted("copy") {
            copy::run(&world);
        }
    }
    if wanted("tokens") {
        tokens::run_crowded();
    }
    if wanted("data_keys") {
        data_keys::run();
    }
    if wanted("server") {
        server::run();
    }
}
