//! `managed-identity`: a token, a secret or an unwrapped key for those who need it outside SQL, such as
//! `ssl_passphrase_command`, backup tools and the key commands of other servers.
//!
//! The rooms of the library below `pg` do the work; PostgreSQL is not linked. What is written to standard output is
//! the value and nothing else, and only when all of it is there.

#![forbid(unsafe_code)]

mod arguments;
mod bytes;
mod identity;
mod outcome;
mod vault;
mod words;

use std::future::Future;
use std::pin::pin;
use std::process::ExitCode;

use clap::Parser;
use managed_identity::http::failure::{Failure, Kind};
use managed_identity::http::runtime;
use managed_identity::identity::Resource;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource as Limit, setrlimit};
use zeroize::Zeroizing;

use arguments::{Arguments, Wish};
use identity::Asking;
use outcome::Stop;

/// A value that is wiped when it is dropped.
type Secret = Zeroizing<Vec<u8>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match leave_no_core_file().and_then(|()| run(&arguments.wish)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => stop.told(),
    }
}

/// What this process knows for a moment is in no file when it crashes; nor can another process of the same user look
/// into it.
fn leave_no_core_file() -> Result<(), Stop> {
    let failed = |error: nix::Error| {
        Stop::of(Failure::new(Kind::Local, "could not switch core files off").detail(error.desc().to_owned()))
    };
    setrlimit(Limit::RLIMIT_CORE, 0, 0).map_err(failed)?;
    set_dumpable(false).map_err(failed)
}

fn run(wish: &Wish) -> Result<(), Stop> {
    let (output, encoding) = wish.output();
    bytes::refuse_a_terminal(output)?;
    let value = match wish {
        Wish::Token(token) => {
            let cloud = token.asking.cloud();
            let asking = Asking::new(&token.asking).map_err(Stop::usage)?;
            let resource = Resource::parse(&token.resource, cloud).map_err(Stop::usage)?;
            within(&asking, asking.token(&resource)).map(|token| copied(token.expose().as_bytes()))?
        }
        Wish::GetSecret(secret) => {
            let asking = Asking::new(&secret.asking).map_err(Stop::usage)?;
            let request = vault::secret(secret).map_err(Stop::usage)?;
            within(&asking, request.answered(&asking)).map(|value| copied(value.as_bytes()))?
        }
        Wish::UnwrapKey(key) => {
            let asking = Asking::new(&key.asking).map_err(Stop::usage)?;
            let unwrapping = vault::Unwrapping::new(key).map_err(Stop::usage)?;
            // The arguments are found to be right before anything is read, and what is read before anything is sent.
            let request = unwrapping.of(&bytes::read(key)?).map_err(Stop::data)?;
            within(&asking, request.answered(&asking)).map(|done| done.value)?
        }
    };
    bytes::write(value, encoding, output)
}

fn copied(value: &[u8]) -> Secret {
    Zeroizing::new(value.to_vec())
}

/// Drives what asks until it is done, for as long as `--timeout` allows.
fn within<T>(asking: &Asking, future: impl Future<Output = Result<T, Failure>>) -> Result<T, Stop> {
    let bounded = async {
        // Made in here, where there is a runtime to keep its time.
        tokio::time::timeout(asking.timeout, future).await.unwrap_or_else(|_| Err(too_late(asking)))
    };
    let mut bounded = pin!(bounded);
    loop {
        if let Some(done) = runtime::drive(bounded.as_mut()).map_err(Stop::of)? {
            return done.map_err(Stop::answered);
        }
    }
}

fn too_late(asking: &Asking) -> Failure {
    Failure::new(Kind::Unreachable, format!("{} gave no answer in time", asking.whom.get()))
        .hint("The wait is bounded by --timeout.")
}
