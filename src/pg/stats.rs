//! What was asked of Azure's endpoints, added up for the whole server: the rows of `stat_requests`.
//!
//! A fixed number of entries in shared memory, or in this process's own when the library was not preloaded, each for
//! one server of a database and one operation on it. A call or transfer counts for itself ([`Traffic`]) and is added
//! here once, when it ends: by return, by ERROR, or, with [`on_exit`], by FATAL. One lock, a leaf: while it is held
//! nothing is locked, waited for or allocated from PostgreSQL, and nothing fails.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init};

use super::cache::Text;
use super::clock;
use super::interrupts::Event;
use crate::http::failure::Failure;
use crate::http::traffic::{Counts, Traffic};

/// Entries there is room for. When all are taken the one unused the longest gives way, in which a counter starts
/// again as it does after a reset: a row for "all others" would mix servers for good, and what is unused the longest is
/// mostly a server that is gone.
const ENTRIES: usize = 256;

const LONGEST_NAME: usize = pg_sys::NAMEDATALEN as usize;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    Token = 1,
    ReadBlob = 2,
    WriteBlob = 3,
    Secret = 4,
    Key = 5,
    KeyVersions = 6,
    Wrap = 7,
    Unwrap = 8,
    Encrypt = 9,
    Decrypt = 10,
    Sign = 11,
    Verify = 12,
}

impl Operation {
    const ALL: [Self; 12] = [
        Self::Token,
        Self::ReadBlob,
        Self::WriteBlob,
        Self::Secret,
        Self::Key,
        Self::KeyVersions,
        Self::Wrap,
        Self::Unwrap,
        Self::Encrypt,
        Self::Decrypt,
        Self::Sign,
        Self::Verify,
    ];

    /// As the view shows it: the server's wrapper, and the operation.
    fn shown(self) -> (&'static str, &'static str) {
        match self {
            Self::Token => ("managed_identity", "token"),
            Self::ReadBlob => ("azure_storage", "get"),
            Self::WriteBlob => ("azure_storage", "put"),
            Self::Secret => ("azure_key_vault", "secret"),
            Self::Key => ("azure_key_vault", "key"),
            Self::KeyVersions => ("azure_key_vault", "versions"),
            Self::Wrap => ("azure_key_vault", "wrap"),
            Self::Unwrap => ("azure_key_vault", "unwrap"),
            Self::Encrypt => ("azure_key_vault", "encrypt"),
            Self::Decrypt => ("azure_key_vault", "decrypt"),
            Self::Sign => ("azure_key_vault", "sign"),
            Self::Verify => ("azure_key_vault", "verify"),
        }
    }

    /// What a session waits for meanwhile.
    pub fn event(self) -> Event {
        match self {
            Self::Token => Event::Token,
            Self::ReadBlob => Event::StorageRead,
            Self::WriteBlob => Event::StorageWrite,
            Self::Secret
            | Self::Key
            | Self::KeyVersions
            | Self::Wrap
            | Self::Unwrap
            | Self::Encrypt
            | Self::Decrypt
            | Self::Sign
            | Self::Verify => Event::KeyVault,
        }
    }
}

/// All zeros is a free one.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    operation: u8,
    database: pg_sys::Oid,
    server: Text<LONGEST_NAME>,
    requests: u64,
    retries: u64,
    throttled: u64,
    errors: u64,
    bytes_in: u64,
    bytes_out: u64,
    microseconds: u64,
    last_error: Text<240>,
    /// Unix seconds.
    last_error_at: i64,
    counting_since: i64,
    /// Grows with each use of any entry.
    used: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Table {
    uses: u64,
    /// Unix seconds.
    counting_since: i64,
    entries: [Entry; ENTRIES],
}

// SAFETY: plain data without pointers.
unsafe impl PGRXSharedMemory for Table {}

// SAFETY: no other lock or piece of shared memory has this name.
static SHARED: PgLwLock<Table> = unsafe { PgLwLock::new(c"managed_identity_stats") };
static IS_SHARED: AtomicBool = AtomicBool::new(false);

