//! The token endpoint answers and refuses as the documented one does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{STORAGE, VAULT, ask, emulator, get, send, token_url};
use emulator::{Identity, Jwks};
use serde_json::json;

#[test]
fn a_token_for_the_system_assigned_identity() {
    let emulator = emulator();
    let answer = ask(&emulator, STORAGE, "");
    assert_eq!(answer.status, 200);
    let body = answer.json();
    let all_strings = body.as_object().unwrap().values().all(|value| value.is_string());
    assert!(all_strings, "{body}");
    assert_eq!(body["resource"], STORAGE);
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["refresh_token"], "");
    assert_eq!(body["client_id"], Identity::system().client_id);
    assert_eq!(body["expires_in"], "86400");
    assert_eq!(body.get("object_id"), None);
    assert_eq!(body.get("msi_res_id"), None);

    let jwks = get(None, &emulator.jwks_uri(), &[]);
    let claims = Jwks::parse(&jwks.body).unwrap().verify(body["access_token"].as_str().unwrap());
    let claims = claims.unwrap();
    assert_eq!(claims["aud"], STORAGE);
    assert_eq!(claims["appid"], Identity::system().client_id);
    assert_eq!(claims["oid"], Identity::system().object_id);
    assert_eq!(claims["xms_mirid"], Identity::system().resource_id);
}

#[test]
fn an_identity_by_each_of_its_ids_which_is_echoed_if_asked_by() {
    let emulator = emulator();
    let keys = Identity::user("keys");
    let by_client = ask(&emulator, VAULT, &format!("&client_id={}", keys.client_id)).json();
    assert_eq!(by_client["client_id"], keys.client_id);
    assert_eq!(by_client.get("object_id"), None);
    let by_object = ask(&emulator, VAULT, &format!("&object_id={}", keys.object_id)).json();
    assert_eq!(by_object["client_id"], keys.client_id);
    assert_eq!(by_object["object_id"], keys.object_id);
    for spelling in ["msi_res_id", "mi_res_id"] {
        let asked = format!("&{spelling}={}", keys.resource_id);
        let by_resource = ask(&emulator, VAULT, &asked).json();
        assert_eq!(by_resource["client_id"], keys.client_id);
        assert_eq!(by_resource[spelling], keys.resource_id);
    }
    let counters = emulator.identity().log().counters();
    assert_eq!(counters.issued("keys", VAULT), 4);
    assert_eq!(counters.issued("system", VAULT), 0);
}

#[test]
fn container_instances_know_one_spelling_of_a_resource_id_and_refuse_in_plain_text() {
    let emulator = emulator();
    emulator.identity().set_container_instances(true);
    let keys = Identity::user("keys");
    for (spelling, identity) in [("msi_res_id", &keys), ("mi_res_id", &Identity::system())] {
        let answer = ask(&emulator, VAULT, &format!("&{spelling}={}", keys.resource_id)).json();
        assert_eq!(answer["client_id"], identity.client_id, "{spelling}");
    }
    let refused = get(None, &token_url(&emulator, VAULT, ""), &[]);
    assert_eq!((refused.status, refused.body.as_slice()), (400, b"Required metadata header not specified".as_slice()));
}

#[test]
fn identities_change_at_runtime() {
    let emulator = emulator();
    let identity = emulator.identity();
    identity.assign(vec![Identity::user("a"), Identity::user("b")]).unwrap();
    let several = ask(&emulator, STORAGE, "");
    assert_eq!(several.status, 400);
    assert_eq!(
        several.json(),
        json!({"error": "invalid_request", "error_description": "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"})
    );
    identity.assign(vec![Identity::user("a")]).unwrap();
    let only = ask(&emulator, STORAGE, "").json();
    assert_eq!(only["client_id"], Identity::user("a").client_id);
    identity.assign(Vec::new()).unwrap();
    let none = ask(&emulator, STORAGE, "");
    assert_eq!(none.status, 400);
    assert_eq!(none.json(), json!({"error": "invalid_request", "error_description": "Identity not found"}));
    assert!(identity.assign(vec![Identity::system(), Identity::system()]).is_err());
}

