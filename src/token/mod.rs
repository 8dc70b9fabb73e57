//! An access token: how it is held and kept, when it ends, when a new one is due.

mod access_token;
pub mod claims;
pub mod clock;
pub mod expiry;
pub mod pool;

pub use access_token::AccessToken;
