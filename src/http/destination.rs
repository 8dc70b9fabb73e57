//! The one gate: where a server's credential may go.
//!
//! A [`Destination`] is read from a server's options once, by rules that refuse instead of
//! normalising, and every request that is to carry the credential is compared with it, parsed, at the
//! moment the credential is attached.

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use url::{Host, Url};

use super::failure::{Failure, Kind};

/// Scheme, host, port and leading path segments that a request must have to be sent with a
/// credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    base: Url,
}

impl Destination {
    /// Reads an endpoint such as `https://sales.blob.core.windows.net` or
    /// `https://127.0.0.1:10000/devstoreaccount1`. `http` is taken only for a literal loopback
    /// address. `what` names the value in the error (22023).
    pub fn parse(text: &str, what: &str) -> Result<Self, Failure> {
        let base = strict_url(text, what)?;
        match base.scheme() {
            "https" => {}
            "http" if is_loopback(&base) => {}
            _ => {
                return Err(Failure::new(Kind::InvalidValue, format!("{what} must be an https URL"))
                    .hint("A credential travels over TLS only; http is accepted for a literal loopback address."));
            }
        }
        if segments(&base).any(str::is_empty) {
            return Err(invalid(what, "its path has an empty segment"));
        }
        Ok(Self { base })
    }

    /// The URL that every request of this server starts with.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// The segments of `url`'s path behind this destination's own, when scheme, host, port and leading
    /// segments are equal; else `None`.
    pub fn remainder<'u>(&self, url: &'u Url) -> Option<Vec<&'u str>> {
        let same_origin = self.base.scheme() == url.scheme()
            && self.base.host() == url.host()
            && self.base.port_or_known_default() == url.port_or_known_default()
            && url.username().is_empty()
            && url.password().is_none();
        if !same_origin {
            return None;
        }
        let mut rest = url.path_segments()?;
        for ours in segments(&self.base) {
            if rest.next() != Some(ours) {
                return None;
            }
        }
        Some(rest.collect())
    }

    /// Attaches the credential (`Bearer ...`) to a request for `url`, or refuses. The only place where an
    /// `Authorization` header is set.
    pub fn attach(&self, url: &Url, headers: &mut HeaderMap, credential: HeaderValue) -> Result<(), Failure> {
        if self.remainder(url).is_none() {
            return Err(Failure::new(Kind::Forbidden, "the request would leave the endpoint that its server names"));
        }
        headers.insert(AUTHORIZATION, credential);
        Ok(())
    }
}

/// The non-empty segments of a base path; a trailing slash adds none.
fn segments(base: &Url) -> impl Iterator<Item = &str> {
    base.path().trim_start_matches('/').trim_end_matches('/').split('/').filter({
        let root = base.path().trim_matches('/').is_empty();
        move |_| !root
    })
}

/// Whether the host is a literal loopback address.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        _ => false,
    }
}

fn invalid(what: &str, why: &str) -> Failure {
    Failure::new(Kind::InvalidValue, format!("{what} is not a URL that can be used"))
        .detail(format!("The URL was refused: {why}."))
}

