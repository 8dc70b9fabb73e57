//! A certificate authority of its own and a leaf certificate for loopback, for our listeners and for Azurite.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::Error;

const NAMES: [&str; 3] = ["127.0.0.1", "localhost", "::1"];

/// File names within [`Pki::write_to`]'s directory.
pub const CA_CERTIFICATE: &str = "ca.pem";
pub const CA_KEY: &str = "ca.key";
pub const LEAF_CERTIFICATE: &str = "leaf.pem";
pub const LEAF_KEY: &str = "leaf.key";

/// The authority and one leaf; cheap to clone.
#[derive(Clone)]
pub struct Pki(Arc<Pems>);

struct Pems {
    ca: String,
    ca_key: String,
    leaf: Leaf,
}

/// A certificate and its PKCS#8 key, as PEM.
#[derive(Clone)]
pub struct Leaf {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Pki {
    /// An authority, and a leaf for 127.0.0.1, localhost and ::1.
    pub fn create() -> Result<Self, Error> {
        Self::create_for(&[])
    }

    /// The same with further DNS names or IP addresses in the leaf.
    pub fn create_for(names: &[&str]) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let ca = authority()?.self_signed(&key)?.pem();
        let leaf = sign(&key, names)?;
        let ca_key = key.serialize_pem();
        Ok(Self(Arc::new(Pems { ca, ca_key, leaf })))
    }

    /// What an earlier [`Pki::write_to`] left in `dir`.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(Error::io(format!("reading {}", path.display())))
        };
        let leaf = Leaf { certificate_pem: read(LEAF_CERTIFICATE)?, key_pem: read(LEAF_KEY)? };
        Ok(Self(Arc::new(Pems { ca: read(CA_CERTIFICATE)?, ca_key: read(CA_KEY)?, leaf })))
    }

    /// Loads from `dir`, or creates there what is missing.
    pub fn load_or_create(dir: &Path) -> Result<Self, Error> {
        if dir.join(LEAF_KEY).exists() {
            return Self::load(dir);
        }
        let pki = Self::create()?;
        pki.write_to(dir)?;
        Ok(pki)
    }

    /// Another leaf of the same authority, for the default names and these.
    pub fn leaf_for(&self, names: &[&str]) -> Result<Leaf, Error> {
        sign(&KeyPair::from_pem(&self.0.ca_key)?, names)
    }

    /// Writes the four PEM files, keys readable by their owner alone.
    pub fn write_to(&self, dir: &Path) -> Result<(), Error> {
        fs::create_dir_all(dir).map_err(Error::io(format!("creating {}", dir.display())))?;
        let files = [
            (CA_CERTIFICATE, &self.0.ca, 0o644),
            (CA_KEY, &self.0.ca_key, 0o600),
            (LEAF_CERTIFICATE, &self.0.leaf.certificate_pem, 0o644),
            // The last one: its presence says that the others are there.
            (LEAF_KEY, &self.0.leaf.key_pem, 0o600),
        ];
        for (name, text, mode) in files {
            let path = dir.join(name);
            fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode)
                .open(&path)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .map_err(Error::io(format!("writing {}", path.display())))?;
        }
        Ok(())
    }

    pub fn ca_pem(&self) -> &str {
        &self.0.ca
    }

    pub fn leaf_cert_pem(&self) -> &str {
        &self.0.leaf.certificate_pem
    }

    pub fn leaf_key_pem(&self) -> &str {
        &self.0.leaf.key_pem
    }

    /// TLS for a listener that shows the leaf.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        let bad = |error| Error::invalid("leaf", error);
        let leaf = CertificateDer::from_pem_slice(self.leaf_cert_pem().as_bytes()).map_err(bad)?;
        let key = PrivateKeyDer::from_pem_slice(self.leaf_key_pem().as_bytes()).map_err(bad)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)?;
        Ok(Arc::new(config))
    }

    /// TLS for a client that trusts this authority and no other.
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        let ca = CertificateDer::from_pem_slice(self.ca_pem().as_bytes())
            .map_err(|error| Error::invalid("CA certificate", error))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca)?;
        Ok(ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The same each time, so that a loaded key can sign further leaves.
fn authority() -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "managed_identity emulator CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn sign(ca_key: &KeyPair, names: &[&str]) -> Result<Leaf, Error> {
    let all: Vec<String> = NAMES.iter().chain(names).map(ToString::to_string).collect();
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name.push(DnType::CommonName, "managed_identity emulator");
    // OpenSSL in Microsoft's Python clients demands it of a chain since Python 3.13.
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &Issuer::new(authority()?, ca_key))?;
    Ok(Leaf { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loaded_authority_is_the_written_one_and_signs_on() {
        let dir = std::env::temp_dir().join(format!("emulator-pki-{}", uuid::Uuid::new_v4()));
        let made = Pki::load_or_create(&dir).unwrap();
        let loaded = Pki::load_or_create(&dir).unwrap();
        assert_eq!(made.ca_pem(), loaded.ca_pem());
        assert_eq!(made.leaf_cert_pem(), loaded.leaf_cert_pem());
        assert!(loaded.leaf_key_pem().starts_with("-----BEGIN PRIVATE KEY"));
        let other = loaded.leaf_for(&["contoso.vault.azure.net"]).unwrap();
        assert_ne!(other.certificate_pem, made.leaf_cert_pem());
        fs::remove_dir_all(dir).unwrap();
    }
}
