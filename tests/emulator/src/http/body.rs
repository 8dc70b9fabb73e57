//! Bodies, and the sending of an answer's body with what faults make of it; in constant memory.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

use super::connection::Link;
use crate::fault::{BodyFault, BodyFaultKind, Faults, Plan};
use crate::log::{Ending, Record};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// So small that the log's count and a limited bandwidth follow what the client gets.
const CHUNK: usize = 65_536;

/// A connection ended by a fault.
#[derive(Debug, thiserror::Error)]
#[error("ended by a fault")]
pub(super) struct Ended;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    let body = Full::new(bytes.into());
    body.map_err(|never| match never {}).boxed_unsync()
}

/// A body on its way to the client.
pub(super) struct Sending {
    body: Body,
    record: Arc<Record>,
    link: Arc<Link>,
    faults: Faults,
    fault: Option<BodyFault>,
    bytes_per_second: Option<u64>,
    started: Instant,
    sent: u64,
    total: Option<u64>,
    /// What is left of a frame that was split.
    rest: Option<Bytes>,
}

impl Sending {
    /// The body with the faults of `plan` in it.
    pub(super) fn body(body: Body, plan: &Plan, record: Arc<Record>, link: Arc<Link>, faults: Faults) -> Body {
        let hint = hyper::body::Body::size_hint(&body);
        let total = hint.exact();
        let mut fault = plan.body;
        if let (Some(fault), Some(total)) = (&mut fault, total)
            && fault.kind == BodyFaultKind::Hang
        {
            // With the last byte out, the client would not notice the hang.
            fault.after = fault.after.min(total.saturating_sub(1));
        }
        if total == Some(0) {
            // The server does not even ask for the first frame.
            record.end(Ending::Answered);
        }
        let sending = Self {
            body,
            record,
            link,
            faults,
            fault,
            bytes_per_second: plan.bytes_per_second,
            started: Instant::now(),
            sent: 0,
            total,
            rest: None,
        };
        let frames = Box::pin(stream::try_unfold(sending, Self::next));
        Frames { frames, hint }.boxed_unsync()
    }

    async fn next(mut self) -> Result<Option<(Frame<Bytes>, Self)>, BoxError> {
        if let Some(fault) = self.fault.filter(|fault| self.sent >= fault.after) {
            self.strike(fault.kind).await?;
        }
        let Some(frame) = self.take().await else {
            self.record.end(Ending::Answered);
            return Ok(None);
        };
        let frame = match frame?.into_data() {
            Ok(data) => Frame::data(self.split(data)),
            Err(trailers) => trailers,
        };
        if let Some(data) = frame.data_ref() {
            self.sent += data.len() as u64;
        }
        if let Some(rate) = self.bytes_per_second {
            let due = Duration::from_secs_f64(self.sent as f64 / rate as f64);
            sleep_until(self.started + due).await;
        }
        self.record.note(|entry| entry.bytes_sent = self.sent);
        if self.total == Some(self.sent) {
            // The server asks for no frame beyond the announced length.
            self.record.end(Ending::Answered);
        }
        Ok(Some((frame, self)))
    }

    async fn take(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        match self.rest.take() {
            Some(rest) => Some(Ok(Frame::data(rest))),
            None => self.body.frame().await,
        }
    }

    /// The next chunk, which ends at the point of a fault.
    fn split(&mut self, mut data: Bytes) -> Bytes {
        let left = self.fault.map_or(u64::MAX, |fault| fault.after - self.sent);
        let most = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        if most < data.len() {
            self.rest = Some(data.split_off(most));
        }
        data
    }

    async fn strike(&mut self, kind: BodyFaultKind) -> Result<(), Ended> {
        self.fault = None;
        match kind {
            BodyFaultKind::Hang => {
                self.faults.hold(&self.record).await;
                return Ok(());
            }
            // Nothing more is to come: it ends well.
            _ if self.total == Some(self.sent) => return Ok(()),
            BodyFaultKind::Cut => {
                self.link.delivered().await;
                self.link.reset();
            }
            BodyFaultKind::Truncate => self.link.delivered().await,
        }
        self.record.end(Ending::Cut);
        Err(Ended)
    }
}

/// The frames with the length that is announced for them.
struct Frames<S> {
    frames: S,
    hint: SizeHint,
}

impl<S> hyper::body::Body for Frames<S>
where
    S: Stream<Item = Result<Frame<Bytes>, BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.frames).poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.hint.exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
