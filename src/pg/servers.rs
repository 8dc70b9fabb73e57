//! Our foreign servers in the catalog: which they are, whose they are, who may use them.
//!
//! Everything that matters is checked at each use: a validator sees neither a server's name nor its
//! owner, and reads no catalog. What a server stands for is `identities`', `storage`'s and `vault`'s.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString};

use pgrx::PgList;
use pgrx::prelude::*;

use super::compat;
use super::error::{error, raise};
use crate::http::failure::{Failure, Kind};

/// Our three foreign-data wrappers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapper {
    Identity,
    Storage,
    Vault,
}

impl Wrapper {
    fn name(self) -> &'static str {
        match self {
            Self::Identity => "managed_identity",
            Self::Storage => "azure_storage",
            Self::Vault => "azure_key_vault",
        }
    }
}

/// A foreign server, read from the catalog.
pub struct Server {
    pub oid: pg_sys::Oid,
    pub name: CString,
    wrapper: pg_sys::Oid,
    pub owner: pg_sys::Oid,
    /// TYPE, where CREATE SERVER gave one.
    kind: Option<String>,
    options: Vec<(String, String)>,
}

impl Server {
    /// None if the server is gone, as one can be that a scan has just found.
    fn load(oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: the result and what it points to live in the current memory context, and are copied out
        // before anything else runs.
        unsafe {
            let server = pg_sys::GetForeignServerExtended(oid, pg_sys::FSV_MISSING_OK as u16);
            if server.is_null() {
                return None;
            }
            let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
            let mut options = Vec::new();
            for option in PgList::<pg_sys::DefElem>::from_pg((*server).options).iter_ptr() {
                options.push((text((*option).defname), text(pg_sys::defGetString(option))));
            }
            Some(Self {
                oid,
                name: CStr::from_ptr((*server).servername).into(),
                wrapper: (*server).fdwid,
                owner: (*server).owner,
                kind: (!(*server).servertype.is_null()).then(|| text((*server).servertype)),
                options,
            })
        }
    }

    /// The name as messages show it.
    pub fn display(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    /// The value of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(option, _)| option == name).map(|(_, value)| value.as_str())
    }

    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// An identity's options; its TYPE stands for option `kind`.
    pub fn kind_and_options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.kind.iter().map(|kind| ("kind", kind.as_str())).chain(self.options())
    }

    /// pg_dump keeps grants on a member of an extension, but not its options, its name or its owner: after a
    /// restore such a server would mean another identity to the same roles, or be lost to some.
    pub fn refuse_changed_member(&self) {
        // SAFETY: reads pg_depend and the syscache by plain values.
        let (member, superusers) = unsafe {
            let extension = pg_sys::getExtensionOfObject(pg_sys::ForeignServerRelationId, self.oid);
            (extension != pg_sys::InvalidOid, pg_sys::superuser_arg(self.owner))
        };
        let (must, lost, instead) = if !member {
            return;
        } else if !self.options.is_empty() {
            ("must not have options", "its options", "Remove its options and create another server with them.")
        } else if self.name.as_c_str() != MACHINE {
            ("must be named \"machine\"", "its name", "Name it so again and create another server of that name.")
        } else if !superusers {
            ("must belong to a superuser", "its owner", "Give it back to a superuser and GRANT USAGE on it instead.")
        } else {
            return;
        };
        error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("server \"{}\" {must}", self.display()),
            Some(format!("It belongs to the extension, so a dump would keep the grants on it but not {lost}.")),
            Some(instead.into()),
        );
    }
}

/// The server that CREATE EXTENSION brings.
pub const MACHINE: &CStr = c"machine";

thread_local! {
    /// Counts invalidations of foreign servers and wrappers.
    static CATALOG_CHANGES: Cell<u64> = const { Cell::new(0) };
    static WRAPPERS: RefCell<HashMap<pg_sys::Oid, (u64, Option<Wrapper>)>> = RefCell::new(HashMap::new());
}

#[pg_guard]
unsafe extern "C-unwind" fn invalidated(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    CATALOG_CHANGES.set(CATALOG_CHANGES.get() + 1);
}

/// A number that changes whenever a server or wrapper may have changed.
pub fn catalog_changes() -> u64 {
    if CATALOG_CHANGES.get() == 0 {
        CATALOG_CHANGES.set(1);
        for cache in [pg_sys::SysCacheIdentifier::FOREIGNSERVEROID, pg_sys::SysCacheIdentifier::FOREIGNDATAWRAPPEROID] {
            // SAFETY: a guarded function that only counts, registered once per backend.
            unsafe { pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(invalidated), pg_sys::Datum::from(0)) };
        }
    }
    CATALOG_CHANGES.get()
}

