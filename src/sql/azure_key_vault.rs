//! Schema `azure_key_vault`: secrets, and the validator of its wrapper.

use pgrx::prelude::*;

#[pg_schema]
mod azure_key_vault {
    use pgrx::prelude::*;

    use crate::pg::name::Name;
    use crate::pg::text::SqlText;
    use crate::pg::{options, tokens, vault_calls};

    /// The value of a secret.
    #[pg_extern(volatile, parallel_restricted)]
    fn secret(vault: Option<Name>, name: Option<&str>, version: default!(Option<&str>, "NULL")) -> SqlText {
        let vault = vault.unwrap_or_else(|| tokens::null_argument("vault"));
        let name = name.unwrap_or_else(|| tokens::null_argument("name"));
        vault_calls::secret(vault.as_c_str(), name, version)
    }

    #[pg_extern(strict, parallel_restricted)]
    fn azure_key_vault_validator(options: Vec<Option<String>>, catalog: pg_sys::Oid) {
        options::validate_vault(&options::pairs(options), catalog);
    }
}
