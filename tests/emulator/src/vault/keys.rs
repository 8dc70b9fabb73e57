//! Keys with their versions: what a vault says of them, and which of them may be used.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::Attributes;
use super::key::Key;
use super::material::Material;
use super::operation::VaultOperation;
use super::refusal::Refusal;
use super::secrets::is_name;
use crate::Error;
use crate::issuer::unix_now;

/// All keys by lower-case name, each with its versions from old to new.
#[derive(Default)]
pub(super) struct Keys {
    live: BTreeMap<String, Vec<Version>>,
    /// Deleted, but recoverable.
    deleted: BTreeMap<String, Vec<Version>>,
    /// Kept, so that this vault never has the same key twice.
    purged: Vec<Vec<Version>>,
}

struct Version {
    version: String,
    key: Key,
    material: Arc<Material>,
}

/// A page of a key's versions, and where the next one begins.
pub(super) struct Page {
    pub items: Vec<Value>,
    pub next: Option<usize>,
}

impl Keys {
    /// Adds a key, or a newer version of it.
    pub(super) fn put(&mut self, key: Key, material: Material) -> Result<String, Error> {
        if !is_name(&key.name) {
            return Err(Error::invalid("key name", key.name));
        }
        let name = key.name.to_ascii_lowercase();
        if self.deleted.contains_key(&name) {
            let why = format!("{name} is deleted but recoverable, and its name cannot be reused");
            return Err(Error::invalid("key name", why));
        }
        let version = Uuid::new_v4().simple().to_string();
        let versions = self.live.entry(name).or_default();
        versions.push(Version { version: version.clone(), key, material: Arc::new(material) });
        Ok(version)
    }

    /// From old to new; none if there is no such key.
    pub(super) fn versions(&self, name: &str) -> Vec<String> {
        let versions = self.live.get(&name.to_ascii_lowercase()).into_iter().flatten();
        versions.map(|version| version.version.clone()).collect()
    }

    pub(super) fn described(&self, name: &str, version: Option<&str>) -> Option<Key> {
        self.find(name, version).ok().map(|found| found.key.clone())
    }

    pub(super) fn private_key(&self, name: &str, version: Option<&str>) -> Result<Vec<u8>, Error> {
        match self.find(name, version) {
            Ok(found) => found.material.private_key(),
            Err(refusal) => Err(Error::invalid("key", refusal.message)),
        }
    }

    pub(super) fn change(
        &mut self,
        name: &str,
        version: Option<&str>,
        change: impl FnOnce(&mut Attributes),
    ) -> Result<(), Error> {
        let versions = self.live.get_mut(&name.to_ascii_lowercase());
        let versions = versions.map(Vec::as_mut_slice).unwrap_or_default();
        let found = match version {
            None => versions.last_mut(),
            Some(version) => versions.iter_mut().find(|known| known.version.eq_ignore_ascii_case(version)),
        };
        let found = found.ok_or_else(|| Error::invalid("key", format!("no {name} {}", version.unwrap_or_default())))?;
        found.key.attributes.updated = unix_now();
        change(&mut found.key.attributes);
        Ok(())
    }

    pub(super) fn delete(&mut self, name: &str) -> Result<(), Error> {
        let name = name.to_ascii_lowercase();
        let versions = self.live.remove(&name).ok_or_else(|| Error::invalid("key", format!("no {name}")))?;
        self.deleted.insert(name, versions);
        Ok(())
    }

    pub(super) fn recover(&mut self, name: &str) -> Result<(), Error> {
        let name = name.to_ascii_lowercase();
        let versions = self.deleted.remove(&name);
        let versions = versions.ok_or_else(|| Error::invalid("key", format!("no deleted {name}")))?;
        self.live.insert(name, versions);
        Ok(())
    }

    pub(super) fn purge(&mut self, name: &str) -> Result<(), Error> {
        let versions = self.deleted.remove(&name.to_ascii_lowercase());
        self.purged.push(versions.ok_or_else(|| Error::invalid("key", format!("no deleted {name}")))?);
        Ok(())
    }

    /// The bundle of a version, or of the newest.
    pub(super) fn bundle(&self, host: &str, name: &str, version: Option<&str>) -> Result<Value, Refusal> {
        let found = self.find(name, version)?;
        let mut jwk = found.material.jwk();
        jwk["kid"] = found.kid(host).into();
        jwk["kty"] = json!(found.key.kty);
        jwk["key_ops"] = found.key.operations().into();
        Ok(json!({"key": jwk, "attributes": found.key.attributes.told(), "tags": found.key.tags}))
    }

    /// Of all versions by their ids, which is in no order of time. A key that is not there has none.
    pub(super) fn page(&self, host: &str, name: &str, from: usize, most: usize) -> Page {
        let mut versions: Vec<&Version> = self.live.get(&name.to_ascii_lowercase()).into_iter().flatten().collect();
        versions.sort_unstable_by(|a, b| a.version.cmp(&b.version));
        let items = versions.iter().skip(from).take(most).map(|version| {
            json!({"kid": version.kid(host), "attributes": version.key.attributes.told(), "tags": version.key.tags})
        });
        Page { items: items.collect(), next: (from + most < versions.len()).then_some(from + most) }
    }

    /// The key to use, with its full id, if its state lets it be used for this.
    pub(super) fn usable(
        &self,
        host: &str,
        name: &str,
        version: Option<&str>,
        operation: VaultOperation,
    ) -> Result<(String, Arc<Material>), Refusal> {
        let found = self.find(name, version)?;
        found.check(operation)?;
        Ok((found.kid(host), Arc::clone(&found.material)))
    }

    pub(super) fn is_enabled(&self, name: &str, version: Option<&str>) -> Result<bool, Refusal> {
        self.find(name, version).map(|found| found.key.attributes.enabled)
    }

    fn find(&self, name: &str, version: Option<&str>) -> Result<&Version, Refusal> {
        let versions = self.live.get(&name.to_ascii_lowercase());
        let versions = versions.map(Vec::as_slice).unwrap_or_default();
        let found = match version {
            None => versions.last(),
            Some(version) => versions.iter().find(|known| known.version.eq_ignore_ascii_case(version)),
        };
        found.ok_or_else(|| {
            let path = version.map_or(name.to_owned(), |version| format!("{name}/{version}"));
            Refusal::not_found("key", &path)
        })
    }
}

impl Version {
    fn kid(&self, host: &str) -> String {
        format!("https://{host}/keys/{}/{}", self.key.name, self.version)
    }

    fn check(&self, operation: VaultOperation) -> Result<(), Refusal> {
        let name = operation.name();
        let Attributes { enabled, nbf, exp, .. } = self.key.attributes;
        if !enabled {
            return Err(Refusal::key_disabled(operation));
        }
        if !self.key.operations().iter().any(|allowed| allowed == name) {
            let message = format!("Operation {name} is not permitted on this key.");
            return Err(Refusal::forbidden("KeyOperationForbidden", message));
        }
        if !operation.works_outside_validity() {
            let now = unix_now();
            if nbf.is_some_and(|from| now < from) {
                let message = format!("Operation {name} is not allowed on a key that is not yet valid.");
                return Err(Refusal::forbidden("KeyNotYetValid", message));
            }
            if exp.is_some_and(|until| until <= now) {
                let message = format!("Operation {name} is not allowed on an expired key.");
                return Err(Refusal::forbidden("KeyExpired", message));
            }
        }
        Ok(())
    }
}
