//! A blob's bytes, in order, fetched ahead on a helper thread.
//!
//! The blob is read in ranges, several at once, all pinned to the first answer's ETag. The thread lives
//! as long as somebody holds the [`Download`]: dropping that ends it, wherever it is.

use std::collections::VecDeque;
use std::ops::Range;
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

/// Bytes are handed over in pieces of about this size.
const PIECE: usize = 1 << 20;

/// Pieces that wait for the reader: enough for it not to wait for the thread.
const QUEUED: usize = 4;

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
        let (sender, next) = mpsc::channel(QUEUED);
        let (renewer, bearer) = credential::cell(token);
        helper::start("mi download", async move {
            let work = async {
                let last = match produce(&target, bearer, gzip, block, &sender).await {
                    Ok(()) => Next::End,
                    Err(failure) => {
                        target.traffic.failed(&failure);
                        Next::Failed(failure)
                    }
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
    let mut ahead: VecDeque<JoinHandle<Result<Vec<Bytes>, Failure>>> = VecDeque::new();
    let mut planned = first.range.end;
    ahead.push_back(tokio::spawn(fetch(store.clone(), first.range.clone(), e_tag.clone(), Some(first))));
    while !ahead.is_empty() || planned < size {
        while planned < size && ahead.len() < blocks::parallel(range) {
            let end = size.min(planned + range as u64);
            ahead.push_back(tokio::spawn(fetch(store.clone(), planned..end, e_tag.clone(), None)));
            planned = end;
        }
        if let Some(next) = ahead.pop_front() {
            for data in next.await.map_err(|_| helper::vanished())?? {
                out.write(data).await?;
            }
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
    range: Range<u64>,
    e_tag: String,
    mut answer: Option<GetResult>,
) -> Result<Vec<Bytes>, Failure> {
    let mut data = Collected::default();
    loop {
        let before = data.length;
        let rest = range.start + before..range.end;
        match fetch_some(&store, rest, &e_tag, answer.take(), &mut data).await {
            Ok(()) if range.start + data.length == range.end => return Ok(data.finish()),
            Ok(()) => {
                return Err(Failure::new(Kind::Protocol, "the storage service sent more or less than was asked for"));
            }
            Err(failure) if failure.kind.is_transient() && data.length > before => {}
            Err(failure) => return Err(failure),
        }
    }
}

async fn fetch_some(
    store: &Store,
    range: Range<u64>,
    e_tag: &str,
    answer: Option<GetResult>,
    data: &mut Collected,
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
        data.push(&piece.map_err(|error| store.failure(&error))?);
    }
    Ok(())
}

/// What has arrived of a range, in pieces of one size, each of which is given back as soon as it is
/// used: ranges as a whole would leave holes that only another whole range fills.
#[derive(Default)]
struct Collected {
    full: Vec<Bytes>,
    filling: Vec<u8>,
    length: u64,
}

impl Collected {
    fn push(&mut self, mut data: &[u8]) {
        self.length += data.len() as u64;
        while !data.is_empty() {
            if self.filling.capacity() == 0 {
                self.filling = Vec::with_capacity(PIECE);
            }
            let (now, later) = data.split_at(data.len().min(PIECE - self.filling.len()));
            self.filling.extend_from_slice(now);
            data = later;
            if self.filling.len() == PIECE {
                self.full.push(std::mem::take(&mut self.filling).into());
            }
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.filling.is_empty() {
            self.full.push(self.filling.into());
        }
        self.full
    }
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
            if gunzip.output().len() >= PIECE {
                let piece = std::mem::replace(gunzip.output(), Vec::with_capacity(PIECE + PIECE / 4));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::url::Blob;
    use crate::http::client::Options;
    use crate::http::destination::Destination;
    use std::io::{Read, Write};
    use std::time::Duration;

    #[test]
    fn dropping_it_ends_the_thread_in_the_middle_of_a_body() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}/acct", listener.local_addr().expect("an address"));
        let target = Target {
            destination: Destination::parse(&endpoint, "endpoint").expect("a destination"),
            blob: Blob { container: "inbox".into(), name: "a.csv".into() },
            http: Options {
                connect_timeout: Duration::from_secs(60),
                request_timeout: Duration::from_secs(60),
                ca_file: None,
            },
            traffic: Arc::default(),
        };
        let mut download = Download::start(target, AccessToken::for_test("t"), false, 8 << 20).expect("a thread");
        let (mut stream, _) = listener.accept().expect("a connection");
        assert!(stream.read(&mut [0; 4096]).expect("a request") > 0);
        let answer = "HTTP/1.1 206 Partial Content\r\netag: \"1\"\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                      content-range: bytes 0-999/1000\r\ncontent-length: 1000\r\n\r\nbegun";
        stream.write_all(answer.as_bytes()).expect("sent");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        assert!(matches!(runtime.block_on(download.next()), Next::Opened(1000)));
        drop(download);
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
        assert_eq!(stream.read(&mut [0; 1]).expect("closed, not timed out"), 0);
    }

    #[test]
    fn what_is_collected_is_what_came_in_pieces_of_one_size() {
        let mut collected = Collected::default();
        let data: Vec<u8> = (0..3 * PIECE + 5).map(|at| at as u8).collect();
        for piece in data.chunks(70_001) {
            collected.push(piece);
        }
        assert_eq!(collected.length, data.len() as u64);
        let pieces = collected.finish();
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE, PIECE, PIECE, 5]);
        assert_eq!(pieces.concat(), data);
        assert!(Collected::default().finish().is_empty());
    }
}
