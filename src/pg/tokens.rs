//! Tokens as the rest of the extension asks for them: rights first, then this session's copy, then the
//! shared cache, then the endpoint.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;

use aws_lc_rs::digest::{SHA256, digest as hash};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::error::{OrRaise, error, tell};
use super::flight::{self, Asked, Served};
use super::identities::{self, KnownIdentity};
use super::stats::{Operation, Tally};
use super::{access_log, cache, clock, servers, settings};
use crate::http::failure::{Failure, Kind};
use crate::identity::cloud::description;
pub use crate::identity::fetch::fetch;
use crate::identity::{Resource, Source};
use crate::token::AccessToken;
use crate::token::claims::claims;

/// Copies a session keeps; more than any session needs, few enough to search.
const COPIES: usize = 16;

/// This session's copy of a cached token, good while nothing it depends on has changed.
struct Copy {
    server: pg_sys::Oid,
    resource: String,
    catalog: u64,
    settings: u64,
    slot: usize,
    generation: u64,
    usable_until: i64,
    token: AccessToken,
    /// Whom the log says it was given to.
    given_to: pg_sys::Oid,
}

thread_local! {
    static MY_COPIES: RefCell<Vec<Copy>> = const { RefCell::new(Vec::new()) };
}

/// SHA-256, as keys of the cache are made.
pub fn digest(text: impl AsRef<[u8]>) -> [u8; 32] {
    let mut key = [0; 32];
    key.copy_from_slice(hash(&SHA256, text.as_ref()).as_ref());
    key
}

/// The key of a token in the cache: all that shapes its request.
pub fn cache_key(source: &Source, resource: &Resource) -> [u8; 32] {
    digest(format!("{}\n{}", source.identity_key(), resource.as_str()))
}

/// Gives the token for a resource, as a user writes it, to `use_it`. The identity is the named one or
/// the default; the current user's USAGE is checked on every call. `use_it` must not raise.
pub fn with_own<R>(resource: &str, identity: Option<&CStr>, force: bool, use_it: impl FnOnce(&AccessToken) -> R) -> R {
    let identity = identities::own(identity);
    let parse = || Resource::parse(resource, settings::cloud()).or_raise();
    let result = with(&identity, resource, parse, force, use_it);
    if access_log::secrets() && is_new_to_user(&identity, resource) {
        access_log::token(&identity.name, parse().as_str());
    }
    result
}

