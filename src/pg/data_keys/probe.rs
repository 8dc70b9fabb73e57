//! The worker's look at vault keys that are in use: unwraps a data key with each, and reads what the vault says of it.
//!
//! Both, because the vault still unwraps with an expired key, and may still show a disabled one. No catalog is read: a
//! slot says all that a probe takes. An identity that may unwrap but not read is enough, then its key's end and switch
//! are not seen.

use std::time::Duration;

use super::memory::{self, VAULT_KEYS, VaultKey};
use super::watching::Place;
use crate::http::client;
use crate::http::failure::{Failure, Kind};
use crate::http::request::{Answer, Request};
use crate::http::traffic::Traffic;
use crate::identity::{Identity, Source, fetch};
use crate::pg::flight;
use crate::pg::stats::{Operation, Tally};
use crate::pg::{cache, clock, settings, tokens};
use crate::token::AccessToken;
use crate::vault::access::VaultAccess;
use crate::vault::key;
use crate::vault::kid::Kid;
use crate::vault::operation::{self, KeyOperation};
use crate::vault::record::WRAPPING;
use crate::vault::{ask, envelope};

/// Milliseconds that a vault key is remembered which wraps nothing that is kept.
const UNUSED: i64 = 86_400_000;
/// The longest time for all requests of one probe.
const LONGEST: Duration = Duration::from_secs(15);
/// Seconds that clocks may be apart before a refusal is laid to that.
const SKEW: i64 = 300;

/// A vault key to be tried.
pub struct Due {
    place: Place,
    known: Box<VaultKey>,
    tally: Tally,
}

/// Locks what has run out of time, forgets what nobody uses, and takes up to `room` vault keys whose time has come;
/// says in how many milliseconds the next one's does.
pub fn take_due(room: usize, longest: i64) -> (Vec<Due>, i64) {
    if !memory::is_there() {
        return (Vec::new(), longest);
    }
    let (now, grace) = (clock::monotonic(), super::settings::grace());
    let (mut taken, mut next, mut look) = (Vec::new(), longest, Vec::new());
    {
        let mut table = memory::lock();
        for at in 0..VAULT_KEYS {
            let used = table.is_used(at);
            let known = table.vault_key(at);
            if !known.taken || known.sample.get().is_empty() {
                continue;
            }
            if !used && known.used_at + UNUSED <= now {
                known.taken = false;
                continue;
            }
            let deadline = known.watch.deadline(grace);
            if deadline.is_some_and(|deadline| deadline <= now) {
                look.push(Place::of(at, known));
            }
            if known.probe_at <= now && taken.len() < room {
                // Not again before this one has ended, whatever becomes of it.
                known.probe_at = now + 2 * LONGEST.as_millis() as i64;
                taken.push((Place::of(at, known), Box::new(*known)));
            }
            let wait = deadline.unwrap_or(i64::MAX).min(known.probe_at).saturating_sub(now);
            next = next.min(wait.max(0));
        }
    }
    look.iter().for_each(Place::look);
    let due = |(place, known)| Due { place, known, tally: Tally::begin(Operation::Unwrap, c"") };
    (taken.into_iter().map(due).collect(), next)
}

/// What the requests of a probe take.
pub struct Prepared {
    access: VaultAccess,
    kid: Kid,
    source: Source,
    options: client::Options,
    cached: Option<AccessToken>,
}

/// 22023 and the like where the settings of today no longer fit.
pub fn prepare(due: &Due) -> Result<Prepared, Failure> {
    let (known, settings) = (&due.known, settings::current());
    let options = [("vault_uri", known.vault_uri.get()), ("api_version", known.api_version.get())];
    let access = VaultAccess::from_options(options, settings.machine.cloud, &settings.key_vault_hosts)?;
    let identity = Identity::from_text(known.identity.get(), settings.machine.cloud)?;
    let source = settings.machine.source_of(&identity)?;
    let key = tokens::cache_key(&source, &access.resource);
    let cached = {
        let slots = cache::lock();
        slots.find(&key).and_then(|at| {
            let usable = clock::now() < slots[at].usable_until;
            cache::use_at(at, clock::now());
            usable.then(|| slots.copy_token(at)).flatten()
        })
    };
    Ok(Prepared {
        kid: Kid::parse(known.kid.get(), &access)?,
        access,
        source,
        options: settings::http_options()?,
        cached,
    })
}

