//! The settings: their definitions, their checks, and what they say now in usable form.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

use super::error::OrRaise;
use crate::http::client;
use crate::http::failure::Failure;
use crate::http::roots::CaFile;
use crate::identity::authority::Authority;
use crate::identity::environment::Environment;
use crate::identity::hosts::Hosts;
use crate::identity::imds::Imds;
use crate::identity::{Cloud, Machine, SourceName};

/// The cloud by our name or by the Azure CLI's.
#[derive(Clone, Copy, PostgresGucEnum)]
enum CloudName {
    #[name = c"public"]
    Public,
    #[name = c"us-government"]
    UsGovernment,
    #[name = c"china"]
    China,
    #[name = c"AzureCloud"]
    AzureCloud,
    #[name = c"AzureUSGovernment"]
    AzureUsGovernment,
    #[name = c"AzureChinaCloud"]
    AzureChinaCloud,
}

/// What `managed_identity.log_access` asks for.
#[derive(Clone, Copy, PostgresGucEnum)]
pub enum LogAccess {
    #[name = c"none"]
    None,
    #[name = c"secrets"]
    Secrets,
    #[name = c"all"]
    All,
}

/// Where tokens come from, unless an identity's own options say it.
#[derive(Clone, Copy, PostgresGucEnum)]
enum SourceChoice {
    #[name = c"auto"]
    Auto,
    #[name = c"imds"]
    Imds,
    #[name = c"workload_identity"]
    WorkloadIdentity,
}

static DEFAULT_IDENTITY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"machine"));
static IMDS_ENDPOINT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"http://169.254.169.254"));
static IMDS_API_VERSION: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"2018-02-01"));
static SOURCE: GucSetting<SourceChoice> = GucSetting::<SourceChoice>::new(SourceChoice::Auto);
static AUTHORITY_HOST: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static CLOUD: GucSetting<CloudName> = GucSetting::<CloudName>::new(CloudName::Public);
static STORAGE_HOSTS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static KEY_VAULT_HOSTS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static TLS_CA_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(2_000);
static REQUEST_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static ACQUIRE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(15_000);
static REFRESH_AHEAD: GucSetting<bool> = GucSetting::<bool>::new(true);
static CACHE_ENTRIES: GucSetting<i32> = GucSetting::<i32>::new(256);
static LOG_ACCESS: GucSetting<LogAccess> = GucSetting::<LogAccess>::new(LogAccess::Secrets);
static BLOB_BLOCK_SIZE: GucSetting<i32> = GucSetting::<i32>::new(8);

thread_local! {
    /// Counts the changes of settings that shape requests, so that what was derived from them can be
    /// kept until the next one.
    static CHANGES: Cell<u64> = const { Cell::new(1) };
    static CURRENT: RefCell<Option<(u64, Rc<Settings>)>> = const { RefCell::new(None) };
}

/// What the settings say, parsed.
pub struct Settings {
    pub machine: Machine,
    pub storage_hosts: Hosts,
    pub key_vault_hosts: Hosts,
}

