//! What the faults make of one request.

use std::time::Duration;

use super::{Callback, Fault, Reply};

/// At most one fault of each kind.
#[derive(Clone, Default)]
pub(crate) struct Plan {
    pub delay: Option<Duration>,
    pub call: Option<Callback>,
    pub hang: bool,
    pub answer: Option<Instead>,
    pub lose: bool,
    pub body: Option<BodyFault>,
    pub bytes_per_second: Option<u64>,
}

/// What comes instead of the right answer.
#[derive(Clone)]
pub(crate) enum Instead {
    Reply(Reply),
    Reset,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyFault {
    pub after: u64,
    pub kind: BodyFaultKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFaultKind {
    Hang,
    Cut,
    Truncate,
}

impl Plan {
    /// Takes the fault in, unless an earlier rule has decided on this kind; says whether it did.
    pub(super) fn take(&mut self, fault: &Fault) -> bool {
        let body = |after: &u64, kind| BodyFault { after: *after, kind };
        match fault {
            Fault::Delay { milliseconds } => put(&mut self.delay, Duration::from_millis(*milliseconds)),
            Fault::Call(callback) => put(&mut self.call, callback.clone()),
            Fault::HangBeforeHeaders => !std::mem::replace(&mut self.hang, true),
            Fault::Status(reply) => put(&mut self.answer, Instead::Reply(reply.clone())),
            Fault::Reset => put(&mut self.answer, Instead::Reset),
            Fault::Lose => !std::mem::replace(&mut self.lose, true),
            Fault::HangInBody { after } => put(&mut self.body, body(after, BodyFaultKind::Hang)),
            Fault::Cut { after } => put(&mut self.body, body(after, BodyFaultKind::Cut)),
            Fault::Truncate { after } => put(&mut self.body, body(after, BodyFaultKind::Truncate)),
            Fault::Bandwidth { bytes_per_second } => put(&mut self.bytes_per_second, (*bytes_per_second).max(1)),
        }
    }
}

fn put<T>(place: &mut Option<T>, value: T) -> bool {
    let free = place.is_none();
    if free {
        *place = Some(value);
    }
    free
}
