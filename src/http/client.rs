//! The HTTP client: one per runtime, no redirects, no pool, our resolver, rustls.

use std::error::Error as _;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::Policy;
use zeroize::Zeroizing;

use super::failure::{Failure, Kind};
use super::request::{ANSWER_LIMIT, Answer, Request};
use super::resolver;
use super::roots::CaFile;

/// What shapes a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// For TCP and TLS together.
    pub connect_timeout: Duration,
    /// For the answer's headers, and for each next byte of its body; no bound on a transfer.
    pub request_timeout: Duration,
    /// `None`: SSL_CERT_FILE, else the platform's roots.
    pub ca_file: Option<CaFile>,
}

/// Who is asked: decides about proxies and pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An identity endpoint on this machine or link: a proxy must never see its answer
    /// (169.254.169.254 refuses forwarded requests, and a proxy would read the token).
    Identity,
    /// A service of Azure, asked once: the environment's proxy is honoured.
    Service,
    /// The same, asked for many ranges or blocks from a runtime that runs all the time, so that a kept
    /// connection is noticed when it closes.
    Transfer,
}

/// Builds a client. It belongs to the runtime that first uses it: shared by two current-thread
/// runtimes it can wait for ever on a kept connection that the other one drives.
pub fn build(options: &Options, purpose: Purpose) -> Result<Client, Failure> {
    let mut builder = Client::builder()
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .http1_only()
        .tls_backend_rustls()
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.request_timeout)
        .dns_resolver(resolver::shared())
        .user_agent(concat!("managed_identity/", env!("CARGO_PKG_VERSION")));
    if purpose != Purpose::Transfer {
        // Between two calls nobody drives this runtime: a kept connection would go stale unnoticed.
        builder = builder.pool_max_idle_per_host(0);
    }
    if purpose == Purpose::Identity {
        builder = builder.no_proxy();
    }
    if let Some(ca_file) = &options.ca_file {
        builder = builder.tls_certs_only(ca_file.certificates()?);
    }
    builder
        .build()
        .map_err(|error| Failure::new(Kind::Local, "could not set up the HTTP client").detail(innermost(&error)))
}

/// Sends a request from the backend's own runtime and reads the whole answer.
pub async fn send(options: &Options, purpose: Purpose, request: Request) -> Result<Answer, Failure> {
    let client = kept(options, purpose)?;
    let authority = authority(&request);
    let built = client.request(request.method, request.url).headers(request.headers);
    let mut response = built.send().await.map_err(|error| unreachable(&authority, &error))?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    // With its full room from the start a body never moves: a moved buffer leaves a copy unwiped.
    let announced = response.content_length().unwrap_or(0).min(ANSWER_LIMIT as u64) as usize;
    let mut body = Zeroizing::new(Vec::with_capacity(announced.max(32 << 10)));
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&authority, &error))? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err(Failure::new(Kind::TooLarge, format!("the answer of \"{authority}\" is too large"))
                .detail(format!("At most {ANSWER_LIMIT} bytes are read.")));
        }
        if body.len() + chunk.len() > body.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity((body.capacity() * 2).max(body.len() + chunk.len())));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, headers, body })
}

/// The backend's client for these options, built when they change: building one reads the CA set.
fn kept(options: &Options, purpose: Purpose) -> Result<Client, Failure> {
    static KEPT: Mutex<Vec<(Purpose, Options, Client)>> = Mutex::new(Vec::new());
    // Poisoned only by a panic while holding it, which leaves a valid list.
    let mut kept = KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((.., client)) = kept.iter().find(|(p, o, _)| *p == purpose && o == options) {
        return Ok(client.clone());
    }
    kept.retain(|(p, ..)| *p != purpose);
    let client = build(options, purpose)?;
    kept.push((purpose, options.clone(), client.clone()));
    Ok(client)
}

/// `host:port` of a request: what an error may name.
fn authority(request: &Request) -> String {
    let host = request.url.host_str().unwrap_or_default();
    match request.url.port_or_known_default() {
        Some(port) => format!("{host}:{port}"),
        None => host.into(),
    }
}

/// A transport error in our words. reqwest's own text is not used: it quotes the URL.
pub fn unreachable(authority: &str, error: &reqwest::Error) -> Failure {
    let failure = Failure::new(Kind::Unreachable, format!("could not reach \"{authority}\"")).detail(innermost(error));
    if error.is_timeout() {
        let which = if error.is_connect() { "connect_timeout" } else { "request_timeout" };
        return failure.hint(format!("The wait is bounded by managed_identity.{which}."));
    }
    let text = innermost(error).to_ascii_lowercase();
    if text.contains("certificate") {
        return failure.hint("The server's certificate is not trusted: set managed_identity.tls_ca_file to the CA that issued it.");
    }
    failure
}

/// The last error of the chain: what the operating system, the resolver or TLS said.
pub fn innermost(error: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match error.source() {
        Some(_) => last.to_string(),
        None if error.is_timeout() => "The time for it has passed.".into(),
        None => "The connection failed.".into(),
    }
}
