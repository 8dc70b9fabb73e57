//! `https://<endpoint>/<container>/<blob>`: which blob of which account a URL names, and the
//! places a storage server's `locations` allow.

use url::Url;

use crate::http::destination::{Destination, strict_url};
use crate::http::failure::{Failure, Kind};

/// A URL that may name a blob; which part of its path is the container depends on the server whose
/// endpoint it starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobUrl {
    url: Url,
}

/// A blob by its names in the account, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub container: String,
    pub name: String,
}

impl BlobUrl {
    /// Whether a COPY's file name is meant as a URL: the rest is core's.
    pub fn is_one(text: &str) -> bool {
        let lower = |prefix: &str| text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        lower("https://") || lower("http://")
    }

    /// Parses by the strict rules of [`strict_url`]; 22023 otherwise.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let url = strict_url(text, "the blob URL")
            .map_err(|failure| failure.hint("Write https://<account>.blob.core.windows.net/<container>/<blob>."))?;
        Ok(Self { url })
    }

    pub fn url(&self) -> &Url {
        &self.url
    }

    /// `host[:port]`, as an error may name it.
    pub fn authority(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url.port().map_or_else(|| host.into(), |port| format!("{host}:{port}"))
    }

    /// What to write instead, where what is written names the account but is no address of its blobs.
    pub fn instead(&self, blob_suffix: &str) -> Option<String> {
        let host = self.url.host_str().unwrap_or_default();
        let lake_suffix = blob_suffix.replacen("blob.", ".dfs.", 1);
        let account = host.strip_suffix(&lake_suffix);
        // An emulator on this machine may speak http.
        let in_clear = self.url.scheme() == "http" && self.url.domain().is_some_and(|domain| domain != "localhost");
        let host = account.map_or_else(|| host.into(), |account| format!("{account}.{blob_suffix}"));
        (account.is_some() || in_clear).then(|| {
            format!("Write https://{host}/<container>/<blob>: blobs are reached by https, at the blob endpoint.")
        })
    }

    /// The blob this URL names within a server's endpoint; `None` when it lies outside of it.
    pub fn within(&self, endpoint: &Destination) -> Option<Result<Blob, Failure>> {
        let mut rest = endpoint.remainder(&self.url)?.into_iter();
        let container = rest.next().unwrap_or_default().to_owned();
        let name: Vec<&str> = rest.collect();
        Some(Blob::checked(container, &name.join("/")))
    }
}

impl Blob {
    fn checked(container: String, encoded: &str) -> Result<Self, Failure> {
        let invalid = |why: &str| {
            Err(Failure::new(Kind::InvalidValue, "the blob URL names no blob")
                .detail(why.to_owned())
                .hint("Write https://<account>.blob.core.windows.net/<container>/<blob>."))
        };
        if container.is_empty() {
            return invalid("The container is missing.");
        }
        if !is_container_name(&container) {
            return invalid("A container's name has 3 to 63 lower-case letters, digits and single hyphens.");
        }
        if encoded.is_empty() {
            return invalid("The blob is missing.");
        }
        let Ok(name) = percent_encoding::percent_decode_str(encoded).decode_utf8() else {
            return invalid("The blob's name is not UTF-8.");
        };
        // Looked for in the decoded name: a client strips an encoded slash at either end, too, and would
        // then ask for another blob than the one that was allowed.
        if name.split('/').any(str::is_empty) {
            return invalid("The blob's name has an empty part.");
        }
        let dotted = name.split('/').any(|part| part == "." || part == "..");
        if dotted || name.chars().any(char::is_control) || name.chars().count() > 1024 {
            return invalid("The blob's name has a dot segment, a control character or more than 1,024 characters.");
        }
        Ok(Self { container, name: name.into_owned() })
    }
}

