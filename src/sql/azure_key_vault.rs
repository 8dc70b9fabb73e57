//! Schema `azure_key_vault`: secrets, what keys do in their vault, and the validator of its wrapper.

use pgrx::prelude::*;

#[pg_schema]
mod azure_key_vault {
    use pgrx::datum::TimestampWithTimeZone;
    use pgrx::prelude::*;

    use crate::pg::name::Name;
    use crate::pg::record::Record;
    use crate::pg::text::{SqlBytes, SqlText, jsonb};
    use crate::pg::tokens::null_argument;
    use crate::pg::vault_calls::{self, KeyCall};
    use crate::pg::{clock, options, vault_diagnose};

    /// The value of a secret.
    #[pg_extern(volatile, parallel_restricted)]
    fn secret(vault: Option<Name>, name: Option<&str>, version: default!(Option<&str>, "NULL")) -> SqlText {
        let vault = vault.unwrap_or_else(|| null_argument("vault"));
        let name = name.unwrap_or_else(|| null_argument("name"));
        vault_calls::secret(vault.as_c_str(), name, version)
    }

    /// What there is to know of a secret without its value.
    #[pg_extern(
        volatile,
        parallel_restricted,
        sql = "CREATE FUNCTION azure_key_vault.secret_properties(vault name, name text, version text DEFAULT NULL, \
               OUT id text, OUT content_type text, OUT enabled boolean, OUT not_before timestamptz, \
               OUT expires_at timestamptz, OUT created_at timestamptz, OUT updated_at timestamptz, OUT tags jsonb) \
               RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c \
               AS 'MODULE_PATHNAME', 'secret_properties_wrapper';"
    )]
    fn secret_properties(
        vault: Option<Name>,
        name: Option<&str>,
        version: default!(Option<&str>, "NULL"),
    ) -> Record<8> {
        let vault = vault.unwrap_or_else(|| null_argument("vault"));
        let name = name.unwrap_or_else(|| null_argument("name"));
        let secret = vault_calls::secret_properties(vault.as_c_str(), name, version);
        let attributes = secret.attributes;
        Record([
            secret.id.into_datum(),
            secret.content_type.map(|text| SqlText::from_utf8(&text).datum()),
            attributes.enabled.into_datum(),
            time(attributes.not_before).into_datum(),
            time(attributes.expires_at).into_datum(),
            time(attributes.created_at).into_datum(),
            time(attributes.updated_at).into_datum(),
            jsonb(&secret.tags.into()),
        ])
    }

    /// A key's public part and attributes.
    #[pg_extern(
        volatile,
        parallel_restricted,
        sql = "CREATE FUNCTION azure_key_vault.key(vault name, name text, version text DEFAULT NULL, OUT kid text, \
               OUT key_type text, OUT key_ops text[], OUT enabled boolean, OUT not_before timestamptz, \
               OUT expires_at timestamptz, OUT created_at timestamptz, OUT updated_at timestamptz, OUT jwk jsonb) \
               RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'key_wrapper';"
    )]
    fn key(vault: Option<Name>, name: Option<&str>, version: default!(Option<&str>, "NULL")) -> Record<9> {
        let vault = vault.unwrap_or_else(|| null_argument("vault"));
        let name = name.unwrap_or_else(|| null_argument("name"));
        let key = vault_calls::key(vault.as_c_str(), name, version);
        Record([
            key.kid.to_string().into_datum(),
            key.key_type.into_datum(),
            key.key_ops.into_datum(),
            key.enabled.into_datum(),
            time(key.not_before).into_datum(),
            time(key.expires_at).into_datum(),
            time(key.created_at).into_datum(),
            time(key.updated_at).into_datum(),
            jsonb(&key.jwk),
        ])
    }

    /// A key's versions.
    #[pg_extern(volatile, parallel_restricted)]
    #[allow(clippy::type_complexity, reason = "one SQL column after the other")]
    fn key_versions(
        vault: Option<Name>,
        name: Option<&str>,
    ) -> TableIterator<
        'static,
        (
            name!(kid, String),
            name!(enabled, bool),
            name!(not_before, Option<TimestampWithTimeZone>),
            name!(expires_at, Option<TimestampWithTimeZone>),
            name!(created_at, Option<TimestampWithTimeZone>),
            name!(updated_at, Option<TimestampWithTimeZone>),
        ),
    > {
        let vault = vault.unwrap_or_else(|| null_argument("vault"));
        let name = name.unwrap_or_else(|| null_argument("name"));
        TableIterator::new(vault_calls::key_versions(vault.as_c_str(), name).into_iter().map(|version| {
            let attributes = version.attributes;
            (
                version.kid.to_string(),
                attributes.enabled,
                time(attributes.not_before),
                time(attributes.expires_at),
                time(attributes.created_at),
                time(attributes.updated_at),
            )
        }))
    }

    /// Wraps a key by the newest version of the vault's; tells which that was.
    #[pg_extern(
        volatile,
        parallel_restricted,
        sql = "CREATE FUNCTION azure_key_vault.wrap_key(vault name, key text, plaintext bytea, \
               algorithm text DEFAULT 'RSA-OAEP-256', OUT kid text, OUT ciphertext bytea) RETURNS record VOLATILE \
               PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'wrap_key_wrapper';"
    )]
    fn wrap_key(
        vault: Option<Name>,
        key: Option<&str>,
        plaintext: Option<&[u8]>,
        algorithm: Option<&str>,
    ) -> Record<2> {
        with_newest(vault_calls::wrap, vault, key, ("plaintext", plaintext), algorithm)
    }

    /// Unwraps a key by the version of the vault's that has wrapped it.
    #[pg_extern(volatile, parallel_restricted)]
    fn unwrap_key(
        vault: Option<Name>,
        kid: Option<&str>,
        ciphertext: Option<&[u8]>,
        algorithm: default!(Option<&str>, "'RSA-OAEP-256'"),
    ) -> SqlBytes {
        with_version(vault_calls::unwrap, vault, kid, ciphertext, algorithm)
    }

    /// Encrypts a short value by the newest version of a key; tells which that was.
    #[pg_extern(
        volatile,
        parallel_restricted,
        sql = "CREATE FUNCTION azure_key_vault.encrypt(vault name, key text, plaintext bytea, \
               algorithm text DEFAULT 'RSA-OAEP-256', OUT kid text, OUT ciphertext bytea) RETURNS record VOLATILE \
               PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'encrypt_wrapper';"
    )]
    fn encrypt(vault: Option<Name>, key: Option<&str>, plaintext: Option<&[u8]>, algorithm: Option<&str>) -> Record<2> {
        with_newest(vault_calls::encrypt, vault, key, ("plaintext", plaintext), algorithm)
    }

    /// Decrypts a value by the version of the key that has encrypted it.
    #[pg_extern(volatile, parallel_restricted)]
    fn decrypt(
        vault: Option<Name>,
        kid: Option<&str>,
        ciphertext: Option<&[u8]>,
        algorithm: default!(Option<&str>, "'RSA-OAEP-256'"),
    ) -> SqlBytes {
        with_version(vault_calls::decrypt, vault, kid, ciphertext, algorithm)
    }

    /// Signs a digest by the newest version of a key; tells which that was.
    #[pg_extern(
        volatile,
        parallel_restricted,
        sql = "CREATE FUNCTION azure_key_vault.sign(vault name, key text, digest bytea, algorithm text DEFAULT 'PS256', \
               OUT kid text, OUT signature bytea) RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c \
               AS 'MODULE_PATHNAME', 'sign_wrapper';"
    )]
    fn sign(vault: Option<Name>, key: Option<&str>, digest: Option<&[u8]>, algorithm: Option<&str>) -> Record<2> {
        with_newest(vault_calls::sign, vault, key, ("digest", digest), algorithm)
    }

    /// Whether a signature of a digest is that of this version of a key.
    #[pg_extern(volatile, parallel_restricted)]
    fn verify(
        vault: Option<Name>,
        kid: Option<&str>,
        digest: Option<&[u8]>,
        signature: Option<&[u8]>,
        algorithm: default!(Option<&str>, "'PS256'"),
    ) -> bool {
        let vault = vault.unwrap_or_else(|| null_argument("vault"));
        let kid = kid.unwrap_or_else(|| null_argument("kid"));
        let digest = digest.unwrap_or_else(|| null_argument("digest"));
        let signature = signature.unwrap_or_else(|| null_argument("signature"));
        let algorithm = algorithm.unwrap_or_else(|| null_argument("algorithm"));
        vault_calls::verify(vault.as_c_str(), kid, digest, signature, algorithm)
    }

    /// Goes the way to a vault, and to a key in it, and tells of each step what was found.
    #[pg_extern(volatile, parallel_restricted, name = "diagnose")]
    fn diagnose_vault(
        vault: Option<Name>,
        key: default!(Option<&str>, "NULL"),
    ) -> TableIterator<
        'static,
        (name!(step, &'static str), name!(status, &'static str), name!(detail, String), name!(hint, Option<String>)),
    > {
        let vault = vault.unwrap_or_else(|| null_argument("vault"));
        let steps = vault_diagnose::steps(vault.as_c_str(), key);
        TableIterator::new(steps.into_iter().map(|step| (step.name, step.status.as_str(), step.detail, step.hint)))
    }

    fn with_newest(
        call: KeyCall,
        vault: Option<Name>,
        key: Option<&str>,
        value: (&str, Option<&[u8]>),
        algorithm: Option<&str>,
    ) -> Record<2> {
        let vault = vault.unwrap_or_else(|| null_argument("vault"));
        let key = key.unwrap_or_else(|| null_argument("key"));
        let value = value.1.unwrap_or_else(|| null_argument(value.0));
        let algorithm = algorithm.unwrap_or_else(|| null_argument("algorithm"));
        let done = call(vault.as_c_str(), key, algorithm, value);
        Record([done.kid.to_string().into_datum(), Some(SqlBytes::new(&done.value).datum())])
    }

    fn with_version(
        call: KeyCall,
        vault: Option<Name>,
        kid: Option<&str>,
        ciphertext: Option<&[u8]>,
        algorithm: Option<&str>,
    ) -> SqlBytes {
        let vault = vault.unwrap_or_else(|| null_argument("vault"));
        let kid = kid.unwrap_or_else(|| null_argument("kid"));
        let ciphertext = ciphertext.unwrap_or_else(|| null_argument("ciphertext"));
        let algorithm = algorithm.unwrap_or_else(|| null_argument("algorithm"));
        SqlBytes::new(&call(vault.as_c_str(), kid, algorithm, ciphertext).value)
    }

    fn time(seconds: Option<i64>) -> Option<TimestampWithTimeZone> {
        seconds.and_then(clock::timestamp)
    }

    #[pg_extern(strict, parallel_restricted)]
    fn azure_key_vault_validator(options: Vec<Option<String>>, catalog: pg_sys::Oid) {
        options::validate_vault(&options::pairs(options), catalog);
    }
}
