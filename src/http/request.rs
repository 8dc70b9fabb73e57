//! A small request and its answer as plain values: tokens, secrets and keys. Blob bodies go through
//! object_store (`blob/`).

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use super::failure::code;

/// A request for a document of at most [`ANSWER_LIMIT`] bytes.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<Body>,
}

/// What is posted. It may hold a credential or a key: it is wiped when the last clone is dropped
/// and `Debug` does not show it.
#[derive(Clone)]
pub struct Body(Bytes);

impl Body {
    fn form(fields: &[(&str, &str)]) -> Self {
        // With room for every byte escaped, and for `=` and `&`: a moved buffer leaves a copy unwiped.
        let room = fields.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum();
        let mut form = form_urlencoded::Serializer::new(String::with_capacity(room));
        form.extend_pairs(fields);
        Self(Bytes::from_owner(Zeroizing::new(form.finish().into_bytes())))
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// The first field of this name, as a server would read it.
    #[cfg(test)]
    pub fn field(&self, name: &str) -> Option<String> {
        let found = form_urlencoded::parse(&self.0).find(|(field, _)| field == name);
        found.map(|(_, value)| value.into_owned())
    }

    /// The document, as a server would read it.
    #[cfg(test)]
    pub fn document(&self) -> serde_json::Value {
        serde_json::from_slice(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl Request {
    pub fn get(url: Url) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), body: None }
    }

    pub fn post(url: Url, fields: &[(&str, &str)]) -> Self {
        Self::posted(url, Body::form(fields), "application/x-www-form-urlencoded")
    }

    /// `body` is the JSON document; it has not moved while it was written, or has left a copy unwiped.
    pub fn post_json(url: Url, body: Zeroizing<Vec<u8>>) -> Self {
        Self::posted(url, Body(Bytes::from_owner(body)), "application/json")
    }

    fn posted(url: Url, body: Body, content_type: &'static str) -> Self {
        let request = Self { method: Method::POST, url, headers: HeaderMap::new(), body: Some(body) };
        request.header(CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// The longest answer that is read, in bytes. A secret has at most 25 kB, a token seldom 16.
pub const ANSWER_LIMIT: usize = 1 << 20;

/// An answer, complete. Its body may be a token or a secret: it is wiped when dropped and `Debug`
/// does not show it.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The sender's clock, in Unix seconds.
    pub fn sent_at(&self) -> Option<i64> {
        let date = httpdate::parse_http_date(self.header("date")?).ok()?;
        date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs() as i64)
    }

    /// The sender's own name for the request, by which its log can be searched.
    pub fn request_id(&self) -> Option<&str> {
        self.header("x-ms-request-id").and_then(code)
    }

    /// A header's value where it is printable text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_escaped_and_not_shown() {
        let url = Url::parse("https://a/b").expect("a URL");
        let request = Request::post(url, &[("scope", "https://x//.default"), ("assertion", "canary&+ ")]);
        let form = request.body.as_ref().expect("a form");
        assert_eq!(&*form.bytes(), b"scope=https%3A%2F%2Fx%2F%2F.default&assertion=canary%26%2B+");
        assert_eq!(form.field("assertion").as_deref(), Some("canary&+ "));
        assert!(!format!("{request:?}").contains("canary"));
    }

    #[test]
    fn a_document_is_posted_as_it_is_and_not_shown() {
        let url = Url::parse("https://a/b").expect("a URL");
        let request = Request::post_json(url, Zeroizing::new(b"{\"value\":\"canary\"}".to_vec()));
        assert_eq!(request.headers[CONTENT_TYPE], "application/json");
        assert_eq!(request.body.as_ref().expect("a body").document()["value"], "canary");
        assert!(!format!("{request:?}").contains("canary"));
    }
}
