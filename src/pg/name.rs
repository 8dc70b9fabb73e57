//! PostgreSQL's type `name`, which pgrx does not map.

use std::ffi::{CStr, CString};

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::pgrx_sql_entity_graph::metadata::{ArgumentError, Returns, ReturnsError, SqlMapping, SqlTranslatable};
use pgrx::{FromDatum, IntoDatum, pg_sys};

/// An identifier as a function argument or result: at most 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(CString);

impl Name {
    /// A name PostgreSQL gave us.
    pub fn new(name: &CStr) -> Self {
        Self(name.into())
    }

    pub fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

impl FromDatum for Name {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _type: pg_sys::Oid) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: a datum of type name points to NAMEDATALEN bytes that hold a C string.
        Some(Self(unsafe { CStr::from_ptr(datum.cast_mut_ptr()) }.into()))
    }
}

impl IntoDatum for Name {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        // SAFETY: palloc gives room for a NameData; namestrcpy fills all of it and truncates.
        unsafe {
            let name: *mut pg_sys::NameData = pg_sys::palloc(size_of::<pg_sys::NameData>()).cast();
            pg_sys::namestrcpy(name, self.0.as_ptr());
            Some(pg_sys::Datum::from(name))
        }
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::NAMEOID
    }
}

// SAFETY: unboxing reads the datum as the name that its SQL type says it is.
unsafe impl<'fcx> ArgAbi<'fcx> for Name {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the SQL declaration gives this argument the type name; a NULL never comes here, as
        // nullable arguments are declared Option<Name>.
        unsafe { arg.unbox_arg_using_from_datum() }.unwrap_or_else(|| Self(CString::default()))
    }
}

// SAFETY: returns a datum of the type that the SQL declaration names.
unsafe impl BoxRet for Name {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: as above.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}

// SAFETY: the mapping names the type that the conversions above read and write.
unsafe impl SqlTranslatable for Name {
    fn argument_sql() -> Result<SqlMapping, ArgumentError> {
        Ok(SqlMapping::literal("name"))
    }

    fn return_sql() -> Result<Returns, ReturnsError> {
        Ok(Returns::One(SqlMapping::literal("name")))
    }
}