/// Which of our wrappers this is. Told by its validator being ours and by its membership in our
/// extension, never by its name: a name can be given to anything.
fn wrapper_of(wrapper: pg_sys::Oid) -> Option<Wrapper> {
    let now = catalog_changes();
    if let Some(known) =
        WRAPPERS.with_borrow(|known| known.get(&wrapper).filter(|(at, _)| *at == now).map(|(_, known)| *known))
    {
        return known;
    }
    // SAFETY: syscache and catalog reads by OID; strings are copied before the next call.
    let found = unsafe {
        let ours = pg_sys::get_extension_oid(c"managed_identity".as_ptr(), true);
        let extension = pg_sys::getExtensionOfObject(pg_sys::ForeignDataWrapperRelationId, wrapper);
        if ours == pg_sys::InvalidOid || extension != ours {
            None
        } else {
            let wrapper = pg_sys::GetForeignDataWrapperExtended(wrapper, pg_sys::FDW_MISSING_OK as u16);
            let validator = match wrapper.is_null() {
                true => std::ptr::null_mut(),
                false => pg_sys::get_func_name((*wrapper).fdwvalidator),
            };
            match (!validator.is_null()).then(|| CStr::from_ptr(validator).to_bytes()) {
                Some(b"managed_identity_validator") => Some(Wrapper::Identity),
                Some(b"azure_storage_validator") => Some(Wrapper::Storage),
                Some(b"azure_key_vault_validator") => Some(Wrapper::Vault),
                _ => None,
            }
        }
    };
    WRAPPERS.with_borrow_mut(|known| known.insert(wrapper, (now, found)));
    found
}

/// Whose rights count: SET ROLE and SECURITY DEFINER behave as for tables.
pub fn current_user() -> pg_sys::Oid {
    // SAFETY: a plain read.
    unsafe { pg_sys::GetUserId() }
}

/// The server of this name, which must be of the given wrapper: 42704 and 42809 otherwise.
pub fn named(name: &CStr, wrapper: Wrapper) -> Server {
    // SAFETY: a syscache look-up by name.
    let oid = unsafe { pg_sys::get_foreign_server_oid(name.as_ptr(), true) };
    if oid == pg_sys::InvalidOid {
        let hint = if wrapper == Wrapper::Identity && name == MACHINE {
            // It goes with the extension only, so somebody gave it another name.
            "It came with the extension and was renamed: name it \"machine\" again, or set managed_identity.default_identity to another server.".into()
        } else {
            format!("Create it with CREATE SERVER <name> FOREIGN DATA WRAPPER {}.", wrapper.name())
        };
        missing(name, hint);
    }
    of(oid, name, wrapper)
}

/// 42704, and what to do.
pub fn missing(name: &CStr, hint: String) -> ! {
    let message = format!("server \"{}\" does not exist", name.to_string_lossy());
    error(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, message, None, Some(hint))
}

/// The server with this OID, found by `name`. Whoever has checked rights on an OID loads by it: between two
/// look-ups by name the name can have moved to another server.
pub fn of(oid: pg_sys::Oid, name: &CStr, wrapper: Wrapper) -> Server {
    let Some(server) = Server::load(oid) else {
        error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("server \"{}\" does not exist", name.to_string_lossy()),
            Some("It was dropped a moment ago.".into()),
            None,
        );
    };
    if wrapper_of(server.wrapper) != Some(wrapper) {
        error(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!(
                "server \"{}\" is not a server of foreign-data wrapper \"{}\"",
                name.to_string_lossy(),
                wrapper.name()
            ),
            None,
            None,
        );
    }
    server
}

/// 42501, as core says it.
pub fn denied(name: &CStr) -> Failure {
    let message = format!("permission denied for foreign server {}", name.to_string_lossy());
    Failure::new(Kind::Forbidden, message).hint(grant_hint(name, None))
}

/// The statement that would help: a grant to the current user, or to another role.
pub fn grant_hint(name: &CStr, role: Option<pg_sys::Oid>) -> String {
    // SAFETY: takes and returns a C string; the result is copied at once.
    let quoted = |name| unsafe { CStr::from_ptr(pg_sys::quote_identifier(name)) }.to_string_lossy().into_owned();
    // SAFETY: a palloc'd name; an ERROR where the role is gone.
    let to = role.map(|role| format!(" TO {}", quoted(unsafe { pg_sys::GetUserNameFromId(role, false) })));
    format!("GRANT USAGE ON FOREIGN SERVER {}{} allows it.", quoted(name.as_ptr()), to.unwrap_or_default())
}

/// Raises unless the current user has USAGE on the server.
pub fn require_usage(server: &Server) {
    if !compat::has_usage(server.oid, current_user()) {
        raise(denied(&server.name));
    }
}

/// All servers of one of our wrappers in this database.
pub fn servers_of(wrapper: Wrapper) -> Vec<Server> {
    let mut oids = Vec::new();
    // SAFETY: a sequential scan of a catalog under AccessShareLock, ended and closed before anything
    // else is called; an ERROR in between leaves both to the resource owner.
    unsafe {
        let catalog = pg_sys::table_open(pg_sys::ForeignServerRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            catalog,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let row: pg_sys::Form_pg_foreign_server = pg_sys::GETSTRUCT(tuple).cast();
            oids.push(((*row).oid, (*row).srvfdw));
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(catalog, pg_sys::AccessShareLock as i32);
    }
    oids.retain(|(_, of)| wrapper_of(*of) == Some(wrapper));
    oids.into_iter().filter_map(|(oid, _)| Server::load(oid)).collect()
}
