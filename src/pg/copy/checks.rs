//! What core's `DoCopy` does before any data moves, in its order and with its words: locks, the WHERE
//! clause, rights on table and columns, row-level security.

use std::ffi::{CStr, c_int};

use pgrx::PgList;
use pgrx::prelude::*;

use super::statement::Statement;
use crate::pg::compat;
use crate::pg::error::error;

/// What is copied: a relation, or a query.
pub struct Subject {
    /// NULL for a query.
    pub rel: pg_sys::Relation,
    /// NULL for a relation.
    pub query: *mut pg_sys::RawStmt,
    /// The relation that a query must turn out to read: row-level security made it one.
    pub relid: pg_sys::Oid,
    pub where_clause: *mut pg_sys::Node,
}

impl Subject {
    /// The last thing that `DoCopy` does.
    pub fn close(self) {
        if !self.rel.is_null() {
            // SAFETY: opened by [`check`]; the lock is kept until the transaction ends.
            unsafe { pg_sys::table_close(self.rel, pg_sys::NoLock as pg_sys::LOCKMODE) };
        }
    }
}

/// Checks everything that can be checked before the data is touched.
pub fn check(statement: &Statement) -> Subject {
    // SAFETY: our own copy of the tree, in which a relation or a query is set.
    unsafe { if (*statement.stmt).relation.is_null() { query(statement) } else { relation(statement) } }
}

/// # Safety
/// The statement has a query.
unsafe fn query(statement: &Statement) -> Subject {
    // SAFETY: as the caller promises.
    unsafe {
        let query = (*statement.stmt).query;
        if compat::COPY_REFUSES_MERGE && (*query).type_ == pg_sys::NodeTag::T_MergeStmt {
            error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, "MERGE not supported in COPY", None, None);
        }
        Subject {
            rel: std::ptr::null_mut(),
            query: raw_statement(statement, query),
            relid: pg_sys::InvalidOid,
            where_clause: std::ptr::null_mut(),
        }
    }
}

/// # Safety
/// The statement has a relation.
unsafe fn relation(statement: &Statement) -> Subject {
    let is_from = statement.is_from();
    let lock = (if is_from { pg_sys::RowExclusiveLock } else { pg_sys::AccessShareLock }) as pg_sys::LOCKMODE;
    // SAFETY: the tree's nodes are what the grammar made them; the relation stays open and locked.
    unsafe {
        let (pstate, stmt) = (statement.pstate, statement.stmt);
        let rel = pg_sys::table_openrv((*stmt).relation, lock);
        let relid = (*rel).rd_id;
        let item = pg_sys::addRangeTableEntryForRelation(pstate, rel, lock, std::ptr::null_mut(), false, false);
        let where_clause =
            if (*stmt).whereClause.is_null() { std::ptr::null_mut() } else { where_clause(statement, rel, item) };
        let columns = pg_sys::CopyGetAttnums((*rel).rd_att, rel, (*stmt).attlist);
        compat::check_copy_permissions(pstate, item, is_from, columns);

        let rls = pg_sys::check_enable_rls(relid, pg_sys::InvalidOid, false);
        if rls != pg_sys::CheckEnableRlsResult::RLS_ENABLED as c_int {
            return Subject { rel, query: std::ptr::null_mut(), relid, where_clause };
        }
        if is_from {
            error(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "COPY FROM not supported with row-level security",
                None,
                Some("Use INSERT statements instead.".into()),
            );
        }
        let query = raw_statement(statement, select_from(rel, (*stmt).attlist));
        // The lock stays, so that the query finds the relation as it was.
        pg_sys::table_close(rel, pg_sys::NoLock as pg_sys::LOCKMODE);
        Subject { rel: std::ptr::null_mut(), query, relid, where_clause }
    }
}

/// The WHERE clause of COPY FROM, ready to be evaluated for each row.
///
/// # Safety
/// `rel` is open and `item` is its entry in the statement's parse state.
unsafe fn where_clause(
    statement: &Statement,
    rel: pg_sys::Relation,
    item: *mut pg_sys::ParseNamespaceItem,
) -> *mut pg_sys::Node {
    let pstate = statement.pstate;
    // SAFETY: as the caller promises.
    unsafe {
        pg_sys::addNSItemToQuery(pstate, item, false, true, true);
        let kind = pg_sys::ParseExprKind::EXPR_KIND_COPY_WHERE;
        let mut clause = pg_sys::transformExpr(pstate, (*statement.stmt).whereClause, kind);
        clause = pg_sys::coerce_to_boolean(pstate, clause, c"WHERE".as_ptr());
        pg_sys::assign_expr_collations(pstate, clause);
        refuse_generated_columns(rel, clause);
        clause = pg_sys::eval_const_expressions(std::ptr::null_mut(), clause);
        clause = pg_sys::canonicalize_qual(clause.cast(), false).cast();
        pg_sys::make_ands_implicit(clause.cast()).cast()
    }
}

