//! The tables of wrapped data keys: `data_key`, a row for each generation, `data_key_database`, the id that
//! this database's rows are signed with, and `data_key_validated`, when vault keys could last be used.
//!
//! Nobody has rights on them. They are read as catalogs are, by index and without a query, because a value may be
//! decrypted in a parallel worker, on a standby and by a role that may see no row; they are written as their owner by
//! the functions that check the caller's right first.

use std::cell::Cell;
use std::ffi::CStr;
use std::num::NonZeroUsize;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::{FromDatum, Uuid};

use crate::pg::error::error;
use crate::vault::envelope::KeyId;
use crate::vault::record::Record;

const SCHEMA: &CStr = c"azure_key_vault";
const KEYS: &CStr = c"data_key";
const BY_ID: &CStr = c"data_key_pkey";
const BY_NAME: &CStr = c"data_key_name_generation_key";
const DATABASE: &CStr = c"data_key_database";
const VALIDATED: &CStr = c"data_key_validated";

/// A row of `data_key`.
pub struct Row {
    pub record: Record,
    pub created_at: Option<TimestampWithTimeZone>,
}

/// Whether the tables are there for the rest of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Yes,
    /// Somebody drops the extension just now.
    NotNow,
    /// The extension is not there, or in a version that does not have all tables.
    Gone,
}

/// Keeps the extension from being dropped until the transaction ends. Not waited for, and of the lock that DROP EXTENSION
/// takes first: there is no way to a deadlock with it.
pub fn hold() -> Held {
    let extension = || {
        // SAFETY: a look-up by name; InvalidOid for what is not there.
        unsafe { pg_sys::get_extension_oid(c"managed_identity".as_ptr(), true) }
    };
    let found = extension();
    let tag = pg_sys::LOCKTAG {
        // SAFETY: a plain global.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: pg_sys::ExtensionRelationId.to_u32(),
        locktag_field3: found.to_u32(),
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    if found == pg_sys::InvalidOid {
        return Held::Gone;
    }
    // SAFETY: a lock of this transaction; then what was committed before it was taken is seen.
    let taken = unsafe {
        let taken = pg_sys::LockAcquire(&raw const tag, pg_sys::AccessShareLock as i32, false, true);
        pg_sys::AcceptInvalidationMessages();
        taken
    };
    if taken == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
        return Held::NotNow;
    }
    let all = [KEYS, DATABASE, VALIDATED, c"data_key_event"];
    let are_there = extension() == found && all.iter().all(|name| find(name) != pg_sys::InvalidOid);
    if are_there { Held::Yes } else { Held::Gone }
}

fn find(name: &CStr) -> pg_sys::Oid {
    // SAFETY: syscache look-ups by C strings; InvalidOid for what is not there.
    unsafe { pg_sys::get_relname_relid(name.as_ptr(), pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true)) }
}

/// The oid of a relation of the extension's; raises where the extension's version has none.
fn relation(name: &CStr) -> pg_sys::Oid {
    let oid = find(name);
    if oid == pg_sys::InvalidOid {
        error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            format!("relation \"azure_key_vault.{}\" does not exist", name.to_string_lossy()),
            None,
            Some("ALTER EXTENSION managed_identity UPDATE brings it.".into()),
        );
    }
    oid
}

thread_local! {
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    static TABLE: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
}

#[pg_guard]
unsafe extern "C-unwind" fn invalidated(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    // After DROP and CREATE EXTENSION the table is another one: it is looked up again.
    let table = TABLE.get();
    if relation == pg_sys::InvalidOid || table == pg_sys::InvalidOid || relation == table {
        TABLE.set(pg_sys::InvalidOid);
        CHANGES.set(CHANGES.get() + 1);
    }
}

/// A number that changes whenever a row may have changed, in this session or, once it has committed, in another: a
/// trigger on the table invalidates the relation.
pub fn changes() -> u64 {
    if CHANGES.get() == 0 {
        CHANGES.set(1);
        // SAFETY: a guarded function that only counts, registered once per backend.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(invalidated), pg_sys::Datum::from(0)) };
    }
    if TABLE.get() == pg_sys::InvalidOid {
        TABLE.set(relation(KEYS));
    }
    CHANGES.get()
}

