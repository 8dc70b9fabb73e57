//! What shared memory knows of vault keys: where each stands, and what a success or a failure means to it.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::memory::{self, VaultKey};
use super::settings;
use crate::http::failure::Failure;
use crate::pg::error::tell;
use crate::pg::vault::Vault;
use crate::pg::{clock, tokens};
use crate::vault::key::RsaPublic;
use crate::vault::kid::Kid;
use crate::vault::watch::{Probe, State, Watch};

/// A vault key's place in shared memory: where, as long as it is that key's.
#[derive(Clone)]
pub struct Place {
    pub at: usize,
    key: [u8; 32],
}

/// The place of a vault key, made where it is new.
pub fn place_of(vault: &Vault, kid: &Kid) -> Place {
    let (uri, text) = (vault.access.destination.base().to_string(), kid.to_string());
    let mut shaped_by = format!("{uri}\n{text}\n").into_bytes();
    shaped_by.extend_from_slice(&vault.identity.key);
    let key = tokens::digest(&shaped_by);
    let now = clock::monotonic();
    let mut table = memory::lock();
    let at = table.find_vault_key(&key).unwrap_or_else(|| {
        let at = table.claim_vault_key(key);
        let known = table.vault_key(at);
        known.watch = Watch::ready(now);
        known.vault_uri.set(&uri);
        known.api_version.set(vault.access.api_version());
        known.kid.set(&text);
        known.identity.set(&vault.identity.text);
        known.probe_at = i64::MAX;
        at
    });
    table.vault_key(at).used_at = now;
    Place { at, key }
}

impl Place {
    /// Of what a copy of shared memory says.
    pub fn of(at: usize, known: &VaultKey) -> Self {
        Self { at, key: known.key }
    }

    /// What shared memory knows of the vault key; None when another has taken its place. `work` runs under a lock.
    pub fn with<R>(&self, work: impl FnOnce(&mut VaultKey) -> R) -> Option<R> {
        let mut table = memory::lock();
        let known = table.vault_key(self.at);
        (known.taken && known.key == self.key).then(|| work(known))
    }

    /// Keeps the public key, which never changes.
    pub fn know(&self, public: &RsaPublic) {
        self.with(|known| {
            known.modulus.set(&public.n);
            known.exponent.set(&public.e);
        });
    }

    /// The vault key could be used.
    pub fn succeeded(&self) {
        let (monotonic, now, grace) = (clock::monotonic(), clock::now(), settings::grace());
        let interval = settings::revalidate_interval();
        self.change(None, |known| {
            known.watch = known.watch.after(Probe::Usable, monotonic, grace);
            known.last_failure.clear();
            known.failed_at = 0;
            known.validated_at = now;
            known.probe_at = monotonic + interval;
        });
    }

    /// The vault key could not be used.
    pub fn failed(&self, failure: &Failure) {
        let (monotonic, now, grace) = (clock::monotonic(), clock::now(), settings::grace());
        let pause = settings::probe_pause();
        self.change(Some(failure), |known| {
            known.watch = known.watch.after(Probe::of(failure), monotonic, grace);
            known.last_failure.set(failure, 1, now);
            known.failed_at = monotonic;
            known.probe_at = monotonic + pause;
        });
    }

    /// Time has passed.
    pub fn look(&self) {
        let (monotonic, grace) = (clock::monotonic(), settings::grace());
        self.change(None, |known| known.watch = known.watch.at(monotonic, grace));
    }

    /// Changes a state and does what the new one asks for: whoever locks a key wipes what it wraps, in one step.
    fn change(&self, failure: Option<&Failure>, change: impl FnOnce(&mut VaultKey)) {
        let moved = {
            let mut table = memory::lock();
            let known = table.vault_key(self.at);
            if !known.taken || known.key != self.key {
                return;
            }
            let old = known.watch.state();
            change(known);
            let new = known.watch.state();
            let moved = (old != new).then(|| (old, new, known.kid, known.last_failure));
            if new == State::Locked {
                table.forget_of(self.at);
            }
            moved
        };
        if let Some((old, new, kid, last_failure)) = moved {
            let last = last_failure.get();
            say(kid.get(), (old, new), failure.or(last.as_ref()));
        }
    }
}

/// One line in the server's log for each change.
fn say(kid: &str, (old, new): (State, State), failure: Option<&Failure>) {
    let message = format!("vault key \"{kid}\" is {} (it was {})", new.as_str(), old.as_str());
    let mut report = ErrorReport::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, "");
    if let Some(failure) = failure.filter(|_| new != State::Ready) {
        let detail = failure.detail.as_deref().map_or_else(String::new, |detail| format!(" {detail}"));
        report = report.set_detail(format!("{}.{detail}", failure.message));
    }
    tell(report, PgLogLevel::LOG);
}
