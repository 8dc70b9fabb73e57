//! The rules in force at one service, and the one switch that lets go what they hold.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::plan::Plan;
use super::{Fault, Rule};
use crate::error::lock;
use crate::log::{Entry, Record};

/// The faults of one service; cheap to clone, all clones are one set.
#[derive(Clone)]
pub struct Faults(Arc<Inner>);

struct Inner {
    rules: Mutex<Vec<Rule>>,
    releases: watch::Sender<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self(Arc::new(Inner { rules: Mutex::default(), releases: watch::Sender::new(0) }))
    }
}

impl Faults {
    /// Strikes the next `n` requests. What is added later by `next` waits until this is used up, but for a
    /// delay, a callback or a bandwidth, which strike together with it.
    pub fn next(&self, n: u32, fault: impl Into<Fault>) {
        self.add(Rule::new(fault).times(n));
    }

    /// Strikes every request until cleared, on top of what `next` does to it.
    pub fn always(&self, fault: impl Into<Fault>) {
        self.add(Rule::new(fault));
    }

    pub fn add(&self, rule: Rule) {
        lock(&self.0.rules).push(rule);
    }

    /// Removes all rules. What they hold stays held: see [`Faults::release`].
    pub fn clear(&self) {
        lock(&self.0.rules).clear();
    }

    /// Lets go everything that is held now; rules in force go on to hold what comes after.
    pub fn release(&self) {
        self.0.releases.send_modify(|releases| *releases += 1);
    }

    pub(crate) fn plan(&self, entry: &Entry) -> Plan {
        let mut plan = Plan::default();
        let mut rules = lock(&self.0.rules);
        let (mut counted, mut lasting) = (Vec::new(), Vec::new());
        for rule in rules.iter_mut().filter(|rule| rule.filter.matches(entry)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.times.is_some() {
                counted.push(rule);
            } else {
                lasting.push(rule);
            }
        }
        let mut queue_moved = false;
        for rule in counted {
            let queues = rule.fault.ends_the_request();
            if !(queues && queue_moved) && plan.take(&rule.fault) {
                queue_moved |= queues;
                rule.times = rule.times.map(|times| times.saturating_sub(1));
            }
        }
        for rule in lasting {
            plan.take(&rule.fault);
        }
        rules.retain(|rule| rule.times != Some(0));
        plan
    }

    /// Counts the request as held until the next release, or until the service ends.
    pub(crate) async fn hold(&self, record: &Record) {
        // Before the count, so that a test that saw the count cannot release too early.
        let mut releases = self.0.releases.subscribe();
        let _held = record.held();
        // An error would mean that no release can come any more.
        let _ = releases.changed().await;
    }
}
