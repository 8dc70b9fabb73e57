//! An access token: how it is held, when it ends, when a new one is due.

mod access_token;
pub mod claims;
pub mod expiry;

pub use access_token::AccessToken;