/// What the trigger does. 39P01 for who calls it himself.
#[allow(clippy::not_unsafe_ptr_arg_deref, reason = "only a function that PostgreSQL calls has such a pointer")]
pub fn changed(call: pg_sys::FunctionCallInfo) {
    // SAFETY: a call's own data, which is a trigger's where it says so; the message that is queued is sent when the
    // transaction commits.
    unsafe {
        if !pgrx::trigger_support::called_as_trigger(call) {
            error(
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "trigger functions can only be called as triggers",
                None,
                None,
            );
        }
        let trigger: *mut pg_sys::TriggerData = (*call).context.cast();
        pg_sys::CacheInvalidateRelcache((*trigger).tg_relation);
    }
}

/// The row of this id.
pub fn by_id(id: &KeyId) -> Option<Row> {
    let id = Uuid::from_bytes(*id).into_datum()?;
    scan(KEYS, BY_ID, Some((pg_sys::F_UUID_EQ, id)), row).into_iter().next()
}

/// The rows of all generations of a name.
pub fn by_name(name: &str) -> Vec<Row> {
    let Some(name) = name.into_datum() else { return Vec::new() };
    scan(KEYS, BY_NAME, Some((pg_sys::F_TEXTEQ, name)), row)
}

/// The newest generation of a name.
pub fn newest(name: &str) -> Option<Row> {
    by_name(name).into_iter().max_by_key(|row| row.record.generation)
}

/// All rows.
pub fn all() -> Vec<Row> {
    scan(KEYS, BY_ID, None, row)
}

/// The id that this database's rows are signed with; none before the first data key.
pub fn database_id() -> Option<[u8; 16]> {
    let id = |columns: &Columns| columns.get::<Uuid>(1).map(|id| *id.as_bytes());
    scan(DATABASE, c"data_key_database_pkey", None, id).into_iter().next()
}

/// When a vault key could last be used, as written by a worker.
pub struct Validated {
    pub server: String,
    pub kid: String,
    pub at: TimestampWithTimeZone,
}

pub fn validated() -> Vec<Validated> {
    scan(VALIDATED, c"data_key_validated_pkey", None, |columns| {
        let server = columns.get::<&CStr>(1)?.to_string_lossy().into_owned();
        Some(Validated { server, kid: columns.get(2)?, at: columns.get(3)? })
    })
}

/// Writes when a vault key could last be used, and forgets keys that wrap nothing any more.
pub fn set_validated(server: &str, kid: &str, at: TimestampWithTimeZone) {
    write(
        "INSERT INTO azure_key_vault.data_key_validated (server, kid, validated_at)
             SELECT $1::pg_catalog.name, $2, $3 WHERE EXISTS (
                 SELECT FROM azure_key_vault.data_key
                 WHERE server OPERATOR(pg_catalog.=) $1::pg_catalog.name AND kid OPERATOR(pg_catalog.=) $2)
             ON CONFLICT (server, kid) DO UPDATE SET validated_at = EXCLUDED.validated_at",
        &[server.into(), kid.into(), at.into()],
    );
    write(
        "DELETE FROM azure_key_vault.data_key_validated AS old WHERE NOT EXISTS (
             SELECT FROM azure_key_vault.data_key AS key
             WHERE key.server OPERATOR(pg_catalog.=) old.server AND key.kid OPERATOR(pg_catalog.=) old.kid)",
        &[],
    );
}

