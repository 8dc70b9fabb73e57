//! `managed_identity.log_access`: who took what out of the server's hands, a line each in the server's log.
//!
//! Written after the thing was given, by LOG_SERVER_ONLY, so that no client can ask for the lines and no
//! `log_min_messages` but FATAL and PANIC hides them. Never a value.

use std::ffi::{CStr, c_char};

use pgrx::prelude::*;

use super::error::log;
use super::servers::current_user;
use super::settings::{self, LogAccess};
use crate::http::failure::code;

/// Whether tokens and secrets are logged: asked before the work that a line takes.
pub fn secrets() -> bool {
    !matches!(settings::log_access(), LogAccess::None)
}

/// A raw token was given to SQL.
pub fn token(identity: &CStr, resource: &str) {
    write(&format!("token of identity \"{}\" for \"{resource}\"", identity.to_string_lossy()));
}

/// A secret was given to SQL.
pub fn secret(vault: &CStr, name: &str, request_id: Option<&str>) {
    if secrets() {
        write(&format!("secret \"{name}\" of server \"{}\"{}", vault.to_string_lossy(), by(request_id)));
    }
}

/// What a key of a vault has unwrapped or decrypted was given to SQL: one ciphertext can be opened either way.
pub fn key(vault: &CStr, verb: &str, name: &str, request_id: Option<&str>) {
    if secrets() {
        write(&format!("{verb} by key \"{name}\" of server \"{}\"{}", vault.to_string_lossy(), by(request_id)));
    }
}

/// The vault's own name of a request.
fn by(request_id: Option<&str>) -> String {
    request_id.and_then(code).map_or_else(String::new, |id| format!(", request id {id}"))
}

/// A data key was used, for the first time in this transaction.
pub fn data_key(vault: &CStr, name: &str) {
    write(&format!("data key \"{name}\" of server \"{}\"", vault.to_string_lossy()));
}

/// A COPY by URL has succeeded.
pub fn blob(storage: &CStr, is_from: bool, container: &str, name: &str) {
    if matches!(settings::log_access(), LogAccess::All) {
        let verb = if is_from { "read" } else { "written" };
        write(&format!("blob \"{container}/{name}\" {verb} through server \"{}\"", storage.to_string_lossy()));
    }
}

fn write(what: &str) {
    // SAFETY: both return a palloc'd string, or NULL for what was dropped meanwhile.
    let (role, database) = unsafe {
        (text(pg_sys::GetUserNameFromId(current_user(), true)), text(pg_sys::get_database_name(pg_sys::MyDatabaseId)))
    };
    log(PgLogLevel::LOG_SERVER_ONLY, &format!("role \"{role}\", database \"{database}\": {what}"), None);
}

/// # Safety
/// A C string or NULL.
unsafe fn text(name: *mut c_char) -> String {
    if name.is_null() {
        return "unknown".into();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}
