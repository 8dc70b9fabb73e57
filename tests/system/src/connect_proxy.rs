//! A proxy of the kind that HTTPS_PROXY names: it connects whoever asks for a name to the address that the test gives it.
//! So a server finds a vault under its own name that has none in the DNS.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// It lives as long as the test's process.
pub struct ConnectProxy {
    address: SocketAddr,
    to: Arc<Mutex<Option<SocketAddr>>>,
}

impl ConnectProxy {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let to = Arc::new(Mutex::new(None));
        let target = Arc::clone(&to);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let to = *target.lock().expect("an address");
                std::thread::spawn(move || serve(&client, to));
            }
        });
        Self { address, to }
    }

    /// What HTTPS_PROXY is set to.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on every connection goes there.
    pub fn connect_to(&self, to: SocketAddr) {
        *self.to.lock().expect("an address") = Some(to);
    }
}

fn serve(mut client: &TcpStream, to: Option<SocketAddr>) -> io::Result<()> {
    let mut lines = BufReader::new(client).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let server = TcpStream::connect(to.ok_or(io::ErrorKind::NotConnected)?)?;
    // The client says nothing more until it has read this, so the reader above holds nothing back.
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    std::thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
    });
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