/// A tuple and how to read it.
struct Columns {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Columns {
    fn get<T: FromDatum>(&self, number: usize) -> Option<T> {
        // SAFETY: a tuple of this descriptor, whose column has the type asked for: the table is the extension's.
        unsafe {
            let datum = pgrx::heap_getattr_raw(self.tuple, NonZeroUsize::new(number)?, self.descriptor);
            T::from_datum(datum?, false)
        }
    }
}

fn row(columns: &Columns) -> Option<Row> {
    let record = Record {
        id: *columns.get::<Uuid>(1)?.as_bytes(),
        name: columns.get(2)?,
        generation: columns.get(3)?,
        server: columns.get::<&CStr>(4)?.to_string_lossy().into_owned(),
        kid: columns.get(5)?,
        wrapped: columns.get(6)?,
        check: columns.get(7)?,
        signature: columns.get(8),
    };
    Some(Row { record, created_at: columns.get(9) })
}

/// Reads the rows of an index, or those whose first column of it equals a value.
fn scan<T>(
    table: &CStr,
    index: &CStr,
    equal: Option<(u32, pg_sys::Datum)>,
    read: impl Fn(&Columns) -> Option<T>,
) -> Vec<T> {
    let (table, index) = (relation(table), relation(index));
    let mut rows = Vec::new();
    // SAFETY: a scan under AccessShareLock by the latest snapshot, as of a catalog, ended and closed before anything
    // else is done; an ERROR in between leaves both to the resource owner. Rows are copied while their buffer is
    // pinned. The key is initialised for the function and type of the index's first column.
    unsafe {
        let share = pg_sys::AccessShareLock as i32;
        let relation = pg_sys::table_open(table, share);
        let mut key: pg_sys::ScanKeyData = std::mem::zeroed();
        if let Some((procedure, value)) = equal {
            let column = match procedure {
                pg_sys::F_TEXTEQ => 2,
                _ => 1,
            };
            let strategy = pg_sys::BTEqualStrategyNumber as u16;
            pg_sys::ScanKeyInit(&raw mut key, column, strategy, pg_sys::Oid::from(procedure).to_u32().into(), value);
        }
        let keys = i32::from(equal.is_some());
        let scan = pg_sys::systable_beginscan(relation, index, true, std::ptr::null_mut(), keys, &raw mut key);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            rows.extend(read(&Columns { tuple, descriptor: (*relation).rd_att }));
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, share);
    }
    rows
}

/// Runs a statement as the tables' owner, for a caller who has been allowed that; returns how many rows it changed.
pub fn write(statement: &str, arguments: &[DatumWithOid]) -> usize {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: plain values; an ERROR restores both with the transaction.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let owner = owner_of(relation(KEYS));
        pg_sys::SetUserIdAndSecContext(owner, context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
    }
    let result = Spi::connect_mut(|client| client.update(statement, None, arguments).map(|rows| rows.len()));
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) };
    result.unwrap_or_else(|failure| {
        error(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("could not write data keys: {failure}"), None, None)
    })
}

/// # Safety
/// The oid of a relation that is there.
unsafe fn owner_of(relation: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: as the caller promises; opened without a lock beyond this call.
    unsafe {
        let share = pg_sys::AccessShareLock as i32;
        let opened = pg_sys::table_open(relation, share);
        let owner = (*(*opened).rd_rel).relowner;
        pg_sys::table_close(opened, share);
        owner
    }
}

/// The id that this database's rows are signed with, made by the first who needs it.
pub fn make_database_id() -> [u8; 16] {
    if let Some(id) = database_id() {
        return id;
    }
    write(
        "INSERT INTO azure_key_vault.data_key_database (id) VALUES (pg_catalog.gen_random_uuid())
             ON CONFLICT DO NOTHING",
        &[],
    );
    // SAFETY: makes what was just written visible to the scan.
    unsafe { pg_sys::CommandCounterIncrement() };
    database_id().unwrap_or_else(|| {
        error(
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            "another transaction is creating this database's first data key",
            None,
            Some("Try again.".into()),
        )
    })
}

/// Adds a generation.
pub fn insert(record: &Record) {
    let Record { id, name, generation, server, kid, wrapped, check, signature } = record;
    let id = Uuid::from_bytes(*id);
    write(
        "INSERT INTO azure_key_vault.data_key
                 (id, name, generation, server, kid, wrapped, check_value, signature)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            id.into(),
            name.as_str().into(),
            (*generation).into(),
            server.as_str().into(),
            kid.as_str().into(),
            wrapped.as_slice().into(),
            check.as_slice().into(),
            signature.as_deref().into(),
        ],
    );
}

/// Replaces a generation's wrap, if it is still the one that was read.
pub fn replace(old: &Record, new: &Record) -> bool {
    let id = Uuid::from_bytes(new.id);
    let changed = write(
        "UPDATE azure_key_vault.data_key
             SET server = $2, kid = $3, wrapped = $4, signature = $5, wrapped_at = pg_catalog.now()
             WHERE id OPERATOR(pg_catalog.=) $1 AND wrapped OPERATOR(pg_catalog.=) $6",
        &[
            id.into(),
            new.server.as_str().into(),
            new.kid.as_str().into(),
            new.wrapped.as_slice().into(),
            new.signature.as_deref().into(),
            old.wrapped.as_slice().into(),
        ],
    );
    changed == 1
}
