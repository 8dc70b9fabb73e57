//! The authority: the host that exchanges a federated token for an access token.

use url::Url;

use super::Cloud;
use crate::http::client::Purpose;
use crate::http::destination::{Destination, is_loopback};
use crate::http::failure::{Failure, Kind};

/// An authority's address: https, or http on a literal loopback address; without a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority(Url);

impl Authority {
    /// Reads `https://login.microsoftonline.com`, or the host alone; `what` names the value in the
    /// error (22023).
    pub fn parse(text: &str, what: &str) -> Result<Self, Failure> {
        let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let base = Destination::parse(&url, what)?.base().clone();
        if base.path() != "/" {
            return Err(Failure::new(Kind::InvalidValue, format!("{what} must not have a path"))
                .hint("It is the authority's host, such as https://login.microsoftonline.com."));
        }
        Ok(Self(base))
    }

    /// The cloud's own.
    pub fn of(cloud: Cloud) -> Result<Self, Failure> {
        Self::parse(cloud.authority_host(), "the cloud's authority")
    }

    /// Where a tenant's tokens are asked for. The tenant's alphabet was checked.
    pub fn token_url(&self, tenant: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("/{tenant}/oauth2/v2.0/token"));
        url
    }

    /// The environment's proxy is for services elsewhere; it would read what goes to this machine over http.
    pub fn purpose(&self) -> Purpose {
        if is_loopback(&self.0) { Purpose::Identity } else { Purpose::Service }
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Authority, Failure> {
        Authority::parse(text, "the authority")
    }

    #[test]
    fn a_host_with_or_without_scheme_and_slash_is_the_same_authority() {
        let plain = read("https://login.microsoftonline.com").expect("an authority");
        for text in ["https://login.microsoftonline.com/", "login.microsoftonline.com", "LOGIN.microsoftonline.com"] {
            assert_eq!(read(text).expect(text), plain);
        }
        assert_eq!(Authority::of(Cloud::Public).expect("the cloud's"), plain);
        assert_eq!(plain.token_url("t").as_str(), "https://login.microsoftonline.com/t/oauth2/v2.0/token");
        assert_eq!(plain.purpose(), Purpose::Service);
    }

    #[test]
    fn the_assertion_leaves_the_machine_over_https_only() {
        assert_eq!(read("http://127.0.0.1:1").expect("loopback").purpose(), Purpose::Identity);
        for text in [
            "",
            "http://login.microsoftonline.com",
            "http://localhost",
            "http://127.0.0.1.evil.test",
            "ftp://127.0.0.1",
            "https://a/b",
            "https://a?b",
            "https://a#b",
            "https://u@a",
            "u@a",
            "a/b",
            "a b",
        ] {
            assert_eq!(read(text).expect_err(text).kind, Kind::InvalidValue, "{text}");
        }
    }
}
