//! Host names to addresses, by the operating system's own rules (nsswitch, hosts, resolv.conf).
//!
//! reqwest's default runs getaddrinfo on a tokio blocking thread whose signal mask lets PostgreSQL's
//! handlers run there, and whose shutdown waits for the look-up. Ours runs on a masked thread that
//! can be abandoned. A literal address never comes here.

use std::error::Error;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use super::thread::spawn_masked;
use super::unanswered::NotResolved;

/// getaddrinfo cannot be cancelled, only abandoned: one look-up at a time bounds what a session that
/// is cancelled again and again leaves behind. Static, because it must outlive an abandoned request.
static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);

#[derive(Debug, Clone, Copy)]
pub struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move { Ok(Box::new(look_up(name.as_str().to_owned()).await?.into_iter()) as Addrs) })
    }
}

/// The addresses of a host.
pub async fn look_up(host: String) -> Result<Vec<SocketAddr>, Box<dyn Error + Send + Sync>> {
    let permit = ONE_AT_A_TIME.acquire().await?;
    let (answer, addresses) = tokio::sync::oneshot::channel();
    spawn_masked("mi resolver", move || {
        let found = (host.as_str(), 0).to_socket_addrs().map(|found| found.collect::<Vec<_>>());
        drop(permit);
        // The request may be gone: nobody is left to tell.
        let _ = answer.send(found);
    })?;
    Ok(addresses.await?.map_err(NotResolved)?)
}

/// The resolver as reqwest takes it.
pub fn shared() -> Arc<Resolver> {
    Arc::new(Resolver)
}
