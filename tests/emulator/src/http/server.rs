//! A listener on loopback, with a thread and a runtime of its own, until it is dropped.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::connection::Link;
use super::service::{Handler, Service};
use crate::Error;
use crate::log::Opened;

/// More than the sessions that a benchmark connects with at once.
const BACKLOG: i32 = 1024;
/// After a failed accept, for instance without a free descriptor.
const PAUSE: Duration = Duration::from_millis(20);

/// A running listener.
pub(crate) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on 127.0.0.1 and `port` (0 for a free one), with TLS if configured.
    pub(crate) fn start<H: Handler>(
        port: u16,
        tls: Option<Arc<ServerConfig>>,
        service: Arc<Service<H>>,
    ) -> Result<Self, Error> {
        let name = service.log().service();
        let about = format!("{name} listening on 127.0.0.1:{port}");
        let listener = listen(port).map_err(Error::io(&about))?;
        let address = listener.local_addr().map_err(Error::io(&about))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("starting a runtime"))?;
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, tls.map(TlsAcceptor::from), service) => {}
                    _ = stopped => {}
                }
            });
            // Ends the connections, and waits for no callback that a test left blocked.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new()
            .name(format!("emu-{name}"))
            .spawn(run)
            .map_err(Error::io("starting a thread"))?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has been reported already.
            let _ = thread.join();
        }
    }
}

fn listen(port: u16) -> std::io::Result<StdListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // A stand-alone emulator is started again on the port that it had.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn accept<H: Handler>(listener: StdListener, tls: Option<TlsAcceptor>, service: Arc<Service<H>>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, tls.clone(), Arc::clone(&service)));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn connection<H: Handler>(stream: TcpStream, tls: Option<TlsAcceptor>, service: Arc<Service<H>>) {
    let _opened = Opened::new(service.log());
    // Small answers must not wait for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else {
        return;
    };
    let Ok((stream, link)) = Link::new(stream) else {
        return;
    };
    match tls {
        None => speak(stream, link, (peer, local), service).await,
        Some(tls) => {
            // A client that refuses our certificate is a result for the client's test, not for ours.
            if let Ok(stream) = tls.accept(stream).await {
                speak(stream, link, (peer, local), service).await;
            }
        }
    }
}

async fn speak<S, H>(stream: S, link: Arc<Link>, ends: (SocketAddr, SocketAddr), service: Arc<Service<H>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let answer = service_fn(|request| Arc::clone(&service).serve(request, Arc::clone(&link), ends));
    let mut http = http1::Builder::new();
    // While a request is under way nothing is read, so that a held connection outlives its client's leaving.
    http.half_close(true);
    // A broken connection is in the log already, as the end of its request.
    let _ = http.serve_connection(TokioIo::new(stream), answer).await;
}
