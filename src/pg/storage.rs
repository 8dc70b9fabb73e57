//! `azure_storage` servers: which one reaches a URL, and what it allows.

use std::ffi::{CStr, CString};
use std::rc::Rc;

use pgrx::prelude::*;

use super::error::{OrRaise, error};
use super::identities::{self, KnownIdentity};
use super::servers::{self, Server, Wrapper};
use super::{compat, settings, tokens};
use crate::blob::url::{Blob, BlobUrl, Locations, is_account_name};
use crate::http::destination::Destination;
use crate::http::failure::{Failure, Kind};
use crate::identity::{Cloud, Resource};
use crate::token::AccessToken;

/// Whether a COPY reads a blob or writes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// One blob, and the credential that opens it.
pub struct Storage {
    pub destination: Destination,
    pub blob: Blob,
    /// The server's name.
    pub server: CString,
    identity: Rc<KnownIdentity>,
}

impl Storage {
    /// A token for it: from the cache, or fetched.
    pub fn token(&self) -> AccessToken {
        tokens::for_identity(&self.identity, &Resource::storage())
    }
}

/// Where a storage server's requests go: its `endpoint`, or the account's host in the cloud.
fn storage_destination(server: &Server, cloud: Cloud) -> Result<(String, Destination), Failure> {
    let account = server.option("account").map_or_else(|| server.display(), str::to_owned);
    if !is_account_name(&account) {
        return Err(Failure::new(
            Kind::InvalidValue,
            format!("server \"{}\" names no storage account", server.display()),
        )
        .detail("A storage account's name has 3 to 24 lower-case letters and digits.")
        .hint("Set option account, or give the server the account's name."));
    }
    let destination = match server.option("endpoint") {
        Some(endpoint) => Destination::parse(endpoint, "option \"endpoint\"")?,
        // The account's name was checked to be one label, so this text is its own normal form.
        None => Destination::parse(&format!("https://{account}.{}", cloud.blob_suffix()), "the account's endpoint")?,
    };
    Ok((account, destination))
}

/// The server through which the current user may reach a URL: the named one, or the one whose endpoint
/// the URL starts with. Checks USAGE, `access`, `locations` and the owner's right on the identity.
pub fn storage_for(url: &BlobUrl, name: Option<&CStr>, direction: Direction) -> Storage {
    let cloud = settings::cloud();
    let (server, destination) = match name {
        Some(name) => {
            let server = servers::named(name, Wrapper::Storage);
            servers::require_usage(&server);
            let (_, destination) = storage_destination(&server, cloud).or_raise();
            (server, destination)
        }
        None => found_by_url(url, cloud),
    };
    let Some(blob) = url.within(&destination) else {
        error(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("server \"{}\" does not reach this URL", server.display()),
            Some(format!("Its URLs start with {}.", destination.base())),
            url.instead(cloud.blob_suffix()),
        );
    };
    let blob = blob.or_raise();
    check_limits(&server, &blob, direction).or_raise();
    let identity = identities::borrowed(&server, &Resource::storage());
    Storage { destination, blob, server: server.name, identity }
}

/// The one server whose endpoint the URL starts with and that the current user may use; of several
/// the one named like the account.
fn found_by_url(url: &BlobUrl, cloud: Cloud) -> (Server, Destination) {
    let mut fitting = Vec::new();
    for server in servers::servers_of(Wrapper::Storage) {
        // A server that cannot be used stands for no URL; whoever names it is told why.
        if let Ok((account, destination)) = storage_destination(&server, cloud)
            && destination.remainder(url.url()).is_some()
        {
            fitting.push((server, account, destination));
        }
    }
    if fitting.is_empty() {
        error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            "azure_storage: missing storage credentials",
            Some(format!("No server of foreign-data wrapper \"azure_storage\" reaches \"{}\".", url.authority())),
            Some(url.instead(cloud.blob_suffix()).unwrap_or_else(|| {
                "Create one with CREATE SERVER <account> FOREIGN DATA WRAPPER azure_storage.".into()
            })),
        );
    }
    let role = servers::current_user();
    let (mut usable, denied): (Vec<_>, Vec<_>) =
        fitting.into_iter().partition(|(server, ..)| compat::has_usage(server.oid, role));
    if usable.len() > 1 && usable.iter().filter(|(server, account, _)| server.display() == *account).count() == 1 {
        usable.retain(|(server, account, _)| server.display() == *account);
    }
    match (usable.pop(), usable.is_empty(), denied.first()) {
        (Some((server, _, destination)), true, _) => (server, destination),
        (None, _, Some((server, account, _))) => {
            // SAFETY: the result lives in the current memory context and is copied at once.
            let user = unsafe { CStr::from_ptr(pg_sys::GetUserNameFromId(role, false)) }.to_string_lossy();
            error(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("azure_storage: current user {user} is not allowed to use storage account {account}"),
                Some(format!("The role has no USAGE on foreign server \"{}\".", server.display())),
                Some(servers::grant_hint(&server.name, None)),
            )
        }
        _ => error(
            PgSqlErrorCode::ERRCODE_AMBIGUOUS_FUNCTION,
            "more than one server reaches this URL",
            None,
            Some("Name one of them: WITH (server '<name>').".into()),
        ),
    }
}

/// The server's own limits: `access` and `locations`.
fn check_limits(server: &Server, blob: &Blob, direction: Direction) -> Result<(), Failure> {
    if direction == Direction::Write && server.option("access") == Some("read") {
        return Err(Failure::new(Kind::Forbidden, format!("server \"{}\" allows reading only", server.display()))
            .hint("Its option access is read."));
    }
    let Some(locations) = server.option("locations") else {
        return Ok(());
    };
    if Locations::parse(locations)?.contain(blob) {
        return Ok(());
    }
    Err(Failure::new(Kind::Forbidden, format!("server \"{}\" does not allow this location", server.display()))
        .hint("Its option locations lists the containers and prefixes that may be used."))
}
