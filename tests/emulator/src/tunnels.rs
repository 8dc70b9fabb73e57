//! A forward proxy, as a company puts before the internet: it makes tunnels and sees nothing of what goes through.

use std::io::{Read, Write, copy};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::spawn;

use crate::Error;
use crate::error::lock;
use crate::listeners::Acceptor;

/// The longest request for a tunnel.
const LONGEST: usize = 8 << 10;

/// A running one. Tunnels outlive it until either end closes them.
pub struct Tunnels {
    acceptor: Acceptor,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tunnels {
    pub fn start() -> Result<Self, Error> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let acceptor = Acceptor::start(move |client| {
            let log = Arc::clone(&log);
            // A tunnel that breaks tells its ends by that alone.
            spawn(move || tunnel(client, &log));
        })?;
        Ok(Self { acceptor, asked })
    }

    /// `http://127.0.0.1:PORT`, as HTTPS_PROXY names it.
    pub fn url(&self) -> String {
        format!("http://{}", self.acceptor.address)
    }

    /// What was asked for: the first line of each request.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }
}

/// Where a name leads: the proxy knows those under `test`, which the client's machine does not.
fn address(target: &str) -> Option<SocketAddr> {
    let (host, port) = target.rsplit_once(':')?;
    let host = if host.ends_with(".test") { "127.0.0.1" } else { host };
    format!("{host}:{port}").parse().ok()
}

fn tunnel(mut client: TcpStream, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    // By single bytes: what comes behind the head is the tunnel's.
    while !head.ends_with(b"\r\n\r\n") && head.len() < LONGEST {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap_or_default();
    lock(log).push(line.to_owned());
    let target = line.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let Some(target) = target.and_then(address) else {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n");
    };
    let mut server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    spawn(move || {
        let _ = copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
    });
    copy(&mut client, &mut server)?;
    server.shutdown(Shutdown::Write)
}
