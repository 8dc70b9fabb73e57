//! The audit: rows of table `data_key_event`, which view `data_key_events` shows.
//!
//! Who creates, rotates or wraps a data key anew writes the event in the same transaction. What happens to vault keys
//! waits in the journal for the worker of the database.

use std::ffi::CStr;

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use super::journal::Event;
use super::table;
use crate::pg::{clock, servers};

/// A row in the making.
pub struct Row<'t> {
    at: Option<TimestampWithTimeZone>,
    event: &'t str,
    vault: Option<&'t str>,
    data_keys: Option<&'t [&'t str]>,
    kid: Option<&'t str>,
    role: Option<&'t str>,
    reason: Option<&'t str>,
    request_id: Option<&'t str>,
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

impl<'t> Row<'t> {
    pub fn new(event: &'t str, vault: &'t str) -> Self {
        let vault = some(vault);
        Self { at: None, event, vault, data_keys: None, kid: None, role: None, reason: None, request_id: None }
    }

    pub fn data_keys(mut self, names: &'t [&'t str]) -> Self {
        self.data_keys = Some(names);
        self
    }

    pub fn kid(mut self, kid: &'t str) -> Self {
        self.kid = some(kid);
        self
    }

    pub fn role(mut self, role: Option<&'t str>) -> Self {
        self.role = role;
        self
    }

    pub fn reason(mut self, reason: &'t str) -> Self {
        self.reason = some(reason);
        self
    }

    pub fn request_id(mut self, request_id: &'t str) -> Self {
        self.request_id = some(request_id);
        self
    }

    pub fn insert(self) {
        table::write(
            "INSERT INTO azure_key_vault.data_key_event (at, event, vault, data_keys, kid, role, reason, request_id)
                 VALUES (coalesce($1, pg_catalog.clock_timestamp()), $2, $3, $4, $5, $6, $7, $8)",
            &[
                self.at.into(),
                self.event.into(),
                self.vault.into(),
                self.data_keys.map(<[&str]>::to_vec).into(),
                self.kid.into(),
                self.role.into(),
                self.reason.into(),
                self.request_id.into(),
            ],
        );
    }
}

/// Writes an event of the journal.
pub fn insert(event: &Event, vault: &str) {
    let role = (event.role != pg_sys::InvalidOid).then(|| role_name(event.role)).flatten();
    let mut row = Row::new(event.what.get(), vault)
        .kid(event.kid.get())
        .role(role.as_deref())
        .reason(event.reason.get())
        .request_id(event.request_id.get());
    row.at = clock::timestamp_of(event.at);
    row.insert();
}

/// Says that events were lost.
pub fn insert_lost(count: u32, vault: &str) {
    let reason = format!("{count} events were not written: more came than were kept for a worker to write");
    Row::new("events_lost", vault).reason(&reason).insert();
}

/// The name of the current user.
pub fn current_role() -> Option<String> {
    role_name(servers::current_user())
}

/// The name of a role, if it is still there.
pub fn role_name(role: pg_sys::Oid) -> Option<String> {
    // SAFETY: a palloc'd name, copied at once; null where the role is gone.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}
