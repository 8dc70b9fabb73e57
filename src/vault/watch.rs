//! Whether a key-encryption key may still be used: what a probe of it says, and what follows with time.
//!
//! | state | entered by | data keys |
//! |---|---|---|
//! | ready | a probe that succeeds | usable |
//! | degraded | the vault or identity endpoint cannot be reached, or fails | usable for `grace_period` |
//! | revoked_pending | a clear refusal | usable for `revocation_grace_period` |
//! | locked | the end of either period | not usable, wiped |
//!
//! As Azure's managed service does: a failure of the network is no revocation, and what comes back unlocks by itself.

use crate::http::failure::{Failure, Kind};

/// What one look at the key came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    Usable,
    /// Network, TLS, throttling, 5xx, an identity endpoint that fails: says nothing about the key.
    Transient,
    /// The vault or the identity endpoint said no.
    Refused,
}

impl Probe {
    /// What a failure says. What cannot be understood (a garbled answer, one that is too large) is taken for a
    /// disturbance on the way: a refusal is always a proper answer.
    pub fn of(failure: &Failure) -> Self {
        match failure.kind {
            Kind::NotAuthorized | Kind::NotFound | Kind::InvalidValue | Kind::Forbidden | Kind::NotAuthentic => {
                Self::Refused
            }
            _ => Self::Transient,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Ready = 1,
    Degraded = 2,
    RevokedPending = 3,
    Locked = 4,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::RevokedPending => "revoked_pending",
            Self::Locked => "locked",
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Ready, Self::Degraded, Self::RevokedPending, Self::Locked]
            .into_iter()
            .find(|state| *state as u8 == number)
    }
}

/// The settings `grace_period` and `revocation_grace_period`, in milliseconds; None: for ever.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    pub outage: Option<i64>,
    pub revocation: Option<i64>,
}

/// A key's state, and since when; milliseconds of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Watch {
    state: u8,
    /// When the disturbance began, of whichever kind; when it became ready.
    since: i64,
    /// When the first of the refusals came that have not ended since.
    refused_since: i64,
}

impl Watch {
    /// Of a key that was just used.
    pub fn ready(now: i64) -> Self {
        Self { state: State::Ready as u8, since: now, refused_since: 0 }
    }

    pub fn state(&self) -> State {
        State::from_number(self.state).unwrap_or(State::Locked)
    }

    /// The state after a probe. An outage does not end a revocation, nor does a refusal give a key more time than
    /// the outage before it left.
    pub fn after(self, probe: Probe, now: i64, grace: Grace) -> Self {
        let state = match (probe, self.state()) {
            (Probe::Usable, State::Ready) => return self,
            (Probe::Usable, _) => return Self::ready(now),
            (_, State::Locked) => return self,
            (Probe::Refused, _) | (Probe::Transient, State::RevokedPending) => State::RevokedPending,
            (Probe::Transient, _) => State::Degraded,
        };
        let since = if self.state() == State::Ready { now } else { self.since };
        let refused_since = match (state, self.state()) {
            (State::RevokedPending, State::RevokedPending) => self.refused_since,
            (State::RevokedPending, _) => now,
            _ => 0,
        };
        Self { state: state as u8, since, refused_since }.at(now, grace)
    }

    /// The state once time has passed without a probe.
    pub fn at(self, now: i64, grace: Grace) -> Self {
        match self.deadline(grace) {
            Some(deadline) if now >= deadline => Self { state: State::Locked as u8, since: now, ..self },
            _ => self,
        }
    }

    /// When the key locks unless a probe succeeds before.
    pub fn deadline(&self, grace: Grace) -> Option<i64> {
        let outage = grace.outage.map(|period| self.since.saturating_add(period));
        match self.state() {
            State::Degraded => outage,
            State::RevokedPending => {
                let revocation = grace.revocation.map(|period| self.refused_since.saturating_add(period));
                [outage.filter(|_| self.since < self.refused_since), revocation].into_iter().flatten().min()
            }
            State::Ready | State::Locked => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Grace = Grace { outage: Some(60), revocation: Some(10) };

    /// The states after probes at these times.
    fn walk(steps: &[(Probe, i64)]) -> Vec<State> {
        let mut watch = Watch::ready(0);
        let mut states = Vec::new();
        for (probe, now) in steps {
            watch = watch.at(*now, GRACE).after(*probe, *now, GRACE);
            states.push(watch.state());
        }
        states
    }

    #[test]
    fn an_outage_locks_after_its_period_and_a_refusal_after_its_own() {
        use Probe::*;
        use State::*;
        for (steps, states) in [
            (
                &[(Usable, 1), (Transient, 2), (Transient, 61), (Transient, 62)][..],
                &[Ready, Degraded, Degraded, Locked][..],
            ),
            (&[(Refused, 5), (Refused, 14), (Refused, 15)], &[RevokedPending, RevokedPending, Locked]),
            (&[(Transient, 5), (Usable, 6), (Transient, 7), (Transient, 66)], &[Degraded, Ready, Degraded, Degraded]),
            // A refusal in the middle of an outage, and the other way round.
            (
                &[(Transient, 0), (Refused, 40), (Transient, 49), (Transient, 50)],
                &[Degraded, RevokedPending, RevokedPending, Locked],
            ),
            (&[(Transient, 0), (Refused, 55), (Refused, 60)], &[Degraded, RevokedPending, Locked]),
            // Locked is left by success alone, and at once.
            (&[(Refused, 0), (Refused, 10), (Transient, 11), (Usable, 12)], &[RevokedPending, Locked, Locked, Ready]),
        ] {
            assert_eq!(walk(steps), states, "{steps:?}");
        }
    }

    #[test]
    fn a_period_without_end_never_locks_and_one_of_nothing_locks_at_once() {
        let never = Grace { outage: None, revocation: None };
        let at_once = Grace { outage: Some(0), revocation: Some(0) };
        for probe in [Probe::Transient, Probe::Refused] {
            assert_ne!(Watch::ready(0).after(probe, 1, never).at(i64::MAX, never).state(), State::Locked);
            assert_eq!(Watch::ready(0).after(probe, 1, at_once).state(), State::Locked);
        }
    }
}
