//! Numbers: percentiles and medians, and what the kernel says of a process.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What one side of one round came to.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Operations that were done.
    pub(crate) count: u64,
    /// Wall time of all of them.
    pub(crate) seconds: f64,
    /// Latency of one, in microseconds; 0 where it was not measured.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// CPU time of the server process, in seconds.
    pub(crate) server_cpu: f64,
    /// Highest resident size of the server process, in bytes.
    pub(crate) server_peak: u64,
}

impl Sample {
    /// Operations per second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// CPU time of the server per operation, in microseconds.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.server_cpu * 1e6 / self.count as f64
    }

    /// From the latency of each operation and the wall time of all.
    pub(crate) fn of(mut latencies: Vec<u32>, wall: Duration) -> Self {
        latencies.sort_unstable();
        let at = |share: f64| {
            let last = latencies.len().saturating_sub(1);
            let index = (last as f64 * share).round() as usize;
            latencies.get(index).map_or(0.0, |ns| f64::from(*ns) / 1e3)
        };
        Self {
            count: latencies.len() as u64,
            seconds: wall.as_secs_f64(),
            p50_us: at(0.50),
            p99_us: at(0.99),
            ..Self::default()
        }
    }
}

/// The middle value; of an even count the mean of the two.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Nanoseconds of the clock that all processes of a machine share.
pub(crate) fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// User and system time that a process has used, in seconds: `/proc/PID/schedstat` summed over its
/// threads, which counts nanoseconds where `/proc/PID/stat` counts ticks of 10 ms; `stat` for the
/// threads that have ended.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut total = 0.0;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("threads of the server")?;
    for task in tasks {
        let path = task?.path().join("schedstat");
        // A thread may end meanwhile.
        let text = fs::read_to_string(path).unwrap_or_default();
        let ns: u64 = text
            .split(' ')
            .next()
            .and_then(|field| field.parse().ok())
            .unwrap_or(0);
        total += ns as f64 / 1e9;
    }
    Ok(total)
}

/// Resident bytes: now, and at their highest.
pub(crate) fn resident(pid: u32) -> Result<(u64, u64)> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("status of a process")?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
        let kib: u64 = kib.context("no such field")?.parse()?;
        Ok(kib << 10)
    };
    Ok((field("VmRSS")?, field("VmHWM")?))
}

/// Begins the count of the highest resident size anew.
pub(crate) fn reset_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the peak of a process")
}

/// Bytes that a process has had written to disk so far.
pub(crate) fn bytes_written(pid: u32) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).context("io of a process")?;
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.context("no write_bytes")?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        let sample = Sample::of(
            (1..=101).map(|us| us * 1_000).collect(),
            Duration::from_secs(2),
        );
        assert_eq!(sample.count, 101);
        assert!((sample.p50_us - 51.0).abs() < 1e-9);
        assert!((sample.p99_us - 100.0).abs() < 1e-9);
        assert!((sample.rate() - 50.5).abs() < 1e-9);
    }

    #[test]
    fn the_kernel_tells_of_this_process() {
        let pid = std::process::id();
        let (now, peak) = resident(pid).expect("told");
        assert!(now > 0 && peak >= now);
        let before = cpu_seconds(pid).expect("told");
        let mut x = 0_u64;
        while cpu_seconds(pid).expect("told") <= before {
            x = std::hint::black_box(x + 1);
        }
    }
}
