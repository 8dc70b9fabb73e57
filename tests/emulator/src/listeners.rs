//! Endpoints that fail before HTTP begins: in connecting, and in the TLS handshake.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::Error;
use crate::error::lock;
use crate::log::{Held, Log, Opened};

/// How long a connection attempt takes at most on loopback, unless the listener's queue is full.
const CONNECTS_WITHIN: Duration = Duration::from_millis(300);
/// The kernel may let a few more in than the queue's length says.
const FILLERS: usize = 16;

/// Accepts connections, reads nothing and answers nothing: a TLS handshake never ends.
pub struct TlsNeverAnswers {
    acceptor: Acceptor,
    kept: Arc<Mutex<Vec<(TcpStream, Held, Opened)>>>,
    log: Log,
}

impl TlsNeverAnswers {
    pub fn start() -> Result<Self, Error> {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let log = Log::new("tls_never_answers");
        let (keep, held) = (Arc::clone(&kept), log.clone());
        let acceptor = Acceptor::start(move |stream| {
            let guards = (stream, Held::new(&held), Opened::new(&held));
            lock(&keep).push(guards);
        })?;
        Ok(Self { acceptor, kept, log })
    }

    pub fn endpoint(&self) -> String {
        format!("https://{}", self.acceptor.address)
    }

    /// Counts the connections that are held, whether or not the client is still there.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Closes the connections that are held.
    pub fn release(&self) {
        lock(&self.kept).clear();
    }
}

/// Resets each connection as soon as it is there.
pub struct ResetOnAccept {
    acceptor: Acceptor,
    log: Log,
}

impl ResetOnAccept {
    pub fn start() -> Result<Self, Error> {
        let log = Log::new("reset_on_accept");
        let counted = log.clone();
        let acceptor = Acceptor::start(move |stream| {
            let _opened = Opened::new(&counted);
            // Should it be refused, the connection ends all the same.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        })?;
        Ok(Self { acceptor, log })
    }

    /// `127.0.0.1:PORT`, for any scheme.
    pub fn address(&self) -> SocketAddr {
        self.acceptor.address
    }

    pub fn log(&self) -> &Log {
        &self.log
    }
}

/// A listener whose queue is full: to connect takes for ever.
pub struct NeverAccepts {
    address: SocketAddr,
    _listener: Socket,
    _fillers: Vec<TcpStream>,
}

impl NeverAccepts {
    pub fn start() -> Result<Self, Error> {
        let (listener, address) = bound()?;
        listener.listen(0).map_err(Error::io("listening"))?;
        let mut fillers = Vec::new();
        while fillers.len() < FILLERS {
            match TcpStream::connect_timeout(&address, CONNECTS_WITHIN) {
                Ok(filler) => fillers.push(filler),
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                    return Ok(Self { address, _listener: listener, _fillers: fillers });
                }
                Err(error) => return Err(Error::io("filling the queue")(error)),
            }
        }
        Err(Error::invalid("listener", "its queue does not fill"))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A port that refuses connections, and that nobody else can take meanwhile.
pub struct Refuses {
    address: SocketAddr,
    _bound: Socket,
}

impl Refuses {
    pub fn start() -> Result<Self, Error> {
        let (bound, address) = bound()?;
        Ok(Self { address, _bound: bound })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn bound() -> Result<(Socket, SocketAddr), Error> {
    let bind = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let address = socket.local_addr()?.as_socket();
        Ok((socket, address))
    };
    let (socket, address) = bind().map_err(Error::io("binding to 127.0.0.1"))?;
    let address = address.ok_or_else(|| Error::invalid("address", "it is not IPv4"))?;
    Ok((socket, address))
}

/// A thread that accepts connections until it is dropped.
pub(crate) struct Acceptor {
    pub(crate) address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    pub(crate) fn start(mut accepted: impl FnMut(TcpStream) + Send + 'static) -> Result<Self, Error> {
        let about = "listening on 127.0.0.1";
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io(about))?;
        let address = listener.local_addr().map_err(Error::io(about))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let accept = move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if let Ok(stream) = stream {
                    accepted(stream);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("emu-listener".to_owned())
            .spawn(accept)
            .map_err(Error::io("starting a thread"))?;
        Ok(Self { address, stopping, thread: Some(thread) })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // One more connection wakes the thread. If none can be made, it stays behind, asleep.
        let woken = TcpStream::connect_timeout(&self.address, CONNECTS_WITHIN).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}
