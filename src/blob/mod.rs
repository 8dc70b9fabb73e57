//! Blobs: their URLs, formats, compression, and how their bytes are moved.

pub mod url;
