//! What a token says of itself. Nobody verifies it here: it came from the identity endpoint, and is told
//! to the one who may use it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::AccessToken;

/// The claims that tell which identity, tenant and resource a token is for; nothing else of it is shown.
const SHOWN: [&str; 7] = ["aud", "iss", "tid", "appid", "oid", "exp", "xms_mirid"];

/// Names of v2 tokens for what v1 tokens, which managed identities get, call otherwise.
const SYNONYMS: [(&str, &str); 1] = [("appid", "azp")];

/// The shown claims of a token; none of an opaque one, which a service may well issue.
pub fn claims(token: &AccessToken) -> Map<String, Value> {
    let Some(mut all) = payload(token.expose()) else {
        return Map::new();
    };
    let mut shown = Map::new();
    for name in SHOWN {
        let synonym = SYNONYMS.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| *theirs);
        let value = all.remove(name).or_else(|| all.remove(synonym?));
        if let Some(value @ (Value::String(_) | Value::Number(_))) = value {
            shown.insert(name.into(), value);
        }
    }
    shown
}

/// What stands between a JWT's two dots. Whoever calls this answers for what is shown of it.
pub fn payload(token: &str) -> Option<Map<String, Value>> {
    let mut parts = token.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload).ok()?);
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(payload: &str) -> Map<String, Value> {
        claims(&AccessToken::for_test(&format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))))
    }

    #[test]
    fn what_names_the_identity_is_shown_and_nothing_else() {
        let shown = of(r#"{"aud": "https://vault.azure.net", "exp": 5, "oid": "o", "groups": ["g"], "name": "n"}"#);
        assert_eq!(Value::from(shown), json!({"aud": "https://vault.azure.net", "exp": 5, "oid": "o"}));
        assert_eq!(Value::from(of(r#"{"azp": "a", "tid": ["no text"]}"#)), json!({"appid": "a"}));
    }

    #[test]
    fn a_token_that_is_no_jwt_says_nothing() {
        for text in ["opaque", "a.b", "a.!.c", "e30.W10.c2ln", "e30.e30"] {
            assert!(claims(&AccessToken::for_test(text)).is_empty(), "{text}");
        }
    }
}