/// Runs inside the runtime: no PostgreSQL here.
pub async fn probe(prepared: Prepared, due: Due) -> (Due, Result<(), Failure>) {
    let outcome = flight::within(LONGEST, tried(&prepared, &due)).await;
    let too_late = || Failure::new(Kind::Unreachable, "the vault key could not be tried in time");
    (due, outcome.unwrap_or_else(|| Err(too_late())))
}

/// Keeps what came of it.
pub fn conclude(due: &Due, outcome: Result<(), Failure>) {
    match due.tally.judged(outcome) {
        Ok(()) => due.place.succeeded(),
        Err(failure) => due.place.failed(&failure),
    }
}

async fn tried(prepared: &Prepared, due: &Due) -> Result<(), Failure> {
    let traffic = due.tally.traffic();
    let token = match &prepared.cached {
        Some(token) => token.clone(),
        None => fresh(prepared, traffic).await?,
    };
    let (access, name, version) = (&prepared.access, prepared.kid.name(), prepared.kid.version());
    let unwrap = KeyOperation::Unwrap;
    let request = operation::request(access, unwrap, name, Some(version), WRAPPING, due.known.sample.get())?;
    let (answer, token) = asked(prepared, request, token, traffic).await?;
    let done = operation::read(access, unwrap, &answer, name).map_err(|failure| blame_the_clock(failure, &answer))?;
    let mut secret = envelope::no_secret();
    let fits = done.value.len() == secret.len();
    if fits {
        secret.copy_from_slice(&done.value);
    }
    if !(fits && envelope::is_key_of(&secret, &due.known.check)) {
        return Err(Failure::new(Kind::NotAuthentic, "the vault unwrapped another key than it did before"));
    }
    let request = key::request(access, name, Some(version))?;
    let (answer, _) = asked(prepared, request, token, traffic).await?;
    match key::read(access, &answer, name) {
        Ok(key) => key::unusable(&key, answer.sent_at().unwrap_or_else(clock::now)).map_or(Ok(()), Err),
        Err(failure) if failure.kind == Kind::NotAuthorized => Ok(()),
        Err(failure) => Err(failure),
    }
}

async fn fresh(prepared: &Prepared, traffic: &Traffic) -> Result<AccessToken, Failure> {
    let Prepared { access, source, options, .. } = prepared;
    fetch::fetch(source, &access.resource, options, LONGEST, traffic).await.map_err(|refusal| refusal.failure)
}

/// Asks with the token, and once more with a new one when the vault refuses that: it may have been revoked.
async fn asked(
    prepared: &Prepared,
    mut request: Request,
    mut token: AccessToken,
    traffic: &Traffic,
) -> Result<(Answer, AccessToken), Failure> {
    let mut tries = 0;
    loop {
        let Prepared { access, options, .. } = prepared;
        let answer = ask::ask(access, options, &mut request, &token, LONGEST, traffic).await?;
        tries += 1;
        if answer.status != 401 || tries == 2 {
            return Ok((answer, token));
        }
        traffic.will_be_repeated();
        token = fresh(prepared, traffic).await?;
    }
}

/// A new token that is refused while the clocks are apart says nothing about the key.
fn blame_the_clock(failure: Failure, answer: &Answer) -> Failure {
    let apart = answer.sent_at().map_or(0, |theirs| (clock::now() - theirs).abs());
    if answer.status != 401 || apart <= SKEW {
        return failure;
    }
    Failure { kind: Kind::Unavailable, ..failure }.hint(format!("This machine's clock is {apart} s from the vault's."))
}
