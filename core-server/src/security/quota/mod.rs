//! How much each plugin may use of the core: what it may do in a second, and what it may hold at once.
//!
//! Owns: a [`Meter`] for each plugin, by name: a plugin that comes back finds what it has used. The
//! gatekeeper puts it into the [`Caller`](super::Caller), so that whatever is asked, unary or in a frame,
//! is measured by the same one. Does not own: what costs how much (`grpc/`).
//!
//! - Each quota is for itself: who has used up one may use the others.
//! - What would exceed a quota is refused as a whole, before anything else is looked at, and told when it
//!   will fit. Nothing waits here, but for what is already begun and goes on piece by piece
//!   ([`Meter::charge_in_time`]).
//! - Limits can change while the core runs, also those of callers that are there.
//!
//! Cost: of a rate one load while it is unlimited, else a look at the clock and one exchange; of what is held an
//! addition and a subtraction. No lock, no allocation, until something is refused.

mod rate;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::audit::{self, Audit};
use crate::channel::{CallerSlots, Slot};
use crate::config::{OwnQuotas, Quota, Quotas};
use crate::error::{Classify, ErrorKind, Reason};
use crate::types::PluginName;
use rate::Rate;

/// How often one quota of one plugin is told of in the log and the audit log while it is exceeded.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// After so long something in flight has probably ended.
const BUSY_WAIT: Duration = Duration::from_millis(100);
/// After so long a lost connection may have been noticed.
const CONNECTION_WAIT: Duration = Duration::from_secs(1);

/// A plugin has used up a quota. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "plugin \"{plugin}\" may have {limit} {} ({}); {}. To allow more, set plugins.{plugin}.quotas.{1} in \
     core.toml, or quotas.{1} for all plugins, and run corectl reload",
    .quota.unit(), .quota.key(), self.advice()
)]
pub struct Exceeded {
    plugin: String,
    quota: Quota,
    limit: u64,
    /// Of a rate: until it fits.
    wait: Option<Duration>,
}

impl Exceeded {
    fn advice(&self) -> String {
        match self.wait {
            Some(wait) => format!("this fits in {wait:?}"),
            None => "it has them already".to_owned(),
        }
    }
}

impl Classify for Exceeded {
    fn kind(&self) -> ErrorKind {
        ErrorKind::ResourceExhausted
    }

    fn reason(&self) -> Reason {
        match self.quota {
            Quota::PublishesPerSecond
            | Quota::PublishBytesPerSecond
            | Quota::CallsPerSecond
            | Quota::StorageWritesPerSecond
            | Quota::StorageWriteBytesPerSecond
            | Quota::StorageReadsPerSecond
            | Quota::StateWritesPerSecond => Reason::RateLimited,
            Quota::Subscriptions => Reason::TooManySubscriptions,
            Quota::Connections => Reason::TooManyConnections,
            Quota::RequestsInFlight => Reason::CallerBusy,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        vec![
            ("plugin", self.plugin.clone()),
            ("quota", self.quota.key().to_owned()),
            ("limit", self.limit.to_string()),
        ]
    }

    fn retry_after(&self) -> Option<Duration> {
        match self.quota {
            Quota::RequestsInFlight => Some(BUSY_WAIT),
            Quota::Connections => Some(CONNECTION_WAIT),
            _ => self.wait,
        }
    }
}

/// One quota of one plugin, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Which.
    pub quota: Quota,
    /// 0: unlimited.
    pub limit: u64,
    /// Held now; of a rate, what of one second's worth is taken now.
    pub used: u64,
    /// Requests refused for it since the core started or the plugin was added.
    pub refused: u64,
}

/// What one plugin uses.
#[derive(Debug)]
pub struct Meter {
    /// Of operators nobody's.
    plugin: Option<PluginName>,
    /// From here the accounts count their time.
    began: Instant,
    quotas: [Account; Quota::ALL.len()],
    audit: Audit,
}

/// One quota of one plugin. Of the two kinds only one is in use.
#[derive(Debug, Default)]
struct Account {
    rate: Rate,
    slots: Arc<CallerSlots>,
    /// Of `slots`; 0: unlimited.
    most: AtomicU64,
    refused: AtomicU64,
    /// How many were refused, and when, when that was last told. Time as of `rate`, and 1 more: 0 is never.
    told_refused: AtomicU64,
    told_at: AtomicU64,
}

fn is_rate(quota: Quota) -> bool {
    match quota {
        Quota::Subscriptions | Quota::Connections | Quota::RequestsInFlight => false,
        Quota::PublishesPerSecond
        | Quota::PublishBytesPerSecond
        | Quota::CallsPerSecond
        | Quota::StorageWritesPerSecond
        | Quota::StorageWriteBytesPerSecond
        | Quota::StorageReadsPerSecond
        | Quota::StateWritesPerSecond => true,
    }
}

