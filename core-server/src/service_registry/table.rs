//! The table of services: pure, no clock, no lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::{Error, ServiceDescription, ServiceInfo};
use crate::types::{Pattern, PluginName, RunId, ServiceName};

/// Names that a plugin may have in the table, known ones included, unless configured otherwise.
pub(super) const MAX_SERVICES_PER_PLUGIN: usize = 1_000;

/// A known service, as routing needs it.
#[derive(Debug)]
pub struct Service {
    /// Full name.
    pub name: ServiceName,
    /// Who provides it.
    pub provider: PluginName,
    /// The run that registered it; `None`: it is only known.
    pub run: Option<RunId>,
    /// The latest description.
    pub description: Arc<ServiceDescription>,
    /// Counters; they outlive registrations.
    pub stats: Arc<ServiceStats>,
    registered_at: Option<SystemTime>,
}

/// Upper bounds of the histogram, in microseconds: from a tenth of a call between two plugins on one
/// machine to the deadline of a call that names none. What took longer counts in one more.
const LATENCY_BOUNDS: [u64; 18] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// Counters of one service.
#[derive(Debug, Default)]
pub struct ServiceStats {
    errors: AtomicU64,
    in_flight: AtomicU64,
    total_micros: AtomicU64,
    /// Calls that ended, by how long they took.
    latency: [AtomicU64; LATENCY_BOUNDS.len() + 1],
}

