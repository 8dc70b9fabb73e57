//! `make soak`: a hundred sessions and twenty identities for five minutes, while the endpoint fails, sessions are
//! cancelled, terminated and stopped, and the worker is ended.
//!
//! Ends with an error on a wait longer than its own limit, a token of another identity, a fetch that nobody
//! makes, a session whose memory grows, and a process that ended by a signal nobody sent. The seed decides what
//! is done and in which order; when the system runs whom is its own affair.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a soak that cannot run says where")]

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread::{self, park_timeout};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use emulator::{Fault, Identity, Reply};
use fastrand::Rng;
use postgres::error::SqlState;
use server_tests::{Options, Session, World, wait};

const SESSIONS: u64 = 100;
/// Of them, those that nobody ends, so that their memory can be compared.
const LASTING: u64 = 20;
const IDENTITIES: u64 = 20;
const RESOURCES: [&str; 3] = ["storage", "key-vault", "https://orders.example.com"];
/// `managed_identity.acquire_timeout`, and what a busy machine may add to it.
const LIMIT: Duration = Duration::from_secs(3);
const SLACK: Duration = Duration::from_secs(3);
const LENGTH: Duration = Duration::from_secs(300);
const WARM_UP: Duration = Duration::from_secs(60);

struct Soak {
    world: World,
    identities: Vec<Identity>,
    /// Process ids of sessions that may be ended or stopped.
    victims: Mutex<BTreeMap<u64, i32>>,
    /// The process that is stopped just now: its session's wait is not its own. 0: none.
    stopped: AtomicU64,
    over: AtomicBool,
    calls: AtomicU64,
    tokens: AtomicU64,
    complaints: Mutex<Vec<String>>,
}

