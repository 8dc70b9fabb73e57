//! Every difference between PostgreSQL's majors.

use std::ffi::{CStr, c_char, c_int, c_void};

use pgrx::pg_sys;

/// Whether `role` has USAGE on a foreign server.
pub fn has_usage(server: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    let usage = pg_sys::AclMode::from(pg_sys::ACL_USAGE);
    #[cfg(feature = "pg15")]
    // SAFETY: reads the syscache; both arguments are plain values.
    let result = unsafe { pg_sys::pg_foreign_server_aclcheck(server, role, usage) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above.
    let result = unsafe { pg_sys::object_aclcheck(pg_sys::ForeignServerRelationId, server, role, usage) };
    result == pg_sys::AclResult::ACLCHECK_OK
}

/// Whether `role` owns a foreign server, or has the rights of who does.
pub fn owns_server(server: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: reads the syscache; both arguments are plain values.
    let owns = unsafe { pg_sys::pg_foreign_server_ownercheck(server, role) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as above.
    let owns = unsafe { pg_sys::object_ownercheck(pg_sys::ForeignServerRelationId, server, role) };
    owns
}

/// Functions of core as they are: not bound by pgrx, or bound as what cannot be a signal handler.
mod server {
    #![allow(non_snake_case)]

    use std::ffi::{c_char, c_int};

    unsafe extern "C" {
        /// What `PostmasterIsAlive()` calls.
        pub fn PostmasterIsAliveInternal() -> bool;
        // The parts of `ereport`; called within pgrx's boundary, where an ERROR stops.
        pub fn errstart(level: c_int, domain: *const c_char) -> bool;
        pub fn errmsg_internal(format: *const c_char, ...) -> c_int;
        pub fn errdetail_internal(format: *const c_char, ...) -> c_int;
        pub fn errhidestmt(hide: bool) -> c_int;
        pub fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
    }

    unsafe extern "C-unwind" {
        pub fn SignalHandlerForShutdownRequest(signal: c_int);
        pub fn SignalHandlerForConfigReload(signal: c_int);
        pub fn die(signal: c_int);
    }
}

/// Whether the postmaster lives. A system call: not for a hot path.
pub fn postmaster_is_alive() -> bool {
    // SAFETY: a plain global; then reads a pipe that every child of a postmaster has. In single-user mode
    // there is none.
    unsafe { !pg_sys::IsUnderPostmaster || server::PostmasterIsAliveInternal() }
}

/// A piece of shared memory that any session can make, and all find by its name; `make` fills it for the first.
/// `None` before 17, without a postmaster, and where it would be a file on disk.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub fn named_segment(
    _name: &CStr,
    _bytes: usize,
    _make: unsafe extern "C-unwind" fn(*mut c_void),
) -> Option<*mut c_void> {
    None
}

/// As above. Raises where the server has no memory for it.
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub fn named_segment(name: &CStr, bytes: usize, make: unsafe extern "C-unwind" fn(*mut c_void)) -> Option<*mut c_void> {
    // SAFETY: plain globals, set before any session starts.
    unsafe {
        if !pg_sys::IsUnderPostmaster || pg_sys::dynamic_shared_memory_type == pg_sys::DSM_IMPL_MMAP as c_int {
            return None;
        }
    }
    let mut found = false;
    // SAFETY: the name is a C string; core keeps the segment and its mapping for as long as server and process
    // live, and keeps everybody else out while `make` runs.
    Some(unsafe { pg_sys::GetNamedDSMSegment(name.as_ptr(), bytes, Some(make), &mut found) })
}

/// A worker without a database notes SIGTERM, for [`end_if_asked`], and SIGHUP, for [`reload_if_asked`].
pub fn handle_worker_signals() {
    #[cfg(not(feature = "pg18"))]
    use pg_sys::pqsignal;
    #[cfg(feature = "pg18")]
    use pg_sys::pqsignal_be as pqsignal;
    // SAFETY: core's own handlers; the signals are blocked until the last call.
    unsafe {
        pqsignal(pg_sys::SIGTERM as c_int, Some(server::SignalHandlerForShutdownRequest));
        pqsignal(pg_sys::SIGHUP as c_int, Some(server::SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// A worker with a database treats SIGTERM as a session does.
pub fn handle_writer_signals() {
    #[cfg(not(feature = "pg18"))]
    use pg_sys::pqsignal;
    #[cfg(feature = "pg18")]
    use pg_sys::pqsignal_be as pqsignal;
    // SAFETY: core's own handlers; the signals are blocked until the last call.
    unsafe {
        pqsignal(pg_sys::SIGTERM as c_int, Some(server::die));
        pqsignal(pg_sys::SIGHUP as c_int, Some(server::SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Whether a worker was asked to end. Never in a backend, whose SIGTERM is another handler's.
pub fn is_asked_to_end() -> bool {
    // SAFETY: a plain sig_atomic_t.
    unsafe { std::ptr::read_volatile(&raw const pg_sys::ShutdownRequestPending) != 0 }
}

/// Ends a worker that was asked to, without a FATAL in the log of each shutdown; with 1, so that it is started again
/// where the server goes on.
pub fn end_if_asked() {
    if is_asked_to_end() {
        // SAFETY: leaves by exit(), with no runtime frame on the stack.
        unsafe { pg_sys::proc_exit(1) };
    }
}

/// Writes to the server's log, without the statement that led to it: its literals may be secrets. The caller holds
/// interrupts off.
pub fn log(level: c_int, message: &CStr, detail: Option<&CStr>) {
    // SAFETY: what the macro `ereport` expands to, at a level that does not leave; core copies the texts. An ERROR on
    // the way, of too little memory, stops at the boundary, and nothing here has a destructor.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            if server::errstart(level, std::ptr::null()) {
                server::errmsg_internal(c"%s".as_ptr(), message.as_ptr());
                if let Some(detail) = detail {
                    server::errdetail_internal(c"%s".as_ptr(), detail.as_ptr());
                }
                server::errhidestmt(true);
                server::errfinish(c"managed_identity".as_ptr(), 0, c"log".as_ptr());
            }
        });
    }
}

/// Reads the configuration files again if SIGHUP asked for it.
pub fn reload_if_asked() {
    // SAFETY: a plain sig_atomic_t, reset before the work as core does.
    unsafe {
        if std::ptr::read_volatile(&raw const pg_sys::ConfigReloadPending) != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// The wait event of this name, which pg_stat_activity shows as one of type Extension. Before 17 extensions have one
/// for all.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub fn wait_event(_name: &CStr) -> u32 {
    pg_sys::PG_WAIT_EXTENSION
}

/// The wait event of this name, which pg_stat_activity shows as one of type Extension. Takes a lock: a caller keeps it.
#[cfg(not(any(feature = "pg15", feature = "pg16")))]
pub fn wait_event(name: &CStr) -> u32 {
    // SAFETY: reads the name; every process gets the same number for it.
    unsafe { pg_sys::WaitEventExtensionNew(name.as_ptr()) }
}

// COPY.

/// Core's callback for the output of COPY TO.
pub type CopyDestination = unsafe extern "C-unwind" fn(data: *mut c_void, length: c_int);

/// Whether COPY TO can hand its output to a callback.
pub const COPY_TO_HAS_CALLBACK: bool = cfg!(not(feature = "pg15"));

/// Whether `DoCopy` refuses `COPY (MERGE …)` before it looks at it.
pub const COPY_REFUSES_MERGE: bool = cfg!(any(feature = "pg15", feature = "pg16"));

/// Checks the current user's rights on the columns that are copied, as `DoCopy` does; raises.
///
/// # Safety
/// `item` is the relation's entry in `pstate`, made by `addRangeTableEntryForRelation`; `columns` is a
/// list of integers.
pub unsafe fn check_copy_permissions(
    pstate: *mut pg_sys::ParseState,
    item: *mut pg_sys::ParseNamespaceItem,
    is_from: bool,
    columns: *mut pg_sys::List,
) {
    let required = pg_sys::AclMode::from(if is_from { pg_sys::ACL_INSERT } else { pg_sys::ACL_SELECT });
    // SAFETY: as the caller promises; the entry and its sets live in the current context.
    unsafe {
        // The entry itself on 15, its permissions on later majors, have these fields alike.
        #[cfg(feature = "pg15")]
        let entry = (*item).p_rte;
        #[cfg(not(feature = "pg15"))]
        let entry = (*item).p_perminfo;
        (*entry).requiredPerms = required;
        for column in pgrx::PgList::<c_void>::from_pg(columns).iter_int() {
            let member = column - pg_sys::FirstLowInvalidHeapAttributeNumber;
            if is_from {
                (*entry).insertedCols = pg_sys::bms_add_member((*entry).insertedCols, member);
            } else {
                (*entry).selectedCols = pg_sys::bms_add_member((*entry).selectedCols, member);
            }
        }
        #[cfg(feature = "pg15")]
        pg_sys::ExecCheckRTPerms((*pstate).p_rtable, true);
        #[cfg(not(feature = "pg15"))]
        pg_sys::ExecCheckPermissions((*pstate).p_rtable, pg_sys::lappend(std::ptr::null_mut(), entry.cast()), true);
    }
}

/// `BeginCopyTo` into a file or, where there is one, a callback.
///
/// # Safety
/// The arguments are those of `DoCopy`; `file` is given where `callback` is not.
#[allow(clippy::too_many_arguments, reason = "PostgreSQL's own signature")]
pub unsafe fn begin_copy_to(
    pstate: *mut pg_sys::ParseState,
    rel: pg_sys::Relation,
    query: *mut pg_sys::RawStmt,
    relid: pg_sys::Oid,
    file: *const c_char,
    callback: Option<CopyDestination>,
    columns: *mut pg_sys::List,
    options: *mut pg_sys::List,
) -> pg_sys::CopyToState {
    #[cfg(feature = "pg15")]
    // SAFETY: as the caller promises.
    unsafe {
        debug_assert!(callback.is_none());
        pg_sys::BeginCopyTo(pstate, rel, query, relid, file, false, columns, options)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as the caller promises.
    unsafe {
        pg_sys::BeginCopyTo(pstate, rel, query, relid, file, false, callback, columns, options)
    }
}

/// Raises core's error for an option that was given twice, at its place in the statement.
///
/// # Safety
/// `option` is an element of the statement's options.
pub unsafe fn conflicting_option(option: *mut pg_sys::DefElem, pstate: *mut pg_sys::ParseState) -> ! {
    #[allow(unreachable_code, reason = "it does not return, which only some bindings say")]
    // SAFETY: as the caller promises.
    unsafe {
        pg_sys::errorConflictingDefElem(option, pstate);
        unreachable!("an ERROR does not return")
    }
}
