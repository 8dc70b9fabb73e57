//! Who the server is: the identities an endpoint can be asked for, the resources a token can be for,
//! and the clouds. One file per source builds its request and reads its answer; [`fetch`] alone sends.

mod answer;
mod assertion;
pub mod authority;
pub mod cloud;
pub mod detection;
pub mod diagnosis;
pub mod environment;
pub mod federated;
pub mod fetch;
pub mod hosts;
pub mod imds;
pub mod resource;
pub mod selector;
pub mod source;

pub use cloud::Cloud;
pub use detection::{Machine, SourceName};
pub use resource::Resource;
pub use selector::{Identity, Selector};
pub use source::Source;
