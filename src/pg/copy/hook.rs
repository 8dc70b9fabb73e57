//! The utility hook: which COPY is ours.

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::statement::Statement;
use super::{from, to};
use crate::blob::url::BlobUrl;
use crate::pg::error::{error, tell};

/// The hook that was there before ours; `None` inside: there was none.
static PREVIOUS: OnceLock<pg_sys::ProcessUtility_hook_type> = OnceLock::new();

/// Whether a library that watches rights on tables has its own hook before ours, so that it would not be told of our
/// COPY and then be asked about the COPY's table: the statement would escape it, and pgaudit takes the whole server
/// down on being asked about what it was not told of.
static HIDES_FROM_AUDIT: AtomicBool = AtomicBool::new(false);

/// As pgrx declares it, the function is wrapped in a guard that turns PostgreSQL's errors into panics;
/// a foreign statement's errors must pass as they are.
mod raw {
    use pgrx::pg_sys;
    use std::ffi::c_char;

    unsafe extern "C-unwind" {
        pub fn standard_ProcessUtility(
            pstmt: *mut pg_sys::PlannedStmt,
            query: *const c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            query_env: *mut pg_sys::QueryEnvironment,
            dest: *mut pg_sys::DestReceiver,
            qc: *mut pg_sys::QueryCompletion,
        );
    }
}

/// Installs the hook when the library is preloaded, for the server or for the session. Not when a
/// function's first call loads it: what COPY does must not depend on what a session called before.
pub fn init() {
    if !is_preloaded() {
        return;
    }
    // SAFETY: `_PG_init` runs on the main thread, where nobody else touches the hook.
    let previous = unsafe { pg_sys::ProcessUtility_hook };
    if PREVIOUS.set(previous).is_err() {
        return;
    }
    if previous.is_some() {
        let report = ErrorReport::new(
            PgSqlErrorCode::ERRCODE_WARNING,
            "another library's utility hook was set before the one of managed_identity",
            "",
        )
        .set_detail("That library does not see a COPY from or to a URL.")
        .set_hint("Put managed_identity first in shared_preload_libraries.");
        tell(report, PgLogLevel::WARNING);
        // SAFETY: a plain read, as above.
        HIDES_FROM_AUDIT.store(unsafe { pg_sys::ExecutorCheckPerms_hook }.is_some(), Ordering::Relaxed);
    }
    // SAFETY: as above; the function has the hook's signature and lives as long as the process.
    unsafe { pg_sys::ProcessUtility_hook = Some(process_utility) };
}

/// Whether COPY knows URLs in this session.
pub fn is_installed() -> bool {
    PREVIOUS.get().is_some()
}

fn is_preloaded() -> bool {
    // SAFETY: plain globals; the string is a setting's value or NULL, and is not kept.
    unsafe {
        pg_sys::process_shared_preload_libraries_in_progress || {
            let session = pg_sys::session_preload_libraries_string;
            !session.is_null() && lists_us(&CStr::from_ptr(session).to_string_lossy())
        }
    }
}

/// Whether a list of libraries, as such settings hold it, has ours in it.
fn lists_us(list: &str) -> bool {
    list.split(',').any(|entry| {
        let path = entry.trim().trim_matches('"');
        let file = path.rsplit('/').next().unwrap_or(path);
        file.strip_suffix(".so").unwrap_or(file) == env!("CARGO_PKG_NAME")
    })
}

/// Unguarded, and with nothing in its frame that would have to be dropped, so that an error of a
/// foreign statement may jump across it and keep every field.
#[allow(ffi_unwind_calls, reason = "nothing here has a destructor")]
unsafe extern "C-unwind" fn process_utility(
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    query_env: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    qc: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are PostgreSQL's, and are handed on as they came; the functions called are
    // PostgreSQL's or another hook's, and have this signature.
    unsafe {
        if is_ours((*pstmt).utilityStmt) {
            return copy(pstmt, query, query_env, qc);
        }
        match PREVIOUS.get() {
            Some(Some(previous)) => previous(pstmt, query, read_only_tree, context, params, query_env, dest, qc),
            _ => raw::standard_ProcessUtility(pstmt, query, read_only_tree, context, params, query_env, dest, qc),
        }
    }
}

/// Whether the statement is a COPY whose file name is a URL. Allocates nothing and cannot fail.
///
/// # Safety
/// `node` is NULL or a node of the parse tree.
unsafe fn is_ours(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a node's tag tells its type, and a COPY's file name is NULL or a C string.
    unsafe {
        if node.is_null() || (*node).type_ != pg_sys::NodeTag::T_CopyStmt {
            return false;
        }
        let stmt: *mut pg_sys::CopyStmt = node.cast();
        if (*stmt).filename.is_null() || (*stmt).is_program {
            return false;
        }
        let name = CStr::from_ptr((*stmt).filename).to_bytes();
        let readable = match std::str::from_utf8(name) {
            Ok(name) => name,
            Err(error) => std::str::from_utf8(&name[..error.valid_up_to()]).unwrap_or_default(),
        };
        BlobUrl::is_one(readable)
    }
}

/// What `standard_ProcessUtility` does with a COPY.
#[pg_guard]
unsafe extern "C-unwind" fn copy(
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    query_env: *mut pg_sys::QueryEnvironment,
    qc: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are those of a utility hook; `qc` may be NULL.
    unsafe {
        pg_sys::check_stack_depth();
        if HIDES_FROM_AUDIT.load(Ordering::Relaxed) {
            error(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "COPY from or to a URL would not be seen by a library that audits or checks rights",
                Some("That library's utility hook was set before the one of managed_identity.".into()),
                Some("Put managed_identity first in shared_preload_libraries.".into()),
            );
        }
        let statement = Statement::read(pstmt, query, query_env);
        let processed = if statement.is_from() { from::run(&statement) } else { to::run(&statement) };
        statement.log();
        if !qc.is_null() {
            (*qc).commandTag = pg_sys::CommandTag::CMDTAG_COPY;
            (*qc).nprocessed = processed;
        }
        pg_sys::free_parsestate(statement.pstate);
        pg_sys::CommandCounterIncrement();
    }
}

#[cfg(test)]
mod tests {
    use super::lists_us;

    #[test]
    fn our_library_is_found_in_a_list_of_them() {
        for list in [
            "managed_identity",
            "a, managed_identity ,b",
            "\"$libdir/managed_identity\"",
            "/usr/lib/managed_identity.so",
        ] {
            assert!(lists_us(list), "{list}");
        }
        for list in ["", "managed_identity2", "a,b", "managed_identity/other"] {
            assert!(!lists_us(list), "{list}");
        }
    }
}
