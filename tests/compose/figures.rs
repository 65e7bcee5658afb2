//! What was measured: printed, and kept as `results.json`.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    figure: String,
    value: f64,
    unit: &'static str,
    /// What it must be at most, where that is promised.
    at_most: Option<f64>,
    kept: bool,
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    taken: Mutex<Vec<Figure>>,
}

impl Figures {
    /// Something measured that nothing is promised of.
    pub(crate) fn measured(&self, figure: impl Into<String>, value: f64, unit: &'static str) {
        self.take(figure.into(), value, unit, None);
    }

    /// Something measured that must not be more.
    pub(crate) fn at_most(
        &self,
        figure: impl Into<String>,
        value: f64,
        unit: &'static str,
        bound: f64,
    ) {
        self.take(figure.into(), value, unit, Some(bound));
    }

    fn take(&self, figure: String, value: f64, unit: &'static str, at_most: Option<f64>) {
        let kept = at_most.is_none_or(|bound| value <= bound);
        let promise = at_most.map_or(String::new(), |bound| {
            let mark = if kept { "" } else { "BROKEN, " };
            format!("   ({mark}promised <= {bound} {unit})")
        });
        println!("       {figure}: {value:.2} {unit}{promise}");
        self.taken().push(Figure {
            figure,
            value,
            unit,
            at_most,
            kept,
        });
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Figure>> {
        self.taken.lock().expect("no panic inside")
    }

    /// The promises that were broken.
    pub(crate) fn broken(&self) -> Vec<String> {
        let taken = self.taken();
        let broken = taken.iter().filter(|figure| !figure.kept);
        broken
            .map(|broken| format!("{}: {:.2} {}", broken.figure, broken.value, broken.unit))
            .collect()
    }

    /// Writes them down.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&*self.taken())?;
        fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }
}
