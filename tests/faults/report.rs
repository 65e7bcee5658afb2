//! What a row found: figures, each with its promise, and the table and list made of them.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One measured number and what was promised of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) figure: String,
    /// `null`: what was waited for never came.
    pub(crate) value: Option<f64>,
    pub(crate) unit: String,
    /// In words; empty when the figure is for information.
    pub(crate) promise: String,
    pub(crate) kept: bool,
}

/// What came of one row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Findings {
    /// The first is the row's figure in the table.
    pub(crate) figures: Vec<Figure>,
    /// Promises that are no number and were broken, and whatever else went wrong.
    pub(crate) broken: Vec<String>,
    /// Why the whole row could not run.
    pub(crate) skipped: Option<String>,
    /// Parts that could not run, and why.
    pub(crate) skipped_parts: Vec<String>,
    /// How the row differs from the table: shortened times and the like.
    pub(crate) notes: Vec<String>,
    /// A first try does not count.
    #[serde(default)]
    pub(crate) second_try: bool,
}

impl Findings {
    /// `None`: it was skipped.
    pub(crate) fn passed(&self) -> Option<bool> {
        if !self.broken.is_empty() || self.figures.iter().any(|figure| !figure.kept) {
            Some(false)
        } else if self.skipped.is_some() {
            None
        } else {
            Some(true)
        }
    }

    /// Something was not as promised, and all of that are times, or ratios of times.
    pub(crate) fn only_times_broken(&self) -> bool {
        let mut broken = self.figures.iter().filter(|figure| !figure.kept).peekable();
        self.broken.is_empty()
            && broken.peek().is_some()
            && broken.all(|figure| matches!(figure.unit.as_str(), "ms" | "s" | "times"))
    }

    /// All that was not as promised, in words.
    pub(crate) fn all_broken(&self) -> Vec<String> {
        let figures = self.figures.iter().filter(|figure| !figure.kept);
        let figures =
            figures.map(|figure| told(&figure.figure, figure.value, &figure.unit, &figure.promise));
        figures.chain(self.broken.iter().cloned()).collect()
    }
}

/// Where a running row writes down what it finds. Cheap to clone; figures written before a panic stay.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    findings: Arc<Mutex<Findings>>,
    seed: u64,
    long: bool,
}

impl Row {
    pub(crate) fn new(seed: u64, long: bool) -> Self {
        Self {
            seed,
            long,
            ..Self::default()
        }
    }

    /// Whether time does not matter.
    pub(crate) fn is_long(&self) -> bool {
        self.long
    }

    /// Source of everything random in the row.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn findings(&self) -> Findings {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Findings> {
        // Plain data: a panic elsewhere leaves it whole.
        self.findings
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn figure(&self, figure: &str, value: f64, unit: &str, promise: String, kept: bool) {
        let value = value.is_finite().then(|| (value * 1000.0).round() / 1000.0);
        self.lock().figures.push(Figure {
            figure: figure.to_owned(),
            value,
            unit: unit.to_owned(),
            promise,
            kept,
        });
    }

    /// A figure of which nothing is promised.
    pub(crate) fn tell(&self, figure: &str, value: f64, unit: &str) {
        self.figure(figure, value, unit, String::new(), true);
    }

    /// A figure that must not be above a limit.
    pub(crate) fn at_most(&self, figure: &str, value: f64, unit: &str, limit: f64) {
        self.figure(
            figure,
            value,
            unit,
            format!("<= {limit}"),
            value <= limit && value.is_finite(),
        );
    }

    /// A figure that must not be below a limit.
    pub(crate) fn at_least(&self, figure: &str, value: f64, unit: &str, limit: f64) {
        self.figure(figure, value, unit, format!(">= {limit}"), value >= limit);
    }

    /// A figure with two bounds.
    pub(crate) fn between(&self, figure: &str, value: f64, unit: &str, low: f64, high: f64) {
        let kept = (low..=high).contains(&value);
        self.figure(figure, value, unit, format!("{low} to {high}"), kept);
    }

    /// A count.
    pub(crate) fn exactly(&self, figure: &str, value: usize, unit: &str, expected: usize) {
        let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let promise = format!("= {expected}");
        self.figure(figure, number(value), unit, promise, value == expected);
    }

    /// A promise that is no number.
    pub(crate) fn require(&self, holds: bool, promise: impl Into<String>) {
        if !holds {
            self.broken(promise);
        }
    }

    /// A promise was broken. The same words twice are told once.
    pub(crate) fn broken(&self, what: impl Into<String>) {
        let what = what.into();
        let mut findings = self.lock();
        if !findings.broken.contains(&what) {
            findings.broken.push(what);
        }
    }

