//! Who the server is: the identities an endpoint can be asked for, the resources a token can be for,
//! and the clouds. One file per source builds its request and reads its answer; nothing here sends.

pub mod cloud;
pub mod hosts;
pub mod imds;
pub mod resource;
pub mod selector;

pub use cloud::Cloud;
pub use resource::Resource;
pub use selector::{Identity, Selector};