/// Azure's rule for storage accounts.
pub fn is_account_name(name: &str) -> bool {
    (3..=24).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Azure's rule, and its three reserved containers.
fn is_container_name(name: &str) -> bool {
    if matches!(name, "$root" | "$web" | "$logs") {
        return true;
    }
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (3..=63).contains(&name.len())
        && name.bytes().all(fine)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

/// The option `locations`: containers, or containers with a prefix of the blob's name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Locations(Vec<(String, Option<String>)>);

impl Locations {
    /// Reads `in/*, archive, out/2026/*`. An entry is `container` or `container/prefix*`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let invalid = |entry: &str| {
            Failure::new(Kind::InvalidValue, format!("invalid value for option \"locations\": \"{entry}\""))
                .hint("Give a comma-separated list of container or container/prefix*.")
        };
        let mut entries = Vec::new();
        for entry in text.split(',').map(str::trim) {
            let (container, prefix) = match entry.split_once('/') {
                None => (entry, None),
                Some((container, pattern)) => {
                    let prefix = pattern.strip_suffix('*').ok_or_else(|| invalid(entry))?;
                    (container, Some(prefix.to_owned()))
                }
            };
            if !is_container_name(container) || prefix.as_deref().is_some_and(|prefix| prefix.contains('*')) {
                return Err(invalid(entry));
            }
            entries.push((container.to_owned(), prefix));
        }
        Ok(Self(entries))
    }

    /// Whether the blob lies in one of them.
    pub fn contain(&self, blob: &Blob) -> bool {
        self.0.iter().any(|(container, prefix)| {
            *container == blob.container && prefix.as_ref().is_none_or(|prefix| blob.name.starts_with(prefix))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sales() -> Destination {
        Destination::parse("https://sales.blob.core.windows.net", "endpoint").expect("an endpoint")
    }

    #[test]
    fn http_and_the_data_lakes_host_are_told_what_to_write_instead() {
        let instead = |text: &str| BlobUrl::parse(text).expect(text).instead("blob.core.windows.net");
        for text in [
            "http://sales.blob.core.windows.net/in/a.csv",
            "https://sales.dfs.core.windows.net/in/a.csv",
            "HTTP://sales.dfs.core.windows.net/in/a.csv",
        ] {
            assert!(instead(text).is_some_and(|hint| hint.contains("https://sales.blob.core.windows.net/")), "{text}");
        }
        for text in [
            "https://sales.blob.core.windows.net/in/a.csv",
            "http://127.0.0.1:10000/a/in/a.csv",
            "http://localhost/a/b/c",
        ] {
            assert_eq!(instead(text), None, "{text}");
        }
    }

    #[test]
    fn a_blob_is_found_and_decoded() {
        let url = BlobUrl::parse("https://sales.blob.core.windows.net/inbox/a%20b/c.csv").expect("a URL");
        let blob = url.within(&sales()).expect("inside").expect("a blob");
        assert_eq!(blob, Blob { container: "inbox".into(), name: "a b/c.csv".into() });
    }

    #[test]
    fn what_names_no_blob_is_refused() {
        for path in [
            "",
            "/",
            "/abc",
            "/abc/",
            "/AB/x",
            "/ab/x",
            "/abc//x",
            "/abc/x/",
            "/a--b/x",
            "/abc/%00",
            "/abc/%ff",
            "/abc/x%2f..%2fy",
            "/abc/x%2f",
            "/abc/%2fx",
            "/abc/x%2f%2fy",
        ] {
            let url = BlobUrl::parse(&format!("https://sales.blob.core.windows.net{path}")).expect(path);
            let refused = url.within(&sales()).expect("inside").expect_err(path);
            assert_eq!(refused.kind, Kind::InvalidValue, "{path}");
        }
    }

    #[test]
    fn locations_hold_containers_and_prefixes() {
        let locations = Locations::parse("archive, inbox/2026/*").expect("locations");
        let blob = |container: &str, name: &str| Blob { container: container.into(), name: name.into() };
        assert!(locations.contain(&blob("archive", "any/thing")));
        assert!(locations.contain(&blob("inbox", "2026/a.csv")));
        assert!(!locations.contain(&blob("inbox", "2025/a.csv")));
        assert!(!locations.contain(&blob("archive2", "a.csv")));
        for text in ["", "inbox/2026", "in*/x*", "INBOX", "inbox/*/x*"] {
            Locations::parse(text).expect_err(text);
        }
    }
}
