//! The one row of a function with OUT parameters, which pgrx does not map.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{ArgumentError, Returns, ReturnsError, SqlMapping, SqlTranslatable};

/// The row's columns in order; None is NULL.
pub struct Record<const N: usize>(pub [Option<pg_sys::Datum>; N]);

// SAFETY: the tuple is made by the descriptor of the function's own declaration, which is checked to have
// as many columns; their types are the declaration's, as with every function that is not generated.
unsafe impl<const N: usize> BoxRet for Record<N> {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        let mut nulls = self.0.map(|column| column.is_none());
        let mut values = self.0.map(|column| column.unwrap_or(pg_sys::Datum::from(0)));
        // SAFETY: the call's own data; the arrays have as many entries as the descriptor has columns.
        unsafe {
            let mut columns = std::ptr::null_mut();
            let class = pg_sys::get_call_result_type(fcinfo.as_mut_ptr(), std::ptr::null_mut(), &mut columns);
            assert!(class == pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE && (*columns).natts as usize == N);
            let tuple =
                pg_sys::heap_form_tuple(pg_sys::BlessTupleDesc(columns), values.as_mut_ptr(), nulls.as_mut_ptr());
            fcinfo.return_raw_datum(pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data))
        }
    }
}

// SAFETY: what the SQL declaration says.
unsafe impl<const N: usize> SqlTranslatable for Record<N> {
    fn argument_sql() -> Result<SqlMapping, ArgumentError> {
        Ok(SqlMapping::literal("record"))
    }

    fn return_sql() -> Result<Returns, ReturnsError> {
        Ok(Returns::One(SqlMapping::literal("record")))
    }
}
