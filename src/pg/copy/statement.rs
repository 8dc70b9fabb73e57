//! The COPY statement as we run it: a copy of its tree, our options taken out of it, its blob found.

use std::ffi::{CStr, CString, c_char, c_int};
use std::rc::Rc;

use pgrx::PgList;
use pgrx::prelude::*;

use crate::blob::format::{self, Format};
use crate::blob::store::Target;
use crate::blob::url::BlobUrl;
use crate::pg::access_log;
use crate::pg::compat;
use crate::pg::error::{OrRaise, error};
use crate::pg::settings;
use crate::pg::stats::{Operation, Tally};
use crate::pg::storage::{self, Direction, Storage};

/// A COPY from or to a blob. The pointers live as long as the memory context it was read in.
pub struct Statement {
    pub pstate: *mut pg_sys::ParseState,
    /// Our own copy: the original may be a prepared statement's or a function's.
    pub stmt: *mut pg_sys::CopyStmt,
    pub location: c_int,
    pub length: c_int,
    pub storage: Rc<Storage>,
    pub gzip: bool,
    pub binary: bool,
}

impl Statement {
    /// Does what comes before `DoCopy`, and what `DoCopy` does first: where a file's COPY asks for
    /// membership in a role, this asks for USAGE on the server.
    ///
    /// # Safety
    /// The arguments are those of a utility hook, for a COPY whose file name is a URL.
    pub unsafe fn read(
        pstmt: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        query_env: *mut pg_sys::QueryEnvironment,
    ) -> Self {
        // SAFETY: a COPY's tree, copied before anything in it is changed.
        unsafe {
            let stmt: *mut pg_sys::CopyStmt = pg_sys::copyObjectImpl((*pstmt).utilityStmt.cast()).cast();
            let is_from = (*stmt).is_from;
            if is_from && (pg_sys::XactReadOnly || pg_sys::IsInParallelMode()) {
                // Into a temporary table it is allowed in a read-only transaction.
                pg_sys::PreventCommandIfParallelMode(c"COPY".as_ptr());
                pg_sys::PreventCommandDuringRecovery(c"COPY".as_ptr());
            }
            let pstate = pg_sys::make_parsestate(std::ptr::null_mut());
            (*pstate).p_sourcetext = query;
            (*pstate).p_queryEnv = query_env;

            let server = take_server(pstate, stmt);
            let direction = if is_from { Direction::Read } else { Direction::Write };
            let storage = storage::storage_for(&url(stmt), server.as_deref(), direction);
            let (has_format, binary) = format_option((*stmt).options);
            if !has_format {
                let inferred = Format::inferred(&storage.blob.name).or_raise();
                add_format(stmt, inferred);
            }
            let gzip = format::is_gzip(&storage.blob.name);
            let (location, length) = ((*pstmt).stmt_location, (*pstmt).stmt_len);
            Self { pstate, stmt, location, length, storage: Rc::new(storage), gzip, binary }
        }
    }

    pub fn is_from(&self) -> bool {
        // SAFETY: our own copy of the tree.
        unsafe { (*self.stmt).is_from }
    }

    /// After success: who moved which blob.
    pub fn log(&self) {
        let blob = &self.storage.blob;
        access_log::blob(&self.storage.server, self.is_from(), &blob.container, &blob.name);
    }

    /// What counts the statement's requests.
    pub fn tally(&self) -> Tally {
        let operation = if self.is_from() { Operation::ReadBlob } else { Operation::WriteBlob };
        Tally::begin(operation, &self.storage.server)
    }

    /// What a transfer needs to know.
    pub fn target(&self, tally: &Tally) -> Target {
        Target {
            destination: self.storage.destination.clone(),
            blob: self.storage.blob.clone(),
            http: settings::http_options().or_raise(),
            traffic: tally.traffic().clone(),
        }
    }
}

/// # Safety
/// A COPY's tree with a file name.
unsafe fn url(stmt: *mut pg_sys::CopyStmt) -> BlobUrl {
    // SAFETY: as the caller promises.
    let name = unsafe { CStr::from_ptr((*stmt).filename) };
    let Ok(name) = name.to_str() else {
        error(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "the blob URL is not UTF-8",
            None,
            Some("Percent-encode every character that is not ASCII.".into()),
        );
    };
    BlobUrl::parse(name).or_raise()
}

/// Takes `server` out of the options.
///
/// # Safety
/// Our own copy of a COPY's tree.
unsafe fn take_server(pstate: *mut pg_sys::ParseState, stmt: *mut pg_sys::CopyStmt) -> Option<CString> {
    let mut server = None;
    // SAFETY: a COPY's options are a list of DefElem; the list is made anew from the same elements.
    unsafe {
        let mut others = std::ptr::null_mut();
        for option in PgList::<pg_sys::DefElem>::from_pg((*stmt).options).iter_ptr() {
            if CStr::from_ptr((*option).defname) != c"server" {
                others = pg_sys::lappend(others, option.cast());
                continue;
            }
            if server.is_some() {
                compat::conflicting_option(option, pstate);
            }
            server = Some(CStr::from_ptr(pg_sys::defGetString(option)).to_owned());
        }
        (*stmt).options = others;
    }
    server
}

/// Whether there is a `format`, and whether it is `binary`. Everything odd about it is for core to say.
///
/// # Safety
/// A COPY's options.
unsafe fn format_option(options: *mut pg_sys::List) -> (bool, bool) {
    let (mut given, mut binary) = (false, false);
    // SAFETY: a list of DefElem, whose arguments are nodes or NULL.
    unsafe {
        for option in PgList::<pg_sys::DefElem>::from_pg(options).iter_ptr() {
            if CStr::from_ptr((*option).defname) == c"format" {
                given = true;
                let value = (*option).arg;
                if !value.is_null() && (*value).type_ == pg_sys::NodeTag::T_String {
                    let value: *mut pg_sys::String = value.cast();
                    binary = CStr::from_ptr((*value).sval) == c"binary";
                }
            }
        }
    }
    (given, binary)
}

/// # Safety
/// Our own copy of a COPY's tree.
unsafe fn add_format(stmt: *mut pg_sys::CopyStmt, format: Format) {
    // SAFETY: new nodes in the current context, behind the statement's own options.
    unsafe {
        let value = pg_sys::makeString(pg_sys::pstrdup(format.option().as_ptr()));
        let option = pg_sys::makeDefElem(pg_sys::pstrdup(c"format".as_ptr()), value.cast(), -1);
        (*stmt).options = pg_sys::lappend((*stmt).options, option.cast());
    }
}
