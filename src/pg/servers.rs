//! Foreign servers as credentials: which server is meant, who may use it, what it stands for.
//!
//! Everything that matters is checked here, at each use: a validator sees neither a server's name nor
//! its owner, and reads no catalog.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::rc::Rc;

use pgrx::PgList;
use pgrx::prelude::*;

use super::error::{OrRaise, error};
use super::{compat, settings, tokens};
use crate::blob::url::{Blob, BlobUrl, Locations, is_account_name};
use crate::http::destination::Destination;
use crate::http::failure::{Failure, Kind};
use crate::identity::{Cloud, Identity, Resource};
use crate::token::AccessToken;
use crate::vault::access::VaultAccess;

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
    owner: pg_sys::Oid,
    options: Vec<(String, String)>,
}

impl Server {
    fn load(oid: pg_sys::Oid) -> Self {
        // SAFETY: raises if the server is gone; the result and what it points to live in the current
        // memory context, and are copied out before anything else runs.
        unsafe {
            let server = pg_sys::GetForeignServer(oid);
            let mut options = Vec::new();
            for option in PgList::<pg_sys::DefElem>::from_pg((*server).options).iter_ptr() {
                let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
                options.push((text((*option).defname), text(pg_sys::defGetString(option))));
            }
            Self {
                oid,
                name: CStr::from_ptr((*server).servername).into(),
                wrapper: (*server).fdwid,
                owner: (*server).owner,
                options,
            }
        }
    }

    fn display(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(option, _)| option == name).map(|(_, value)| value.as_str())
    }

    fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// pg_dump keeps grants on a member of an extension but not its options: after a restore such a
    /// server would mean another identity to the same roles.
    fn refuse_member_with_options(&self) {
        // SAFETY: reads pg_depend by plain values.
        let member = !self.options.is_empty()
            && unsafe { pg_sys::getExtensionOfObject(pg_sys::ForeignServerRelationId, self.oid) } != pg_sys::InvalidOid;
        if member {
            error(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("server \"{}\" must not have options", self.display()),
                Some("It belongs to the extension, so a dump would keep the grants on it but not its options.".into()),
                Some("Remove its options and create another server with them.".into()),
            );
        }
    }
}

