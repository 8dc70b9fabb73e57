//! Secrets with their versions, and the bundle that a vault answers with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::Attributes;
use super::refusal::Refusal;
use crate::Error;

/// One version of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    pub name: String,
    pub value: String,
    #[serde(default)]
    pub content_type: Option<String>,
    #[serde(default)]
    pub attributes: Attributes,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl Secret {
    pub fn new(name: &str, value: &str) -> Self {
        Self {
            name: name.to_owned(),
            value: value.to_owned(),
            content_type: None,
            attributes: Attributes::default(),
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

/// The rule for names of secrets and keys.
pub(super) fn is_name(name: &str) -> bool {
    (1..=127).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// All secrets by lower-case name, each with its versions from old to new.
#[derive(Default)]
pub(super) struct Secrets(BTreeMap<String, Vec<(String, Secret)>>);

impl Secrets {
    pub(super) fn put(&mut self, secret: Secret) -> Result<String, Error> {
        let name = &secret.name;
        if !is_name(name) {
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
            return Err(Refusal::not_found("secret", &path));
        };
        if !secret.attributes.enabled {
            return Err(Refusal::secret_disabled());
        }
        Ok(bundle(host, version, secret))
    }
}

fn bundle(host: &str, version: &str, secret: &Secret) -> Value {
    let mut bundle = json!({
        "value": secret.value,
        "id": format!("https://{host}/secrets/{}/{version}", secret.name),
        "attributes": secret.attributes.told(),
        "tags": secret.tags,
    });
    if let Some(content_type) = &secret.content_type {
        bundle["contentType"] = content_type.clone().into();
    }
    bundle
}