impl Table {
    fn new() -> Self {
        // SAFETY: of numbers and texts that are valid as zeros.
        let table: Self = unsafe { std::mem::zeroed() };
        Self { counting_since: clock::now(), ..table }
    }

    fn add(&mut self, what: &What, counts: &Counts, now: i64) {
        self.uses += 1;
        let at = self.find(what);
        let entry = &mut self.entries[at];
        entry.used = self.uses;
        entry.requests += counts.requests;
        entry.retries += counts.retries;
        entry.throttled += counts.throttled;
        entry.errors += counts.errors;
        entry.bytes_in += counts.bytes_in;
        entry.bytes_out += counts.bytes_out;
        entry.microseconds += counts.microseconds;
        if let Some(error) = &counts.last_error {
            entry.last_error.set(error);
            entry.last_error_at = now;
        }
    }

    /// The place of an entry: its own, else a free one, else the one unused the longest.
    fn find(&mut self, what: &What) -> usize {
        let number = what.operation as u8;
        let is_it = |entry: &Entry| {
            entry.operation == number && entry.database == what.database && entry.server.get() == what.server
        };
        if let Some(at) = self.entries.iter().position(is_it) {
            return at;
        }
        // A free one was never used.
        let at = (0..ENTRIES).min_by_key(|at| self.entries[*at].used).unwrap_or(0);
        let entry = &mut self.entries[at];
        let counting_since = if entry.operation == 0 { self.counting_since } else { clock::now() };
        // SAFETY: as in `new`.
        *entry = Entry { operation: number, database: what.database, counting_since, ..unsafe { std::mem::zeroed() } };
        entry.server.set(&what.server);
        at
    }
}

/// What an entry counts.
struct What {
    operation: Operation,
    database: pg_sys::Oid,
    server: String,
}

thread_local! {
    static LOCAL: RefCell<Option<Box<Table>>> = const { RefCell::new(None) };
    /// What has not ended yet.
    static OPEN: RefCell<Vec<Rc<Open>>> = const { RefCell::new(Vec::new()) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Asks for shared memory; only while the library is preloaded.
pub fn init() {
    IS_SHARED.store(true, Ordering::Relaxed);
    pg_shmem_init!(SHARED = Table::new());
}

/// Whether the library was preloaded, and all sessions count together.
pub fn is_shared() -> bool {
    IS_SHARED.load(Ordering::Relaxed)
}

fn with_table<R>(work: impl FnOnce(&mut Table) -> R) -> R {
    if is_shared() {
        return work(&mut SHARED.exclusive());
    }
    LOCAL.with_borrow_mut(|local| work(local.get_or_insert_with(|| Box::new(Table::new()))))
}

struct Open {
    what: What,
    traffic: Arc<Traffic>,
}

impl Open {
    /// Adds what was counted since the last time, if anything was.
    fn add(&self) {
        let counts = self.traffic.take();
        if counts.requests > 0 || counts.errors > 0 {
            let now = clock::now();
            with_table(|table| table.add(&self.what, &counts, now));
        }
    }
}

/// A call or transfer that is counted: begun before its first request, added up when dropped.
pub struct Tally(Rc<Open>);

impl Tally {
    pub fn begin(operation: Operation, server: &CStr) -> Self {
        if !REGISTERED.replace(true) {
            // SAFETY: a guarded function, registered once per process; "before" because it takes an LWLock.
            unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0)) };
        }
        // SAFETY: a plain global.
        let database = unsafe { pg_sys::MyDatabaseId };
        let mut server = server.to_string_lossy().into_owned();
        // Longer only where it was no UTF-8.
        server.truncate(server.floor_char_boundary(LONGEST_NAME));
        let what = What { operation, database, server };
        let open = Rc::new(Open { what, traffic: Arc::default() });
        OPEN.with_borrow_mut(|all| all.push(open.clone()));
        Self(open)
    }

    /// Where requests are counted.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.0.traffic
    }

    /// What the session waits for meanwhile.
    pub fn event(&self) -> Event {
        self.0.what.operation.event()
    }

    /// The same result, its failure counted unless it was where it arose, or is that of another session's requests.
    pub fn judged<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.inspect_err(|failure| {
            if self.0.traffic.is_without_error() {
                self.0.traffic.failed(failure);
            }
        })
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        OPEN.with_borrow_mut(|all| all.retain(|open| !Rc::ptr_eq(open, &self.0)));
        self.0.add();
    }
}

