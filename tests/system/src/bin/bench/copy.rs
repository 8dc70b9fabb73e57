//! COPY by URL against a local file and against curl.

use std::process::Command;

use server_tests::{ACCOUNT, Session, World};

use crate::measure::{in_turn, line, main_thread_seconds, memory_added, seconds};

/// About 140 MB of CSV.
const ROWS: &str = "SELECT i AS id, 'customer number ' || i AS customer, md5(i::text) AS reference, i * 0.01 AS amount, \
                    timestamp '2026-01-01' + i * interval '1 second' AS at FROM generate_series(1, 1430000) i";

pub fn run(world: &World) {
    let place = Place::new(world);
    from(world, &place);
    to(world, &place);
    memory(world, &place);
}

/// Where the same data lies: a file, and blobs that are reached without the test's proxy.
struct Place {
    files: String,
    blobs: String,
    curl: String,
}

impl Place {
    fn new(world: &World) -> Self {
        let mut session = world.session();
        let endpoint = format!("{}/{ACCOUNT}", world.azurite().endpoint());
        session.run(&format!("CREATE SERVER direct FOREIGN DATA WRAPPER azure_storage OPTIONS (account '{ACCOUNT}', endpoint '{endpoint}')"));
        session.run(&format!("CREATE UNLOGGED TABLE t AS {ROWS}"));
        session.run("CREATE UNLOGGED TABLE u (LIKE t)");
        let files = world.cluster.folder().join("bench");
        std::fs::create_dir(&files).expect("a folder");
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&files, everyone).expect("permissions");
        let files = files.to_str().expect("a path").to_owned();
        let token = session.value("SELECT managed_identity.authorization_header('storage')");
        let headers = format!("Authorization: {token}\nx-ms-version: 2023-11-03\nx-ms-blob-type: BlockBlob\n");
        let headers = world.cluster.file("headers", headers);
        let ca = world.cluster.folder().join(emulator::CA_CERTIFICATE);
        let curl = format!("curl -sS --fail --cacert {} -H @{headers}", ca.display());
        let place = Self { files, blobs: format!("{endpoint}/box"), curl };
        session.run(&format!("COPY t TO '{}/t.csv' WITH (FORMAT csv)", place.files));
        session.run(&format!("COPY t TO PROGRAM 'gzip > {}/t.csv.gz' WITH (FORMAT csv)", place.files));
        for name in ["t.csv", "t.csv.gz"] {
            session.run(&format!("COPY t TO '{}/{name}'", place.blobs));
        }
        place
    }
}

fn load(session: &mut Session, source: &str) -> f64 {
    session.run("TRUNCATE u");
    seconds(|| session.run(&format!("COPY u FROM {source} WITH (FORMAT csv)")))
}

fn from(world: &World, place: &Place) {
    let Place { files, blobs, curl } = place;
    let (mut a, mut b, mut c) = (world.session(), world.session(), world.session());
    let (pid_file, pid_blob) = (a.pid(), b.pid());
    let (file, blob) = (format!("'{files}/t.csv'"), format!("'{blobs}/t.csv'"));
    let program = format!("PROGRAM '{curl} {blobs}/t.csv'");
    let before = (main_thread_seconds(pid_file), main_thread_seconds(pid_blob));
    let [file, blob, program] =
        in_turn(&mut [&mut || load(&mut a, &file), &mut || load(&mut b, &blob), &mut || load(&mut c, &program)]);
    let used = (main_thread_seconds(pid_file) - before.0, main_thread_seconds(pid_blob) - before.1);
    line("COPY FROM a CSV blob / a local file, time", blob / file, "<= 1.15");
    line("COPY FROM a CSV blob / PROGRAM 'curl', time", blob / program, "<= 1");
    line("COPY FROM a CSV blob / a local file, main thread's CPU", used.1 / used.0, "<= 1.10");
    let (blob, program) = (format!("'{blobs}/t.csv.gz'"), format!("PROGRAM '{curl} {blobs}/t.csv.gz | gunzip'"));
    let [blob, program] = in_turn(&mut [&mut || load(&mut b, &blob), &mut || load(&mut c, &program)]);
    line("COPY FROM a gzipped CSV blob / PROGRAM 'curl | gunzip', time", blob / program, "<= 1.10");
}

fn to(world: &World, place: &Place) {
    let Place { files, blobs, curl } = place;
    let (mut a, mut b, mut c) = (world.session(), world.session(), world.session());
    let store =
        |session: &mut Session, target: &str| seconds(|| session.run(&format!("COPY t TO {target} WITH (FORMAT csv)")));
    let (file, blob) = (format!("'{files}/out.csv'"), format!("'{blobs}/out.csv'"));
    // Put Blob wants a length, so curl cannot start before the data ends.
    let program = format!("PROGRAM 'cat > {files}/p.csv && {curl} -T {files}/p.csv {blobs}/p.csv'");
    // What Azurite needs for the same bytes when nothing has to be exported: the floor under the first ratio.
    let finished = format!("{curl} -T {files}/t.csv {blobs}/finished.csv");
    let upload =
        || seconds(|| assert!(Command::new("sh").args(["-c", &finished]).status().is_ok_and(|done| done.success())));
    let [file, blob, program, upload] = in_turn(&mut [
        &mut || store(&mut a, &file),
        &mut || store(&mut b, &blob),
        &mut || store(&mut c, &program),
        &mut { upload },
    ]);
    line("COPY TO a CSV blob / a local file, time", blob / file, "<= 1.35 (16+)");
    line("COPY TO a CSV blob / PROGRAM 'curl', time", blob / program, "< 1");
    line("COPY TO a CSV blob / curl with the finished file, time", blob / upload, "");
}

fn memory(world: &World, place: &Place) {
    let mut session = world.session();
    let Place { blobs, .. } = place;
    // The same rows seven times are 1 GB.
    let all = ["SELECT * FROM t"; 7].join(" UNION ALL ");
    let up = memory_added(&mut session, &format!("COPY ({all}) TO '{blobs}/large.csv'"));
    let mut session = world.session();
    session.run("TRUNCATE u");
    let down = memory_added(&mut session, &format!("COPY u FROM '{blobs}/large.csv' WHERE id < 0"));
    println!("{:<64} {up:>7.0} MB   <= 64 MB", "memory added by COPY TO of 1 GB");
    println!("{:<64} {down:>7.0} MB   <= 64 MB", "memory added by COPY FROM of 1 GB");
}