/// What the row of `token_info` tells. The token stays here.
pub struct Info {
    pub source: &'static str,
    pub expires_at: i64,
    pub refresh_at: i64,
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// What the token for a resource says of itself; rights as for the token.
pub fn info(resource: &str, identity: Option<&CStr>) -> Info {
    let identity = identities::own(identity);
    let parse = || Resource::parse(resource, settings::cloud()).or_raise();
    with(&identity, resource, parse, false, |token| Info {
        source: identity.source.name().as_str(),
        expires_at: token.expires_at,
        refresh_at: token.refresh_at,
        claims: claims(token),
    })
}

/// The token of an identity whose use is already allowed.
pub fn for_identity(identity: &KnownIdentity, resource: &Resource) -> AccessToken {
    with(identity, resource.as_str(), || resource.clone(), false, AccessToken::clone)
}

/// The same, fetched after this call where that can be: for a service that refuses the token it was shown.
pub fn renewed(identity: &KnownIdentity, resource: &Resource) -> AccessToken {
    let changes = (servers::catalog_changes(), settings::changes());
    acquire(identity, resource.as_str(), resource, true, changes).token
}

/// Whether the current user is given this session's copy for the first time: one token is one line in
/// the log for each role, however often a statement asks for it. Without a copy every call is one.
fn is_new_to_user(identity: &KnownIdentity, written: &str) -> bool {
    let user = servers::current_user();
    MY_COPIES.with_borrow_mut(|copies| {
        let copy = copies.iter_mut().find(|copy| copy.server == identity.oid && copy.resource == written);
        copy.is_none_or(|copy| std::mem::replace(&mut copy.given_to, user) != user)
    })
}

fn with<R>(
    identity: &KnownIdentity,
    written: &str,
    parsed: impl FnOnce() -> Resource,
    force: bool,
    use_it: impl FnOnce(&AccessToken) -> R,
) -> R {
    let (catalog, set, now) = (servers::catalog_changes(), settings::changes(), clock::now());
    let good = |copy: &Copy| {
        copy.server == identity.oid
            && copy.resource == written
            && (copy.catalog, copy.settings) == (catalog, set)
            && now < copy.usable_until.min(copy.token.refresh_at)
            && cache::generation(copy.slot) == copy.generation
    };
    if !force {
        let mut use_it = Some(use_it);
        let warm = MY_COPIES.with_borrow(|copies| {
            let copy = copies.iter().find(|copy| good(copy))?;
            cache::count_hit(copy.slot, now);
            use_it.take().map(|use_it| use_it(&copy.token))
        });
        return match (warm, use_it) {
            (Some(result), _) => result,
            (None, Some(use_it)) => use_it(&acquire(identity, written, &parsed(), false, (catalog, set)).token),
            (None, None) => unreachable!("the closure is taken only where it is called"),
        };
    }
    let served = acquire(identity, written, &parsed(), true, (catalog, set));
    if served.not_forced {
        let report =
            ErrorReport::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, "the cached token is returned", "")
                .set_detail("It was fetched a moment ago, or the endpoint cannot be asked just now.");
        tell(report, PgLogLevel::NOTICE);
    }
    use_it(&served.token)
}

/// From the shared cache or the endpoint; keeps a copy.
fn acquire(identity: &KnownIdentity, written: &str, resource: &Resource, force: bool, changes: (u64, u64)) -> Served {
    if !identity.identity.allows(resource) {
        Err(outside_resources(&identity.name)).or_raise()
    }
    let source = &identity.source;
    let asked = Asked {
        key: cache_key(source, resource),
        identity: identity.key,
        kind: source.kind(),
        id: source.id(),
        resource: resource.as_str(),
        source: source.name().as_str(),
        options: &identity.text,
    };
    let options = settings::http_options().or_raise();
    let tally = Tally::begin(Operation::Token, &identity.name);
    let served = flight::token(&asked, force, |left| fetch(source, resource, &options, left, tally.traffic()));
    let served = tally.judged(served).or_raise();
    drop(tally);
    say_if_not_shared();
    MY_COPIES.with_borrow_mut(|copies| {
        copies.retain(|copy| !(copy.server == identity.oid && copy.resource == written));
        if let Some((slot, generation)) = served.place {
            if copies.len() == COPIES {
                copies.remove(0);
            }
            let (catalog, settings) = changes;
            let (resource, token) = (written.to_owned(), served.token.clone());
            let usable_until = served.usable_until;
            copies.push(Copy {
                server: identity.oid,
                resource,
                catalog,
                settings,
                slot,
                generation,
                usable_until,
                token,
                given_to: pg_sys::InvalidOid,
            });
        }
    });
    served
}

/// Once per session: every session fetches for itself when the library was not preloaded.
fn say_if_not_shared() {
    thread_local! {
        static SAID: Cell<bool> = const { Cell::new(false) };
    }
    if !cache::is_shared() && !SAID.replace(true) {
        let what = "access tokens are cached for this session only";
        let hint = "To share them, put managed_identity first in shared_preload_libraries and restart.";
        let report = ErrorReport::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, what, "").set_hint(hint);
        tell(report, PgLogLevel::NOTICE);
    }
}

/// The rows of `resource_aliases`: alias, resource in the configured cloud, what it opens.
pub fn resource_aliases() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    settings::cloud().aliases().into_iter().map(|(alias, resource)| (alias, resource, description(alias)))
}

