//! A statement that hangs, and what ends it.

use std::fs;
use std::thread::{self, JoinHandle};

use server_tests::{Session, wait};

use crate::stage::Place;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Cancel,
    Terminate,
    StatementTimeout,
}

pub const ENDS: [End; 3] = [End::Cancel, End::Terminate, End::StatementTimeout];

impl End {
    /// The SQLSTATE and a part of the message.
    pub fn says(self) -> (&'static str, &'static str) {
        match self {
            Self::Cancel => ("57014", "user request"),
            Self::Terminate => ("57P01", "administrator command"),
            Self::StatementTimeout => ("57014", "statement timeout"),
        }
    }
}

/// What a statement ended with: SQLSTATE and message, where there was an error and the server told it.
pub type Said = Option<(String, String)>;

/// A statement on a thread of its own.
pub struct Running {
    pub pid: i32,
    thread: JoinHandle<(bool, Said, Session)>,
}

impl Running {
    pub fn start(mut session: Session, sql: &str) -> Self {
        let (pid, sql) = (session.pid(), sql.to_owned());
        let thread = thread::spawn(move || {
            let error = session.client().simple_query(&sql).err();
            let told = error.as_ref().and_then(|error| error.as_db_error());
            let said = told.map(|told| (told.code().code().to_owned(), told.message().to_owned()));
            (error.is_none(), said, session)
        });
        Self { pid, thread }
    }

    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it has ended: whether well, what it said, and the session.
    pub fn end(self) -> (bool, Said, Session) {
        wait::until("the session is free", || self.is_over());
        self.thread.join().unwrap()
    }
}

/// A statement that has come to its place.
pub struct Hang {
    pub place: Place,
    pub running: Running,
    /// Where it waits for the fetch of another: that one.
    pub leader: Option<Box<Hang>>,
}

/// How many threads a process has.
pub fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Whether a process runs; one that nobody has asked for its end does not.
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}
