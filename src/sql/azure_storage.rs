//! Schema `azure_storage`: the validator of its wrapper. COPY by URL is `pg/copy`'s.

use pgrx::prelude::*;

#[pg_schema]
mod azure_storage {
    use pgrx::prelude::*;

    use crate::pg::options;

    #[pg_extern(strict, parallel_restricted)]
    fn azure_storage_validator(options: Vec<Option<String>>, catalog: pg_sys::Oid) {
        options::validate_storage(&options::pairs(options), catalog);
    }
}
