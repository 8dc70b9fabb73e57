//! Key Vault's requests and answers, and what is encrypted under its keys. [`ask`](mod@ask) alone sends.

pub mod access;
pub mod algorithm;
pub mod answer;
pub mod ask;
pub mod diagnosis;
pub mod envelope;
pub mod key;
pub mod kid;
pub mod operation;
pub mod record;
pub mod refusal;
pub mod secret;
pub mod versions;
pub mod watch;
