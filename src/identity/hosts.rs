//! Lists of further hosts that a setting allows (`storage_hosts`, `key_vault_hosts`).

use std::net::IpAddr;

use url::{Host, Url};

use crate::http::failure::{Failure, Kind};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    host: Host<String>,
    port: Option<u16>,
}

/// A comma-separated list of hosts, each with an optional port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts(Vec<Entry>);

impl Hosts {
    /// Reads `blob.example.com, 127.0.0.1:10000, [::1]`. Empty text is an empty list; 22023 otherwise.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let mut entries = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let refused = || {
                Failure::new(Kind::InvalidValue, format!("\"{entry}\" is not a host"))
                    .hint("Give a comma-separated list of host names or addresses, each with an optional :port.")
            };
            let url = Url::parse(&format!("https://{entry}/")).map_err(|_| refused())?;
            let bare =
                url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
            let host = url.host().map(|host| host.to_owned()).ok_or_else(refused)?;
            let written =
                entry.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(entry, |(host, _)| host);
            if !bare || url.host_str() != Some(&written.to_ascii_lowercase()) || written.ends_with('.') {
                return Err(refused());
            }
            let port = (written.len() < entry.len()).then(|| url.port_or_known_default()).flatten();
            entries.push(Entry { host, port });
        }
        Ok(Self(entries))
    }

    /// Whether an entry covers the URL's host and port: a name covers itself and the names below it, an
    /// address only itself; an entry without a port covers 443, or any port of a loopback address.
    pub fn cover(&self, url: &Url) -> bool {
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return false;
        };
        self.0.iter().any(|entry| {
            let (host_fits, loopback) = match (&entry.host, &host) {
                (Host::Domain(ours), Host::Domain(theirs)) => (is_within(theirs, ours), false),
                (Host::Ipv4(ours), Host::Ipv4(theirs)) => (ours == theirs, IpAddr::V4(*ours).is_loopback()),
                (Host::Ipv6(ours), Host::Ipv6(theirs)) => (ours == theirs, IpAddr::V6(*ours).is_loopback()),
                _ => (false, false),
            };
            host_fits && entry.port.map_or(port == 443 || loopback, |ours| ours == port)
        })
    }
}

/// Whether `name` is `suffix` or ends with it at a label boundary.
fn is_within(name: &str, suffix: &str) -> bool {
    name == suffix || name.strip_suffix(suffix).is_some_and(|head| head.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(list: &str, url: &str) -> bool {
        Hosts::parse(list).expect(list).cover(&Url::parse(url).expect(url))
    }

    #[test]
    fn entries_cover_at_label_boundaries_and_ports() {
        assert!(covers("example.com", "https://a.example.com/c"));
        assert!(covers("Example.com", "https://example.com/c"));
        assert!(!covers("example.com", "https://badexample.com/c"));
        assert!(!covers("example.com", "https://a.example.com:8443/c"));
        assert!(covers("example.com:8443", "https://a.example.com:8443/c"));
        assert!(covers("127.0.0.1", "https://127.0.0.1:10000/c"));
        assert!(!covers("127.0.0.1:1", "https://127.0.0.1:10000/c"));
        assert!(covers("[::1]", "https://[::1]:10000/c"));
        assert!(!covers("10.0.0.1", "https://10.0.0.1:10000/c"));
        assert!(!covers("", "https://example.com/"));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in ["a/b", "u@a", "a?b", "https://a", "a.", "a:b", "0x7f.1"] {
            Hosts::parse(text).expect_err(text);
        }
    }
}
