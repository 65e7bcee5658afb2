//! What was measured beside what was promised: one table, one list, one check.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The ratio must be at least this, in thousandths.
    AtLeast(u32),
    /// The ratio must be at most this, in thousandths.
    AtMost(u32),
}

/// How far a target that was met before may be missed before `--check` fails.
const TOLERANCE: f64 = 0.15;

impl Target {
    fn value(self) -> f64 {
        match self {
            Self::AtLeast(value) | Self::AtMost(value) => f64::from(value) / 1e3,
        }
    }

    pub(crate) fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(_) => ratio >= self.value(),
            Self::AtMost(_) => ratio <= self.value(),
        }
    }

    /// Missed by more than what noise makes of a target that is met.
    fn is_missed_by_far(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(_) => ratio < self.value() * (1.0 - TOLERANCE),
            Self::AtMost(_) => ratio > self.value() * (1.0 + TOLERANCE),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = match self {
            Self::AtLeast(_) => ">=",
            Self::AtMost(_) => "<=",
        };
        write!(formatter, "{sign} {}", short(self.value()))
    }
}

/// What a row came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Ours, in `unit`.
    pub(crate) ours: Option<f64>,
    /// The peer's.
    pub(crate) peer: Option<f64>,
    /// Whom it was measured against; "itself" or "" where there is no other.
    pub(crate) peer_name: String,
    pub(crate) unit: String,
    /// `ours / peer`; where there is no peer, `ours`.
    pub(crate) ratio: Option<f64>,
    /// In words.
    pub(crate) target: String,
    /// `None`: it was not measured, and `notes` say why.
    pub(crate) met: Option<bool>,
    /// Further figures, and what must be known to read them.
    pub(crate) notes: Vec<String>,
}

/// The table as a person reads it.
pub(crate) fn table(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut line = |cells: [&str; 7]| {
        let [name, ours, peer, unit, ratio, target, met] = cells;
        // Writing to a string cannot fail.
        let _ok = writeln!(
            text,
            "{name:<22} {ours:>11} {peer:>11} {unit:<10} {ratio:>7} {target:>9}  {met}"
        );
    };
    line(["name", "ours", "peer", "unit", "ratio", "target", "met?"]);
    for entry in entries {
        let cell = |value: Option<f64>| value.map_or("-".to_owned(), short);
        let met = match entry.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "not measured",
        };
        let peer = match entry.peer_name.as_str() {
            "" | "itself" => met.to_owned(),
            peer => format!("{met:<4}({peer})"),
        };
        line([
            &entry.name,
            &cell(entry.ours),
            &cell(entry.peer),
            &entry.unit,
            &cell(entry.ratio),
            &entry.target,
            &peer,
        ]);
        for note in &entry.notes {
            line([&format!("    {note}"), "", "", "", "", "", ""]);
        }
    }
    text.lines()
        .map(str::trim_end)
        .fold(String::new(), |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        })
}

/// A number with about three digits that count.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.2} M", value / 1e6),
        v if v >= 1e4 => format!("{:.0} k", value / 1e3),
        v if v >= 1e3 => format!("{:.2} k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Ratios of the targets that were met, by name: `bench/met.json`.
pub(crate) type Met = BTreeMap<String, f64>;

pub(crate) fn read_met(text: &str) -> Result<Met> {
    serde_json::from_str(text).context("bench/met.json")
}

/// Which targets that were met before are now missed by more than 15 %, each in words.
pub(crate) fn regressions(entries: &[(Entry, Target)], before: &Met) -> Vec<String> {
    entries
        .iter()
        .filter_map(|(entry, target)| {
            let (was, ratio) = (before.get(&entry.name)?, entry.ratio?);
            target.is_missed_by_far(ratio).then(|| {
                format!(
                    "{}: {} where {target} was promised and {} was kept",
                    entry.name,
                    short(ratio),
                    short(*was)
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, ratio: Option<f64>) -> Entry {
        Entry {
            name: name.to_owned(),
            ours: ratio,
            peer: None,
            peer_name: String::new(),
            unit: "x".to_owned(),
            ratio,
            target: String::new(),
            met: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn targets_are_met_and_missed_on_their_own_side() {
        let least = Target::AtLeast(2_000);
        let most = Target::AtMost(500);
        for (target, ratio, met, far) in [
            (least, 2.0, true, false),
            (least, 1.99, false, false),
            (least, 1.69, false, true),
            (most, 0.5, true, false),
            (most, 0.51, false, false),
            (most, 0.58, false, true),
        ] {
            assert_eq!(target.is_met(ratio), met, "{target} {ratio}");
            assert_eq!(target.is_missed_by_far(ratio), far, "{target} {ratio}");
        }
    }

    #[test]
    fn only_what_was_met_before_and_is_measured_can_regress() {
        let met = Met::from([("a".to_owned(), 2.4), ("b".to_owned(), 2.4)]);
        let target = Target::AtLeast(2_000);
        let entries = [
            (entry("a", Some(1.0)), target),
            (entry("b", None), target),
            (entry("c", Some(0.1)), target),
        ];
        let found = regressions(&entries, &met);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("a: 1.00 where >= 2.00"), "{found:?}");
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.123, "0.12"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1_234.0, "1.23 k"),
            (65_432.0, "65 k"),
            (1_234_567.0, "1.23 M"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
