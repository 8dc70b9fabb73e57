//! Bringing a data key into shared memory: signature, state of the vault key, unwrapping, each before the next.
//!
//! One session does it, the others that need the same key wait for it in the lock manager, where cancel, timeouts and
//! deadlocks are seen to, and a lock ends with its transaction however that ends. Failure cases. The vault cannot be
//! reached: whoever waited gets that answer, too, instead of trying in turn. It refuses: the vault key's watch
//! begins. The session dies: the next one loads.

use pgrx::prelude::*;

use super::access::planted;
use super::guarded;
use super::memory::Of;
use super::watching::{Place, place_of};
use super::{memory, settings, table};
use crate::http::failure::{Failure, Kind};
use crate::pg::error::{OrRaise, raise};
use crate::pg::stats::Operation;
use crate::pg::vault::Vault;
use crate::pg::{clock, restricted, worker};
use crate::vault::envelope::{self, Secret};
use crate::vault::key::{self, Key, RsaPublic, unusable};
use crate::vault::kid::Kid;
use crate::vault::operation::{self, KeyOperation};
use crate::vault::record::{Record, SIGNING, WRAPPING, digest_of};
use crate::vault::watch::State;

/// Milliseconds in which a failure of the vault or the network is everybody's.
const PAUSE: i64 = 2_000;

/// A data key, and where shared memory holds it.
pub struct Loaded {
    pub secret: Secret,
    pub at: usize,
    pub number: u64,
}

/// The data key of a row, from shared memory or the vault; raises.
pub fn load(record: &Record, vault: &Vault, kid: &Kid) -> Loaded {
    refuse_locked_server(record, vault);
    refuse_unsigned(record, vault).or_raise();
    let (place, database) = (place_of(vault, kid), table::database_id());
    if let Some(loaded) = kept(record, vault, &place, database).or_raise() {
        return loaded;
    }
    if restricted::is_now() {
        raise(restricted::refused());
    }
    let lock = LoadLock::take(record);
    if let Some(loaded) = kept(record, vault, &place, database).or_raise() {
        return loaded;
    }
    refuse_recent_failure(&place);
    let secret = authentic(record, vault, kid, &place, database).or_raise();
    let loaded = keep(record, vault, &place, secret, database).or_raise();
    drop(lock);
    loaded
}

/// The data key of a row, from shared memory or the vault, for who needs no transaction for it and shares it with
/// nobody. `database` is the id that rows are signed with.
pub fn secret_of(record: &Record, vault: &Vault, kid: &Kid, database: Option<[u8; 16]>) -> Result<Secret, Failure> {
    refuse_unsigned(record, vault)?;
    let place = place_of(vault, kid);
    match kept(record, vault, &place, database)? {
        Some(loaded) => Ok(loaded.secret),
        None => authentic(record, vault, kid, &place, database),
    }
}

/// The data key of a row from the vault, once it is certain that the row is what the vault's key has signed.
fn authentic(
    record: &Record,
    vault: &Vault,
    kid: &Kid,
    place: &Place,
    database: Option<[u8; 16]>,
) -> Result<Secret, Failure> {
    if !place.is_ready() {
        check_attributes(vault, kid, place)?;
    }
    verify(record, vault, kid, place, database)?;
    unwrap(record, vault, kid, place)
}

/// Whether the vault key may be used by its switch and dates, which the vault itself does not look at when it unwraps.
/// While all was well the worker does; a session must not end a revocation by unwrapping.
fn check_attributes(vault: &Vault, kid: &Kid, place: &Place) -> Result<(), Failure> {
    attributes_allow(vault, kid).map_err(|failure| failed(place, vault, failure))
}

