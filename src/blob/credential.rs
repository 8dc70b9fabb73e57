//! The token that a transfer's requests carry, in a cell that both threads see.
//!
//! A transfer lasts longer than a token. The backend puts a new one in while it is in COPY's
//! callback; the helper, which cannot ask PostgreSQL for anything, says when it needs one.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};

use crate::token::AccessToken;

/// A refusal this close to the token's end (in seconds) is put down to the end: the service's clock
/// need not be ours.
const SKEW: i64 = 30;

/// The backend's end.
#[derive(Debug)]
pub struct Renewer {
    cell: watch::Sender<Arc<AccessToken>>,
    wanted: Arc<Notify>,
}

/// The helper's end.
#[derive(Debug, Clone)]
pub struct Bearer {
    cell: watch::Receiver<Arc<AccessToken>>,
    wanted: Arc<Notify>,
}

/// A cell that holds the token.
pub fn cell(token: AccessToken) -> (Renewer, Bearer) {
    let (sender, receiver) = watch::channel(Arc::new(token));
    let wanted = Arc::new(Notify::new());
    (Renewer { cell: sender, wanted: wanted.clone() }, Bearer { cell: receiver, wanted })
}

impl Renewer {
    /// Whether a new token should be put in.
    pub fn is_due(&self) -> bool {
        now() >= self.cell.borrow().refresh_at
    }

    /// Puts a token in. Whoever waits for one goes on, even if it is the same: its second try tells.
    pub fn renew(&self, token: AccessToken) {
        self.cell.send_replace(Arc::new(token));
    }

    /// Ends when the helper needs a token.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl Bearer {
    /// The token for the next request: one that has not ended, asked for if need be.
    pub async fn usable(&self) -> Arc<AccessToken> {
        let current = self.cell.borrow().clone();
        if current.is_spent(now()) { self.newer_than(&current).await } else { current }
    }

    /// The token for a second try after the service refused this one, if its end explains that.
    pub async fn instead_of(&self, refused: &Arc<AccessToken>) -> Option<Arc<AccessToken>> {
        if now() + SKEW < refused.expires_at {
            return None;
        }
        Some(self.newer_than(refused).await)
    }

    async fn newer_than(&self, used: &Arc<AccessToken>) -> Arc<AccessToken> {
        let mut cell = self.cell.clone();
        let current = cell.borrow_and_update().clone();
        if !Arc::ptr_eq(&current, used) && !current.is_spent(now()) {
            return current;
        }
        self.wanted.notify_one();
        if cell.changed().await.is_err() {
            // The backend is gone, and this thread is about to be ended for the same reason.
            std::future::pending::<()>().await;
        }
        cell.borrow_and_update().clone()
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use zeroize::Zeroizing;

    fn token(secret: &str, ends_in: i64) -> AccessToken {
        AccessToken::new(Zeroizing::new(secret.into()), now() + ends_in, now() + ends_in - 1).expect("a token")
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn a_token_that_lives_is_used_and_a_refusal_of_it_is_final() {
        let (renewer, bearer) = cell(token("one", 3600));
        run(async {
            let used = bearer.usable().await;
            assert_eq!(used.expose(), "one");
            assert!(bearer.instead_of(&used).await.is_none());
        });
        assert!(!renewer.is_due());
    }

    #[test]
    fn a_token_that_ended_is_asked_for_and_every_waiter_gets_it() {
        let (renewer, bearer) = cell(token("one", -1));
        assert!(renewer.is_due());
        run(async {
            let backend = async {
                renewer.wanted().await;
                renewer.renew(token("two", 3600));
            };
            let (first, second, ()) = tokio::join!(bearer.usable(), bearer.usable(), backend);
            assert_eq!((first.expose(), second.expose()), ("two", "two"));
        });
    }

    #[test]
    fn a_refusal_at_the_end_is_worth_a_second_try_even_with_the_same_token() {
        let (renewer, bearer) = cell(token("one", 5));
        run(async {
            let used = bearer.usable().await;
            let backend = async {
                renewer.wanted().await;
                renewer.renew(token("one", 5));
            };
            let (again, ()) = tokio::join!(bearer.instead_of(&used), backend);
            assert_eq!(again.expect("another").expose(), "one");
        });
    }

    #[test]
    fn a_token_put_in_since_and_spent_since_is_no_second_try() {
        let (renewer, bearer) = cell(token("one", 5));
        run(async {
            let used = bearer.usable().await;
            renewer.renew(token("two", -1));
            let backend = async {
                renewer.wanted().await;
                renewer.renew(token("three", 3600));
            };
            let (again, ()) = tokio::join!(bearer.instead_of(&used), backend);
            assert_eq!(again.expect("another").expose(), "three");
        });
    }
}
