//! Bytes into a blob, block by block, sent by a helper thread.
//!
//! Blocks are invisible until their list is committed, and that is done only by [`Upload::commit`]:
//! dropping the [`Upload`] before leaves the blob that was there, and ends the thread wherever it is.

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::credential::{self, Bearer, Renewer};
use super::gzip::Gzip;
use super::refusal::Operation;
use super::store::{Store, Target};
use super::{blocks, helper};
use crate::http::failure::Failure;
use crate::token::AccessToken;

/// Compressed on the helper's side, pieces need not be blocks.
const UNCOMPRESSED: usize = 1 << 20;

#[derive(Debug)]
enum Piece {
    More(Bytes),
    /// The end: with these bytes the blob is whole.
    Last(Bytes),
}

/// What the upload is ready for.
#[derive(Debug)]
pub enum Ready {
    Yes,
    /// Put a token into the [`Renewer`], and ask again.
    TokenWanted,
    Failed(Failure),
}

/// The writer's end.
#[derive(Debug)]
pub struct Upload {
    pieces: mpsc::Sender<Piece>,
    done: oneshot::Receiver<Result<(), Failure>>,
    sent: usize,
    gzip: bool,
    block: usize,
    pub renewer: Renewer,
}

impl Upload {
    /// Starts a thread that waits for pieces; nothing is sent before the first one. `block` is the size
    /// of the first block.
    pub fn start(target: Target, token: AccessToken, gzip: bool, block: usize) -> Result<Self, Failure> {
        let (pieces, mut receiver) = mpsc::channel(1);
        let (mut answer, done) = oneshot::channel();
        let (renewer, bearer) = credential::cell(token);
        helper::start("mi upload", async move {
            let result = tokio::select! {
                biased;
                () = answer.closed() => return,
                result = consume(&target, bearer, gzip, block, &mut receiver) => result,
            };
            if let Err(failure) = &result {
                target.traffic.failed(failure);
            }
            let _ = answer.send(result);
        })?;
        Ok(Self { pieces, done, sent: 0, gzip, block, renewer })
    }

    /// How many bytes the next piece should have.
    pub fn piece(&self) -> Result<usize, Failure> {
        if self.gzip { Ok(UNCOMPRESSED) } else { blocks::size(self.sent, self.block) }
    }

    /// Waits until there is room for a piece.
    pub async fn ready(&mut self) -> Ready {
        tokio::select! {
            biased;
            result = &mut self.done => Ready::Failed(ended(result)),
            () = self.renewer.wanted() => Ready::TokenWanted,
            _ = self.pieces.reserve() => Ready::Yes,
        }
    }

    /// Hands a piece over, for which there is room.
    pub fn send(&mut self, piece: Bytes) {
        self.sent += 1;
        // Were the thread gone, the next look at it would tell why.
        let _ = self.pieces.try_send(Piece::More(piece));
    }

    /// Hands over the last piece, which may be empty, for which there is room.
    pub fn commit(&mut self, last: Bytes) {
        let _ = self.pieces.try_send(Piece::Last(last));
    }

    /// After [`Self::commit`]: waits until the blob is there.
    pub async fn committed(&mut self) -> Ready {
        tokio::select! {
            biased;
            result = &mut self.done => match result {
                Ok(Ok(())) => Ready::Yes,
                other => Ready::Failed(ended(other)),
            },
            () = self.renewer.wanted() => Ready::TokenWanted,
        }
    }
}

fn ended(result: Result<Result<(), Failure>, oneshot::error::RecvError>) -> Failure {
    match result {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) | Err(_) => helper::vanished(),
    }
}

async fn consume(
    target: &Target,
    bearer: Bearer,
    gzip: bool,
    block: usize,
    pieces: &mut mpsc::Receiver<Piece>,
) -> Result<(), Failure> {
    let mut writer = Writer {
        store: Store::open(target, bearer, Operation::Write)?,
        upload: None,
        moving: JoinSet::new(),
        blocks: 0,
        block,
    };
    let mut gzip = gzip.then(Gzip::default);
    loop {
        let piece = tokio::select! {
            biased;
            Some(moved) = writer.moving.join_next(), if !writer.moving.is_empty() => {
                writer.moved(moved)?;
                continue;
            }
            piece = pieces.recv(), if writer.has_room()? => piece,
        };
        match (piece, &mut gzip) {
            // The writer dropped its end: nobody is left to tell.
            (None, _) => return Err(helper::vanished()),
            (Some(Piece::More(piece)), None) => writer.put(piece).await?,
            (Some(Piece::Last(piece)), None) => return writer.finish(piece).await,
            (Some(Piece::More(piece)), Some(gzip)) => {
                compress(gzip, &piece).await?;
                if gzip.output().len() >= writer.size()? {
                    let full = std::mem::take(gzip.output());
                    writer.put(full.into()).await?;
                }
            }
            (Some(Piece::Last(piece)), Some(gzip)) => {
                compress(gzip, &piece).await?;
                gzip.finish()?;
                let last = std::mem::take(gzip.output());
                return writer.finish(last.into()).await;
            }
        }
    }
}

/// In steps, between which the blocks in flight move on.
async fn compress(gzip: &mut Gzip, piece: &[u8]) -> Result<(), Failure> {
    const STEP: usize = 128 << 10;
    for step in piece.chunks(STEP) {
        gzip.push(step)?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// The blocks of one blob.
struct Writer {
    store: Store,
    upload: Option<Box<dyn MultipartUpload>>,
    moving: JoinSet<object_store::Result<()>>,
    blocks: usize,
    block: usize,
}

impl Writer {
    fn size(&self) -> Result<usize, Failure> {
        blocks::size(self.blocks, self.block)
    }

    fn has_room(&self) -> Result<bool, Failure> {
        Ok(self.moving.len() < blocks::parallel(self.size()?))
    }

    fn moved(&self, moved: Result<object_store::Result<()>, tokio::task::JoinError>) -> Result<(), Failure> {
        moved.map_err(|_| helper::vanished())?.map_err(|error| self.store.failure(&error))
    }

    /// Starts sending a block.
    async fn put(&mut self, block: Bytes) -> Result<(), Failure> {
        if self.upload.is_none() {
            // Sends nothing: Azure knows no start of an upload.
            let upload = self.store.azure.put_multipart(&self.store.path).await;
            self.upload = Some(upload.map_err(|error| self.store.failure(&error))?);
        }
        if let Some(upload) = &mut self.upload {
            self.moving.spawn(upload.put_part(PutPayload::from(block)));
            self.blocks += 1;
        }
        Ok(())
    }

    /// Makes the blob: in one request when it fits into one block.
    async fn finish(mut self, last: Bytes) -> Result<(), Failure> {
        if self.blocks == 0 {
            let put = self.store.azure.put(&self.store.path, PutPayload::from(last)).await;
            return put.map(|_| ()).map_err(|error| self.store.failure(&error));
        }
        if !last.is_empty() {
            self.put(last).await?;
        }
        while let Some(moved) = self.moving.join_next().await {
            self.moved(moved)?;
        }
        if let Some(upload) = &mut self.upload {
            upload.complete().await.map_err(|error| self.store.failure(&error))?;
        }
        Ok(())
    }
}
