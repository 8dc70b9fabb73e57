//! What the three wrappers' validators accept. A validator sees one object's whole list of options and
//! nothing else; rules between options, and between an option and the catalog, are checked at use, so
//! that options can be added, set and dropped one by one in any order.

use pgrx::prelude::*;

use super::error::{OrRaise, error};
use super::settings;
use crate::blob::url::{Locations, is_account_name};
use crate::http::destination::Destination;
use crate::http::failure::{Failure, Kind};
use crate::identity::{Cloud, Identity};
use crate::vault::access::VaultAccess;

/// A wrapper's server options, each with its check.
struct Accepted {
    names: &'static [&'static str],
    check: fn(&str, &str) -> Result<(), Failure>,
}

const IDENTITY: Accepted = Accepted {
    names: &[
        "kind",
        "client_id",
        "object_id",
        "resource_id",
        "tenant_id",
        "token_file",
        "authority",
        "source",
        "resources",
    ],
    check: identity_option,
};
const STORAGE: Accepted =
    Accepted { names: &["account", "identity", "endpoint", "access", "locations"], check: storage_option };
const VAULT: Accepted = Accepted {
    names: &["vault_uri", "identity", "api_version", "allow", "names", "unsigned_keys"],
    check: vault_option,
};

pub fn validate_identity(options: &[(String, String)], catalog: pg_sys::Oid) {
    validate(&IDENTITY, options, catalog);
}

pub fn validate_storage(options: &[(String, String)], catalog: pg_sys::Oid) {
    validate(&STORAGE, options, catalog);
}

pub fn validate_vault(options: &[(String, String)], catalog: pg_sys::Oid) {
    validate(&VAULT, options, catalog);
}

/// `name=value` as validators get them. The first equal sign separates: names have none, values may.
pub fn pairs(options: Vec<Option<String>>) -> Vec<(String, String)> {
    let split = |option: String| match option.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (option, String::new()),
    };
    options.into_iter().flatten().map(split).collect()
}

/// Only servers have options: a mapping could be changed by the role it restricts.
fn validate(accepted: &Accepted, options: &[(String, String)], catalog: pg_sys::Oid) {
    let names = if catalog == pg_sys::ForeignServerRelationId { accepted.names } else { &[] };
    for (name, value) in options {
        if !names.contains(&name.as_str()) {
            let hint = match names {
                [] => "There are no valid options in this context.".to_owned(),
                names => format!("Valid options in this context are: {}", names.join(", ")),
            };
            error(
                PgSqlErrorCode::ERRCODE_FDW_INVALID_OPTION_NAME,
                format!("invalid option \"{name}\""),
                None,
                Some(hint),
            );
        }
        (accepted.check)(name, value).or_raise();
    }
}

fn superuser_only(name: &str) -> Failure {
    Failure::new(Kind::Forbidden, format!("permission denied to set option \"{name}\""))
        .detail("Only a superuser may create or alter a server that ends with this option present.")
}

fn identity_option(name: &str, value: &str) -> Result<(), Failure> {
    // SAFETY: a plain read.
    let superuser = unsafe { pg_sys::superuser() };
    if !superuser && matches!(name, "token_file" | "authority" | "source") {
        // They say which of the server's files is read, where it is sent, and whom this machine asks.
        return Err(superuser_only(name));
    }
    Identity::from_options([(name, value)], settings::cloud()).map(|_| ())
}

fn storage_option(name: &str, value: &str) -> Result<(), Failure> {
    let invalid =
        |hint: &str| Err(Failure::new(Kind::InvalidValue, format!("invalid value for option \"{name}\"")).hint(hint));
    match name {
        "account" if !is_account_name(value) => {
            invalid("A storage account's name has 3 to 24 lower-case letters and digits.")
        }
        "identity" => server_name(value),
        "access" if !matches!(value, "read" | "read-write") => invalid("It is read or read-write."),
        "locations" => Locations::parse(value).map(|_| ()),
        "endpoint" => {
            let destination = Destination::parse(value, "option \"endpoint\"")?;
            // SAFETY: a plain read.
            let superuser = unsafe { pg_sys::superuser() };
            if superuser || settings::current().storage_hosts.cover(destination.base()) {
                return Ok(());
            }
            // The identity's token goes where the endpoint says.
            Err(Failure::new(Kind::Forbidden, "permission denied to set option \"endpoint\"")
                .detail("Only a superuser may name a host that managed_identity.storage_hosts does not."))
        }
        _ => Ok(()),
    }
}

fn vault_option(name: &str, value: &str) -> Result<(), Failure> {
    if name == "identity" {
        return server_name(value);
    }
    // SAFETY: a plain read.
    if name == "unsigned_keys" && !unsafe { pg_sys::superuser() } {
        // Whoever can write the table of data keys could plant one.
        return Err(superuser_only(name));
    }
    let (cloud, hosts) = (settings::cloud(), settings::current().key_vault_hosts.clone());
    if name == "vault_uri" {
        return VaultAccess::from_options([(name, value)], cloud, &hosts).map(|_| ());
    }
    // The rest is checked beside a vault that always stands.
    let any = format!("https://any.{}", Cloud::default().vault_suffix());
    VaultAccess::from_options([("vault_uri", any.as_str()), (name, value)], Cloud::default(), &hosts).map(|_| ())
}

/// The name of a server, which need not exist yet: pg_dump orders servers by name.
fn server_name(value: &str) -> Result<(), Failure> {
    if value.is_empty() || value.len() >= pg_sys::NAMEDATALEN as usize {
        return Err(Failure::new(Kind::InvalidValue, "invalid value for option \"identity\"")
            .hint("It is the name of a managed_identity server."));
    }
    Ok(())
}
