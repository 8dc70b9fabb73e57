//! Which certificate authorities a server's TLS certificate must come from.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use reqwest::Certificate;

use super::failure::{Failure, Kind, said_by_the_system};

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
        let seen = std::fs::metadata(path).map_err(|error| not_opened(path, &error))?;
        Ok(Self { path: path.into(), modified: seen.modified().ok(), length: seen.len() })
    }

    /// The certificates in it (PEM).
    pub fn certificates(&self) -> Result<Vec<Certificate>, Failure> {
        let pem = std::fs::read(&self.path).map_err(|error| not_opened(&self.path, &error))?;
        let found = Certificate::from_pem_bundle(&pem)
            .map_err(|_| unreadable(&self.path, "It is no PEM file of certificates."))?;
        if found.is_empty() {
            return Err(unreadable(&self.path, "It holds no certificate."));
        }
        Ok(found)
    }
}

/// Mozilla's authorities as this library was built with them: for containers that have none.
pub fn compiled_in() -> Vec<Certificate> {
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(|root| Certificate::from_der(root).ok()).collect()
}

/// Which certificates are trusted, in words, and what to change where that may not be what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    pub told: String,
    pub hint: Option<&'static str>,
}

/// Which certificates a client trusts now; a failure where the file that was named cannot be used.
pub fn trusted(ca_file: Option<&CaFile>) -> Result<Trusted, Failure> {
    let told = |count: usize, from: &str| format!("Certificates of authorities: {count}, from {from}.");
    if let Some(ca_file) = ca_file {
        let from = format!("managed_identity.tls_ca_file, \"{}\"", ca_file.path.display());
        return Ok(Trusted { told: told(ca_file.certificates()?.len(), &from), hint: None });
    }
    let count = rustls_native_certs::load_native_certs().certs.len();
    let given = |name: &str| std::env::var_os(name).map(|path| format!("{name}, \"{}\"", path.display()));
    let given: Vec<_> = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(given).collect();
    let from = if given.is_empty() { "the system's own store".into() } else { given.join(" and ") };
    if count > 0 {
        return Ok(Trusted { told: told(count, &from), hint: None });
    }
    let instead = told(compiled_in().len(), "Mozilla's list as compiled in");
    Ok(Trusted {
        told: format!("There are none from {from}. {instead}"),
        hint: Some(
            "Install the system's package ca-certificates, or set managed_identity.tls_ca_file to a PEM file of authorities.",
        ),
    })
}

/// Where the authorities that are trusted come from: `tls_ca_file`, `SSL_CERT_FILE`, `SSL_CERT_DIR`, `system`, or
/// `compiled in` where the system has none.
pub fn in_use(has_ca_file: bool) -> &'static str {
    if has_ca_file {
        return "tls_ca_file";
    }
    // A system without any roots is what makes this fail.
    if reqwest::Client::builder().tls_backend_rustls().build().is_err() {
        return "compiled in";
    }
    let variables = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
    variables.into_iter().find(|name| std::env::var_os(name).is_some()).unwrap_or("system")
}

fn not_opened(path: &Path, error: &std::io::Error) -> Failure {
    let why = said_by_the_system(error);
    Failure::new(Kind::Local, format!("could not open CA file \"{}\": {why}", path.display())).hint(CA_FILE)
}

fn unreadable(path: &Path, why: &str) -> Failure {
    Failure::new(Kind::Local, format!("could not use CA file \"{}\"", path.display())).detail(why).hint(CA_FILE)
}

/// What to change where the CA file is not one.
const CA_FILE: &str = "Set managed_identity.tls_ca_file to a PEM file that the server can read, or leave it empty for the system's own roots.";

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
            assert_eq!(trusted(Some(&this)).expect_err("none").kind, Kind::Local);
        }
    }
}
