//! How it ends: the exit code, and what is said on standard error.

use std::process::ExitCode;

use managed_identity::http::failure::{Failure, Kind};

use crate::words;

// The first is clap's, the others are those of sysexits.h.
const USAGE: u8 = 2;
const DATA: u8 = 65;
const NO_INPUT: u8 = 66;
const SOFTWARE: u8 = 70;
const INPUT_OUTPUT: u8 = 74;
const TRY_AGAIN: u8 = 75;
const NO_PERMISSION: u8 = 77;

/// Why there is no value.
pub struct Stop {
    code: u8,
    failure: Failure,
}

impl Stop {
    /// Found before anything was read or sent: the arguments, or the environment, are at fault.
    pub fn usage(failure: Failure) -> Self {
        match failure.kind {
            Kind::InvalidValue | Kind::Forbidden => Self { code: USAGE, failure },
            _ => Self::of(failure),
        }
    }

    /// What was read is at fault.
    pub fn data(failure: Failure) -> Self {
        Self { code: DATA, failure }
    }

    pub fn missing(failure: Failure) -> Self {
        Self { code: NO_INPUT, failure }
    }

    pub fn unreadable(failure: Failure) -> Self {
        Self { code: INPUT_OUTPUT, failure }
    }

    /// What asking came to. The arguments have passed before, so a vault that takes exception to the value means what
    /// was read.
    pub fn answered(failure: Failure) -> Self {
        match failure.kind {
            Kind::InvalidValue => Self::data(failure),
            _ => Self::of(failure),
        }
    }

    pub fn of(failure: Failure) -> Self {
        let code = match failure.kind {
            Kind::Unreachable | Kind::Throttled | Kind::Unavailable => TRY_AGAIN,
            Kind::NotAuthorized | Kind::Forbidden => NO_PERMISSION,
            Kind::NotFound => NO_INPUT,
            Kind::CorruptData | Kind::NotAuthentic => DATA,
            Kind::InvalidValue => USAGE,
            Kind::Protocol | Kind::Conflict | Kind::Changed | Kind::TooLarge | Kind::Local => SOFTWARE,
        };
        Self { code, failure }
    }

    /// Says why, as psql does, and gives the exit code.
    pub fn told(self) -> ExitCode {
        let Failure { message, detail, hint, .. } = self.failure;
        eprintln!("managed-identity: ERROR:  {}", words::of_the_command(&message));
        if let Some(detail) = detail {
            eprintln!("DETAIL:  {}", words::of_the_command(&detail));
        }
        if let Some(hint) = hint {
            eprintln!("HINT:  {}", words::of_the_command(&hint));
        }
        ExitCode::from(self.code)
    }
}