/// Generated columns are computed after the filter; a reference to the whole row refers to them, too.
///
/// # Safety
/// `rel` is open, and `clause` refers to it as the first relation.
unsafe fn refuse_generated_columns(rel: pg_sys::Relation, clause: *mut pg_sys::Node) {
    const FIRST: c_int = pg_sys::FirstLowInvalidHeapAttributeNumber;
    // SAFETY: as the caller promises; the set lives in the current context.
    unsafe {
        let mut columns = std::ptr::null_mut();
        pg_sys::pull_varattnos(clause, 1, &mut columns);
        if pg_sys::bms_is_member(-FIRST, columns) {
            let last = c_int::from((*(*rel).rd_rel).relnatts) - FIRST;
            columns = pg_sys::bms_add_range(columns, 1 - FIRST, last);
            columns = pg_sys::bms_del_member(columns, -FIRST);
        }
        let mut member = -1;
        loop {
            member = pg_sys::bms_next_member(columns, member);
            if member < 0 {
                return;
            }
            let column = (member + FIRST) as pg_sys::AttrNumber;
            if column > 0 && pg_sys::get_attgenerated((*rel).rd_id, column) != 0 {
                let name = CStr::from_ptr(pg_sys::get_attname((*rel).rd_id, column, false));
                error(
                    PgSqlErrorCode::ERRCODE_INVALID_COLUMN_REFERENCE,
                    "generated columns are not supported in COPY FROM WHERE conditions",
                    Some(format!("Column \"{}\" is a generated column.", name.to_string_lossy())),
                    None,
                );
            }
        }
    }
}

/// `SELECT columns FROM ONLY rel`, through which row-level security applies.
///
/// # Safety
/// `rel` is open; `columns` is NULL or a list of String nodes.
unsafe fn select_from(rel: pg_sys::Relation, columns: *mut pg_sys::List) -> *mut pg_sys::Node {
    // SAFETY: each node is allocated with its own size and tag, in the current context.
    unsafe {
        let target = |field: *mut pg_sys::Node| {
            let column: *mut pg_sys::ColumnRef = node(pg_sys::NodeTag::T_ColumnRef);
            (*column).fields = pg_sys::lappend(std::ptr::null_mut(), field.cast());
            (*column).location = -1;
            let target: *mut pg_sys::ResTarget = node(pg_sys::NodeTag::T_ResTarget);
            (*target).val = column.cast();
            (*target).location = -1;
            target
        };
        let mut targets = std::ptr::null_mut();
        if columns.is_null() {
            let star: *mut pg_sys::A_Star = node(pg_sys::NodeTag::T_A_Star);
            targets = pg_sys::lappend(targets, target(star.cast()).cast());
        }
        for column in PgList::<pg_sys::Node>::from_pg(columns).iter_ptr() {
            targets = pg_sys::lappend(targets, target(column).cast());
        }
        let schema = pg_sys::get_namespace_name((*(*rel).rd_rel).relnamespace);
        let name = pg_sys::pstrdup((*(*rel).rd_rel).relname.data.as_ptr());
        let from = pg_sys::makeRangeVar(schema, name, -1);
        (*from).inh = false;
        let select: *mut pg_sys::SelectStmt = node(pg_sys::NodeTag::T_SelectStmt);
        (*select).targetList = targets;
        (*select).fromClause = pg_sys::lappend(std::ptr::null_mut(), from.cast());
        select.cast()
    }
}

/// # Safety
/// `query` is a statement's tree.
unsafe fn raw_statement(statement: &Statement, query: *mut pg_sys::Node) -> *mut pg_sys::RawStmt {
    // SAFETY: a new node of that type.
    unsafe {
        let raw: *mut pg_sys::RawStmt = node(pg_sys::NodeTag::T_RawStmt);
        (*raw).stmt = query;
        (*raw).stmt_location = statement.location;
        (*raw).stmt_len = statement.length;
        raw
    }
}

/// A node of zeros with its tag, as `makeNode` makes it.
///
/// # Safety
/// `N` is the type that belongs to the tag.
unsafe fn node<N>(tag: pg_sys::NodeTag) -> *mut N {
    // SAFETY: as large as the type, and every node begins with its tag.
    unsafe {
        let new: *mut N = pg_sys::palloc0(size_of::<N>()).cast();
        (*new.cast::<pg_sys::Node>()).type_ = tag;
        new
    }
}