/// Defines every setting. Called from `_PG_init`.
pub fn init() {
    environment();
    let none = GucFlags::default();
    let text = |name, short, long, setting, context, check| {
        // SAFETY: the hooks are guarded, and check and assign as their contracts say.
        unsafe {
            GucRegistry::define_string_guc_with_hooks(
                name,
                short,
                long,
                setting,
                context,
                none,
                check,
                Some(changed),
                None,
            );
        }
    };
    text(
        c"managed_identity.default_identity",
        c"The managed_identity server that is used where none is named.",
        c"",
        &DEFAULT_IDENTITY,
        GucContext::Suset,
        None,
    );
    text(
        c"managed_identity.imds_endpoint",
        c"The instance metadata service.",
        c"One answer for the whole server: a session that could change it could send tokens elsewhere.",
        &IMDS_ENDPOINT,
        GucContext::Sighup,
        Some(check_imds_endpoint),
    );
    text(
        c"managed_identity.imds_api_version",
        c"The version of the instance metadata service's API.",
        c"",
        &IMDS_API_VERSION,
        GucContext::Sighup,
        Some(check_imds_api_version),
    );
    text(
        c"managed_identity.authority_host",
        c"The authority that exchanges federated tokens for access tokens.",
        c"Empty: AZURE_AUTHORITY_HOST of the server's environment, else the cloud's own.",
        &AUTHORITY_HOST,
        GucContext::Sighup,
        Some(check_authority_host),
    );
    text(
        c"managed_identity.storage_hosts",
        c"Further hosts that a storage server's endpoint may name without superuser rights.",
        c"A comma-separated list of host names or addresses, each with an optional port.",
        &STORAGE_HOSTS,
        GucContext::Sighup,
        Some(check_hosts),
    );
    text(
        c"managed_identity.key_vault_hosts",
        c"Further hosts that are vaults.",
        c"A comma-separated list of host names or addresses, each with an optional port.",
        &KEY_VAULT_HOSTS,
        GucContext::Sighup,
        Some(check_hosts),
    );
    text(
        c"managed_identity.tls_ca_file",
        c"A PEM file of the certificate authorities that are trusted.",
        c"Empty: SSL_CERT_FILE of the server's environment, else the system's own, else Mozilla's as compiled in.",
        &TLS_CA_FILE,
        GucContext::Sighup,
        Some(check_ca_file),
    );
    GucRegistry::define_enum_guc(
        c"managed_identity.source",
        c"Where tokens come from.",
        c"\"auto\": workload identity where AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_FEDERATED_TOKEN_FILE are set in the server's environment, else the instance metadata service.",
        &SOURCE,
        GucContext::Sighup,
        none,
    );
    GucRegistry::define_enum_guc(
        c"managed_identity.cloud",
        c"The Azure cloud whose hosts and resources are used.",
        c"",
        &CLOUD,
        GucContext::Sighup,
        none,
    );
    GucRegistry::define_enum_guc(
        c"managed_identity.log_access",
        c"What the server's log tells of the use of identities.",
        c"\"secrets\": each raw token, secret and unwrapped value that SQL was given; \"all\": each COPY by URL, too.",
        &LOG_ACCESS,
        GucContext::Suset,
        none,
    );
    GucRegistry::define_bool_guc(
        c"managed_identity.refresh_ahead",
        c"Whether a background worker fetches tokens anew before they end.",
        c"Otherwise the session that needs one does.",
        &REFRESH_AHEAD,
        GucContext::Sighup,
        none,
    );
    let time = |name, short, setting, least, most, context| {
        GucRegistry::define_int_guc(name, short, c"", setting, least, most, context, GucFlags::UNIT_MS);
    };
    const MINUTE: i32 = 60_000;
    let connect = c"The longest wait for a connection, TLS included.";
    time(c"managed_identity.connect_timeout", connect, &CONNECT_TIMEOUT, 10, 10 * MINUTE, GucContext::Sighup);
    let request = c"The longest wait for an answer's headers or for its next byte.";
    time(c"managed_identity.request_timeout", request, &REQUEST_TIMEOUT, 10, 60 * MINUTE, GucContext::Sighup);
    let acquire = c"The longest wait of one caller for a token, retries included.";
    time(c"managed_identity.acquire_timeout", acquire, &ACQUIRE_TIMEOUT, 100, 10 * MINUTE, GucContext::Userset);
    GucRegistry::define_int_guc(
        c"azure_storage.blob_block_size_mb",
        c"The size of a block or range when a blob is written or read.",
        c"",
        &BLOB_BLOCK_SIZE,
        1,
        64,
        GucContext::Userset,
        GucFlags::UNIT_MB,
    );
    // SAFETY: a plain global, set before any library is loaded.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        GucRegistry::define_int_guc(
            c"managed_identity.cache_entries",
            c"How many tokens the shared cache has room for.",
            c"Each takes about 8 kB of shared memory.",
            &CACHE_ENTRIES,
            8,
            8_192,
            GucContext::Postmaster,
            none,
        );
    }
    super::data_keys::settings::init();
    // SAFETY: a literal C string.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"managed_identity".as_ptr()) };
}

/// A number that grows whenever a setting that shapes requests changes.
pub fn changes() -> u64 {
    // The enums' settings have no assign hook; their values stand in the upper bits instead.
    let (cloud, source) = (CLOUD.get().cloud() as u64, SOURCE.get() as u64);
    CHANGES.get() | cloud << 56 | source << 48
}

/// What the settings say now. Raises when one cannot be used, which their checks prevent.
pub fn current() -> Rc<Settings> {
    let now = changes();
    if let Some(kept) =
        CURRENT.with_borrow(|kept| kept.as_ref().filter(|(at, _)| *at == now).map(|(_, kept)| kept.clone()))
    {
        return kept;
    }
    let settings = Rc::new(Settings {
        machine: machine(),
        storage_hosts: Hosts::parse(&value(&STORAGE_HOSTS)).or_raise(),
        key_vault_hosts: Hosts::parse(&value(&KEY_VAULT_HOSTS)).or_raise(),
    });
    CURRENT.set(Some((now, settings.clone())));
    settings
}

fn machine() -> Machine {
    let authority = value(&AUTHORITY_HOST);
    Machine {
        imds: Imds::new(&value(&IMDS_ENDPOINT), &value(&IMDS_API_VERSION)).or_raise(),
        source: SOURCE.get().source(),
        authority: (!authority.is_empty()).then(|| authority_host(&authority).or_raise()),
        environment: environment().clone(),
        cloud: cloud(),
    }
}

