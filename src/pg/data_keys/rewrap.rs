//! Wrapping data keys anew, with the newest version of their vault key or with another one's.
//!
//! A call that has changed nothing before in its transaction leaves the work to the worker of its database, which
//! commits it batch by batch: ten thousand data keys are as many requests to the vault, and what is done should stay
//! done. In a transaction that has changed something (a data key, a server: the worker would not see it, and would wait
//! for its locks) the call does all itself, and its work is the transaction's.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CString;
use std::rc::Rc;

use pgrx::prelude::*;

use super::watching::Place;
use super::wrap::Target;
use super::{access, events, job, load, table};
use crate::http::failure::Failure;
use crate::pg::error::{OrRaise, raise};
use crate::pg::servers::{self, Wrapper};
use crate::pg::vault::{self, Vault};
use crate::pg::{compat, restricted};
use crate::vault::envelope::Secret;
use crate::vault::kid::Kid;
use crate::vault::record::Record;

/// Which data keys are to be wrapped, and by what.
pub struct Wanted {
    /// Of this server, else of all that the current user owns.
    pub server: Option<pg_sys::Oid>,
    /// For this server, else for the one that they are of.
    pub to_server: Option<pg_sys::Oid>,
    /// By this key, else by the one that they are wrapped by.
    pub to_key: Option<String>,
}

/// A data key, and all that a catalog says of its way.
pub struct Step {
    pub record: Record,
    kid: Kid,
    from: Rc<Vault>,
    to: Rc<Vault>,
    key: String,
}

/// A data key that is wrapped anew, not yet written.
pub struct Rewrapped {
    old: Record,
    new: Record,
    to: Rc<Vault>,
    place: Place,
    secret: Secret,
    /// The id that its row is signed with.
    database: [u8; 16],
}

/// The data keys; raises where the current user may not use their servers.
pub fn steps(wanted: &Wanted) -> Vec<Step> {
    let user = servers::current_user();
    let owned: HashMap<String, pg_sys::Oid> = servers::servers_of(Wrapper::Vault)
        .into_iter()
        .filter(|server| wanted.server.is_none_or(|only| only == server.oid) && compat::owns_server(server.oid, user))
        .map(|server| (server.display(), server.oid))
        .collect();
    let to_server = wanted.to_server.map(|oid| servers::of(oid, c"", Wrapper::Vault).display());
    let mut vaults: HashMap<(String, String), Rc<Vault>> = HashMap::new();
    let mut vault = |server: &str, key: &str| {
        let of = || {
            let name = CString::new(server).unwrap_or_default();
            let vault = vault::usable(&name).allowing(access::OPERATION, key);
            access::require_ownership(&vault);
            Rc::new(vault)
        };
        vaults.entry((server.to_owned(), key.to_owned())).or_insert_with(of).clone()
    };
    let rows = table::all().into_iter().map(|row| row.record).filter(|record| owned.contains_key(&record.server));
    let step = |record: Record| {
        let from = vault(&record.server, access::key_name(&record.kid));
        load::refuse_locked_server(&record, &from);
        let kid = access::kid_of(&record, &from);
        let key = wanted.to_key.clone().unwrap_or_else(|| kid.name().to_owned());
        let to = vault(to_server.as_ref().unwrap_or(&record.server), &key);
        Step { record, kid, from, to, key }
    };
    rows.map(step).collect()
}

/// The newest versions of the vault keys that data keys are to be wrapped by, each asked for once.
#[derive(Default)]
pub struct Targets(HashMap<(pg_sys::Oid, String), Target>);

impl Targets {
    /// Leaves the data keys that are not yet as they should be.
    pub fn stale(&mut self, steps: Vec<Step>) -> Result<Vec<Step>, Failure> {
        for step in &steps {
            if let Entry::Vacant(place) = self.0.entry((step.to.server, step.key.clone())) {
                place.insert(Target::of(&step.to, &step.key)?);
            }
        }
        let is_stale = |step: &Step| {
            step.record.server.as_bytes() != step.to.name.to_bytes()
                || self.of(step).is_none_or(|target| !target.has_wrapped(&step.record, &step.to))
        };
        Ok(steps.into_iter().filter(is_stale).collect())
    }

    fn of(&self, step: &Step) -> Option<&Target> {
        self.0.get(&(step.to.server, step.key.clone()))
    }

    /// Wraps a data key; whatever it is wrapped by, it must be what its row says before it is signed anew.
    pub fn wrap(&self, step: Step, database: &[u8; 16]) -> Result<Option<Rewrapped>, Failure> {
        let Some(target) = self.of(&step) else { return Ok(None) };
        let Step { record: old, kid, from, to, .. } = step;
        let secret = load::secret_of(&old, &from, &kid, Some(*database))?;
        let mut new = Record { server: to.name.to_string_lossy().into_owned(), ..old.clone() };
        let place = target.wrap(&to, &mut new, &secret, database)?;
        Ok(Some(Rewrapped { old, new, to, place, secret, database: *database }))
    }
}

/// Writes data keys that are wrapped anew, and the event; leaves those that were written, for [`keep`]. One that
/// somebody else has changed meanwhile stays as it is.
pub fn write(batch: Vec<Rewrapped>, role: Option<&str>) -> Vec<Rewrapped> {
    let written: Vec<Rewrapped> = batch.into_iter().filter(|one| table::replace(&one.old, &one.new)).collect();
    let mut groups: HashMap<(&str, &str), Vec<&Rewrapped>> = HashMap::new();
    for one in &written {
        groups.entry((&one.new.server, &one.new.kid)).or_default().push(one);
    }
    for ((server, kid), group) in groups {
        let names: Vec<&str> = group.iter().map(|one| one.new.name.as_str()).collect();
        let mut old: Vec<&str> = group.iter().map(|one| one.old.kid.as_str()).collect();
        old.sort_unstable();
        old.dedup();
        let reason = format!("it was wrapped by {}", old.join(", "));
        let request_id = group.last().map(|one| one.to.request_id()).unwrap_or_default();
        events::Row::new("rewrapped", server)
            .data_keys(&names)
            .kid(kid)
            .role(role)
            .reason(&reason)
            .request_id(&request_id)
            .insert();
    }
    written
}

/// Puts the new wraps where sessions find them; returns how many.
pub fn keep(written: Vec<Rewrapped>) -> i32 {
    let count = written.len() as i32;
    for Rewrapped { new, to, place, secret, database, .. } in written {
        // Where there is no room, sessions unwrap for themselves.
        let _ = load::keep(&new, &to, &place, secret, Some(database));
    }
    count
}

/// What the function does; returns how many data keys were wrapped anew.
pub fn call(wanted: &Wanted) -> i32 {
    if restricted::is_now() {
        raise(restricted::refused());
    }
    // Here in any case: what is wrong with servers, identity or key is the caller's to hear, at once.
    let mut targets = Targets::default();
    let stale = targets.stale(steps(wanted)).or_raise();
    if stale.is_empty() {
        return 0;
    }
    // SAFETY: a plain read.
    let has_changed = unsafe { pg_sys::GetTopTransactionIdIfAny() } != pg_sys::InvalidTransactionId;
    if !has_changed {
        return job::done_by_the_worker(wanted);
    }
    let database = table::make_database_id();
    let wrapped = stale.into_iter().filter_map(|step| targets.wrap(step, &database).or_raise());
    keep(write(wrapped.collect(), events::current_role().as_deref()))
}