impl ServiceStats {
    /// A call was handed to the provider.
    pub fn began(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// That call left the provider.
    pub fn left(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// A call ended for its caller, dispatched or not.
    pub fn ended(&self, took: Duration, failed: bool) {
        self.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.total_micros.fetch_add(micros, Ordering::Relaxed);
        let bucket = LATENCY_BOUNDS.partition_point(|bound| *bound < micros);
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Calls that ended, those with an error among them, those at the provider now, and the sum of
    /// all times.
    #[must_use]
    pub fn snapshot(&self) -> (u64, u64, u64, Duration) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            self.latency.iter().map(load).sum(),
            load(&self.errors),
            load(&self.in_flight),
            Duration::from_micros(load(&self.total_micros)),
        )
    }

    /// How many calls took how long: at most the bound, and longer than the one before; `None` is
    /// longer than all. Only those that counted something.
    #[must_use]
    pub fn latency(&self) -> Vec<(Option<Duration>, u64)> {
        let bounds = LATENCY_BOUNDS.iter().copied().map(Duration::from_micros);
        let bounds = bounds.map(Some).chain([None]);
        let counts = self
            .latency
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        bounds.zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}

/// What another look at a run's permissions changed.
#[derive(Debug, Default)]
pub struct Reviewed {
    /// Not offered any more.
    pub withdrawn: Vec<ServiceName>,
    /// Offered from now on.
    pub taken_in: Vec<ServiceName>,
    /// Might be offered, and cannot be.
    pub refused: Vec<Error>,
}

#[derive(Debug)]
pub(super) struct Table {
    max_services: usize,
    by_name: HashMap<ServiceName, Arc<Service>>,
    /// The same names in order, for lists; by plugin, for limits and ends.
    ordered: BTreeMap<ServiceName, ()>,
    by_plugin: HashMap<PluginName, HashSet<ServiceName>>,
    available: HashSet<PluginName>,
    /// By run, what it offers and may not: taken in as soon as it may.
    withheld: HashMap<RunId, BTreeMap<ServiceName, ServiceDescription>>,
}

impl Default for Table {
    fn default() -> Self {
        Self::new(MAX_SERVICES_PER_PLUGIN)
    }
}

impl Table {
    pub(super) fn new(max_services: usize) -> Self {
        Self {
            max_services,
            by_name: HashMap::new(),
            ordered: BTreeMap::new(),
            by_plugin: HashMap::new(),
            available: HashSet::new(),
            withheld: HashMap::new(),
        }
    }

    pub(super) fn register(
        &mut self,
        plugin: &PluginName,
        run: &RunId,
        description: ServiceDescription,
        now: SystemTime,
    ) -> Result<(), Error> {
        let name = description.name.clone();
        let known = self.by_name.get(&name);
        if let Some(known) = known
            && known.provider != *plugin
        {
            if known.run.is_some() {
                let owner = known.provider.clone();
                return Err(Error::Taken {
                    service: name.to_string(),
                    owner,
                });
            }
            self.forget(&name);
        }
        let known = self.by_name.get(&name);
        let stats = known
            .map(|service| Arc::clone(&service.stats))
            .unwrap_or_default();
        if known.is_none() {
            self.make_room(plugin, &name)?;
        }
        let service = Service {
            name: name.clone(),
            provider: plugin.clone(),
            run: Some(run.clone()),
            description: Arc::new(description),
            stats,
            registered_at: Some(now),
        };
        self.by_name.insert(name.clone(), Arc::new(service));
        self.ordered.insert(name.clone(), ());
        self.by_plugin
            .entry(plugin.clone())
            .or_default()
            .insert(name);
        Ok(())
    }

    /// A plugin at its limit loses a name that is only known; if all are registered it is refused.
    fn make_room(&mut self, plugin: &PluginName, name: &ServiceName) -> Result<(), Error> {
        let Some(names) = self.by_plugin.get(plugin) else {
            return Ok(());
        };
        if names.len() < self.max_services {
            return Ok(());
        }
        let idle = |name: &&ServiceName| {
            self.by_name
                .get(*name)
                .is_none_or(|service| service.run.is_none())
        };
        let Some(idle) = names.iter().find(idle).cloned() else {
            let limit = self.max_services;
            return Err(Error::TooMany {
                service: name.to_string(),
                limit,
            });
        };
        self.forget(&idle);
        Ok(())
    }

    fn forget(&mut self, name: &ServiceName) {
        self.ordered.remove(name);
        if let Some(service) = self.by_name.remove(name)
            && let Some(names) = self.by_plugin.get_mut(&service.provider)
        {
            names.remove(name);
        }
    }

    /// Keeps what a run offers and may not, up to the limit of registered ones.
    pub(super) fn withhold(&mut self, run: &RunId, description: ServiceDescription) {
        let of_run = self.withheld.entry(run.clone()).or_default();
        if of_run.len() < self.max_services {
            of_run.insert(description.name.clone(), description);
        }
    }

    /// Withdraws what a run may not offer any more, and takes in what it may by now.
    pub(super) fn review(
        &mut self,
        plugin: &PluginName,
        run: &RunId,
        may: impl Fn(&str) -> bool,
        now: SystemTime,
    ) -> Reviewed {
        let mut reviewed = Reviewed::default();
        let of_run = self.withheld.remove(run).unwrap_or_default();
        let (allowed, left): (Vec<_>, Vec<_>) =
            of_run.into_iter().partition(|(name, _)| may(name.as_str()));
        for (_, description) in left {
            self.withhold(run, description);
        }
        for name in self.registered_by(run) {
            if !may(name.as_str())
                && let Some(service) = self.find(name.as_str())
            {
                self.unregister(run, name.as_str());
                self.withhold(run, service.description.as_ref().clone());
                reviewed.withdrawn.push(name);
            }
        }
        for (name, description) in allowed {
            match self.register(plugin, run, description, now) {
                Ok(()) => reviewed.taken_in.push(name),
                Err(error) => reviewed.refused.push(error),
            }
        }
        reviewed
    }

    pub(super) fn unregister(&mut self, run: &RunId, name: &str) -> Option<ServiceName> {
        if let Some(of_run) = self.withheld.get_mut(run) {
            of_run.retain(|withheld, _| withheld.as_str() != name);
        }
        let service = self
            .by_name
            .get(name)
            .filter(|service| service.run.as_ref() == Some(run))?;
        let name = service.name.clone();
        let known = Service {
            name: name.clone(),
            provider: service.provider.clone(),
            run: None,
            description: Arc::clone(&service.description),
            stats: Arc::clone(&service.stats),
            registered_at: None,
        };
        self.by_name.insert(name.clone(), Arc::new(known));
        Some(name)
    }

    pub(super) fn end_run(&mut self, run: &RunId) -> Vec<ServiceName> {
        self.withheld.remove(run);
        let names = self.registered_by(run);
        for name in &names {
            self.unregister(run, name.as_str());
        }
        names
    }

    pub(super) fn registered_by(&self, run: &RunId) -> Vec<ServiceName> {
        let mut names: Vec<_> = self
            .by_name
            .values()
            .filter(|service| service.run.as_ref() == Some(run))
            .map(|service| service.name.clone())
            .collect();
        names.sort();
        names
    }

    pub(super) fn set_available(
        &mut self,
        plugin: &PluginName,
        available: bool,
    ) -> Vec<ServiceName> {
        let changed = if available {
            self.available.insert(plugin.clone())
        } else {
            self.available.remove(plugin)
        };
        let names = self.by_plugin.get(plugin).filter(|_| changed);
        names
            .map(|names| names.iter().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Service>> {
        self.by_name.get(name).cloned()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.ordered.keys().map(ServiceName::as_str)
    }

    pub(super) fn info(&self, name: &str) -> Option<ServiceInfo> {
        let service = self.by_name.get(name)?;
        Some(ServiceInfo {
            description: Arc::clone(&service.description),
            provider: service.provider.clone(),
            available: service.run.is_some() && self.available.contains(&service.provider),
            registered_at: service.registered_at,
            stats: Arc::clone(&service.stats),
        })
    }

    pub(super) fn list(
        &self,
        pattern: Option<&Pattern>,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<ServiceInfo> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.ordered
            .range::<str, _>((from, std::ops::Bound::Unbounded))
            .map(|(name, ())| name.as_str())
            .filter(|name| pattern.is_none_or(|pattern| pattern.matches(name)))
            .filter_map(|name| self.info(name))
            .take(limit)
            .collect()
    }
}