fn authority_host(text: &str) -> Result<Authority, Failure> {
    Authority::parse(text, "managed_identity.authority_host")
}

/// What PostgreSQL was started with: read once per process, while preloading in the postmaster.
fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| Environment::read(|name| std::env::var(name).ok()))
}

pub fn cloud() -> Cloud {
    CLOUD.get().cloud()
}

/// The name of the server that stands for an identity that is not named.
pub fn default_identity() -> CString {
    DEFAULT_IDENTITY.get().unwrap_or_default()
}

pub fn log_access() -> LogAccess {
    LOG_ACCESS.get()
}

/// How HTTP clients are made now. Fails when the CA file cannot be read.
pub fn http_options() -> Result<client::Options, Failure> {
    let ca_file = value(&TLS_CA_FILE);
    let ca_file = (!ca_file.is_empty()).then(|| CaFile::look(Path::new(&ca_file))).transpose()?;
    Ok(client::Options {
        connect_timeout: milliseconds(CONNECT_TIMEOUT.get()),
        request_timeout: milliseconds(REQUEST_TIMEOUT.get()),
        ca_file,
    })
}

/// Whether the worker renews tokens before they end.
pub fn refresh_ahead() -> bool {
    REFRESH_AHEAD.get()
}

/// Whether `tls_ca_file` names a file.
pub fn has_ca_file() -> bool {
    !value(&TLS_CA_FILE).is_empty()
}

pub fn acquire_timeout() -> Duration {
    milliseconds(ACQUIRE_TIMEOUT.get())
}

/// Entries of the shared cache; meaningful while preloading.
pub fn cache_entries() -> usize {
    usize::try_from(CACHE_ENTRIES.get()).unwrap_or(256)
}

/// Bytes of a block or range.
pub fn blob_block_size() -> usize {
    usize::try_from(BLOB_BLOCK_SIZE.get()).unwrap_or(8) << 20
}

fn milliseconds(value: i32) -> Duration {
    Duration::from_millis(value.unsigned_abs().into())
}

fn value(setting: &GucSetting<Option<CString>>) -> String {
    setting.get().unwrap_or_default().to_string_lossy().into_owned()
}

impl CloudName {
    fn cloud(self) -> Cloud {
        match self {
            Self::Public | Self::AzureCloud => Cloud::Public,
            Self::UsGovernment | Self::AzureUsGovernment => Cloud::UsGovernment,
            Self::China | Self::AzureChinaCloud => Cloud::China,
        }
    }
}

impl SourceChoice {
    fn source(self) -> Option<SourceName> {
        match self {
            Self::Auto => None,
            Self::Imds => Some(SourceName::Imds),
            Self::WorkloadIdentity => Some(SourceName::WorkloadIdentity),
        }
    }
}

/// Assign hook: only counts, because it may run at any time and must not fail.
#[pg_guard]
unsafe extern "C-unwind" fn changed(_new: *const c_char, _extra: *mut c_void) {
    CHANGES.set(CHANGES.get() + 1);
}

/// A check hook's work: no catalog, no allocation that outlives it but the detail's text.
///
/// # Safety
/// `new` is what PostgreSQL hands to a string setting's check hook.
unsafe fn check(new: *mut *mut c_char, check: impl Fn(&str) -> Result<(), Failure>) -> bool {
    // SAFETY: `new` points to a C string or to NULL, as the caller promises.
    let text = unsafe { if (*new).is_null() { c"" } else { CStr::from_ptr(*new) } };
    let Err(failure) = check(&text.to_string_lossy()) else {
        return true;
    };
    let reason = failure.detail.unwrap_or(failure.message);
    let detail = CString::new(reason).unwrap_or_default();
    // SAFETY: pstrdup copies into the context that guc.c reports from.
    unsafe { pg_sys::GUC_check_errdetail_string = pg_sys::pstrdup(detail.as_ptr()) };
    false
}

#[pg_guard]
unsafe extern "C-unwind" fn check_imds_endpoint(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: handed on from PostgreSQL.
    unsafe { check(new, |text| Imds::new(text, "2018-02-01").map(|_| ())) }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_imds_api_version(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: handed on from PostgreSQL.
    unsafe { check(new, |text| Imds::new("http://169.254.169.254", text).map(|_| ())) }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_authority_host(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    let usable = |text: &str| if text.is_empty() { Ok(()) } else { authority_host(text).map(|_| ()) };
    // SAFETY: handed on from PostgreSQL.
    unsafe { check(new, usable) }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_hosts(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: handed on from PostgreSQL.
    unsafe { check(new, |text| Hosts::parse(text).map(|_| ())) }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_ca_file(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    let readable = |text: &str| {
        if text.is_empty() {
            return Ok(());
        }
        CaFile::look(Path::new(text))?.certificates().map(|_| ())
    };
    // SAFETY: handed on from PostgreSQL.
    unsafe { check(new, readable) }
}
