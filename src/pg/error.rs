//! A failure as an ERROR: the one place where SQLSTATEs are chosen.

use std::ffi::CString;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::compat;
use crate::http::failure::{Failure, Kind};

/// The SQLSTATE of each situation.
fn sqlstate(kind: Kind) -> PgSqlErrorCode {
    use PgSqlErrorCode::*;
    match kind {
        Kind::Unreachable => ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
        Kind::Throttled => ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        Kind::Unavailable => ERRCODE_SYSTEM_ERROR,
        Kind::NotAuthorized => ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
        Kind::Protocol => ERRCODE_PROTOCOL_VIOLATION,
        Kind::InvalidValue => ERRCODE_INVALID_PARAMETER_VALUE,
        Kind::Forbidden => ERRCODE_INSUFFICIENT_PRIVILEGE,
        Kind::NotFound => ERRCODE_UNDEFINED_FILE,
        Kind::Conflict => ERRCODE_OBJECT_IN_USE,
        Kind::Changed => ERRCODE_IO_ERROR,
        Kind::CorruptData => ERRCODE_BAD_COPY_FILE_FORMAT,
        Kind::TooLarge => ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        Kind::Local => ERRCODE_SYSTEM_ERROR,
        Kind::NotAuthentic => ERRCODE_DATA_EXCEPTION,
    }
}

/// Raises the failure as an ERROR.
pub fn raise(failure: Failure) -> ! {
    let state = sqlstate(failure.kind);
    error(state, failure.message, failure.detail, failure.hint)
}

/// Raises an ERROR with SQLSTATE, message, DETAIL and HINT of our own.
pub fn error(state: PgSqlErrorCode, message: impl Into<String>, detail: Option<String>, hint: Option<String>) -> ! {
    let mut report = ErrorReport::new(state, message, "");
    if let Some(detail) = detail {
        report = report.set_detail(detail);
    }
    if let Some(hint) = hint {
        report = report.set_hint(hint);
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("ERROR does not return")
}

/// Writes a line to the server's log and nowhere else, without the statement: its literals may be what is not to be
/// logged.
pub fn log(level: PgLogLevel, message: &str, detail: Option<&str>) {
    // A NUL is in no text that PostgreSQL has.
    let text = |text: &str| CString::new(text).unwrap_or_default();
    let (message, detail) = (text(message), detail.map(text));
    with_interrupts_held(|| compat::log(level as i32, &message, detail.as_deref()));
}

/// Reports what is no ERROR. Interrupts are held off meanwhile: core looks at them at the end of such a report,
/// and a cancel would jump across our frames and leave undone what their destructors do.
pub fn tell(report: ErrorReport, level: PgLogLevel) {
    with_interrupts_held(|| report.report(level));
}

fn with_interrupts_held(work: impl FnOnce()) {
    // SAFETY: HOLD_INTERRUPTS and RESUME_INTERRUPTS; core resets the count when it raises an ERROR.
    unsafe { pg_sys::InterruptHoldoffCount += 1 };
    work();
    // SAFETY: as above.
    unsafe { pg_sys::InterruptHoldoffCount -= 1 };
}

/// The value, or the failure as an ERROR.
pub trait OrRaise<T> {
    fn or_raise(self) -> T;
}

impl<T, F: Into<Failure>> OrRaise<T> for Result<T, F> {
    fn or_raise(self) -> T {
        self.unwrap_or_else(|failure| raise(failure.into()))
    }
}
