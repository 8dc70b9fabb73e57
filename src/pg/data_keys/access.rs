//! Who may use a data key: who has USAGE on the vault server that made it, within that server's own rules.

use std::ffi::{CStr, CString};

use pgrx::prelude::*;

use super::{memory, table};
use crate::http::failure::{Failure, Kind};
use crate::pg::compat;
use crate::pg::error::{error, raise};
use crate::pg::servers::{self, Wrapper};
use crate::pg::vault::{self, Vault};
use crate::vault::access::VaultAccess;
use crate::vault::kid::Kid;
use crate::vault::record::Record;

/// The word of option `allow`.
pub const OPERATION: &str = "data-keys";

/// 42704.
pub fn unknown(name: &str) -> ! {
    error(
        PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        format!("data key \"{name}\" does not exist"),
        None,
        Some("Create it with azure_key_vault.create_data_key().".into()),
    )
}

/// 42704: of a value whose key this database does not have.
pub fn unknown_id() -> ! {
    error(
        PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        "the value's data key does not exist in this database",
        None,
        Some("The rows of azure_key_vault.data_key must come with the values, as pg_dump brings them.".into()),
    )
}

/// A row that nobody who may make rows has made.
pub fn planted(name: &str, detail: &str) -> Failure {
    Failure::new(Kind::NotAuthentic, format!("data key \"{name}\" is not authentic")).detail(detail)
}

/// The vault and key of a row, which the current user may use; raises.
pub fn way_of(record: &Record) -> (Vault, Kid) {
    let server = CString::new(record.server.as_str()).unwrap_or_default();
    let name = key_name(&record.kid);
    let vault = vault::usable(&server).allowing(OPERATION, name);
    let kid = kid_of(record, &vault);
    (vault, kid)
}

/// The key that wraps a row, which must be of its server's vault; raises.
pub fn kid_of(record: &Record, vault: &Vault) -> Kid {
    Kid::parse(&record.kid, &vault.access).unwrap_or_else(|_| {
        raise(planted(&record.name, "It is wrapped by a key of another vault than its server's.").hint(
            "Where the server's vault_uri was changed, set it back, or move the data keys with rewrap_data_keys().",
        ))
    })
}

/// The name in a key's URL, for the server's rules; what is no such URL is refused by [`Kid::parse`].
pub fn key_name(kid: &str) -> &str {
    kid.rsplit('/').nth(1).unwrap_or_default()
}

/// Raises unless the current user owns the server.
pub fn require_ownership(vault: &Vault) {
    if !compat::owns_server(vault.server, servers::current_user()) {
        not_owner(&vault.name);
    }
}

/// 42501, as core says it.
pub fn not_owner(server: &CStr) -> ! {
    raise(Failure::new(Kind::Forbidden, format!("must be owner of foreign server {}", server.to_string_lossy())))
}

/// Raises for a key that wraps data keys unless the current user owns the server that they belong to, whichever
/// server he comes by: with the key the wrapped bytes of a dump are a data key.
pub fn refuse_wrapping_key(access: &VaultAccess, key: &str) {
    let user = servers::current_user();
    let vaults = servers::servers_of(Wrapper::Vault);
    // Of rows whose server is gone nobody is the owner.
    let owned = |name: &str| {
        let server = vaults.iter().find(|server| server.name.to_bytes() == name.as_bytes());
        server.is_some_and(|server| compat::owns_server(server.oid, user))
    };
    let is_it = |kid: &str| Kid::parse(kid, access).is_ok_and(|kid| kid.name().eq_ignore_ascii_case(key));
    let rows: Vec<Record> = table::all().into_iter().map(|row| row.record).filter(|row| is_it(&row.kid)).collect();
    // A row may have been changed by who wants the key, and another database may have data keys under it: what is in
    // use was verified.
    // SAFETY: a plain read.
    let in_use = rows.is_empty() && !unsafe { pg_sys::superuser() } && memory::kids().iter().any(|kid| is_it(kid));
    if in_use || rows.iter().any(|row| !owned(&row.server)) {
        raise(
            Failure::new(Kind::Forbidden, format!("permission denied for key \"{key}\""))
                .detail("It wraps data keys, so only the owner of their server may use it."),
        );
    }
}