/// 42501: the server's `resources` do not name it.
pub fn outside_resources(identity: &CStr) -> Failure {
    Failure::new(Kind::Forbidden, format!("server \"{}\" does not allow this resource", identity.to_string_lossy()))
        .hint("Its option resources lists what tokens may be for.")
}

/// Forgets the tokens of an identity (`None`: of all that the current user may use; a superuser: all),
/// for one resource or for every one. Returns how many there were.
pub fn forget(resource: Option<&str>, identity: Option<&CStr>) -> i32 {
    let resource = resource.map(|text| Resource::parse(text, settings::cloud()).or_raise());
    let known: Option<Vec<Rc<KnownIdentity>>> = match identity {
        Some(name) => Some(vec![identities::own(Some(name))]),
        // SAFETY: a plain read.
        None if unsafe { pg_sys::superuser() } => None,
        None => Some(identities::visible(false)),
    };
    flight::forget(|slot| {
        // Equal identities share a token: a server with `resources` is no right to drop another's.
        let usable = |known: &Rc<KnownIdentity>| {
            known.key == slot.wanted.identity && known.identity.allows(&Resource::stored(slot.wanted.resource.get()))
        };
        let of_identity = known.as_ref().is_none_or(|known| known.iter().any(usable));
        of_identity && resource.as_ref().is_none_or(|resource| slot.wanted.resource.get() == resource.as_str())
    })
}

/// A row of `cached_tokens`.
pub struct Row {
    pub identity: Option<std::ffi::CString>,
    pub kind: String,
    pub id: Option<String>,
    pub resource: String,
    pub source: String,
    pub state: &'static str,
    pub expires_at: i64,
    pub refresh_at: i64,
    pub fetched_at: i64,
    pub hits: i64,
    pub fetches: i64,
    pub failures: i64,
    pub last_error: Option<String>,
    pub last_error_at: i64,
    pub waiting: i32,
}

/// What the cache holds, of the identities that the current user may use; everything for a role with
/// pg_read_all_stats. Never a token.
pub fn rows() -> Vec<Row> {
    // SAFETY: reads the syscache by plain values.
    let all =
        unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), pg_sys::Oid::from(pg_sys::ROLE_PG_READ_ALL_STATS)) };
    let known = identities::visible(all);
    let (now, monotonic) = (clock::now(), clock::monotonic());
    let slots = cache::lock();
    let rows = slots.iter().enumerate().filter(|(_, slot)| slot.taken).filter_map(|(at, slot)| {
        let server = known.iter().find(|known| known.key == slot.wanted.identity);
        if server.is_none() && !all {
            return None;
        }
        let failure = slot.last_failure.get();
        let busy = slot.is_busy(monotonic);
        let state = match (slot.has_token() && now < slot.usable_until, busy) {
            (true, _) => "ready",
            (false, true) => "fetching",
            (false, false) if slot.has_token() => "expired",
            (false, false) if failure.is_some() => "failed",
            (false, false) => "empty",
        };
        let id = slot.wanted.id.get();
        Some(Row {
            identity: server.map(|server| server.name.clone()),
            kind: slot.wanted.kind.get().into(),
            id: (!id.is_empty()).then(|| id.into()),
            resource: slot.wanted.resource.get().into(),
            source: slot.wanted.source.get().into(),
            state,
            expires_at: slot.expires_at,
            refresh_at: slot.refresh_at,
            fetched_at: slot.fetched_at,
            hits: cache::hits(at) as i64,
            fetches: slot.fetches,
            failures: slot.failures,
            last_error_at: if failure.is_some() { slot.last_failure.at } else { 0 },
            last_error: failure.map(|failure| failure.message),
            waiting: slot.waiting,
        })
    });
    rows.collect()
}

/// 22004: an argument that must not be NULL.
pub fn null_argument(name: &str) -> ! {
    error(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("argument \"{name}\" must not be null"), None, None)
}
