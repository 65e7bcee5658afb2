//! Numbers of many samples.

use std::time::Duration;

/// In milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The value below which so many per cent of the samples are (the nearest sample above); NaN of none.
pub(crate) fn percentile(samples: &[Duration], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).map_or(f64::NAN, |sample| ms(*sample))
}

/// The greatest sample, in milliseconds; NaN of none.
pub(crate) fn worst(samples: &[Duration]) -> f64 {
    percentile(samples, 100)
}

/// As a figure.
pub(crate) fn count(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::NAN, f64::from)
}

/// The one in the middle; NaN of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