impl Meter {
    fn new(plugin: Option<PluginName>, audit: Audit, limits: Quotas) -> Arc<Self> {
        let meter = Self {
            plugin,
            began: Instant::now(),
            quotas: Default::default(),
            audit,
        };
        meter.set(limits);
        Arc::new(meter)
    }

    /// One without limits, of nobody.
    #[must_use]
    pub fn unlimited() -> Arc<Self> {
        Self::new(None, Audit::none(), Quotas::UNLIMITED)
    }

    fn set(&self, limits: Quotas) {
        for quota in Quota::ALL {
            let (account, limit) = (self.account(quota), limits.limit(quota));
            if is_rate(quota) {
                account.rate.set_per_second(limit);
            } else {
                account.most.store(limit, Ordering::Relaxed);
            }
        }
    }

    fn account(&self, quota: Quota) -> &Account {
        &self.quotas[quota as usize]
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes so much of each of these rates, of all or of none.
    ///
    /// # Errors
    /// [`Exceeded`], with the time until all of it fits.
    pub fn charge(&self, costs: &[(Quota, u64)]) -> Result<(), Exceeded> {
        let taken = self.take(costs);
        taken.map_err(|(quota, limit, wait)| self.refuse(quota, limit, Some(wait)))
    }

    /// Takes so much of a rate as soon as it fits. Of what is under way already: it is no refusal, and is not
    /// counted as one.
    ///
    /// # Cancel safety
    /// Nothing is taken until it returns.
    pub async fn charge_in_time(&self, quota: Quota, count: u64) {
        while let Err((_, _, wait)) = self.take(&[(quota, count)]) {
            tokio::time::sleep(wait).await;
        }
    }

    /// As [`Self::charge`]; of what does not fit the quota, its limit, and the time until it does.
    fn take(&self, costs: &[(Quota, u64)]) -> Result<(), (Quota, u64, Duration)> {
        let mut now = None;
        for (index, &(quota, count)) in costs.iter().enumerate() {
            let rate = &self.account(quota).rate;
            let per_second = rate.per_second();
            if per_second == 0 || count == 0 {
                continue;
            }
            let now = *now.get_or_insert_with(|| self.now());
            if let Err(wait) = rate.take(per_second, count, now) {
                let (taken, others) = costs.split_at(index);
                for &(quota, count) in taken {
                    let rate = &self.account(quota).rate;
                    match rate.per_second() {
                        0 => {}
                        per_second => rate.give_back(per_second, count),
                    }
                }
                let waits = others.iter().map(|&(quota, count)| {
                    let rate = &self.account(quota).rate;
                    match rate.per_second() {
                        0 => 0,
                        per_second => rate.wait(per_second, count, now),
                    }
                });
                let wait = Duration::from_nanos(waits.max().unwrap_or(wait).max(wait));
                return Err((quota, per_second, wait));
            }
        }
        Ok(())
    }

    /// Takes one of what is held at once, for as long as the slot is kept.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn hold(&self, quota: Quota) -> Result<Slot, Exceeded> {
        let limit = self.limit(quota);
        self.account(quota)
            .slots
            .take(limit.unwrap_or(usize::MAX))
            .ok_or_else(|| self.exceeded(quota))
    }

    /// How much of this it may hold at once. `None`: there is no bound.
    #[must_use]
    pub fn limit(&self, quota: Quota) -> Option<usize> {
        match self.account(quota).most.load(Ordering::Relaxed) {
            0 => None,
            most => Some(usize::try_from(most).unwrap_or(usize::MAX)),
        }
    }

    /// The refusal of more than may be held, counted and noted.
    #[must_use]
    pub fn exceeded(&self, quota: Quota) -> Exceeded {
        let limit = self.account(quota).most.load(Ordering::Relaxed);
        self.refuse(quota, limit, None)
    }

    fn refuse(&self, quota: Quota, limit: u64, wait: Option<Duration>) -> Exceeded {
        let account = self.account(quota);
        let refused = account.refused.fetch_add(1, Ordering::Relaxed) + 1;
        let plugin = self.plugin.as_ref().map_or("NAME", PluginName::as_str);
        let exceeded = Exceeded {
            plugin: plugin.to_owned(),
            quota,
            limit,
            wait,
        };
        if account.is_told_now(self.now()) {
            let before = account.told_refused.swap(refused, Ordering::Relaxed);
            let suppressed = refused.saturating_sub(before + 1);
            tracing::warn!(
                plugin,
                quota = quota.key(),
                limit,
                refused,
                "a quota is exceeded"
            );
            self.audit.note(audit::Record {
                action: "use".to_owned(),
                decision: audit::decision::DENIED,
                plugin: plugin.to_owned(),
                resource: format!("quotas.{}", quota.key()),
                rule: exceeded.reason().as_str().to_owned(),
                suppressed,
                ..audit::Record::default()
            });
        }
        exceeded
    }

