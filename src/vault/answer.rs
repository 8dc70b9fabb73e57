//! What the vault's answers have in common: JSON, attributes with Unix times, bytes as base64url.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::access::VaultAccess;
use super::refusal::{Asked, Refusal};
use crate::http::failure::{Failure, Kind, answered};
use crate::http::request::Answer;

/// Written without padding, as the vault wants it; read with and without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The document of an answer that is 200; else why there is none. Text that is secret must be borrowed from the
/// answer (`&str`), whose bytes are wiped.
pub fn document<'a, T: Deserialize<'a>>(answer: &'a Answer, access: &VaultAccess, asked: &Asked) -> Result<T, Failure> {
    if answer.status != 200 {
        return Err(Refusal::of(answer).failure(access, asked));
    }
    serde_json::from_slice(&answer.body).map_err(|_| unexpected(answer))
}

/// An answer that is 200 and not what the protocol says.
pub fn unexpected(answer: &Answer) -> Failure {
    let detail = answered("The vault", answer.status, None, answer.header("x-ms-request-id"));
    Failure::new(Kind::Protocol, "the vault did not answer as it should").detail(detail)
}

/// Bytes as they are written in a request. The text is wiped when dropped.
pub fn encoded(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(BASE64.encode(bytes))
}

/// Bytes of an answer.
pub fn decoded(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    // With room for all of it, and a little more as the engine asks for: a moved buffer leaves a copy unwiped.
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let length = BASE64.decode_slice(text, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// When an object may be used, and since when it is there; Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Attributes {
    pub enabled: bool,
    #[serde(rename = "nbf")]
    pub not_before: Option<i64>,
    #[serde(rename = "exp")]
    pub expires_at: Option<i64>,
    #[serde(rename = "created")]
    pub created_at: Option<i64>,
    #[serde(rename = "updated")]
    pub updated_at: Option<i64>,
}

/// What does not say that it is disabled is not.
impl Default for Attributes {
    fn default() -> Self {
        Self { enabled: true, not_before: None, expires_at: None, created_at: None, updated_at: None }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::identity::{Cloud, hosts::Hosts};
    use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
    use serde_json::Value;

    pub fn access() -> VaultAccess {
        VaultAccess::from_options([("vault_uri", "https://payroll.vault.azure.net")], Cloud::Public, &Hosts::default())
            .expect("a vault")
    }

    pub fn hsm() -> VaultAccess {
        let uri = "https://payroll.managedhsm.azure.net";
        VaultAccess::from_options([("vault_uri", uri)], Cloud::Public, &Hosts::default()).expect("an HSM")
    }

    pub fn answer(status: u16, body: Value) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: Zeroizing::new(body.to_string().into_bytes()) }
    }

    pub fn challenged(status: u16, challenge: &'static str) -> Answer {
        let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))]);
        Answer { status, headers, body: Default::default() }
    }

    #[test]
    fn bytes_travel_as_base64url_without_padding() {
        for length in 0..70_usize {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 37 + 250) as u8).collect();
            let text = encoded(&bytes);
            assert!(!text.contains(['=', '+', '/']), "{}", *text);
            assert_eq!(*decoded(&text).expect("bytes"), bytes);
        }
        assert_eq!(**decoded("_-8=").expect("padded"), [0xff, 0xef]);
        for text in ["a", "a b", "+/+/", "\u{e9}", "YQ==="] {
            assert!(decoded(text).is_none(), "{text}");
        }
    }
}