thread_local! {
    /// Counts invalidations of foreign servers and wrappers.
    static CATALOG_CHANGES: Cell<u64> = const { Cell::new(0) };
    static WRAPPERS: RefCell<HashMap<pg_sys::Oid, (u64, Option<Wrapper>)>> = RefCell::new(HashMap::new());
    static IDENTITIES: RefCell<HashMap<pg_sys::Oid, (u64, u64, Rc<KnownIdentity>)>> = RefCell::new(HashMap::new());
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
    if let Some(known) = WRAPPERS.with_borrow(|known| known.get(&wrapper).filter(|(at, _)| *at == now).map(|(_, known)| *known)) {
        return known;
    }
    // SAFETY: syscache and catalog reads by OID; strings are copied before the next call.
    let found = unsafe {
        let ours = pg_sys::get_extension_oid(c"managed_identity".as_ptr(), true);
        let extension = pg_sys::getExtensionOfObject(pg_sys::ForeignDataWrapperRelationId, wrapper);
        if ours == pg_sys::InvalidOid || extension != ours {
            None
        } else {
            let validator = pg_sys::get_func_name((*pg_sys::GetForeignDataWrapper(wrapper)).fdwvalidator);
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

fn current_user() -> pg_sys::Oid {
    // SAFETY: a plain read.
    unsafe { pg_sys::GetUserId() }
}

/// The server of this name, which must be of the given wrapper: 42704 and 42809 otherwise.
fn named(name: &CStr, wrapper: Wrapper) -> Server {
    // SAFETY: a syscache look-up by name.
    let oid = unsafe { pg_sys::get_foreign_server_oid(name.as_ptr(), true) };
    let shown = name.to_string_lossy();
    if oid == pg_sys::InvalidOid {
        error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("server \"{shown}\" does not exist"),
            None,
            Some(format!("Create it with CREATE SERVER <name> FOREIGN DATA WRAPPER {}.", wrapper.name())),
        );
    }
    let server = Server::load(oid);
    if wrapper_of(server.wrapper) != Some(wrapper) {
        error(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("server \"{shown}\" is not a server of foreign-data wrapper \"{}\"", wrapper.name()),
            None,
            None,
        );
    }
    server
}

fn permission_denied(name: &CStr, detail: Option<String>) -> ! {
    error(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("permission denied for foreign server {}", name.to_string_lossy()),
        detail,
        Some(grant_hint(name)),
    )
}

fn grant_hint(name: &CStr) -> String {
    // SAFETY: takes and returns a C string; the result is copied at once.
    let quoted = unsafe { CStr::from_ptr(pg_sys::quote_identifier(name.as_ptr())) };
    format!("GRANT USAGE ON FOREIGN SERVER {} allows it.", quoted.to_string_lossy())
}

/// An identity's server with what was derived from it, kept while nothing changes.
pub struct KnownIdentity {
    pub oid: pg_sys::Oid,
    pub name: CString,
    pub identity: Identity,
    /// Hash of everything that distinguishes this identity from others; equal identities share it.
    pub key: [u8; 32],
}

/// The identity of a server that is one. Rights are the caller's business.
fn identity_of(oid: pg_sys::Oid, name: &CStr) -> Rc<KnownIdentity> {
    let (catalog, set) = (catalog_changes(), settings::changes());
    let known = IDENTITIES.with_borrow(|known| {
        known.get(&oid).filter(|(c, s, _)| (*c, *s) == (catalog, set)).map(|(.., known)| known.clone())
    });
    if let Some(known) = known {
        return known;
    }
    let server = named(name, Wrapper::Identity);
    server.refuse_member_with_options();
    let settings = settings::current();
    let identity = Identity::from_options(server.options(), settings.cloud).or_raise();
    let key = tokens::digest(&settings.imds.identity_key(&identity.selector));
    let known = Rc::new(KnownIdentity { oid, name: server.name, identity, key });
    IDENTITIES.with_borrow_mut(|kept| kept.insert(oid, (catalog, set, known.clone())));
    known
}

/// The identity server of this name (`None`: the default one), which `role` must have USAGE on.
fn identity_for(name: Option<&CStr>, role: pg_sys::Oid, borrower: Option<&Server>) -> Rc<KnownIdentity> {
    let default;
    let name = match name {
        Some(name) => name,
        None => {
            default = settings::default_identity();
            &default
        }
    };
    // SAFETY: a syscache look-up by name.
    let oid = unsafe { pg_sys::get_foreign_server_oid(name.as_ptr(), true) };
    if oid == pg_sys::InvalidOid {
        named(name, Wrapper::Identity);
    }
    if !compat::has_usage(oid, role) {
        let detail = borrower.map(|server| {
            format!("Server \"{}\" uses this identity, and its owner must have USAGE on it.", server.display())
        });
        permission_denied(name, detail);
    }
    identity_of(oid, name)
}

/// The identity that the current user names, with USAGE checked.
pub fn own_identity(name: Option<&CStr>) -> Rc<KnownIdentity> {
    identity_for(name, current_user(), None)
}

/// The identity that a storage or vault server borrows from its owner, as a view borrows its owner's
/// rights on tables.
fn borrowed_identity(server: &Server, resource: &Resource) -> Rc<KnownIdentity> {
    let name = server.option("identity").map(|name| CString::new(name).unwrap_or_default());
    let identity = identity_for(name.as_deref(), server.owner, Some(server));
    if !identity.identity.allows(resource) {
        Err(tokens::outside_resources(&identity)).or_raise()
    }
    identity
}

/// Every identity server of this database on which the current user has USAGE, or every one.
pub fn identities(all: bool) -> Vec<Rc<KnownIdentity>> {
    let role = current_user();
    let mut found: Vec<_> = servers_of(Wrapper::Identity)
        .into_iter()
        .filter(|server| all || compat::has_usage(server.oid, role))
        .filter(|server| server.options.is_empty() || Identity::from_options(server.options(), settings::cloud()).is_ok())
        .filter_map(|server| {
            // One broken server must not hide the others from a view, so nothing here raises.
            let settings = settings::current();
            let identity = Identity::from_options(server.options(), settings.cloud).ok()?;
            let key = tokens::digest(&settings.imds.identity_key(&identity.selector));
            Some(Rc::new(KnownIdentity { oid: server.oid, name: server.name, identity, key }))
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Whether a COPY reads a blob or writes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// One blob, and the credential that opens it.
pub struct Storage {
    pub destination: Destination,
    pub blob: Blob,
    identity: Rc<KnownIdentity>,
}

impl Storage {
    /// A token for it: from the cache, or fetched.
    pub fn token(&self) -> AccessToken {
        tokens::for_identity(&self.identity, &Resource::storage())
    }
}

/// Where a storage server's requests go: its `endpoint`, or the account's host in the cloud.
fn storage_destination(server: &Server, cloud: Cloud) -> Result<(String, Destination), Failure> {
    let account = server.option("account").map_or_else(|| server.display(), str::to_owned);
    if !is_account_name(&account) {
        return Err(Failure::new(Kind::InvalidValue, format!("server \"{}\" names no storage account", server.display()))
            .detail("A storage account's name has 3 to 24 lower-case letters and digits.")
            .hint("Set option account, or give the server the account's name."));
    }
    let destination = match server.option("endpoint") {
        Some(endpoint) => Destination::parse(endpoint, "option \"endpoint\"")?,
        // The account's name was checked to be one label, so this text is its own normal form.
        None => Destination::parse(&format!("https://{account}.{}", cloud.blob_suffix()), "the account's endpoint")?,
    };
    Ok((account, destination))
}

/// The server through which the current user may reach a URL: the named one, or the one whose endpoint
/// the URL starts with. Checks USAGE, `access`, `locations` and the owner's right on the identity.
pub fn storage_for(url: &BlobUrl, name: Option<&CStr>, direction: Direction) -> Storage {
    let cloud = settings::cloud();
    let (server, destination) = match name {
        Some(name) => {
            let server = named(name, Wrapper::Storage);
            if !compat::has_usage(server.oid, current_user()) {
                permission_denied(name, None);
            }
            let (_, destination) = storage_destination(&server, cloud).or_raise();
            (server, destination)
        }
        None => found_by_url(url, cloud),
    };
    let Some(blob) = url.within(&destination) else {
        error(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("server \"{}\" does not reach this URL", server.display()),
            Some(format!("Its URLs start with {}.", destination.base())),
            None,
        );
    };
    let blob = blob.or_raise();
    check_limits(&server, &blob, direction).or_raise();
    let identity = borrowed_identity(&server, &Resource::storage());
    Storage { destination, blob, identity }
}

/// The one server whose endpoint the URL starts with and that the current user may use; of several
/// the one named like the account.
fn found_by_url(url: &BlobUrl, cloud: Cloud) -> (Server, Destination) {
    let mut fitting = Vec::new();
    for server in servers_of(Wrapper::Storage) {
        // A server that cannot be used stands for no URL; whoever names it is told why.
        if let Ok((account, destination)) = storage_destination(&server, cloud) {
            if destination.remainder(url.url()).is_some() {
                fitting.push((server, account, destination));
            }
        }
    }
    if fitting.is_empty() {
        error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            "azure_storage: missing storage credentials",
            Some(format!("No server of foreign-data wrapper \"azure_storage\" reaches \"{}\".", url.authority())),
            Some("Create one with CREATE SERVER <account> FOREIGN DATA WRAPPER azure_storage.".into()),
        );
    }
    let role = current_user();
    let (mut usable, denied): (Vec<_>, Vec<_>) = fitting.into_iter().partition(|(server, ..)| compat::has_usage(server.oid, role));
    if usable.len() > 1 && usable.iter().filter(|(server, account, _)| server.display() == *account).count() == 1 {
        usable.retain(|(server, account, _)| server.display() == *account);
    }
    match (usable.pop(), usable.is_empty(), denied.first()) {
        (Some((server, _, destination)), true, _) => (server, destination),
        (None, _, Some((server, account, _))) => {
            // SAFETY: the result lives in the current memory context and is copied at once.
            let user = unsafe { CStr::from_ptr(pg_sys::GetUserNameFromId(role, false)) }.to_string_lossy();
            error(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("azure_storage: current user {user} is not allowed to use storage account {account}"),
                Some(format!("The role has no USAGE on foreign server \"{}\".", server.display())),
                Some(grant_hint(&server.name)),
            )
        }
        _ => error(
            PgSqlErrorCode::ERRCODE_AMBIGUOUS_FUNCTION,
            "more than one server reaches this URL",
            None,
            Some("Name one of them: WITH (server '<name>').".into()),
        ),
    }
}

/// The server's own limits: `access` and `locations`.
fn check_limits(server: &Server, blob: &Blob, direction: Direction) -> Result<(), Failure> {
    if direction == Direction::Write && server.option("access") == Some("read") {
        return Err(Failure::new(Kind::Forbidden, format!("server \"{}\" allows reading only", server.display()))
            .hint("Its option access is read."));
    }
    let Some(locations) = server.option("locations") else {
        return Ok(());
    };
    if Locations::parse(locations)?.contain(blob) {
        return Ok(());
    }
    Err(Failure::new(Kind::Forbidden, format!("server \"{}\" does not allow this location", server.display()))
        .hint("Its option locations lists the containers and prefixes that may be used."))
}

/// A vault that the current user may reach, and the identity that opens it.
pub struct Vault {
    pub access: VaultAccess,
    identity: Rc<KnownIdentity>,
}

impl Vault {
    pub fn token(&self) -> AccessToken {
        tokens::for_identity(&self.identity, &self.access.resource)
    }
}

/// The vault server of this name, for `operation` on the object `object`.
pub fn vault_for(name: &CStr, operation: &str, object: &str) -> Vault {
    let server = named(name, Wrapper::Vault);
    if !compat::has_usage(server.oid, current_user()) {
        permission_denied(name, None);
    }
    let settings = settings::current();
    let access = VaultAccess::from_options(server.options(), settings.cloud, &settings.key_vault_hosts).or_raise();
    access.check(operation, object).or_raise();
    let identity = borrowed_identity(&server, &access.resource);
    Vault { access, identity }
}

/// All servers of one of our wrappers in this database.
fn servers_of(wrapper: Wrapper) -> Vec<Server> {
    let mut oids = Vec::new();
    // SAFETY: a sequential scan of a catalog under AccessShareLock, ended and closed before anything
    // else is called; an ERROR in between leaves both to the resource owner.
    unsafe {
        let catalog = pg_sys::table_open(pg_sys::ForeignServerRelationId, pg_sys::AccessShareLock as i32);
        let scan =
            pg_sys::systable_beginscan(catalog, pg_sys::InvalidOid, false, std::ptr::null_mut(), 0, std::ptr::null_mut());
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
    oids.into_iter().map(|(oid, _)| Server::load(oid)).collect()
}