    /// How it stands.
    #[must_use]
    pub fn read(&self) -> [Reading; Quota::ALL.len()] {
        let now = self.now();
        Quota::ALL.map(|quota| {
            let account = self.account(quota);
            let (limit, used) = if is_rate(quota) {
                (account.rate.per_second(), account.rate.used(now))
            } else {
                let most = account.most.load(Ordering::Relaxed);
                (most, account.slots.taken() as u64)
            };
            Reading {
                quota,
                limit,
                used,
                refused: account.refused.load(Ordering::Relaxed),
            }
        })
    }
}

impl Account {
    /// Whether a refusal is told: one in [`TOLD_EVERY`], so that a flood of them hides nothing else.
    fn is_told_now(&self, now: u64) -> bool {
        let told_at = self.told_at.load(Ordering::Relaxed);
        let rest = u64::try_from(TOLD_EVERY.as_nanos()).unwrap_or(u64::MAX);
        let due = told_at == 0 || now.saturating_sub(told_at - 1) >= rest;
        // One of several at the same moment.
        let claimed = || {
            self.told_at
                .compare_exchange(told_at, now + 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        due && claimed()
    }
}

/// By which limits a plugin is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Those of everybody, but for these.
    OfEverybody(OwnQuotas),
    /// These alone: it belongs to the program around the core.
    OfItsOwn(OwnQuotas),
}

impl Share {
    fn of(self, everybody: Quotas) -> Quotas {
        match self {
            Self::OfEverybody(own) => own.over(everybody),
            Self::OfItsOwn(own) => own.over(Quotas::UNLIMITED),
        }
    }
}

/// The meters of all plugins. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metering {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    audit: Audit,
    /// What was said last. Held while the meters are changed.
    said: Mutex<Said>,
    meters: ArcSwap<HashMap<PluginName, Arc<Meter>>>,
    /// Of whoever has a credential and is not in the list: it is being removed or added.
    others: Arc<Meter>,
    operators: Arc<Meter>,
}

#[derive(Debug)]
struct Said {
    everybody: Quotas,
    shares: HashMap<PluginName, Share>,
}

impl Metering {
    /// Meters with these limits for everybody; refusals are noted here.
    #[must_use]
    pub fn new(everybody: Quotas, audit: Audit) -> Self {
        let inner = Inner {
            said: Mutex::new(Said {
                everybody,
                shares: HashMap::new(),
            }),
            meters: ArcSwap::default(),
            others: Meter::new(None, audit.clone(), everybody),
            operators: Meter::unlimited(),
            audit,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The meter of a plugin.
    #[must_use]
    pub fn of(&self, plugin: &PluginName) -> Arc<Meter> {
        let meters = self.inner.meters.load();
        Arc::clone(meters.get(plugin).unwrap_or(&self.inner.others))
    }

    /// The meter of those who have a credential and whose name nobody knows here, all together.
    #[must_use]
    pub fn of_others(&self) -> &Arc<Meter> {
        &self.inner.others
    }

    /// The meter of all operators. It has no limits.
    #[must_use]
    pub fn of_operators(&self) -> &Arc<Meter> {
        &self.inner.operators
    }

    /// All plugins that there are, and what is said of each. Meters of those that stay go on.
    pub fn share_out(&self, shares: HashMap<PluginName, Share>) {
        let mut said = self.inner.said.lock();
        said.shares = shares;
        let before = self.inner.meters.load();
        let meters = said.shares.iter().map(|(plugin, share)| {
            let limits = share.of(said.everybody);
            let meter = match before.get(plugin) {
                Some(meter) => Arc::clone(meter),
                None => Meter::new(Some(plugin.clone()), self.inner.audit.clone(), limits),
            };
            meter.set(limits);
            (plugin.clone(), meter)
        });
        self.inner.meters.store(Arc::new(meters.collect()));
    }

    /// Other limits for everybody.
    pub fn set_everybody(&self, everybody: Quotas) {
        let mut said = self.inner.said.lock();
        said.everybody = everybody;
        self.inner.others.set(everybody);
        for (plugin, meter) in self.inner.meters.load().iter() {
            if let Some(share) = said.shares.get(plugin) {
                meter.set(share.of(everybody));
            }
        }
    }

    /// How the quotas of all plugins stand, or of one, in order of name.
    #[must_use]
    pub fn read(&self, only: Option<&str>) -> Vec<(PluginName, [Reading; Quota::ALL.len()])> {
        let meters = self.inner.meters.load();
        let wanted = |plugin: &PluginName| only.is_none_or(|only| plugin.as_str() == only);
        let wanted = meters.iter().filter(|(plugin, _)| wanted(plugin));
        let mut readings: Vec<_> = wanted
            .map(|(plugin, meter)| (plugin.clone(), meter.read()))
            .collect();
        readings.sort_by(|(one, _), (other, _)| one.cmp(other));
        readings
    }
}

impl Default for Metering {
    /// Without limits, until somebody sets them.
    fn default() -> Self {
        Self::new(Quotas::UNLIMITED, Audit::none())
    }
}

#[cfg(test)]
mod tests;