    /// This machine lacks something for the whole row.
    pub(crate) fn skip(&self, why: impl Into<String>) {
        self.lock().skipped = Some(why.into());
    }

    /// This machine lacks something for a part of the row.
    pub(crate) fn skip_part(&self, why: impl Into<String>) {
        self.lock().skipped_parts.push(why.into());
    }

    /// How the row differs from the table.
    pub(crate) fn note(&self, note: impl Into<String>) {
        self.lock().notes.push(note.into());
    }
}

/// One entry of `results.json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) name: String,
    /// `null`: skipped, see `skipped`.
    pub(crate) passed: Option<bool>,
    pub(crate) figure: String,
    pub(crate) value: Option<f64>,
    pub(crate) unit: String,
    /// Of the figure.
    pub(crate) promise: String,
    /// Whether that was kept; the row may have failed for another reason.
    pub(crate) kept: bool,
    /// Why it could not run here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<String>,
    /// The other figures.
    pub(crate) more: Vec<Figure>,
    pub(crate) broken: Vec<String>,
    pub(crate) skipped_parts: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) second_try: bool,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
}

impl Entry {
    pub(crate) fn new(id: &str, name: &str, findings: Findings, seed: u64, time: Duration) -> Self {
        let passed = findings.passed();
        let mut figures = findings.figures.into_iter();
        let main = figures.next();
        let of_main = |field: fn(&Figure) -> &String| main.as_ref().map(field).cloned();
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            passed,
            figure: of_main(|figure| &figure.figure).unwrap_or_default(),
            value: main.as_ref().and_then(|figure| figure.value),
            unit: of_main(|figure| &figure.unit).unwrap_or_default(),
            promise: of_main(|figure| &figure.promise).unwrap_or_default(),
            kept: main.as_ref().is_none_or(|figure| figure.kept),
            skipped: findings.skipped,
            more: figures.collect(),
            broken: findings.broken,
            skipped_parts: findings.skipped_parts,
            notes: findings.notes,
            second_try: findings.second_try,
            seed,
            seconds: (time.as_secs_f64() * 10.0).round() / 10.0,
        }
    }

    /// For people: a line, and below it everything else that is worth knowing.
    pub(crate) fn text(&self) -> String {
        let word = match self.passed {
            Some(true) => "ok",
            Some(false) => "FAILED",
            None => "SKIP",
        };
        let mut text = format!(
            "{} {word:<7} {:>6.1} s  {}\n",
            self.id, self.seconds, self.name
        );
        // Writing to a String cannot fail.
        let mut line = |mark: &str, what: String| writeln!(text, "     {mark} {what}").ok();
        if !self.figure.is_empty() {
            let mark = if self.kept { " " } else { "!" };
            line(
                mark,
                told(&self.figure, self.value, &self.unit, &self.promise),
            );
        }
        for figure in &self.more {
            let mark = if figure.kept { " " } else { "!" };
            line(
                mark,
                told(&figure.figure, figure.value, &figure.unit, &figure.promise),
            );
        }
        for broken in &self.broken {
            line("!", broken.clone());
        }
        for skipped in self.skipped.iter().chain(&self.skipped_parts) {
            line("-", format!("skipped: {skipped}"));
        }
        for note in &self.notes {
            line("~", note.clone());
        }
        text
    }
}

fn told(figure: &str, value: Option<f64>, unit: &str, promise: &str) -> String {
    let value = value.map_or("never".to_owned(), |value| value.to_string());
    let promise = if promise.is_empty() {
        String::new()
    } else {
        format!("   (promised {promise})")
    };
    format!("{figure}: {value} {unit}{promise}")
}

/// All entries and the count.
pub(crate) fn table(entries: &[Entry]) -> String {
    let mut text = String::from("\n==== faults\n");
    for entry in entries {
        text.push_str(&entry.text());
    }
    let count = |wanted| {
        entries
            .iter()
            .filter(|entry| entry.passed == wanted)
            .count()
    };
    let (passed, failed, skipped) = (count(Some(true)), count(Some(false)), count(None));
    // Once more at the end: that is what is read of a long log.
    if failed > 0 {
        text.push_str("\n==== of these failed\n");
        let broken = entries.iter().filter(|entry| entry.passed == Some(false));
        broken.for_each(|entry| text.push_str(&entry.text()));
    }
    write!(text, "{passed} passed, {failed} failed, {skipped} skipped").ok();
    let again = entries.iter().filter(|entry| entry.second_try).count();
    if again > 0 {
        write!(text, "; {again} at the second try").ok();
    }
    text
}
