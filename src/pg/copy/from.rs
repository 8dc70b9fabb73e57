//! COPY FROM a blob: core's own COPY, which takes its data from a download.

use std::ffi::{c_int, c_void};

use bytes::{Buf, Bytes};
use pgrx::prelude::*;

use super::checks;
use super::lease::{Descriptors, Lease};
use super::stack::{self, Pushed, Stack};
use super::statement::Statement;
use crate::blob::download::{Download, Next};
use crate::blob::store::Target;
use crate::pg::error::{OrRaise, error, raise};
use crate::pg::stats::Tally;
use crate::pg::{interrupts, settings};
use crate::token::AccessToken;

thread_local! {
    static SOURCES: Stack<Source> = const { Stack::new() };
}

/// Runs the statement and returns the number of rows.
pub fn run(statement: &Statement) -> u64 {
    let subject = checks::check(statement);
    let (pstate, stmt) = (statement.pstate, statement.stmt);
    // SAFETY: the checks opened the relation; the rest is the statement's own tree.
    unsafe {
        if pg_sys::XactReadOnly && !(*subject.rel).rd_islocaltemp {
            pg_sys::PreventCommandIfReadOnly(c"COPY FROM".as_ptr());
        }
        // Core does this first in BeginCopyFrom: wrong options are told before anything is requested.
        pg_sys::ProcessCopyOptions(pstate, std::ptr::null_mut(), true, (*stmt).options);
    }
    // A source that has its token: nothing is waited for on the identity's endpoint any more once core
    // has begun.
    let _descriptors = Descriptors::reserve();
    let source = Pushed::new(&SOURCES, Source::new(statement));
    // SAFETY: as above; the callback is guarded, has core's signature, and finds the source as long
    // as that is on its stack, which is until after the last use of `copy`.
    let processed = unsafe {
        let copy = pg_sys::BeginCopyFrom(
            pstate,
            subject.rel,
            subject.where_clause,
            std::ptr::null(),
            false,
            Some(read),
            (*stmt).attlist,
            (*stmt).options,
        );
        // Here core opens its file, and nothing of a missing one is put down to line 1.
        let total = source.entry().total();
        if let Some(total) = total {
            pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_COPY_BYTES_TOTAL as c_int, total);
        }
        let processed = pg_sys::CopyFrom(copy);
        pg_sys::EndCopyFrom(copy);
        processed
    };
    subject.close();
    processed
}

/// Core asks for between `least` and `most` bytes; fewer only at the end.
#[pg_guard]
unsafe extern "C-unwind" fn read(out: *mut c_void, least: c_int, most: c_int) -> c_int {
    let Some(source) = stack::top(&SOURCES) else {
        error(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "COPY asks for data outside of a COPY", None, None);
    };
    let mut source = source.borrow_mut();
    source.keep_fresh();
    let (least, most) = (usize::try_from(least).unwrap_or(0), usize::try_from(most).unwrap_or(0));
    let mut filled = 0;
    while filled < least.max(1) {
        let data = source.data();
        let length = data.len().min(most - filled);
        if length == 0 {
            break;
        }
        // SAFETY: core's buffer has room for `most` bytes, and `length` more are within it.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), out.cast::<u8>().add(filled), length) };
        data.advance(length);
        filled += length;
    }
    filled as c_int
}

/// Where the data comes from.
struct Source {
    lease: Lease,
    tally: Tally,
    state: State,
    /// The blob's size, once it is open.
    size: Option<u64>,
    /// What has arrived and was not given to core yet.
    data: Bytes,
    gzip: bool,
}

enum State {
    /// Nothing is requested before core has accepted the whole statement.
    Planned(Box<(Target, AccessToken)>),
    Reading(Download),
    Ended,
}

impl Source {
    fn new(statement: &Statement) -> Self {
        let tally = statement.tally();
        Self {
            lease: Lease::new(statement.storage.clone()),
            state: State::Planned(Box::new((statement.target(&tally), statement.storage.token()))),
            tally,
            size: None,
            data: Bytes::new(),
            gzip: statement.gzip,
        }
    }

    /// Opens the blob, if core has not read from it already. Returns how many bytes core will see,
    /// where that is known.
    fn total(&mut self) -> Option<i64> {
        while self.size.is_none() && self.step() {}
        self.size.filter(|_| !self.gzip).and_then(|size| i64::try_from(size).ok())
    }

    /// What core has not got yet; empty at the end.
    fn data(&mut self) -> &mut Bytes {
        while self.data.is_empty() && self.step() {}
        &mut self.data
    }

    fn keep_fresh(&mut self) {
        if let State::Reading(download) = &self.state {
            self.lease.keep_fresh(&download.renewer);
        }
    }

    /// Waits for one thing to happen; false at the end.
    fn step(&mut self) -> bool {
        if matches!(self.state, State::Planned(_))
            && let State::Planned(planned) = std::mem::replace(&mut self.state, State::Ended)
        {
            let (target, token) = *planned;
            let started = Download::start(target, token, self.gzip, settings::blob_block_size());
            self.state = State::Reading(started.or_raise());
        }
        let State::Reading(download) = &mut self.state else {
            return false;
        };
        let next = download.ready().unwrap_or_else(|| {
            let _waiting = self.tally.traffic().waiting();
            interrupts::wait_as(self.tally.event(), download.next())
        });
        match next {
            Next::Opened(size) => self.size = Some(size),
            Next::Data(data) => self.data = data,
            Next::TokenWanted => self.lease.renew(&download.renewer),
            Next::Failed(failure) => raise(failure),
            Next::End => self.state = State::Ended,
        }
        !matches!(self.state, State::Ended)
    }
}
