//! Bytes made by us as an SQL value, and those that SQL gives us.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{ArgumentError, Returns, ReturnsError, SqlMapping, SqlTranslatable};

use super::error::error;
use super::text::SqlText;

/// `MaxAllocSize` of memutils.h, header included.
const LONGEST: usize = 0x3fff_ffff;

/// A datum of type bytea in the current memory context, filled in place: no copy is left on Rust's heap.
pub struct Bytea(*mut pg_sys::varlena);

impl Bytea {
    /// Of zeros; 54000 where that is more than a value can hold.
    pub fn new(length: usize) -> Self {
        let size = length + pg_sys::VARHDRSZ;
        if size > LONGEST {
            error(
                pgrx::PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                "the value is too large",
                Some(format!("A bytea has at most {} bytes.", LONGEST - pg_sys::VARHDRSZ)),
                None,
            );
        }
        // SAFETY: palloc gives room for the header and the bytes.
        unsafe {
            let value = pg_sys::palloc0(size).cast();
            pgrx::varlena::set_varsize_4b(value, size as i32);
            Self(value)
        }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: made by `new` with this length, and nobody else's while `self` is borrowed.
        unsafe {
            let length = pgrx::varlena::varsize_4b(self.0) - pg_sys::VARHDRSZ;
            std::slice::from_raw_parts_mut(self.0.cast::<u8>().add(pg_sys::VARHDRSZ), length)
        }
    }
}

impl Bytea {
    /// UTF-8 as text in the database's encoding; 22021 where it is none.
    pub fn into_text(mut self) -> SqlText {
        match std::str::from_utf8(self.bytes()) {
            Ok(text) => SqlText::from_utf8(text),
            Err(_) => error(
                pgrx::PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
                "the decrypted value is no text",
                Some("It is not UTF-8.".into()),
                Some("Use decrypt_value() for what was encrypted by encrypt_value().".into()),
            ),
        }
    }
}

/// Text that SQL gave us, as UTF-8.
pub struct Utf8(*const u8, usize);

impl Utf8 {
    /// From the database's encoding; raises where there is no such character.
    pub fn from_server(text: &[u8]) -> Self {
        // SAFETY: reads so many bytes; the result is the same pointer or a palloc'd C string.
        unsafe {
            let length = text.len() as i32;
            let converted = pg_sys::pg_server_to_any(text.as_ptr().cast(), length, pg_sys::pg_enc::PG_UTF8 as i32);
            let length = if std::ptr::eq(converted.cast(), text.as_ptr()) {
                text.len()
            } else {
                std::ffi::CStr::from_ptr(converted).count_bytes()
            };
            Self(converted.cast(), length)
        }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as made; it lives as long as the function's call.
        unsafe { std::slice::from_raw_parts(self.0, self.1) }
    }
}

// SAFETY: returns a datum of the type that the SQL declaration names.
unsafe impl BoxRet for Bytea {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: a bytea datum in the caller's memory context.
        unsafe { fcinfo.return_raw_datum(pg_sys::Datum::from(self.0)) }
    }
}

// SAFETY: the mapping names the type that is returned.
unsafe impl SqlTranslatable for Bytea {
    fn argument_sql() -> Result<SqlMapping, ArgumentError> {
        Ok(SqlMapping::literal("bytea"))
    }

    fn return_sql() -> Result<Returns, ReturnsError> {
        Ok(Returns::One(SqlMapping::literal("bytea")))
    }
}
