//! Schema `azure_key_vault`: values encrypted under customer-managed keys.

use pgrx::prelude::*;

#[pg_schema]
mod azure_key_vault {
    use pgrx::datum::TimestampWithTimeZone;
    use pgrx::prelude::*;

    use crate::pg::bytes::{Bytea, Utf8};
    use crate::pg::data_keys::{self, admin, rows, table};
    use crate::pg::name::Name;
    use crate::pg::record::Record;
    use crate::pg::text::SqlText;
    use crate::pg::tokens;

    /// Makes a data key, wrapped by a key of the vault.
    #[pg_extern(volatile, parallel_unsafe)]
    fn create_data_key(name: Option<&str>, vault: Option<Name>, key: Option<&str>) {
        let name = name.unwrap_or_else(|| tokens::null_argument("name"));
        let vault = vault.unwrap_or_else(|| tokens::null_argument("vault"));
        let key = key.unwrap_or_else(|| tokens::null_argument("key"));
        admin::create(name, vault.as_c_str(), key);
    }

    /// Gives a data key a new generation for new values; old values stay readable.
    #[pg_extern(volatile, parallel_unsafe)]
    fn rotate_data_key(name: Option<&str>) {
        admin::rotate(name.unwrap_or_else(|| tokens::null_argument("name")));
    }

    /// Has data keys wrapped by the newest version of their vault key, or by another key; values stay as they are.
    #[pg_extern(volatile, parallel_unsafe)]
    fn rewrap_data_keys(
        vault: default!(Option<Name>, "NULL"),
        to_vault: default!(Option<Name>, "NULL"),
        to_key: default!(Option<&str>, "NULL"),
    ) -> i32 {
        admin::rewrap(vault.as_ref().map(Name::as_c_str), to_vault.as_ref().map(Name::as_c_str), to_key)
    }

    /// Locks data keys in every session at once, until `revalidate_data_keys`; returns how many there are.
    #[pg_extern(volatile, parallel_restricted)]
    fn lock_data_keys(vault: default!(Option<Name>, "NULL")) -> i32 {
        admin::lock(vault.as_ref().map(Name::as_c_str))
    }

    /// Unlocks data keys if their vault keys may be used; returns how many can be.
    #[pg_extern(volatile, parallel_restricted)]
    fn revalidate_data_keys(vault: default!(Option<Name>, "NULL")) -> i32 {
        admin::revalidate(vault.as_ref().map(Name::as_c_str))
    }

    /// Encrypts a value under the newest generation of a data key.
    #[pg_extern(volatile, parallel_safe)]
    fn encrypt_value(
        data_key: Option<&str>,
        plaintext: Option<&[u8]>,
        context: default!(Option<&[u8]>, "''::bytea"),
    ) -> Option<Bytea> {
        let data_key = data_key.unwrap_or_else(|| tokens::null_argument("data_key"));
        let context = context.unwrap_or_else(|| tokens::null_argument("context"));
        plaintext.map(|plaintext| data_keys::encrypt(data_key, plaintext, context))
    }

    /// The same for text, which is encrypted as UTF-8.
    #[pg_extern(
        volatile,
        parallel_safe,
        sql = "CREATE FUNCTION azure_key_vault.encrypt_text(data_key text, plaintext text, context bytea DEFAULT ''::bytea) \
               RETURNS bytea VOLATILE PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'encrypt_text_wrapper';"
    )]
    fn encrypt_text(data_key: Option<&str>, plaintext: Option<&[u8]>, context: Option<&[u8]>) -> Option<Bytea> {
        let data_key = data_key.unwrap_or_else(|| tokens::null_argument("data_key"));
        let context = context.unwrap_or_else(|| tokens::null_argument("context"));
        plaintext.map(|plaintext| data_keys::encrypt(data_key, Utf8::from_server(plaintext).bytes(), context))
    }

    /// The plaintext of an encrypted value.
    #[pg_extern(volatile, parallel_safe)]
    fn decrypt_value(ciphertext: Option<&[u8]>, context: default!(Option<&[u8]>, "''::bytea")) -> Option<Bytea> {
        let context = context.unwrap_or_else(|| tokens::null_argument("context"));
        ciphertext.map(|ciphertext| data_keys::decrypt(ciphertext, context))
    }

    /// The same for text.
    #[pg_extern(volatile, parallel_safe)]
    fn decrypt_text(ciphertext: Option<&[u8]>, context: default!(Option<&[u8]>, "''::bytea")) -> Option<SqlText> {
        let context = context.unwrap_or_else(|| tokens::null_argument("context"));
        ciphertext.map(|ciphertext| data_keys::decrypt(ciphertext, context).into_text())
    }

    /// Name and generation of the data key that a value was encrypted under.
    #[pg_extern(
        volatile,
        parallel_safe,
        sql = "CREATE FUNCTION azure_key_vault.data_key_of(ciphertext bytea, OUT name text, OUT generation integer) \
               RETURNS record VOLATILE PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'data_key_of_wrapper';"
    )]
    fn data_key_of(ciphertext: Option<&[u8]>) -> Record<2> {
        match ciphertext.and_then(data_keys::of_value) {
            Some((name, generation)) => Record([name.into_datum(), generation.into_datum()]),
            None => Record([None, None]),
        }
    }

    /// The rows of view `data_keys`.
    #[pg_extern(volatile, parallel_restricted)]
    #[allow(clippy::type_complexity, reason = "one SQL column after the other")]
    fn data_keys() -> TableIterator<
        'static,
        (
            name!(name, String),
            name!(vault, Name),
            name!(kid, String),
            name!(generation, i32),
            name!(state, &'static str),
            name!(locked_reason, Option<String>),
            name!(signed, bool),
            name!(created_at, Option<TimestampWithTimeZone>),
            name!(rotated_at, Option<TimestampWithTimeZone>),
            name!(last_validated_at, Option<TimestampWithTimeZone>),
        ),
    > {
        TableIterator::new(rows::rows().into_iter().map(|row| {
            (
                row.name,
                Name::new(&row.vault),
                row.kid,
                row.generation,
                row.state,
                row.locked_reason,
                row.signed,
                row.created_at,
                row.rotated_at,
                row.last_validated_at,
            )
        }))
    }

    /// Tells all sessions that rows of data keys have changed.
    #[pg_extern(
        volatile,
        sql = "CREATE FUNCTION azure_key_vault.data_keys_changed() RETURNS trigger LANGUAGE c \
               AS 'MODULE_PATHNAME', 'data_keys_changed_wrapper';"
    )]
    fn data_keys_changed(call: pg_sys::FunctionCallInfo) {
        table::changed(call);
    }
}
