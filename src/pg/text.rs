//! Text, bytes and JSON made by us as SQL values.

use std::ffi::CString;

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{ArgumentError, Returns, ReturnsError, SqlMapping, SqlTranslatable};

/// A datum of type text in the current memory context. Made from UTF-8 without a copy on Rust's heap.
pub struct SqlText(pg_sys::Datum);

impl SqlText {
    /// Converts to the database's encoding; raises where that has no such character (22P05).
    pub fn from_utf8(text: &str) -> Self {
        let length = i32::try_from(text.len()).unwrap_or(i32::MAX);
        // SAFETY: reads `length` bytes of `text`; the result is the same pointer or a palloc'd C string.
        unsafe {
            let converted = pg_sys::pg_any_to_server(text.as_ptr().cast(), length, pg_sys::pg_enc::PG_UTF8 as i32);
            if std::ptr::eq(converted.cast(), text.as_ptr()) {
                return Self(pg_sys::Datum::from(pg_sys::cstring_to_text_with_len(converted, length)));
            }
            Self(pg_sys::Datum::from(pg_sys::cstring_to_text(converted)))
        }
    }

    /// The value itself, for a column.
    pub fn datum(self) -> pg_sys::Datum {
        self.0
    }

    /// The same for text that is ASCII, which every server encoding contains.
    pub fn from_ascii(parts: &[&str]) -> Self {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let header = size_of::<i32>();
        // SAFETY: palloc gives room for the header and all parts, which fill it exactly.
        unsafe {
            let value = pg_sys::palloc(header + length).cast::<u8>();
            pgrx::varlena::set_varsize_4b(value.cast(), (header + length) as i32);
            let mut at = value.add(header);
            for part in parts {
                std::ptr::copy_nonoverlapping(part.as_ptr(), at, part.len());
                at = at.add(part.len());
            }
            Self(pg_sys::Datum::from(value))
        }
    }
}

// SAFETY: returns a datum of the type that the SQL declaration names.
unsafe impl BoxRet for SqlText {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: a text datum in the caller's memory context.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}

// SAFETY: the mapping names the type that is returned.
unsafe impl SqlTranslatable for SqlText {
    fn argument_sql() -> Result<SqlMapping, ArgumentError> {
        Ok(SqlMapping::literal("text"))
    }

    fn return_sql() -> Result<Returns, ReturnsError> {
        Ok(Returns::One(SqlMapping::literal("text")))
    }
}

/// A value of type jsonb in the current memory context. Its text goes through the database's encoding as all text
/// does; raises where that has no such character.
pub fn jsonb(value: &serde_json::Value) -> Option<pg_sys::Datum> {
    let text = CString::new(value.to_string()).ok()?;
    let length = i32::try_from(text.as_bytes().len()).ok()?;
    // SAFETY: reads `length` bytes and a zero; jsonb_in takes a C string in the database's encoding.
    unsafe {
        let converted = pg_sys::pg_any_to_server(text.as_ptr(), length, pg_sys::pg_enc::PG_UTF8 as i32);
        pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(pg_sys::Datum::from(converted))])
    }
}

/// A datum of type bytea in the current memory context.
pub struct SqlBytes(pg_sys::Datum);

impl SqlBytes {
    pub fn new(bytes: &[u8]) -> Self {
        let header = size_of::<i32>();
        // SAFETY: palloc gives room for the header and the bytes, which fill it exactly.
        unsafe {
            let value = pg_sys::palloc(header + bytes.len()).cast::<u8>();
            pgrx::varlena::set_varsize_4b(value.cast(), (header + bytes.len()) as i32);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.add(header), bytes.len());
            Self(pg_sys::Datum::from(value))
        }
    }

    /// The value itself, for a column.
    pub fn datum(self) -> pg_sys::Datum {
        self.0
    }
}

// SAFETY: returns a datum of the type that the SQL declaration names.
unsafe impl BoxRet for SqlBytes {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: a bytea datum in the caller's memory context.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}

// SAFETY: the mapping names the type that is returned.
unsafe impl SqlTranslatable for SqlBytes {
    fn argument_sql() -> Result<SqlMapping, ArgumentError> {
        Ok(SqlMapping::literal("bytea"))
    }

    fn return_sql() -> Result<Returns, ReturnsError> {
        Ok(Returns::One(SqlMapping::literal("bytea")))
    }
}
