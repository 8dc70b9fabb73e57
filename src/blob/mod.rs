//! Blobs: their URLs, formats, compression, and how their bytes are moved.
//!
//! A transfer has two sides: [`download::Download`] and [`upload::Upload`] belong to the backend, which
//! waits on them; the work is done on a [`helper`] thread, over [`store`] and [`service`]. The backend's
//! side may be dropped at any moment, which ends the other.

mod blocks;
mod commit;
mod credential;
pub mod download;
pub mod format;
mod gzip;
mod helper;
mod refusal;
mod service;
pub mod store;
pub mod upload;
pub mod url;

pub use credential::Renewer;