#[test]
fn the_clock_can_differ_from_ours_and_the_tenant_knows_the_resources_it_is_told() {
    let emulator = emulator();
    let issuer = emulator.issuer();
    issuer.set_clock_ahead(-172_800);
    let late = ask(&emulator, STORAGE, "");
    let date = httpdate::parse_http_date(late.header("date").unwrap()).unwrap();
    let ago = std::time::SystemTime::now().duration_since(date).unwrap().as_secs();
    assert!((172_700..172_900).contains(&ago), "{ago}");
    let ends: u64 = late.json()["expires_on"].as_str().unwrap().parse().unwrap();
    let since = date.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((86_390..86_410).contains(&(ends - since)), "by the same clock");
    issuer.set_clock_ahead(0);
    issuer.set_resources(Some(&[VAULT]));
    assert_eq!(ask(&emulator, VAULT, "").status, 200);
    let unknown = ask(&emulator, STORAGE, "");
    assert_eq!((unknown.status, unknown.json()["error"].as_str()), (400, Some("invalid_resource")));
    issuer.set_resources(None);
    assert_eq!(ask(&emulator, STORAGE, "").status, 200);
}

#[test]
fn what_the_real_one_refuses_is_refused() {
    let emulator = emulator();
    let url = token_url(&emulator, STORAGE, "");
    let metadata = ("Metadata", "true");
    let error = |url: &str, headers: &[(&str, &str)]| {
        let answer = get(None, url, headers);
        assert_eq!(answer.status, 400, "{url} {headers:?}");
        answer.json()["error"].as_str().unwrap().to_owned()
    };
    assert_eq!(error(&url, &[]), "bad_request_102");
    assert_eq!(error(&url, &[("Metadata", "True")]), "bad_request_102");
    assert_eq!(error(&url, &[metadata, ("X-Forwarded-For", "::1")]), "bad_request_102");
    let unknown = format!("{url}&client_id=00000000-0000-0000-0000-000000000000");
    assert_eq!(error(&unknown, &[metadata]), "invalid_request");
    let (system, keys) = (Identity::system(), Identity::user("keys"));
    let two = format!("{url}&client_id={}&object_id={}", keys.client_id, system.object_id);
    assert_eq!(error(&two, &[metadata]), "invalid_request");
    let repeated = format!("{url}&resource=x");
    assert_eq!(error(&repeated, &[metadata]), "invalid_request");
    let without = url.replace("resource=", "other=");
    assert_eq!(error(&without, &[metadata]), "invalid_request");
    for version in ["api-version=2017-01-01", "api-version=latest", "x=y"] {
        let other = url.replace("api-version=2018-02-01", version);
        assert!(error(&other, &[metadata]).contains("api-version is invalid"));
    }
    let other = url.replace("api-version=2018-02-01", "api-version=2019-08-01");
    assert_eq!(get(None, &other, &[metadata]).status, 200);

    let posted = send(None, "POST", &url, &[metadata], b"");
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET")));
    assert_eq!(get(None, &url.replace("token", "other"), &[metadata]).status, 404);
}

#[test]
fn life_size_and_refresh_are_settable() {
    let emulator = emulator();
    let identity = emulator.identity();
    identity.set_token_life(7);
    identity.set_refresh_in(Some(3));
    identity.set_token_size(Some(20_000));
    let body = ask(&emulator, STORAGE, "").json();
    assert_eq!(body["expires_in"], "7");
    assert_eq!(body["refresh_in"], "3");
    assert_eq!(body["access_token"].as_str().unwrap().len(), 20_000);
}

#[test]
fn the_log_keeps_all_and_forgets_on_demand() {
    let emulator = emulator();
    let log = emulator.identity().log();
    let first = common::token(&emulator, STORAGE);
    let second = common::token(&emulator, VAULT);
    assert_ne!(first, second);
    log.wait_for_ended(2, common::SOON).unwrap();
    let requests = log.requests();
    assert_eq!(requests[1].sequence, 1);
    assert_eq!(requests[1].query("resource"), Some(VAULT));
    assert_eq!(requests[1].header("metadata"), Some("true"));
    assert_eq!(requests[1].status, Some(200));
    assert_eq!(requests[1].ending, emulator::Ending::Answered);
    assert!(requests[1].bytes_sent > 500);
    assert_eq!(log.issued_tokens(), [first.clone(), second.clone()]);
    log.clear();
    assert_eq!(log.count(), 0);
    assert_eq!(emulator.issued_tokens(), [first, second]);
    ask(&emulator, STORAGE, "");
    assert_eq!(log.requests()[0].sequence, 2);
}

#[test]
fn the_issuer_publishes_its_configuration() {
    let emulator = emulator();
    let keys = emulator.jwks_uri();
    let at = keys.replace("/discovery/keys", "/.well-known/openid-configuration");
    let configuration = get(None, &at, &[]).json();
    assert_eq!(configuration["jwks_uri"], keys);
    assert_eq!(configuration["issuer"], emulator.issuer().issuer());
}
