//! Requests and answers: what is sent, to whom a credential may go, what went wrong, what is worth
//! another try. Values first (no I/O), then the client, its resolver and its runtime. Nothing here
//! can name PostgreSQL, so nothing here can raise an ERROR through a future.

pub mod client;
pub mod destination;
pub mod failure;
pub mod request;
pub mod resolver;
pub mod retry;
pub mod roots;
pub mod runtime;
pub mod thread;
pub mod traffic;
pub mod unanswered;