fn main() -> ExitCode {
    let given = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let seed: u64 = given.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let soak = Soak::new();
    soak.run(seed);
    soak.judge_the_end();
    let complaints = soak.complaints.into_inner().unwrap();
    println!("{} calls, {} tokens", soak.calls.into_inner(), soak.tokens.into_inner());
    for complaint in &complaints {
        println!("FAILED: {complaint}");
    }
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Soak {
    fn new() -> Self {
        let identities: Vec<_> = (0..IDENTITIES).map(|nth| Identity::user(&format!("u{nth}"))).collect();
        let options = Options::default().conf("max_connections = 150").conf("log_min_messages = log");
        let mut assigned = identities.clone();
        assigned.push(Identity::user("keys"));
        let world = World::with(options, assigned);
        let mut session = world.session();
        for identity in &identities {
            session.run(&format!(
                "CREATE SERVER {} FOREIGN DATA WRAPPER managed_identity OPTIONS (client_id '{}')",
                identity.name, identity.client_id
            ));
        }
        world.emulator.identity().set_token_life(10);
        Self {
            world,
            identities,
            victims: Mutex::default(),
            stopped: AtomicU64::new(0),
            over: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            complaints: Mutex::default(),
        }
    }

    fn run(&self, seed: u64) {
        let start = Instant::now();
        let warmed = Barrier::new(LASTING as usize + 1);
        let faults = self.world.emulator.identity().faults();
        faults.always(large());
        thread::scope(|scope| {
            for nth in 0..SESSIONS {
                let warmed = (nth < LASTING).then_some(&warmed);
                scope.spawn(move || self.call_again_and_again(nth, Rng::with_seed(seed.wrapping_add(nth)), warmed));
            }
            warmed.wait();
            faults.clear();
            scope.spawn(|| self.disturb(Rng::with_seed(!seed)));
            scope.spawn(|| self.fail(Rng::with_seed(seed ^ 0x5555)));
            while start.elapsed() < WARM_UP {
                park_timeout(WARM_UP.saturating_sub(start.elapsed()));
            }
            let before = self.memory();
            while start.elapsed() < LENGTH && self.complaints.lock().unwrap().is_empty() {
                park_timeout(Duration::from_secs(1));
            }
            let after = self.memory();
            println!("memory of {LASTING} sessions: {before} kB after a minute, {after} kB at the end");
            if after > before + before / 20 {
                self.complain(format!("memory grew from {before} to {after} kB"));
            }
            self.over.store(true, Ordering::Relaxed);
        });
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn complain(&self, what: String) {
        self.complaints.lock().unwrap().push(what);
    }

    /// One session's life: calls of every kind until the end, and a new session where one was ended.
    fn call_again_and_again(&self, nth: u64, mut rng: Rng, warmed: Option<&Barrier>) {
        let mut session = self.begin(nth);
        if let Some(warmed) = warmed {
            // Its memory is compared later: it has met the largest answer before, as all will in time.
            let first = format!("SELECT managed_identity.access_token('https://first{nth}.example.com', 'u0')");
            if session.sqlstate(&first) != "54000" {
                self.complain(format!("{first}: an answer of 10 MB was taken"));
            }
            warmed.wait();
        }
        while !self.is_over() {
            let identity = &self.identities[rng.usize(..self.identities.len())];
            let resource = RESOURCES[rng.usize(..RESOURCES.len())];
            let force = rng.u8(..20) == 0;
            let sql = match rng.u8(..30) {
                0 => format!("SELECT managed_identity.forget_tokens('{resource}', '{}')", identity.name),
                1 => "SELECT count(*)::text FROM managed_identity.cached_tokens".into(),
                _ => format!("SELECT managed_identity.access_token('{resource}', '{}', {force})", identity.name),
            };
            let patience = if rng.u8(..10) == 0 { rng.u32(1..500) } else { 0 };
            // What was sent to the call before may arrive only now.
            if session.client().batch_execute(&format!("SET statement_timeout = {patience}")).is_err() {
                if session.client().is_closed() {
                    session = self.begin(nth);
                }
                continue;
            }
            let begun = Instant::now();
            let pid = self.victims.lock().unwrap().get(&nth).copied().unwrap_or_default();
            let outcome = session.client().query_one(&sql, &[]);
            let took = begun.elapsed();
            self.calls.fetch_add(1, Ordering::Relaxed);
            if took > LIMIT + SLACK && self.stopped.load(Ordering::Relaxed) != pid as u64 {
                self.complain(format!("{sql} took {took:?}"));
            }
            match outcome {
                Ok(row) if sql.contains("access_token") => {
                    self.tokens.fetch_add(1, Ordering::Relaxed);
                    let token: String = row.get(0);
                    if object_id(&token) != identity.object_id {
                        self.complain(format!("identity {} was given another's token", identity.name));
                    }
                }
                Ok(_) => {}
                Err(error) if error.is_closed() || error.code() == Some(&SqlState::ADMIN_SHUTDOWN) => {
                    session = self.begin(nth);
                }
                Err(error) => {
                    let code = error.code().map_or("none", SqlState::code);
                    // Unreachable, refused, throttled, no protocol, 5xx, too large, cancelled.
                    if !["08001", "28000", "53400", "08P01", "58000", "54000", "57014"].contains(&code) {
                        self.complain(format!("{sql}: {code} {error}"));
                    }
                }
            }
        }
    }

    fn begin(&self, nth: u64) -> Session {
        let mut session = self.world.session();
        let pid = session.pid();
        session.run(&format!("SET managed_identity.acquire_timeout = {}", LIMIT.as_millis()));
        if nth >= LASTING {
            self.victims.lock().unwrap().insert(nth, pid);
        }
        session
    }

    /// Cancels, ends and stops sessions, and ends the worker.
    fn disturb(&self, mut rng: Rng) {
        let mut admin = self.world.session();
        while !self.is_over() {
            park_timeout(Duration::from_millis(rng.u64(20..400)));
            let pids: Vec<i32> = self.victims.lock().unwrap().values().copied().collect();
            let Some(pid) = rng.choice(pids) else { continue };
            match rng.u8(..20) {
                0..=9 => admin.run(&format!("SELECT pg_cancel_backend({pid})")),
                10..=16 => admin.run(&format!("SELECT pg_terminate_backend({pid})")),
                17 | 18 => {
                    // Longer than its lease.
                    self.stopped.store(pid as u64, Ordering::Relaxed);
                    signal("-STOP", pid);
                    park_timeout(LIMIT + Duration::from_secs(2));
                    signal("-CONT", pid);
                    park_timeout(SLACK);
                    self.stopped.store(0, Ordering::Relaxed);
                }
                _ => admin.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'managed_identity%'",
                ),
            }
        }
    }

    /// Lets the endpoint fail in every way, and work in between.
    fn fail(&self, mut rng: Rng) {
        let faults = self.world.emulator.identity().faults();
        while !self.is_over() {
            let times = rng.u32(1..30);
            let fault: Option<Fault> = match rng.u8(..14) {
                0 => Some(Fault::delay(Duration::from_millis(rng.u64(1..2_000)))),
                1 => Some(Fault::HangBeforeHeaders),
                2 => Some(Fault::HangInBody { after: rng.u64(1..500) }),
                3 => Some(Fault::Reset),
                4 => Some(Fault::Cut { after: rng.u64(1..500) }),
                5 => Some(Fault::Truncate { after: rng.u64(1..500) }),
                6 => Some(Fault::status(rng.choice([400, 404, 410, 500, 503]).unwrap_or(500))),
                7 => Some(Reply::new(429).header("retry-after", "1").into()),
                8 => Some(Reply::new(200).body("garbage").into()),
                9 => Some(large()),
                _ => None,
            };
            if let Some(fault) = fault {
                faults.next(times, fault);
            }
            park_timeout(Duration::from_millis(rng.u64(100..1_500)));
            if rng.bool() {
                faults.clear();
                faults.release();
            }
        }
        faults.clear();
        faults.release();
    }

    /// What the lasting sessions hold of their own, in kB.
    fn memory(&self) -> u64 {
        let ended: Vec<i32> = self.victims.lock().unwrap().values().copied().collect();
        let mut admin = self.world.session();
        let own = admin.pid();
        let pids = admin.rows("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'");
        let pids = pids.iter().filter_map(|pid| pid.parse().ok());
        let lasting = pids.filter(|pid| *pid != own && !ended.contains(pid));
        lasting.filter_map(anonymous).sum()
    }

    fn judge_the_end(&self) {
        let mut session = self.world.session();
        let quiet = "SELECT count(*) FROM managed_identity.cached_tokens WHERE state = 'fetching' OR waiting <> 0";
        // With all sessions gone only the worker may fetch, and the endpoint works again.
        wait::until("no fetch that nobody makes", || session.value(quiet) == "0");
        for identity in &self.identities {
            let token = session.value(&format!("SELECT managed_identity.access_token('storage', '{}')", identity.name));
            if object_id(&token) != identity.object_id {
                self.complain(format!("identity {} has another's token", identity.name));
            }
        }
        let log = self.world.cluster.log();
        for line in log.lines().filter(|line| line.contains("terminated by signal") || line.contains("PANIC")) {
            self.complain(line.into());
        }
    }
}

fn large() -> Fault {
    Reply::new(200).body("x".repeat(10 << 20)).into()
}

fn object_id(token: &str) -> String {
    let payload = token.split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
    let claims: Option<serde_json::Value> = payload.and_then(|payload| serde_json::from_slice(&payload).ok());
    claims.and_then(|claims| Some(claims.get("oid")?.as_str()?.to_owned())).unwrap_or_default()
}

fn signal(name: &str, pid: i32) {
    // The process may have ended by itself.
    let _ = Command::new("kill").args([name, &pid.to_string()]).stderr(std::process::Stdio::null()).status();
}

fn anonymous(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}
