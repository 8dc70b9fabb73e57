//! Which certificate authorities a server's TLS certificate must come from.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use reqwest::Certificate;

use super::failure::{Failure, Kind};

/// A CA file as it is now: its path, and what changes when its content does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFile {
    path: PathBuf,
    modified: Option<SystemTime>,
    length: u64,
}

impl CaFile {
    /// Looks at the file without reading it.
    pub fn look(path: &Path) -> Result<Self, Failure> {
        let seen = std::fs::metadata(path).map_err(|error| unreadable(path, &error.to_string()))?;
        Ok(Self { path: path.into(), modified: seen.modified().ok(), length: seen.len() })
    }

    /// The certificates in it (PEM).
    pub fn certificates(&self) -> Result<Vec<Certificate>, Failure> {
        let pem = std::fs::read(&self.path).map_err(|error| unreadable(&self.path, &error.to_string()))?;
        let found = Certificate::from_pem_bundle(&pem)
            .map_err(|_| unreadable(&self.path, "it is not a PEM file of certificates"))?;
        if found.is_empty() {
            return Err(unreadable(&self.path, "it holds no certificate"));
        }
        Ok(found)
    }
}

/// Mozilla's authorities as this library was built with them: for containers that have none.
pub fn compiled_in() -> Vec<Certificate> {
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(|root| Certificate::from_der(root).ok()).collect()
}

fn unreadable(path: &Path, why: &str) -> Failure {
    Failure::new(Kind::Local, format!("could not read the CA file \"{}\"", path.display()))
        .detail(why)
        .hint("Set managed_identity.tls_ca_file to a PEM file that the server can read, or leave it empty for the system's own roots.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_root_that_is_compiled_in_can_be_used() {
        let roots = compiled_in();
        assert!(roots.len() > 50 && roots.len() == webpki_root_certs::TLS_SERVER_ROOT_CERTS.len());
        reqwest::Client::builder().tls_backend_rustls().tls_certs_only(roots).build().expect("a client");
    }

    #[test]
    fn a_file_without_a_certificate_is_an_error() {
        let missing = CaFile::look(Path::new("/nonexistent/ca.pem")).expect_err("no such file");
        assert_eq!(missing.kind, Kind::Local);
        let this = CaFile::look(Path::new(file!()));
        if let Ok(this) = this {
            assert_eq!(this.certificates().expect_err("source code").kind, Kind::Local);
        }
    }
}
