//! Every bound of the bus, with its unit. What happens at each is told in the module's essay.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds of the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Most events in the log; the oldest leave.
    pub log_events: usize,
    /// Most bytes in the log, as encoded; the oldest leave.
    pub log_bytes: usize,
    /// A subscription that is more events behind is slow.
    pub slow_events: usize,
    /// A subscription that is more bytes of the log behind is slow.
    pub slow_bytes: usize,
    /// Most bytes waiting in one lane; beyond, its slowest members read the log.
    pub lane_bytes: usize,
    /// Most bytes waiting in all lanes together.
    pub all_lanes_bytes: usize,
    /// Most bytes of an event's data.
    pub max_data_bytes: usize,
    /// Most events of a batch.
    pub max_batch_events: usize,
    /// Most bytes of data of a batch.
    pub max_batch_bytes: usize,
    /// Most bytes of one delivery, or one event.
    pub delivery_bytes: usize,
    /// A subscription that was told nothing for so long gets a bookmark.
    #[serde(skip)]
    pub bookmark_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_events: 65_536,
            log_bytes: 64 << 20,
            slow_events: 4_096,
            slow_bytes: 4 << 20,
            lane_bytes: 2 << 20,
            all_lanes_bytes: 32 << 20,
            max_data_bytes: 256 << 10,
            max_batch_events: 1_000,
            max_batch_bytes: 1 << 20,
            delivery_bytes: 64 << 10,
            bookmark_after: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Checks that the bounds fit together.
    ///
    /// # Errors
    /// A sentence that names the bound, for people.
    pub fn validate(&self) -> Result<(), String> {
        let counts = [
            ("log_events", self.log_events),
            ("slow_events", self.slow_events),
            ("max_batch_events", self.max_batch_events),
            ("delivery_bytes", self.delivery_bytes),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        if !(1..=1 << 20).contains(&self.max_data_bytes) {
            return Err("max_data_bytes must be between 1 and 1048576 (1 MiB)".to_owned());
        }
        if self.log_bytes < 4 * self.max_data_bytes {
            return Err("log_bytes must be at least four times max_data_bytes".to_owned());
        }
        if self.max_batch_bytes < self.max_data_bytes || self.max_batch_bytes > 3 << 20 {
            return Err(
                "max_batch_bytes must be between max_data_bytes and 3145728 (3 MiB)".to_owned(),
            );
        }
        Ok(())
    }
}
