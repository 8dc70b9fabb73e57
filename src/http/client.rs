//! The HTTP client: one per runtime, no redirects, no pool, our resolver, rustls.

use std::error::Error as _;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use reqwest::Client;
use reqwest::redirect::Policy;
use url::Url;
use zeroize::Zeroizing;

use super::failure::{Failure, Kind};
use super::request::{ANSWER_LIMIT, Answer, Request};
use super::roots::{self, CaFile};
use super::traffic::Traffic;
use super::unanswered::{Obstacle, Unanswered};
use super::{resolver, retry};

/// What shapes a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// For TCP and TLS together.
    pub connect_timeout: Duration,
    /// For the answer's headers, and for each next byte of its body; no bound on a transfer.
    pub request_timeout: Duration,
    /// `None`: SSL_CERT_FILE, else the platform's roots, else those compiled in.
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

/// How often a connection's task is polled until it has ended.
const TURNS_TO_CLOSE: u32 = 8;

/// Builds a client. It belongs to the runtime that first uses it: shared by two current-thread
/// runtimes it can wait for ever on a kept connection that the other one drives. What goes over
/// plain http (`in_clear`) goes without a proxy: it is accepted for a loopback address only, because there a
/// token does not leave the machine, and a proxy would read it.
pub fn build(options: &Options, purpose: Purpose, in_clear: bool) -> Result<Client, Failure> {
    let builder = || {
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
        if purpose == Purpose::Identity || in_clear {
            builder = builder.no_proxy();
        }
        builder
    };
    let built = match &options.ca_file {
        Some(ca_file) => builder().tls_certs_only(ca_file.certificates()?).build(),
        // A system without any roots is what makes this fail.
        None => builder().build().or_else(|_| builder().tls_certs_only(roots::compiled_in()).build()),
    };
    built.map_err(|error| Failure::new(Kind::Local, "could not set up the HTTP client").detail(innermost(&error)))
}

/// Sends a request and repeats it where that may help: after an answer whose status `is_worth_a_retry`
/// names, or a connection that broke after it was made; never past `limit`. The last answer comes
/// back whatever its status. A connection that cannot be made is final: nobody listens. What is moved is counted in
/// `traffic`, also when the future is dropped.
pub async fn ask(
    options: &Options,
    purpose: Purpose,
    request: &Request,
    is_worth_a_retry: fn(u16) -> bool,
    limit: Duration,
    traffic: &Traffic,
) -> Result<Answer, Unanswered> {
    ask_anew(options, purpose, || Ok(request.clone()), is_worth_a_retry, limit, traffic).await
}

/// The same with a request that is made for each try: what proves who asks may have been replaced meanwhile.
pub async fn ask_anew(
    options: &Options,
    purpose: Purpose,
    request: impl Fn() -> Result<Request, Failure>,
    is_worth_a_retry: fn(u16) -> bool,
    limit: Duration,
    traffic: &Traffic,
) -> Result<Answer, Unanswered> {
    let _waiting = traffic.waiting();
    let end = tokio::time::Instant::now() + limit;
    let mut tries = 0;
    loop {
        let request = request()?;
        tries += 1;
        traffic.request();
        traffic.sent(request.body.as_ref().map_or(0, |body| body.bytes().len()));
        let outcome = send(options, purpose, request).await;
        if let Ok(answer) = &outcome {
            traffic.received(answer.body.len());
            if answer.status == 429 {
                traffic.throttled();
            }
        }
        let wish = match &outcome {
            Ok(answer) if is_worth_a_retry(answer.status) => retry::asked_for(answer, SystemTime::now()),
            Err(unanswered) if unanswered.connected => None,
            _ => return outcome,
        };
        let wait = retry::wait_before_next(tries, wish);
        match wait.map(|wait| tokio::time::Instant::now() + wait).filter(|next| *next < end) {
            Some(next) => {
                traffic.will_be_repeated();
                tokio::time::sleep_until(next).await;
            }
            None => return outcome,
        }
    }
}

/// Sends a request from the backend's own runtime and reads the whole answer.
pub async fn send(options: &Options, purpose: Purpose, request: Request) -> Result<Answer, Unanswered> {
    let client = kept(options, purpose, request.url.scheme() == "http")?;
    let authority = authority(&request.url);
    let lost = |error: reqwest::Error| {
        let connected = !error.is_connect() && !error.is_timeout();
        Unanswered { failure: unreachable(&authority, &error), obstacle: Obstacle::of(&error), connected }
    };
    let mut built = client.request(request.method, request.url).headers(request.headers);
    if let Some(body) = request.body {
        built = built.body(body.bytes());
    }
    let mut response = built.send().await.map_err(lost)?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let too_large = || {
        Failure::new(Kind::TooLarge, format!("the answer of \"{authority}\" is too large"))
            .detail(format!("At most {ANSWER_LIMIT} bytes are read."))
    };
    let announced = response.content_length().unwrap_or(0);
    if announced > ANSWER_LIMIT as u64 {
        return Err(too_large().into());
    }
    // With its full room from the start a body never moves: a moved buffer leaves a copy unwiped.
    let mut body = Zeroizing::new(Vec::with_capacity((announced as usize).max(32 << 10)));
    while let Some(chunk) = response.chunk().await.map_err(lost)? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err(too_large().into());
        }
        if body.len() + chunk.len() > body.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity((body.capacity() * 2).max(body.len() + chunk.len())));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
    drop(response);
    // The connection's task ends now and its buffers are wiped: when it is driven next may be hours later.
    for _ in 0..TURNS_TO_CLOSE {
        tokio::task::yield_now().await;
    }
    Ok(Answer { status, headers, body })
}

/// What a kept client is for: its purpose, and whether it speaks plain http.
type Use = (Purpose, bool);

/// The backend's client for these options, built when they change: building one reads the CA set.
fn kept(options: &Options, purpose: Purpose, in_clear: bool) -> Result<Client, Failure> {
    static KEPT: Mutex<Vec<(Use, Options, Client)>> = Mutex::new(Vec::new());
    let this_use = (purpose, in_clear);
    // Poisoned only by a panic while holding it, which leaves a valid list.
    let mut kept = KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((.., client)) = kept.iter().find(|(p, o, _)| *p == this_use && o == options) {
        return Ok(client.clone());
    }
    kept.retain(|(p, ..)| *p != this_use);
    let client = build(options, purpose, in_clear)?;
    kept.push((this_use, options.clone(), client.clone()));
    Ok(client)
}

/// `host:port`: what an error may name of a URL.
pub fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port_or_known_default() {
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
    match Obstacle::of(error) {
        Obstacle::Name => failure.hint(
            "Check the name, and how this machine resolves names; a private endpoint needs its private DNS zone.",
        ),
        Obstacle::Untrusted => failure.hint(
            "The server's certificate is not trusted: set managed_identity.tls_ca_file to the CA that issued it.",
        ),
        _ => failure,
    }
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
