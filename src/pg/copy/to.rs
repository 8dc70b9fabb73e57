//! COPY TO a blob: core's own COPY, whose output goes into an upload, row by row where core has a
//! callback for that, else through a file of its own.

use std::ffi::{c_int, c_void};
use std::future::Future;
use std::io::Read;
use std::pin::Pin;

use pgrx::prelude::*;

use super::checks::{self, Subject};
use super::lease::{Descriptors, Lease};
use super::spool::{Spool, failed};
use super::stack::{self, Pushed, Stack};
use super::statement::Statement;
use crate::blob::upload::{Ready, Upload};
use crate::pg::error::{OrRaise, error, raise};
use crate::pg::stats::Tally;
use crate::pg::{compat, interrupts, settings};
use crate::token::AccessToken;

thread_local! {
    static SINKS: Stack<Sink> = const { Stack::new() };
}

/// Runs the statement and returns the number of rows. The blob appears after everything else has
/// succeeded; an ERROR before leaves the one that was there.
pub fn run(statement: &Statement) -> u64 {
    let subject = checks::check(statement);
    if is_plain(&subject) {
        // Core does this first for what it can copy: wrong options are told before anything is requested.
        // SAFETY: the statement's own tree.
        unsafe { pg_sys::ProcessCopyOptions(statement.pstate, std::ptr::null_mut(), false, (*statement.stmt).options) };
    }
    // Before the work, and before a query's snapshot.
    let token = statement.storage.token();
    let _descriptors = Descriptors::reserve();
    let processed = if compat::COPY_TO_HAS_CALLBACK {
        let sink = Pushed::new(&SINKS, Sink::start(statement, token));
        // SAFETY: the callback is guarded, has core's signature, and finds the sink on its stack.
        let processed = unsafe { copy(statement, &subject, std::ptr::null(), Some(write)) };
        sink.entry().commit();
        processed
    } else {
        let spool = Spool::create();
        // SAFETY: the path is absolute, as core demands.
        let processed = unsafe { copy(statement, &subject, spool.path(), None) };
        let mut sink = Sink::start(statement, token);
        sink.take(&spool);
        sink.commit();
        processed
    };
    subject.close();
    processed
}

/// A query or a table: what core does not refuse to copy.
fn is_plain(subject: &Subject) -> bool {
    // SAFETY: the relation is open where there is one.
    subject.rel.is_null() || unsafe { (*(*subject.rel).rd_rel).relkind as u8 } == pg_sys::RELKIND_RELATION
}

/// Runs core's COPY into a file or a callback.
///
/// # Safety
/// One of `file` and `callback` is given, and fits what this major can do.
unsafe fn copy(
    statement: &Statement,
    subject: &Subject,
    file: *const std::ffi::c_char,
    callback: Option<compat::CopyDestination>,
) -> u64 {
    // SAFETY: the subject is what the checks made of the statement.
    unsafe {
        let (pstate, stmt) = (statement.pstate, statement.stmt);
        let copy = compat::begin_copy_to(
            pstate,
            subject.rel,
            subject.query,
            subject.relid,
            file,
            callback,
            (*stmt).attlist,
            (*stmt).options,
        );
        let processed = pg_sys::DoCopyTo(copy);
        pg_sys::EndCopyTo(copy);
        processed
    }
}

/// Core hands over a row.
#[pg_guard]
unsafe extern "C-unwind" fn write(data: *mut c_void, length: c_int) {
    let Some(sink) = stack::top(&SINKS) else {
        error(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "COPY has data outside of a COPY", None, None);
    };
    let mut sink = sink.borrow_mut();
    // SAFETY: core's row buffer, which it reuses after this call.
    let row = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), usize::try_from(length).unwrap_or(0)) };
    sink.write(row);
    if sink.line_ends {
        // For a callback core leaves the line's end to us.
        sink.write(b"\n");
    }
}

/// Where the data goes.
struct Sink {
    lease: Lease,
    tally: Tally,
    upload: Upload,
    /// The piece that is being filled, with room for all of it.
    filling: Vec<u8>,
    piece: usize,
    line_ends: bool,
}

impl Sink {
    /// Nothing is requested before the first piece is full, or the end.
    fn start(statement: &Statement, token: AccessToken) -> Self {
        let block = settings::blob_block_size();
        let tally = statement.tally();
        let upload = Upload::start(statement.target(&tally), token, statement.gzip, block).or_raise();
        let piece = upload.piece().or_raise();
        Self {
            lease: Lease::new(statement.storage.clone()),
            tally,
            upload,
            filling: Vec::with_capacity(piece),
            piece,
            line_ends: !statement.binary,
        }
    }

    fn write(&mut self, mut data: &[u8]) {
        while data.len() > self.piece - self.filling.len() {
            let (now, later) = data.split_at(self.piece - self.filling.len());
            self.filling.extend_from_slice(now);
            self.flush();
            data = later;
        }
        self.filling.extend_from_slice(data);
    }

    /// Takes a whole file.
    fn take(&mut self, spool: &Spool) {
        let mut file = spool.open();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = file.read(&mut buffer).map_err(|error| failed("read", &error)).or_raise();
            if read == 0 {
                return;
            }
            self.write(&buffer[..read]);
            pgrx::check_for_interrupts!();
        }
    }

    /// Hands the full piece over and begins the next.
    fn flush(&mut self) {
        self.wait_for_room();
        let full = std::mem::take(&mut self.filling);
        self.upload.send(full.into());
        self.piece = self.upload.piece().or_raise();
        self.filling = Vec::with_capacity(self.piece);
    }

    /// Makes the blob appear.
    fn commit(&mut self) {
        self.wait_for_room();
        self.upload.commit(std::mem::take(&mut self.filling).into());
        while !self.settled(|upload| Box::pin(upload.committed())) {}
    }

    fn wait_for_room(&mut self) {
        while !self.settled(|upload| Box::pin(upload.ready())) {}
    }

    /// Waits for the upload; false when it has to be waited for again.
    fn settled(&mut self, wait: impl FnOnce(&mut Upload) -> Pin<Box<dyn Future<Output = Ready> + '_>>) -> bool {
        self.lease.keep_fresh(&self.upload.renewer);
        let waiting = self.tally.traffic().waiting();
        let ready = interrupts::wait_as(self.tally.event(), wait(&mut self.upload));
        drop(waiting);
        match ready {
            Ready::Yes => return true,
            Ready::TokenWanted => self.lease.renew(&self.upload.renewer),
            Ready::Failed(failure) => raise(failure),
        }
        false
    }
}
