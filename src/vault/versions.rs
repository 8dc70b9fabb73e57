//! The versions of a key: `GET {vault}/keys/{name}/versions`, page by page.

use serde::Deserialize;
use url::Url;

use super::access::{VaultAccess, check_object};
use super::answer::{Attributes, document, unexpected};
use super::key::asked;
use super::kid::Kid;
use crate::http::failure::{Failure, Kind};
use crate::http::request::{Answer, Request};

/// As many as the vault gives on a page at most.
const ON_A_PAGE: &str = "25";
/// The most versions that are listed; a key that is rotated every day has that many after 27 years.
const MOST: usize = 10_000;

/// One version of a key, as the list tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub kid: Kid,
    pub attributes: Attributes,
}

/// What has been listed, and where it goes on.
#[derive(Debug, Default)]
pub struct Versions {
    pub found: Vec<Version>,
    pages: usize,
    next: Option<Url>,
}

/// The request for the first page, without its credential. 22023 for what cannot be a name.
pub fn request(access: &VaultAccess, name: &str) -> Result<Request, Failure> {
    check_object("key", name, None)?;
    let mut url = access.url(&["keys", name, "versions"]);
    url.query_pairs_mut().append_pair("maxresults", ON_A_PAGE);
    Ok(Request::get(url))
}

impl Versions {
    /// The request for the next page, if there is one.
    pub fn next_page(&mut self) -> Option<Request> {
        self.next.take().map(Request::get)
    }

    /// Adds a page. Whither the list goes on is the vault's to say, within the list: the token goes along.
    pub fn add(&mut self, access: &VaultAccess, answer: &Answer, name: &str) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Item {
            kid: String,
            #[serde(default)]
            attributes: Attributes,
        }
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            value: Option<Vec<Item>>,
            #[serde(rename = "nextLink")]
            next: Option<String>,
        }
        let page: Page = document(answer, access, &asked(name))?;
        for Item { kid, attributes } in page.value.unwrap_or_default() {
            let kid = Kid::answered(&kid, access)?;
            if !kid.name().eq_ignore_ascii_case(name) {
                return Err(unexpected(answer));
            }
            self.found.push(Version { kid, attributes });
        }
        self.pages += 1;
        // Pages may be empty, and go on.
        if self.found.len().max(self.pages) > MOST {
            return Err(Failure::new(Kind::TooLarge, "the key has too many versions")
                .detail(format!("At most {MOST} are listed.")));
        }
        self.next = match page.next.filter(|next| !next.is_empty()) {
            None => None,
            Some(next) => Some(within_the_list(&next, access, name).ok_or_else(|| unexpected(answer))?),
        };
        Ok(())
    }
}

fn within_the_list(next: &str, access: &VaultAccess, name: &str) -> Option<Url> {
    let url = Url::parse(next).ok()?;
    let rest = access.destination.remainder(&url)?;
    let [keys, named, versions] = rest.as_slice() else { return None };
    let same = *keys == "keys" && named.eq_ignore_ascii_case(name) && *versions == "versions";
    (same && url.fragment().is_none()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::answer::tests::{access, answer};
    use serde_json::json;

    const LIST: &str = "https://payroll.vault.azure.net/keys/kek/versions";

    fn kid(number: u32) -> String {
        format!("https://payroll.vault.azure.net/keys/kek/{number:032x}")
    }

    #[test]
    fn pages_are_followed_to_the_end() {
        let first = request(&access(), "kek").expect("a request").url;
        assert_eq!(first.as_str(), format!("{LIST}?api-version=2025-07-01&maxresults=25"));
        assert_eq!(request(&access(), "../secrets/x").expect_err("no name").kind, Kind::InvalidValue);
        let mut versions = Versions::default();
        let next = format!("{}:443/keys/kek/versions?api-version=7.4&$skiptoken=x", "https://payroll.vault.azure.net");
        let page = json!({"value": [{"kid": kid(1), "attributes": {"enabled": false, "exp": 7}}], "nextLink": next});
        versions.add(&access(), &answer(200, page), "kek").expect("a page");
        let request = versions.next_page().expect("another page");
        assert_eq!(request.url.as_str(), format!("{LIST}?api-version=7.4&$skiptoken=x"));
        let page = json!({"value": [{"kid": kid(2)}], "nextLink": null});
        versions.add(&access(), &answer(200, page), "kek").expect("a page");
        assert!(versions.next_page().is_none());
        let found: Vec<_> = versions.found.iter().map(|found| found.kid.to_string()).collect();
        assert_eq!(found, [kid(1), kid(2)]);
        let Attributes { enabled, expires_at, .. } = versions.found[0].attributes;
        assert_eq!((enabled, expires_at), (false, Some(7)));
    }

    #[test]
    fn a_list_goes_on_in_itself_or_nowhere() {
        for next in [
            "https://evil.com/keys/kek/versions",
            "https://payroll.vault.azure.net.evil.com/keys/kek/versions",
            "https://user@payroll.vault.azure.net/keys/kek/versions",
            "https://payroll.vault.azure.net:8443/keys/kek/versions",
            "http://payroll.vault.azure.net/keys/kek/versions",
            "https://payroll.vault.azure.net/secrets/kek/versions",
            "https://payroll.vault.azure.net/keys/other/versions",
            "https://payroll.vault.azure.net/keys/kek/versions/x",
            "https://payroll.vault.azure.net/keys/kek/versions#x",
            "/keys/kek/versions",
        ] {
            let page = json!({"value": [], "nextLink": next});
            let failure = Versions::default().add(&access(), &answer(200, page), "kek").expect_err(next);
            assert_eq!(failure.kind, Kind::Protocol, "{next}");
        }
        for item in
            [json!({"kid": kid(1).replace("kek", "x")}), json!({}), json!({"kid": "https://evil.com/keys/kek/1"})]
        {
            let page = json!({"value": [item]});
            let failure = Versions::default().add(&access(), &answer(200, page), "kek").expect_err("refused");
            assert_eq!(failure.kind, Kind::Protocol);
        }
        let many: Vec<_> = (0..=MOST as u32).map(|number| json!({"kid": kid(number)})).collect();
        let failure =
            Versions::default().add(&access(), &answer(200, json!({"value": many})), "kek").expect_err("many");
        assert_eq!(failure.kind, Kind::TooLarge);
    }
}
