//! What shared memory knows of vault keys: where each stands, and what a success or a failure means to it.

use pgrx::prelude::*;

use super::journal::{self, Event};
use super::memory::{self, VaultKey};
use super::settings;
use crate::http::failure::{Failure, Kind};
use crate::pg::error::log;
use crate::pg::vault::Vault;
use crate::pg::{clock, tokens, worker};
use crate::vault::envelope::CHECK_LENGTH;
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
    drop(table);
    // SAFETY: a plain global.
    journal::lock().note_use(unsafe { pg_sys::MyDatabaseId }, vault.server, key);
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
        self.is(known).then(|| work(known))
    }

    /// Keeps the public key, which never changes.
    pub fn know(&self, public: &RsaPublic) {
        self.with(|known| {
            known.modulus.set(&public.n);
            known.exponent.set(&public.e);
        });
    }

    /// Hash of vault, kid and identity.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    pub fn is(&self, known: &VaultKey) -> bool {
        known.taken && known.key == self.key
    }

    pub fn is_ready(&self) -> bool {
        self.with(|known| known.watch.state() == State::Ready).unwrap_or(false)
    }

    /// A session has unwrapped a data key; from then on the worker looks after the vault key, and it has something to
    /// unwrap. Unlocking is not a session's affair, unless nobody has looked after the key before.
    pub fn loaded(&self, request_id: &str, wrapped: &[u8], check: &[u8; CHECK_LENGTH]) -> Result<(), Failure> {
        let (monotonic, now, grace) = (clock::monotonic(), clock::now(), settings::grace());
        let interval = settings::revalidate_interval();
        let known = self.change(None, |known| {
            let is_new = known.sample.get().is_empty();
            if known.watch.state() == State::Locked && !is_new {
                return;
            }
            known.request_id.set(request_id);
            known.watch = known.watch.after(Probe::Usable, monotonic, grace);
            known.last_failure.clear();
            known.failed_at = 0;
            known.validated_at = now;
            known.sample.set(wrapped);
            known.check = *check;
            if is_new {
                known.probe_at = monotonic + interval;
            }
        });
        known.then_some(()).ok_or_else(|| {
            Failure::new(Kind::Throttled, "too many vault keys are in use")
                .detail(format!("There is room for {} at a time.", memory::VAULT_KEYS))
                .hint("Try again.")
        })
    }

    /// The vault key could be used.
    pub fn succeeded(&self, request_id: &str) {
        let (monotonic, now, grace) = (clock::monotonic(), clock::now(), settings::grace());
        let interval = settings::revalidate_interval();
        self.change(None, |known| {
            known.request_id.set(request_id);
            known.watch = known.watch.after(Probe::Usable, monotonic, grace);
            known.last_failure.clear();
            known.failed_at = 0;
            known.validated_at = now;
            known.probe_at = monotonic + interval;
        });
    }

    /// The vault key could not be used.
    pub fn failed(&self, failure: &Failure, request_id: &str) {
        let (monotonic, now, grace) = (clock::monotonic(), clock::now(), settings::grace());
        let pause = settings::probe_pause();
        self.change(Some(failure), |known| {
            known.request_id.set(request_id);
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
    /// False where another has taken its place.
    fn change(&self, failure: Option<&Failure>, change: impl FnOnce(&mut VaultKey)) -> bool {
        let moved = {
            let mut table = memory::lock();
            let known = table.vault_key(self.at);
            if !self.is(known) {
                return false;
            }
            let old = known.watch.state();
            change(known);
            let new = known.watch.state();
            let moved = (old != new).then(|| {
                let mut event = Event::new(known.key, new.as_str());
                (event.kid, event.request_id) = (known.kid, known.request_id);
                (old, new, known.last_failure, event)
            });
            if new == State::Locked {
                table.forget_of(self.at);
            }
            moved
        };
        if let Some((old, new, last_failure, mut event)) = moved {
            let last = last_failure.get();
            let why = failure.or(last.as_ref()).filter(|_| new != State::Ready).map(|failure| {
                let detail = failure.detail.as_deref().map_or_else(String::new, |detail| format!(" {detail}"));
                format!("{}.{detail}", failure.message)
            });
            event.reason.set(why.as_deref().unwrap_or_default());
            journal::lock().add(event);
            worker::wake();
            say(event.kid.get(), (old, new), why);
        }
        true
    }
}

/// One line in the server's log for each change.
fn say(kid: &str, (old, new): (State, State), why: Option<String>) {
    let message = format!("vault key \"{kid}\" is {} (it was {})", new.as_str(), old.as_str());
    log(PgLogLevel::LOG, &message, why.as_deref());
}
