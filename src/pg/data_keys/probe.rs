//! The worker's look at vault keys that are in use: unwraps a data key with each, and reads what the vault says of it.
//!
//! Both, because the vault still unwraps with an expired key, and may still show a disabled one. No catalog is read: a
//! slot says all that a probe takes. An identity that may unwrap but not read is enough, then its key's end and switch
//! are not seen, nor a newer version.

use std::cell::RefCell;
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
use crate::vault::key::{self, Key};
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
    /// The vault's, of the last request that it answered.
    request_id: RefCell<String>,
}

/// What a probe that succeeds has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Whether there is a newer version that can wrap; None where the identity may not read the key.
    has_newer: Option<bool>,
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
            // Those that are due and have no room wait for one that ends, which wakes the worker.
            let probe_at = if known.probe_at <= now { i64::MAX } else { known.probe_at };
            let wait = deadline.unwrap_or(i64::MAX).min(probe_at).saturating_sub(now);
            next = next.min(wait.max(0));
        }
    }
    look.iter().for_each(Place::look);
    let due = |(place, known)| Due {
        place,
        known,
        tally: Tally::begin(Operation::Unwrap, c""),
        request_id: RefCell::default(),
    };
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
pub async fn probe(prepared: Prepared, due: Due) -> (Due, Result<Seen, Failure>) {
    let outcome = flight::within(LONGEST, tried(&prepared, &due)).await;
    let too_late = || Failure::new(Kind::Unreachable, "the vault key could not be tried in time");
    (due, outcome.unwrap_or_else(|| Err(too_late())))
}

/// Keeps what came of it.
pub fn conclude(due: &Due, outcome: Result<Seen, Failure>) {
    let request_id = due.request_id.borrow();
    match due.tally.judged(outcome) {
        Ok(Seen { has_newer }) => {
            if let Some(has_newer) = has_newer {
                due.place.with(|known| known.has_newer = has_newer);
            }
            due.place.succeeded(&request_id);
        }
        Err(failure) => due.place.failed(&failure, &request_id),
    }
}

async fn tried(prepared: &Prepared, due: &Due) -> Result<Seen, Failure> {
    let traffic = due.tally.traffic();
    let token = match &prepared.cached {
        Some(token) => token.clone(),
        None => fresh(prepared, traffic).await?,
    };
    let (access, name, version) = (&prepared.access, prepared.kid.name(), prepared.kid.version());
    let unwrap = KeyOperation::Unwrap;
    let request = operation::request(access, unwrap, name, Some(version), WRAPPING, due.known.sample.get())?;
    let (answer, token) = asked(prepared, due, request, token).await?;
    let done = operation::read(access, unwrap, &answer, name).map_err(|failure| blame_the_clock(failure, &answer))?;
    if !envelope::secret_of(&done.value).is_some_and(|secret| envelope::is_key_of(&secret, &due.known.check)) {
        return Err(Failure::new(Kind::NotAuthentic, "the vault unwrapped another key than it did before"));
    }
    // The newest version first: most of the time it is this one, and one request tells both.
    let (newest, token) = read_key(prepared, due, None, token).await?;
    if let Ok((key, now)) = &newest
        && key.kid == prepared.kid
    {
        return key::unusable(key, *now).map_or(Ok(Seen { has_newer: Some(false) }), Err);
    }
    match read_key(prepared, due, Some(version), token).await?.0 {
        Ok((key, now)) => match key::unusable(&key, now) {
            Some(failure) => Err(failure),
            None => {
                let wraps = |(key, now): &(Key, i64)| key.rsa().is_some() && key::unusable(key, *now).is_none();
                Ok(Seen { has_newer: newest.ok().as_ref().map(wraps) })
            }
        },
        Err(failure) if failure.kind == Kind::NotAuthorized => Ok(Seen { has_newer: None }),
        Err(failure) => Err(failure),
    }
}

/// What the vault says of a version of the key, or of the newest, and the vault's time.
async fn read_key(
    prepared: &Prepared,
    due: &Due,
    version: Option<&str>,
    token: AccessToken,
) -> Result<(Result<(Key, i64), Failure>, AccessToken), Failure> {
    let (access, name) = (&prepared.access, prepared.kid.name());
    let request = key::request(access, name, version)?;
    let (answer, token) = asked(prepared, due, request, token).await?;
    let now = answer.sent_at().unwrap_or_else(clock::now);
    Ok((key::read(access, &answer, name).map(|key| (key, now)), token))
}

async fn fresh(prepared: &Prepared, traffic: &Traffic) -> Result<AccessToken, Failure> {
    let Prepared { access, source, options, .. } = prepared;
    fetch::fetch(source, &access.resource, options, LONGEST, traffic).await.map_err(|refusal| refusal.failure)
}

/// Asks with the token, and once more with a new one when the vault refuses that: it may have been revoked.
async fn asked(
    prepared: &Prepared,
    due: &Due,
    mut request: Request,
    mut token: AccessToken,
) -> Result<(Answer, AccessToken), Failure> {
    let (traffic, mut tries) = (due.tally.traffic(), 0);
    due.request_id.borrow_mut().clear();
    loop {
        let Prepared { access, options, .. } = prepared;
        let answer = ask::ask(access, options, &mut request, &token, LONGEST, traffic).await?;
        due.request_id.replace(answer.request_id().unwrap_or_default().to_owned());
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
