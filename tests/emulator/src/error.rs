//! What can go wrong in the emulator itself; what its services answer to clients are HTTP answers, not errors.

use std::time::Duration;

/// An error of the emulator, never of a client that asked it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the crypto library refused: {0}")]
    Crypto(&'static str),
    #[error("invalid {what}: {why}")]
    Invalid { what: &'static str, why: String },
    #[error("waited {waited:?} for {what}; seen: {seen}")]
    TimedOut { what: String, waited: Duration, seen: String },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn invalid(what: &'static str, why: impl ToString) -> Self {
        let why = why.to_string();
        Self::Invalid { what, why }
    }
}

/// A lock whose holder panicked still guards plain data: a test's panic must not hide behind another one.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
