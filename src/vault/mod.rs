//! Key Vault's requests and answers. Nothing here sends.

pub mod access;
pub mod secret;
