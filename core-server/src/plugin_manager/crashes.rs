//! Runs that ended and that nobody ended on purpose: the last of each plugin, in memory. They outlive
//! the runs, not the core; what must outlive the core is in its own log and in whoever subscribes to
//! `core.plugin.crashed`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::LastExit;
use crate::types::{Generation, PluginName};

/// Reports kept per plugin; the oldest give way. With 20 lines of 8 KiB each, the most that one plugin
/// can fill is about 3 MiB.
const KEPT: usize = 20;

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct CrashReport {
    /// Which run.
    pub generation: Generation,
    /// Of the program that crashed.
    pub plugin_version: String,
    /// Number of the configuration that it had.
    pub config_revision: u64,
    /// Why: a stable word.
    pub reason: &'static str,
    /// How and when, and what it wrote last.
    pub exit: LastExit,
    /// Resident memory when it was last measured.
    pub rss_bytes: Option<u64>,
}

/// The last reports of every plugin. Written by the worker, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Crashes {
    /// Short lock: no await, no callback inside.
    reports: Mutex<BTreeMap<PluginName, VecDeque<Arc<CrashReport>>>>,
}

impl Crashes {
    /// Keeps one; `plugin` is one that the manager knows, so that the map is bounded.
    pub(super) fn push(&self, plugin: &PluginName, report: CrashReport) {
        let mut reports = self.reports.lock();
        let of_plugin = reports.entry(plugin.clone()).or_default();
        of_plugin.truncate(KEPT - 1);
        of_plugin.push_front(Arc::new(report));
    }

    /// The plugin is known no more.
    pub(super) fn remove(&self, plugin: &PluginName) {
        self.reports.lock().remove(plugin);
    }

    /// Those of one plugin, newest first.
    pub(super) fn of(&self, plugin: &str) -> Vec<Arc<CrashReport>> {
        let reports = self.reports.lock();
        let of_plugin = reports.get(plugin).into_iter().flatten();
        of_plugin.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_newest_twenty_are_kept_per_plugin() {
        let crashes = Crashes::default();
        let lamp = PluginName::parse("lamp").expect("a good name");
        for generation in 1..=25 {
            let exit = LastExit {
                code: Some(3),
                signal: None,
                message: "exit code 3".to_owned(),
                at: SystemTime::UNIX_EPOCH,
                ran_for: Duration::from_secs(1),
                forced: false,
                last_lines: Vec::new(),
            };
            let report = CrashReport {
                generation: Generation(generation),
                plugin_version: String::new(),
                config_revision: 1,
                reason: "exited",
                exit,
                rss_bytes: None,
            };
            crashes.push(&lamp, report);
        }
        let kept = crashes.of("lamp");
        let generations: Vec<_> = kept.iter().map(|report| report.generation.0).collect();
        assert_eq!(generations, (6..=25).rev().collect::<Vec<_>>());
        assert!(crashes.of("radio").is_empty());
        crashes.remove(&lamp);
        assert!(crashes.of("lamp").is_empty());
    }
}
