//! The authority's exchange of federated tokens, by the documented request; `microsoft_clients` has its refusals
//! as a real client meets them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Answer, emulator, send};
use emulator::{Emulator, EntraService, Identity, Jwks, OidcIssuer, TENANT};

const SUBJECT: &str = "system:serviceaccount:default:postgres";
const FORM: &str = "application/x-www-form-urlencoded";

struct Stage {
    emulator: Emulator,
    entra: EntraService,
    fields: Vec<(&'static str, String)>,
}

impl Stage {
    fn new() -> Self {
        let emulator = emulator();
        let entra = emulator.entra().unwrap();
        let cluster = OidcIssuer::new("https://oidc.test/").unwrap();
        let keys = Identity::user("keys");
        entra.trust(TENANT, &keys, &cluster, SUBJECT).unwrap();
        let fields = vec![
            ("grant_type", "client_credentials".to_owned()),
            ("client_id", keys.client_id),
            ("scope", "https://storage.azure.com//.default".to_owned()),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer".to_owned()),
            ("client_assertion", cluster.token(SUBJECT).unwrap()),
        ];
        Self { emulator, entra, fields }
    }

    /// Asks with these fields replaced.
    fn ask(&self, changed: &[(&str, &str)], kind: &str) -> Answer {
        let mut form = form_urlencoded::Serializer::new(String::new());
        for (name, value) in &self.fields {
            let other = changed.iter().find(|(field, _)| field == name);
            form.append_pair(name, other.map_or(value, |(_, other)| other));
        }
        let url = format!("{}/{TENANT}/oauth2/v2.0/token", self.entra.authority());
        send(Some(self.emulator.pki()), "POST", &url, &[("Content-Type", kind)], form.finish().as_bytes())
    }
}

#[test]
fn a_federated_token_is_exchanged_for_an_access_token() {
    let stage = Stage::new();
    stage.entra.set_refresh_in(Some(600));
    let answer = stage.ask(&[], FORM);
    assert_eq!(answer.status, 200);
    let body = answer.json();
    // Numbers, unlike the instance metadata service's.
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!([body["expires_in"].as_i64(), body["refresh_in"].as_i64()], [Some(86_400), Some(600)]);
    let jwks = Jwks::parse(stage.emulator.issuer().jwks().to_string().as_bytes()).unwrap();
    let claims = jwks.verify(body["access_token"].as_str().unwrap()).unwrap();
    assert_eq!(claims["aud"], "https://storage.azure.com/");
    assert_eq!(claims["oid"], Identity::user("keys").object_id);
    let logged = &stage.entra.log().requests()[0];
    assert_eq!(logged.form("client_assertion"), Some(stage.fields[4].1.as_str()));
    assert_eq!(logged.identity.as_deref(), Some("keys"));
}

#[test]
fn a_request_that_is_not_the_documented_one_is_refused_by_number() {
    let stage = Stage::new();
    for (changed, kind, number) in [
        (&[("grant_type", "password")][..], FORM, 70003),
        (&[("client_assertion_type", "jwt")], FORM, 70003),
        (&[("scope", "https://storage.azure.com/")], FORM, 1_002_012),
        (&[("client_assertion", "")], FORM, 900_144),
        (&[], "application/json", 900_144),
    ] {
        let answer = stage.ask(changed, kind);
        assert_eq!(answer.status, 400, "{changed:?}");
        assert_eq!(answer.json()["error_codes"][0], number, "{changed:?}");
    }
    stage.emulator.issuer().set_resources(Some(&["https://vault.azure.net"]));
    assert_eq!(stage.ask(&[], FORM).json()["error_codes"][0], 500_011);
    let url = format!("{}/a/b/oauth2/v2.0/token", stage.entra.authority());
    assert_eq!(send(Some(stage.emulator.pki()), "POST", &url, &[], &[]).status, 404);
    assert!(stage.entra.trust("nowhere", &Identity::user("a"), &OidcIssuer::new("x").unwrap(), "s").is_err());
}