/// FATAL and proc_exit leave without unwinding.
#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _arg: pg_sys::Datum) {
    for open in OPEN.take() {
        open.add();
    }
}

/// Forgets all that was counted.
pub fn reset() {
    let now = clock::now();
    with_table(|table| {
        for entry in &mut table.entries {
            entry.operation = 0;
            entry.used = 0;
        }
        table.counting_since = now;
    });
}

/// A row of `stat_requests`.
pub struct Row {
    pub kind: &'static str,
    /// None for what no server was named for.
    pub server: Option<String>,
    pub operation: &'static str,
    pub requests: i64,
    pub retries: i64,
    pub throttled: i64,
    pub errors: i64,
    pub bytes_in: i64,
    pub bytes_out: i64,
    pub total_time_ms: f64,
    pub last_error: Option<String>,
    pub last_error_at: i64,
    pub counting_since: i64,
    /// None for what no database was named for.
    pub database: Option<String>,
}

/// What was counted in all databases that are still there.
pub fn rows() -> Vec<Row> {
    let taken: Vec<Entry> =
        with_table(|table| table.entries.iter().filter(|entry| entry.operation != 0).copied().collect());
    taken.iter().filter_map(row).collect()
}

fn row(entry: &Entry) -> Option<Row> {
    let (kind, operation) = Operation::ALL.into_iter().find(|known| *known as u8 == entry.operation)?.shown();
    let database = match entry.database {
        pg_sys::InvalidOid => None,
        database => Some(database_name(database)?),
    };
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
    Some(Row {
        kind,
        server: some(entry.server.get()),
        operation,
        requests: number(entry.requests),
        retries: number(entry.retries),
        throttled: number(entry.throttled),
        errors: number(entry.errors),
        bytes_in: number(entry.bytes_in),
        bytes_out: number(entry.bytes_out),
        total_time_ms: entry.microseconds as f64 / 1000.0,
        last_error: some(entry.last_error.get()),
        last_error_at: entry.last_error_at,
        counting_since: entry.counting_since,
        database,
    })
}

/// None when it was dropped.
fn database_name(database: pg_sys::Oid) -> Option<String> {
    // SAFETY: a syscache look-up; the result is NULL or a string in the current memory context, copied at once.
    unsafe {
        let name = pg_sys::get_database_name(database);
        (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(server: usize) -> What {
        What { operation: Operation::Token, database: pg_sys::Oid::from(5), server: format!("s{server}") }
    }

    #[test]
    fn of_a_full_table_the_entry_unused_the_longest_gives_way() {
        let mut table = Table::new();
        let one = Counts { requests: 1, ..Counts::default() };
        for server in (0..ENTRIES).chain([0]) {
            table.add(&what(server), &one, 0);
        }
        table.add(&what(ENTRIES), &one, 0);
        let count = |name: &str| {
            let of = table.entries.iter().filter(|entry| entry.server.get() == name);
            of.map(|entry| entry.requests).collect::<Vec<_>>()
        };
        assert_eq!(count("s0"), [2]);
        assert_eq!(count("s1"), [0u64; 0]);
        assert_eq!((count("s2"), count(&format!("s{ENTRIES}"))), (vec![1], vec![1]));
    }

    #[test]
    fn an_error_stays_until_the_next_one() {
        let mut table = Table::new();
        let failed = Counts { errors: 1, last_error: Some("no".into()), ..Counts::default() };
        table.add(&what(1), &failed, 7);
        table.add(&what(1), &Counts { requests: 3, ..Counts::default() }, 8);
        let entry = &table.entries[0];
        assert_eq!((entry.requests, entry.errors, entry.last_error.get(), entry.last_error_at), (3, 1, "no", 7));
    }
}