/// Whether switch and dates of the vault key let it be used, as far as the identity may read them.
fn attributes_allow(vault: &Vault, kid: &Kid) -> Result<(), Failure> {
    match read_key(vault, kid.name(), Some(kid.version())) {
        Ok((key, now)) => unusable(&key, now).map_or(Ok(()), Err),
        // Least rights: to unwrap and to verify is enough.
        Err(failure) if failure.kind == Kind::NotAuthorized => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// 22000 for a row without a signature, unless the server accepts it.
fn refuse_unsigned(record: &Record, vault: &Vault) -> Result<(), Failure> {
    if record.signature.is_some() || vault.access.unsigned_keys {
        return Ok(());
    }
    Err(planted(&record.name, "Its row has no signature.")
        .hint("Only a server with option unsigned_keys 'allow' accepts such rows."))
}

/// What shared memory finds a row's data key by: all that it was verified by.
fn of(record: &Record, vault: &Vault, place: &Place, database: Option<[u8; 16]>) -> Of {
    let mut row = record.message(&database.unwrap_or_default());
    row.extend_from_slice(place.key());
    row.extend_from_slice(record.signature.as_deref().unwrap_or_default());
    // SAFETY: a plain global.
    let database = unsafe { pg_sys::MyDatabaseId };
    Of { database, server: vault.server, id: record.id, row: digest_of(&row) }
}

/// 55006 where the server's owner has locked its data keys.
pub fn refuse_locked_server(record: &Record, vault: &Vault) {
    // SAFETY: a plain global.
    if memory::lock().is_locked(unsafe { pg_sys::MyDatabaseId }, vault.server) {
        let why = "They were locked by lock_data_keys().";
        raise(locked(&record.name, why, "revalidate_data_keys() unlocks them."));
    }
}

fn locked(name: &str, why: &str, hint: &str) -> Failure {
    Failure::new(Kind::Conflict, format!("data key \"{name}\" is locked")).detail(why).hint(hint)
}

/// The data key as shared memory holds it; 55006 when its vault key is locked.
fn kept(record: &Record, vault: &Vault, place: &Place, database: Option<[u8; 16]>) -> Result<Option<Loaded>, Failure> {
    let (now, grace, of) = (clock::monotonic(), settings::grace(), of(record, vault, place, database));
    let mut table = memory::lock();
    let found = table.find(&of).map(|at| {
        let (sealed, number) = table.take(at, now);
        (at, sealed, number)
    });
    drop(table);
    let why = place.with(|known| {
        // Of one that was never usable nothing is kept, and nobody looks after it: the vault is asked.
        let is_locked = known.watch.at(now, grace).state() == State::Locked && !known.sample.get().is_empty();
        is_locked.then(|| known.last_failure.get().map_or_else(String::new, |failure| failure.message))
    });
    if let Some(why) = why.flatten() {
        return Err(locked(
            &record.name,
            &format!("The key that wraps it may not be used: {why}."),
            "It unlocks by itself once the vault lets it be used again; revalidate_data_keys() tries at once.",
        ));
    }
    let Some((at, sealed, number)) = found else { return Ok(None) };
    // What cannot be opened is unwrapped again.
    Ok(guarded::open(&record.id, &sealed).ok().map(|secret| Loaded { secret, at, number }))
}

/// Raises the failure that somebody else has just met.
fn refuse_recent_failure(place: &Place) {
    let now = clock::monotonic();
    let recent = place.with(|known| {
        let recent = known.failed_at != 0 && now < known.failed_at + PAUSE;
        known.last_failure.get().filter(|failure| recent && failure.kind.is_transient())
    });
    if let Some(failure) = recent.flatten() {
        raise(failure);
    }
}

/// Whether the vault's key has signed the row, and may be used now.
fn verify(record: &Record, vault: &Vault, kid: &Kid, place: &Place, database: Option<[u8; 16]>) -> Result<(), Failure> {
    let Some(signature) = &record.signature else {
        return refuse_unsigned(record, vault);
    };
    let no_id = || planted(&record.name, "This database has no id that rows are signed with.");
    let digest = digest_of(&record.message(&database.ok_or_else(no_id)?));
    let good = match public_key(vault, kid, place)? {
        Some(public) => public.verify_ps256(&digest, signature),
        None => verified_by_the_vault(vault, kid, place, &digest, signature)?,
    };
    if good { Ok(()) } else { Err(planted(&record.name, "The signature of its row does not hold.")) }
}

/// The vault key's public part, as the vault gives it; None where the identity may not read it.
pub fn public_key(vault: &Vault, kid: &Kid, place: &Place) -> Result<Option<RsaPublic>, Failure> {
    let known = place.with(|known| RsaPublic { n: known.modulus.get().to_vec(), e: known.exponent.get().to_vec() });
    if let Some(known) = known.filter(|known| !known.n.is_empty()) {
        return Ok(Some(known));
    }
    match read_key(vault, kid.name(), Some(kid.version())) {
        Ok((key, now)) => {
            if let Some(failure) = unusable(&key, now) {
                return Err(failed(place, vault, failure));
            }
            let public = require_rsa(&key)?;
            place.know(&public);
            Ok(Some(public))
        }
        // Least rights: to unwrap and to verify is enough.
        Err(failure) if failure.kind == Kind::NotAuthorized => Ok(None),
        Err(failure) => Err(failed(place, vault, failure)),
    }
}

/// The key as the vault tells of it, the newest version without one, and the vault's time.
pub fn read_key(vault: &Vault, name: &str, version: Option<&str>) -> Result<(Key, i64), Failure> {
    let request = key::request(&vault.access, name, version)?;
    vault.answered(Operation::Key, request, |answer| {
        Ok((key::read(&vault.access, answer, name)?, answer.sent_at().unwrap_or_else(clock::now)))
    })
}

/// 22023: only RSA keys wrap data keys.
pub fn require_rsa(key: &Key) -> Result<RsaPublic, Failure> {
    // Of a larger one nothing would be kept for the worker to try.
    key.rsa().filter(|public| public.n.len() <= memory::RSA).ok_or_else(|| {
        Failure::new(Kind::InvalidValue, format!("key \"{}\" cannot wrap data keys", key.kid.name()))
            .detail(format!("It is of type {}.", key.key_type))
            .hint("Data keys are wrapped by an RSA or RSA-HSM key of at most 4096 bits.")
    })
}

fn verified_by_the_vault(
    vault: &Vault,
    kid: &Kid,
    place: &Place,
    digest: &[u8; 32],
    signature: &[u8],
) -> Result<bool, Failure> {
    let name = kid.name();
    let request = operation::verify_request(&vault.access, name, Some(kid.version()), SIGNING, digest, signature)?;
    let read = |answer: &_| operation::read_verified(&vault.access, answer, name);
    vault.answered(Operation::Verify, request, read).map_err(|failure| {
        let hint = "Its signature can be verified by an identity that may read the key or verify with it.";
        failed(place, vault, failure.hint(hint))
    })
}

/// Asks the vault to unwrap, and compares with the check value.
fn unwrap(record: &Record, vault: &Vault, kid: &Kid, place: &Place) -> Result<Secret, Failure> {
    match unwrapped(vault, kid, &record.wrapped) {
        Ok(secret) if envelope::is_key_of(&secret, &record.check) => Ok(secret),
        Ok(_) => Err(planted(&record.name, "What was unwrapped does not fit its check value.")),
        Err(failure) if failure.kind == Kind::InvalidValue => {
            Err(planted(&record.name, "The vault's key has not wrapped it."))
        }
        Err(failure) => Err(failed(place, vault, failure)),
    }
}

/// What a vault key unwraps.
pub fn unwrapped(vault: &Vault, kid: &Kid, wrapped: &[u8]) -> Result<Secret, Failure> {
    let (name, unwrap) = (kid.name(), KeyOperation::Unwrap);
    let request = operation::request(&vault.access, unwrap, name, Some(kid.version()), WRAPPING, wrapped)?;
    let done =
        vault.answered(Operation::Unwrap, request, |answer| operation::read(&vault.access, unwrap, answer, name))?;
    let none = || Failure::new(Kind::InvalidValue, "what was unwrapped is no data key");
    envelope::secret_of(&done.value).ok_or_else(none)
}

/// Writes down that the vault key could not be used.
fn failed(place: &Place, vault: &Vault, failure: Failure) -> Failure {
    place.failed(&failure, &vault.request_id());
    failure
}

/// Tries the vault key of a row anew, whatever is known of it; whether it may be used.
pub fn revalidate(record: &Record, vault: &Vault, kid: &Kid) -> bool {
    let place = place_of(vault, kid);
    let _lock = LoadLock::take(record);
    // A row that is not authentic says nothing about the vault key.
    if verify(record, vault, kid, &place, table::database_id()).is_err_and(|failure| failure.kind == Kind::NotAuthentic)
    {
        return false;
    }
    let tried = unwrapped(vault, kid, &record.wrapped).and_then(|_| attributes_allow(vault, kid));
    match &tried {
        Ok(()) => place.succeeded(&vault.request_id()),
        Err(failure) => place.failed(failure, &vault.request_id()),
    }
    tried.is_ok()
}

/// Puts a data key into shared memory; 55006 where it was locked while it was loaded.
pub fn keep(
    record: &Record,
    vault: &Vault,
    place: &Place,
    secret: Secret,
    database: Option<[u8; 16]>,
) -> Result<Loaded, Failure> {
    let (now, of) = (clock::monotonic(), of(record, vault, place, database));
    let sealed = guarded::seal(&record.id, &secret)?;
    place.loaded(&vault.request_id(), &record.wrapped, &envelope::check_value(&secret))?;
    // In one step with the look at the locks: a lock that comes later finds the key and takes it away.
    let kept = {
        let mut table = memory::lock();
        let known = table.vault_key(place.at);
        let is_usable = place.is(known) && known.watch.state() != State::Locked;
        let is_locked = !is_usable || table.is_locked(of.database, of.server);
        (!is_locked).then(|| table.keep(&of, place.at, sealed, now))
    };
    let Some((at, number)) = kept else {
        return Err(locked(&record.name, "It was locked a moment ago.", "revalidate_data_keys() tries at once."));
    };
    worker::wake();
    Ok(Loaded { secret, at, number })
}

/// The right to load a data key: of this database's sessions one has it. Released with the transaction if not before.
struct LoadLock(pg_sys::LOCKTAG);

impl LoadLock {
    fn take(record: &Record) -> Self {
        let half = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| record.id[at + byte]));
        let tag = pg_sys::LOCKTAG {
            // SAFETY: a plain global.
            locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            locktag_field2: half(0),
            locktag_field3: half(4),
            // Of the class of advisory locks, which a standby knows as well; core's own have 1 and 2 here.
            locktag_field4: 3,
            locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        };
        // SAFETY: a lock of this transaction; interrupts raise, and whatever raises later releases it.
        unsafe { pg_sys::LockAcquire(&raw const tag, pg_sys::ExclusiveLock as i32, false, false) };
        Self(tag)
    }
}

impl Drop for LoadLock {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // An ERROR: the transaction's end releases it, once the lock manager is in order again.
            return;
        }
        // SAFETY: taken by this process in this transaction.
        unsafe { pg_sys::LockRelease(&raw const self.0, pg_sys::ExclusiveLock as i32, false) };
    }
}
