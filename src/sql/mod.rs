//! The SQL functions, one file per schema: arguments in, one call, result out.

#![allow(unsafe_code)] // pgrx's macros expand to it; ours stands in src/pg.

mod azure_key_vault;
mod azure_storage;
mod data_keys;
mod managed_identity;
