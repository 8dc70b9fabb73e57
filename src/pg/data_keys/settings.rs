//! How long data keys stay usable without their vault.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

use crate::vault::watch::Grace;

/// Seconds.
static REVALIDATE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(600);
static GRACE_PERIOD: GucSetting<i32> = GucSetting::<i32>::new(3_600);
static REVOCATION_GRACE_PERIOD: GucSetting<i32> = GucSetting::<i32>::new(600);

/// The longest time, in milliseconds, until a vault key that could not be used is tried again.
const PROBE_PAUSE: i64 = 30_000;

/// Defines the settings.
pub fn init() {
    let seconds = |name, short, long, setting, least, most| {
        GucRegistry::define_int_guc(name, short, long, setting, least, most, GucContext::Sighup, GucFlags::UNIT_S);
    };
    const DAY: i32 = 86_400;
    seconds(
        c"azure_key_vault.revalidate_interval",
        c"How often a vault key that wraps data keys in use is tried.",
        c"A new version of the key is noticed, and a key that may no longer be used.",
        &REVALIDATE_INTERVAL,
        1,
        DAY,
    );
    seconds(
        c"azure_key_vault.grace_period",
        c"How long data keys stay usable while the vault cannot be reached.",
        c"-1: for ever.",
        &GRACE_PERIOD,
        -1,
        365 * DAY,
    );
    seconds(
        c"azure_key_vault.revocation_grace_period",
        c"How long data keys stay usable after the vault has refused.",
        c"-1: for ever.",
        &REVOCATION_GRACE_PERIOD,
        -1,
        365 * DAY,
    );
}

pub fn grace() -> Grace {
    let milliseconds = |setting: &GucSetting<i32>| Some(i64::from(setting.get()) * 1_000).filter(|period| *period >= 0);
    Grace { outage: milliseconds(&GRACE_PERIOD), revocation: milliseconds(&REVOCATION_GRACE_PERIOD) }
}

/// Milliseconds.
pub fn revalidate_interval() -> i64 {
    i64::from(REVALIDATE_INTERVAL.get()) * 1_000
}

/// Milliseconds until a vault key that could not be used is tried again.
pub fn probe_pause() -> i64 {
    revalidate_interval().min(PROBE_PAUSE)
}
