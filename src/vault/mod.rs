//! Key Vault's requests and answers. Nothing here sends.

pub mod access;
pub mod algorithm;
pub mod answer;
pub mod diagnosis;
pub mod key;
pub mod kid;
pub mod operation;
pub mod refusal;
pub mod secret;
pub mod versions;
