//! Which requests a fault strikes.

use serde::{Deserialize, Serialize};

use crate::log::Entry;

/// What a request must have; an empty filter matches all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    pub method: Option<String>,
    /// A part of the path.
    pub path: Option<String>,
    /// A part of the query, percent-encoded or decoded.
    pub query: Option<String>,
    /// A header by name, and a part of its value.
    pub header: Option<(String, String)>,
}

impl Filter {
    pub fn method(method: &str) -> Self {
        Self::default().and_method(method)
    }

    pub fn path(part: &str) -> Self {
        Self::default().and_path(part)
    }

    pub fn query(part: &str) -> Self {
        Self::default().and_query(part)
    }

    pub fn header(name: &str, part: &str) -> Self {
        Self::default().and_header(name, part)
    }

    #[must_use]
    pub fn and_method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    #[must_use]
    pub fn and_path(mut self, part: &str) -> Self {
        self.path = Some(part.to_owned());
        self
    }

    #[must_use]
    pub fn and_query(mut self, part: &str) -> Self {
        self.query = Some(part.to_owned());
        self
    }

    #[must_use]
    pub fn and_header(mut self, name: &str, part: &str) -> Self {
        self.header = Some((name.to_ascii_lowercase(), part.to_owned()));
        self
    }

    pub(super) fn matches(&self, entry: &Entry) -> bool {
        let method = |method: &String| entry.method.eq_ignore_ascii_case(method);
        let path = |part: &String| entry.path.contains(part);
        let query = |part: &String| {
            let pairs = entry.query.iter();
            let pairs: Vec<_> = pairs.map(|(name, value)| format!("{name}={value}")).collect();
            entry.raw_query.contains(part) || pairs.join("&").contains(part)
        };
        let header = |(name, part): &(String, String)| {
            let value = entry.header(&name.to_ascii_lowercase());
            value.is_some_and(|value| value.contains(part))
        };
        self.method.as_ref().is_none_or(method)
            && self.path.as_ref().is_none_or(path)
            && self.query.as_ref().is_none_or(query)
            && self.header.as_ref().is_none_or(header)
    }
}
