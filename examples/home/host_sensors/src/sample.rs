//! What a sample is, and which of its values deserve a warning.

use plugin_sdk::prelude::*;

/// Everything measured at one moment. What could not be measured is absent and stands in `failed`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Sample {
    pub(crate) cpus: usize,
    pub(crate) load: Option<Load>,
    pub(crate) memory: Option<Space>,
    pub(crate) disk: Option<Space>,
    pub(crate) uptime_seconds: Option<f64>,
    /// Hottest first; empty on a machine without sensors.
    pub(crate) temperatures: Vec<Temperature>,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) failed: Vec<Failure>,
}

/// Processes that run or want to run, averaged over 1, 5 and 15 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Load {
    pub(crate) one: f64,
    pub(crate) five: f64,
    pub(crate) fifteen: f64,
}

/// Memory, or a disk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Space {
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
}

impl Space {
    pub(crate) fn used_percent(self) -> f64 {
        if self.total_bytes == 0 {
            return 0.0;
        }
        let used = self.total_bytes.saturating_sub(self.available_bytes);
        100.0 * used as f64 / self.total_bytes as f64
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Temperature {
    pub(crate) sensor: String,
    pub(crate) celsius: f64,
}

/// A value at or above its threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Warning {
    /// "load", "memory", "disk" or "temperature".
    pub(crate) kind: String,
    /// For people.
    pub(crate) text: String,
}

/// A source that should be there and could not be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Failure {
    pub(crate) source: String,
    pub(crate) error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Thresholds {
    load_per_cpu: f64,
    memory_percent: f64,
    disk_percent: f64,
    temperature_celsius: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            load_per_cpu: 1.5,
            memory_percent: 90.0,
            disk_percent: 90.0,
            temperature_celsius: 80.0,
        }
    }
}

/// The warnings that a sample deserves, one of a kind at most.
pub(crate) fn warnings(sample: &Sample, thresholds: &Thresholds) -> Vec<Warning> {
    let cpus = sample.cpus.max(1);
    let load = sample
        .load
        .filter(|load| load.one >= thresholds.load_per_cpu * cpus as f64)
        .map(|load| {
            (
                "load",
                format!("the load is {:.2} on {cpus} processors", load.one),
            )
        });
    let memory = sample
        .memory
        .filter(|memory| memory.used_percent() >= thresholds.memory_percent)
        .map(|memory| {
            (
                "memory",
                format!("{:.0} % of the memory is in use", memory.used_percent()),
            )
        });
    let disk = sample
        .disk
        .filter(|disk| disk.used_percent() >= thresholds.disk_percent)
        .map(|disk| {
            (
                "disk",
                format!("{:.0} % of the disk is in use", disk.used_percent()),
            )
        });
    let temperature = sample
        .temperatures
        .first()
        .filter(|hottest| hottest.celsius >= thresholds.temperature_celsius)
        .map(|hottest| {
            (
                "temperature",
                format!("{} is at {:.0} °C", hottest.sensor, hottest.celsius),
            )
        });
    [load, memory, disk, temperature]
        .into_iter()
        .flatten()
        .map(|(kind, text)| Warning {
            kind: kind.to_owned(),
            text,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calm() -> Sample {
        let space = Some(Space {
            total_bytes: 1000,
            available_bytes: 500,
        });
        Sample {
            cpus: 2,
            load: Some(Load {
                one: 0.5,
                five: 0.5,
                fifteen: 0.5,
            }),
            memory: space,
            disk: space,
            temperatures: vec![Temperature {
                sensor: "cpu".to_owned(),
                celsius: 40.0,
            }],
            ..Sample::default()
        }
    }

    #[test]
    fn a_value_at_its_threshold_is_a_warning() {
        let full = Some(Space {
            total_bytes: 1000,
            available_bytes: 100,
        });
        let hot = vec![Temperature {
            sensor: "cpu".to_owned(),
            celsius: 80.0,
        }];
        let busy = Some(Load {
            one: 3.0,
            five: 0.0,
            fifteen: 0.0,
        });
        for (sample, kinds) in [
            (calm(), &[][..]),
            (Sample::default(), &[]),
            (
                Sample {
                    load: busy,
                    ..calm()
                },
                &["load"],
            ),
            (
                Sample {
                    load: busy,
                    cpus: 4,
                    ..calm()
                },
                &[],
            ),
            (
                Sample {
                    memory: full,
                    ..calm()
                },
                &["memory"],
            ),
            (
                Sample {
                    disk: full,
                    temperatures: hot,
                    ..calm()
                },
                &["disk", "temperature"],
            ),
        ] {
            let warnings = warnings(&sample, &Thresholds::default());
            let found: Vec<_> = warnings
                .iter()
                .map(|warning| warning.kind.as_str())
                .collect();
            assert_eq!(found, kinds, "{sample:?}");
        }
    }

    #[test]
    fn an_empty_disk_of_no_size_is_not_full() {
        assert!(
            Space {
                total_bytes: 0,
                available_bytes: 0
            }
            .used_percent()
                < 1.0
        );
    }
}
