//! A client's connection: the stream that the HTTP server owns, and the link that a fault ends it by.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How often and how long to look whether the client's machine has got all: the kernel signals neither.
const LOOK_EVERY: Duration = Duration::from_millis(1);
const LOOK_FOR: Duration = Duration::from_secs(10);

/// A connection seen from outside the HTTP server that owns its stream.
pub(crate) struct Link {
    socket: Socket,
    resets: AtomicBool,
}

impl Link {
    /// A stream for the HTTP server, and the link to it.
    pub(crate) fn new(stream: TcpStream) -> io::Result<(Stream, Arc<Self>)> {
        let socket = SockRef::from(&stream).try_clone()?;
        let link = Arc::new(Self { socket, resets: AtomicBool::new(false) });
        let stream = Stream { stream, link: Arc::clone(&link) };
        Ok((stream, link))
    }

    /// From now on the end of the connection is a reset, not an orderly close.
    pub(crate) fn reset(&self) {
        // Should the option be refused, the connection still ends, only in good order.
        let _ = self.socket.set_linger(Some(Duration::ZERO));
        self.resets.store(true, Ordering::Relaxed);
    }

    /// Waits until the client's machine has received all that was written so far.
    pub(crate) async fn delivered(&self) {
        let all = async {
            // Twice in a row: between the two the HTTP server may write what it still has.
            let mut empty = 0;
            while empty < 2 {
                sleep(LOOK_EVERY).await;
                empty = if self.unacknowledged() == 0 { empty + 1 } else { 0 };
            }
        };
        // A client that reads nothing for so long gets its fault all the same.
        let _ = timeout(LOOK_FOR, all).await;
    }

    fn unacknowledged(&self) -> i32 {
        nix::ioctl_read_bad!(send_queue, nix::libc::TIOCOUTQ, nix::libc::c_int);
        let mut bytes = 0;
        // SAFETY: the descriptor is open as long as `self.socket` lives, and the kernel writes one int.
        let asked = unsafe { send_queue(self.socket.as_raw_fd(), &raw mut bytes) };
        asked.map_or(0, |_| bytes)
    }
}

/// What the HTTP server reads and writes.
pub(crate) struct Stream {
    stream: TcpStream,
    link: Arc<Link>,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A shutdown would tell the client of an orderly end, before the reset.
        if self.link.resets.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
