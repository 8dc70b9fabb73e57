//! One entry of the cache: a token's place, and all that is known about fetching it.

use std::ffi::c_int;

use pgrx::pg_sys;

use crate::http::failure::{Failure, Kind};
use crate::identity::{resource, selector};
use crate::token::pool::Place;

/// A text of bounded length that can live in shared memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Text<const N: usize> {
    length: u16,
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    pub const EMPTY: Self = Self { length: 0, bytes: [0; N] };

    /// Keeps what fits, cut at a character.
    pub fn set(&mut self, text: &str) {
        let mut length = text.len().min(N);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        self.bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        self.length = length as u16;
    }

    pub fn get(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length).min(N)]).unwrap_or_default()
    }
}

/// What a token is wanted for: with the settings, all that its request takes. Nothing of it is secret.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Wanted {
    /// Hash of all that shaped the request.
    pub key: [u8; 32],
    /// Hash of all that shaped it but the resource: the identity.
    pub identity: [u8; 32],
    pub kind: Text<24>,
    pub id: Text<{ selector::LONGEST_ID }>,
    pub resource: Text<{ resource::LONGEST }>,
    pub source: Text<24>,
    /// The identity's options, for the worker, which reads no catalog. Empty where they do not fit: then
    /// only sessions fetch.
    pub options: Text<1536>,
}

impl Wanted {
    pub const NOTHING: Self = Self {
        key: [0; 32],
        identity: [0; 32],
        kind: Text::EMPTY,
        id: Text::EMPTY,
        resource: Text::EMPTY,
        source: Text::EMPTY,
        options: Text::EMPTY,
    };

    pub fn set_options(&mut self, options: &str) {
        self.options.set(if options.len() <= self.options.bytes.len() { options } else { "" });
    }
}

/// A failure as it is kept for those who wait: our own words only.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct KeptFailure {
    kind: u8,
    /// The attempt that ended with it; 0: none.
    pub attempt: u64,
    /// Unix seconds.
    pub at: i64,
    message: Text<160>,
    detail: Text<240>,
    hint: Text<240>,
}

impl KeptFailure {
    pub fn set(&mut self, failure: &Failure, attempt: u64, at: i64) {
        self.kind = failure.kind as u8;
        self.attempt = attempt;
        self.at = at;
        self.message.set(&failure.message);
        self.detail.set(failure.detail.as_deref().unwrap_or_default());
        self.hint.set(failure.hint.as_deref().unwrap_or_default());
    }

    pub fn get(&self) -> Option<Failure> {
        let kind = Kind::from_number(self.kind)?;
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Some(Failure {
            kind,
            message: self.message.get().into(),
            detail: some(self.detail.get()),
            hint: some(self.hint.get()),
        })
    }

    pub fn clear(&mut self) {
        self.attempt = 0;
        self.kind = 0;
    }
}

/// All zeros is a free slot.
#[repr(C)]
pub struct Slot {
    pub changed: pg_sys::ConditionVariable,
    /// Whether the slot stands for anything.
    pub taken: bool,
    /// The last token had no room: there is nothing to wait for, everybody fetches.
    pub oversize: bool,
    /// A crash took the token: the worker fetches it anew.
    pub lost: bool,
    pub wanted: Wanted,
    /// Who fetches; 0: nobody.
    pub owner: c_int,
    /// The number of the last attempt to fetch; grows with each.
    pub attempt: u64,
    /// Milliseconds of the monotonic clock, which all processes of a machine share.
    pub lease_until: i64,
    pub no_retry_before: i64,
    pub no_refresh_before: i64,
    pub no_force_before: i64,
    pub began_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
    pub refresh_at: i64,
    pub usable_until: i64,
    pub fetched_at: i64,
    pub fetches: i64,
    pub failures: i64,
    /// Failures since the last success.
    pub failures_in_a_row: u32,
    pub waiting: c_int,
    pub last_failure: KeptFailure,
    pub(super) place: Place,
}

impl Slot {
    pub fn has_token(&self) -> bool {
        !self.place.is_empty()
    }

    /// Whether somebody fetches, whose time for it has not ended.
    pub fn is_busy(&self, monotonic: i64) -> bool {
        self.owner != 0 && self.lease_until > monotonic
    }
}
