//! Security-restricted operations (index expressions, autovacuum, REFRESH): user code there must not reach out.

use pgrx::pg_sys;

use crate::http::failure::{Failure, Kind};

/// Whether this is one.
pub fn is_now() -> bool {
    // SAFETY: a plain read.
    unsafe { pg_sys::InSecurityRestrictedOperation() }
}

pub fn refused() -> Failure {
    Failure::new(Kind::Forbidden, "cannot fetch a token within a security-restricted operation")
        .hint("Index expressions and materialized views may use a token that is cached already.")
}
