//! A blob's bytes, in order, fetched ahead on a helper thread.
//!
//! The blob is read in ranges, several at once, all pinned to the first answer's ETag. The thread lives
//! as long as somebody holds the [`Download`]: dropping that ends it, wherever it is.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::credential::{self, Bearer, Renewer};
use super::gzip::Gunzip;
use super::refusal::Operation;
use super::store::{Store, Target, is_no_such_range};
use super::{blocks, helper};
use crate::http::failure::{Failure, Kind};
use crate::token::AccessToken;

/// The first range is small, so that work on it begins early and a small blob costs one request.
const FIRST_RANGE: usize = 1 << 20;

/// Decompressed bytes are handed over in pieces of about this size.
const DECOMPRESSED: usize = 1 << 20;

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// The blob is there and has so many bytes (compressed ones, if it is).
    Opened(u64),
    Data(Bytes),
    End,
    /// Put a token into the [`Renewer`], and ask again.
    TokenWanted,
    Failed(Failure),
}

/// The reader's end.
#[derive(Debug)]
pub struct Download {
    next: mpsc::Receiver<Next>,
    pub renewer: Renewer,
}

impl Download {
    /// Starts reading; `block` bounds the size of a range.
    pub fn start(target: Target, token: AccessToken, gzip: bool, block: usize) -> Result<Self, Failure> {
        // One range waits here while another is worked on and others arrive.
        let (sender, next) = mpsc::channel(1);
        let (renewer, bearer) = credential::cell(token);
        helper::start("mi download", async move {
            let work = async {
                let last = match produce(&target, bearer, gzip, block, &sender).await {
                    Ok(()) => Next::End,
                    Err(failure) => Next::Failed(failure),
                };
                let _ = sender.send(last).await;
            };
            tokio::select! {
                biased;
                () = sender.closed() => {}
                () = work => {}
            }
        })?;
        Ok(Self { next, renewer })
    }

    /// What is there already, without waiting.
    pub fn ready(&mut self) -> Option<Next> {
        self.next.try_recv().ok()
    }

    pub async fn next(&mut self) -> Next {
        tokio::select! {
            biased;
            next = self.next.recv() => next.unwrap_or_else(|| Next::Failed(helper::vanished())),
            () = self.renewer.wanted() => Next::TokenWanted,
        }
    }
}

async fn produce(
    target: &Target,
    bearer: Bearer,
    gzip: bool,
    block: usize,
    out: &mpsc::Sender<Next>,
) -> Result<(), Failure> {
    let store = Arc::new(Store::open(target, bearer, Operation::Read)?);
    let mut out = Output { out, gunzip: gzip.then(Gunzip::default) };
    let range = blocks::range(block);
    let Some(first) = open(&store, range.min(FIRST_RANGE) as u64).await? else {
        out.send(Next::Opened(0)).await;
        return out.finish().await;
    };
    let Some(e_tag) = first.meta.e_tag.clone() else {
        return Err(Failure::new(Kind::Protocol, "the storage service's answer has no ETag"));
    };
    let size = first.meta.size;
    out.send(Next::Opened(size)).await;

    // Tasks, so that they go on while this one waits for a reader that is busy: a body that nobody
    // takes from would be reset by the service.
    let mut ahead: VecDeque<JoinHandle<Result<Bytes, Failure>>> = VecDeque::new();
    let mut planned = first.range.end;
    ahead.push_back(tokio::spawn(fetch(store.clone(), first.range.clone(), e_tag.clone(), Some(first))));
    while !ahead.is_empty() || planned < size {
        while planned < size && ahead.len() < blocks::parallel(range) {
            let end = size.min(planned + range as u64);
            ahead.push_back(tokio::spawn(fetch(store.clone(), planned..end, e_tag.clone(), None)));
            planned = end;
        }
        if let Some(next) = ahead.pop_front() {
            let data = next.await.map_err(|_| helper::vanished())??;
            out.write(data).await?;
        }
    }
    out.finish().await
}

/// The first range's answer, or `None` for an empty blob.
async fn open(store: &Store, length: u64) -> Result<Option<GetResult>, Failure> {
    let options = GetOptions { range: Some(GetRange::Bounded(0..length)), ..Default::default() };
    match store.azure.get_opts(&store.path, options).await {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if is_no_such_range(&error) => Ok(None),
        Err(error) => Err(store.failure(&error)),
    }
}

/// One range, whole. object_store goes on at the next byte after a cut, so many times for one request;
/// as long as bytes arrive, this begins a new one.
async fn fetch(
    store: Arc<Store>,
    range: std::ops::Range<u64>,
    e_tag: String,
    mut answer: Option<GetResult>,
) -> Result<Bytes, Failure> {
    let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let mut data = Vec::with_capacity(wanted);
    loop {
        let before = data.len();
        match fetch_some(&store, range.start + before as u64..range.end, &e_tag, answer.take(), &mut data).await {
            Ok(()) if data.len() == wanted => return Ok(data.into()),
            Ok(()) => {
                return Err(Failure::new(Kind::Protocol, "the storage service sent more or less than was asked for"));
            }
            Err(failure) if failure.kind.is_transient() && data.len() > before => {}
            Err(failure) => return Err(failure),
        }
    }
}

async fn fetch_some(
    store: &Store,
    range: std::ops::Range<u64>,
    e_tag: &str,
    answer: Option<GetResult>,
    data: &mut Vec<u8>,
) -> Result<(), Failure> {
    let answer = match answer {
        // Its ETag is the one that all others must have, and object_store asks for it when it goes on.
        Some(first) => first,
        None => {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range)),
                if_match: Some(e_tag.into()),
                ..Default::default()
            };
            store.azure.get_opts(&store.path, options).await.map_err(|error| store.failure(&error))?
        }
    };
    let mut body = answer.into_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| store.failure(&error))?;
        data.extend_from_slice(&piece);
    }
    Ok(())
}

/// The helper's way to the reader.
struct Output<'c> {
    out: &'c mpsc::Sender<Next>,
    gunzip: Option<Gunzip>,
}

impl Output<'_> {
    async fn send(&self, next: Next) {
        // A reader that is gone ends this whole thread.
        let _ = self.out.send(next).await;
    }

    async fn write(&mut self, mut data: Bytes) -> Result<(), Failure> {
        let Some(gunzip) = &mut self.gunzip else {
            self.send(Next::Data(data)).await;
            return Ok(());
        };
        while !data.is_empty() {
            gunzip.push(&mut data)?;
            if gunzip.output().len() >= DECOMPRESSED {
                let piece = std::mem::replace(gunzip.output(), Vec::with_capacity(DECOMPRESSED + DECOMPRESSED / 4));
                let _ = self.out.send(Next::Data(piece.into())).await;
                // The ranges' tasks run on this thread, too.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        if let Some(gunzip) = &mut self.gunzip {
            gunzip.finish()?;
            let rest = std::mem::take(gunzip.output());
            if !rest.is_empty() {
                self.send(Next::Data(rest.into())).await;
            }
        }
        Ok(())
    }
}