/// Parses a URL and refuses every spelling that a parser would tidy up: what was compared must be
/// what is contacted. The text itself is not quoted, as its query or userinfo may hold a secret.
pub fn strict_url(text: &str, what: &str) -> Result<Url, Failure> {
    if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
        return Err(invalid(what, "it contains a space, a backslash or a control character"));
    }
    if text.contains('#') {
        return Err(invalid(what, "it has a fragment"));
    }
    if text.contains('?') {
        return Err(invalid(what, "it has a query"));
    }
    let Some((_, rest)) = text.split_once("://") else {
        return Err(invalid(what, "it has no scheme"));
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(invalid(what, "it names a user"));
    }
    let dots = |segment: &str| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        plain == "." || plain == ".."
    };
    if path.split('/').any(dots) {
        return Err(invalid(what, "it has a dot segment"));
    }
    let url = Url::parse(text).map_err(|_| invalid(what, "it cannot be parsed"))?;
    let host = url.host_str().unwrap_or_default();
    let written = match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    };
    if host.is_empty() || host != written.to_ascii_lowercase() {
        return Err(invalid(what, "its host is not written in the plain form"));
    }
    if host.ends_with('.') {
        return Err(invalid(what, "its host ends with a dot"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(text: &str) -> Destination {
        Destination::parse(text, "endpoint").expect("a destination")
    }

    #[test]
    fn what_a_parser_would_tidy_up_is_refused() {
        for text in [
            "https://a.blob.core.windows.net/c/../d",
            "https://a.blob.core.windows.net/c/%2e%2E/d",
            "https://a.blob.core.windows.net/./d",
            "https://user@a.blob.core.windows.net/c",
            "https://a.blob.core.windows.net@evil.com/c",
            "https://evil.com#a.blob.core.windows.net/c",
            "https://a.blob.core.windows.net./c",
            "https://a.blob.core.windows.net/c?sig=1",
            "https://a.blob.core.windows.net\\evil.com/c",
            "https://0x7f.1/c",
            "https://2130706433/c",
            "https://a\tb/c",
            "https:///c",
            "a.blob.core.windows.net/c",
        ] {
            let refused = strict_url(text, "the URL").expect_err(text);
            assert_eq!(refused.kind, Kind::InvalidValue);
            assert!(!format!("{refused:?}").contains("evil"), "{refused:?}");
        }
    }

    #[test]
    fn plain_http_is_for_literal_loopback_only() {
        destination("http://127.0.0.1:10000/devstoreaccount1");
        destination("http://[::1]:10000");
        for text in ["http://localhost:1", "http://10.0.0.1", "ftp://127.0.0.1"] {
            Destination::parse(text, "endpoint").expect_err(text);
        }
    }

    #[test]
    fn only_the_servers_own_endpoint_is_admitted() {
        let azurite = destination("https://127.0.0.1:10000/devstoreaccount1");
        let url = |text: &str| Url::parse(text).expect("a URL");
        assert_eq!(azurite.remainder(&url("https://127.0.0.1:10000/devstoreaccount1/c/b")), Some(vec!["c", "b"]));
        for text in [
            "https://127.0.0.1:10000/devstoreaccount1x/c/b",
            "https://127.0.0.1:10001/devstoreaccount1/c/b",
            "http://127.0.0.1:10000/devstoreaccount1/c/b",
            "https://127.0.0.2:10000/devstoreaccount1/c/b",
            "https://u@127.0.0.1:10000/devstoreaccount1/c/b",
        ] {
            assert_eq!(azurite.remainder(&url(text)), None, "{text}");
        }
        let sales = destination("https://sales.blob.core.windows.net");
        assert!(sales.remainder(&url("https://sales.blob.core.windows.net:443/c/b")).is_some());
        assert!(sales.remainder(&url("https://sales.blob.core.windows.net.evil.com/c/b")).is_none());
    }

    #[test]
    fn a_token_is_attached_inside_and_refused_outside() {
        let sales = destination("https://sales.blob.core.windows.net");
        let token = HeaderValue::from_static("Bearer canary");
        let mut headers = HeaderMap::new();
        let inside = Url::parse("https://sales.blob.core.windows.net/c/b").expect("a URL");
        sales.attach(&inside, &mut headers, token.clone()).expect("attached");
        assert_eq!(headers[AUTHORIZATION], token);
        let mut headers = HeaderMap::new();
        let outside = Url::parse("https://sales.blob.core.chinacloudapi.cn/c/b").expect("a URL");
        assert_eq!(sales.attach(&outside, &mut headers, token).expect_err("refused").kind, Kind::Forbidden);
        assert!(headers.is_empty());
    }
}
