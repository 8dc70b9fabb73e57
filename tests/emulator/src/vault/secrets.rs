//! Secrets with their versions, and the bundle that a vault answers with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::refusal::Refusal;
use crate::Error;
use crate::issuer::unix_now;

/// One version of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    pub name: String,
    pub value: String,
    #[serde(default)]
    pub content_type: Option<String>,
    #[serde(default)]
    pub attributes: SecretAttributes,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// What a vault says of a version; times are Unix times, and are told, not enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretAttributes {
    pub enabled: bool,
    pub nbf: Option<i64>,
    pub exp: Option<i64>,
    pub created: i64,
    pub updated: i64,
}

impl Default for SecretAttributes {
    fn default() -> Self {
        let now = unix_now();
        Self { enabled: true, nbf: None, exp: None, created: now, updated: now }
    }
}

impl Secret {
    pub fn new(name: &str, value: &str) -> Self {
        Self {
            name: name.to_owned(),
            value: value.to_owned(),
            content_type: None,
            attributes: SecretAttributes::default(),
            tags: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn disabled(mut self) -> Self {
        self.attributes.enabled = false;
        self
    }

    #[must_use]
    pub fn content_type(mut self, content_type: &str) -> Self {
        self.content_type = Some(content_type.to_owned());
        self
    }

    #[must_use]
    pub fn tag(mut self, name: &str, value: &str) -> Self {
        self.tags.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The times before and after which it should not be used.
    #[must_use]
    pub fn valid(mut self, nbf: Option<i64>, exp: Option<i64>) -> Self {
        (self.attributes.nbf, self.attributes.exp) = (nbf, exp);
        self
    }
}

/// All secrets by lower-case name, each with its versions from old to new.
#[derive(Default)]
pub(super) struct Secrets(BTreeMap<String, Vec<(String, Secret)>>);

impl Secrets {
    pub(super) fn put(&mut self, secret: Secret) -> Result<String, Error> {
        let name = &secret.name;
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !(1..=127).contains(&name.len()) || !name.chars().all(allowed) {
            return Err(Error::invalid("secret name", name));
        }
        let version = Uuid::new_v4().simple().to_string();
        let versions = self.0.entry(name.to_ascii_lowercase()).or_default();
        versions.push((version.clone(), secret));
        Ok(version)
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(&name.to_ascii_lowercase());
    }

    /// The bundle of a version, or of the newest.
    pub(super) fn get(&self, host: &str, name: &str, version: Option<&str>) -> Result<Value, Refusal> {
        let versions = self.0.get(&name.to_ascii_lowercase());
        let versions = versions.map(Vec::as_slice).unwrap_or_default();
        let found = match version {
            None => versions.last(),
            Some(version) => versions.iter().find(|(known, _)| known.eq_ignore_ascii_case(version)),
        };
        let Some((version, secret)) = found else {
            let path = version.map_or(name.to_owned(), |version| format!("{name}/{version}"));
            return Err(Refusal::not_found(&path));
        };
        if !secret.attributes.enabled {
            return Err(Refusal::disabled());
        }
        Ok(bundle(host, version, secret))
    }
}

fn bundle(host: &str, version: &str, secret: &Secret) -> Value {
    let of = &secret.attributes;
    let mut attributes = json!({
        "enabled": of.enabled,
        "created": of.created,
        "updated": of.updated,
        "recoveryLevel": "Recoverable+Purgeable",
        "recoverableDays": 90,
    });
    for (name, time) in [("nbf", of.nbf), ("exp", of.exp)] {
        if let Some(time) = time {
            attributes[name] = time.into();
        }
    }
    let mut bundle = json!({
        "value": secret.value,
        "id": format!("https://{host}/secrets/{}/{version}", secret.name),
        "attributes": attributes,
        "tags": secret.tags,
    });
    if let Some(content_type) = &secret.content_type {
        bundle["contentType"] = content_type.clone().into();
    }
    bundle
}
