//! The rows of the table. Each measures ours and its peer in turn, several rounds in one run, and takes
//! the medians: a machine that others use changes from minute to minute, and both sides share its mood.

pub(crate) mod calls;
pub(crate) mod events;
pub(crate) mod home;
pub(crate) mod scale;
pub(crate) mod storage;

use std::path::PathBuf;

use anyhow::Result;

use crate::measure::{self, Sample};
use crate::process::Role;
use crate::roles::{Operation, Order};

/// How thoroughly to measure.
#[derive(Clone, Debug)]
pub(crate) struct How {
    /// The core's binary.
    pub(crate) core: PathBuf,
    /// Rounds; of each the sides take turns.
    pub(crate) rounds: usize,
    /// Length of one side of a round, in seconds.
    pub(crate) seconds: f64,
}

/// What a row found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) ours: Option<f64>,
    pub(crate) peer: Option<f64>,
    pub(crate) notes: Vec<String>,
}

impl Found {
    pub(crate) fn both(ours: f64, peer: f64) -> Self {
        Self {
            ours: Some(ours),
            peer: Some(peer),
            notes: Vec::new(),
        }
    }

    pub(crate) fn alone(ours: f64) -> Self {
        Self {
            ours: Some(ours),
            ..Self::default()
        }
    }

    /// The peer is not on this machine.
    pub(crate) fn missing(peer: &str) -> Self {
        Self {
            notes: vec![format!(
                "{peer} is missing; it comes with the distribution's package"
            )],
            ..Self::default()
        }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// A role that operates, and the process of the server that it loads.
pub(crate) struct Side<'a> {
    pub(crate) role: &'a mut Role,
    pub(crate) server: u32,
    pub(crate) kind: Operation,
}

/// Takes one sample of a side.
pub(crate) async fn sample(
    side: &mut Side<'_>,
    concurrency: usize,
    seconds: f64,
) -> Result<Sample> {
    let before = measure::cpu_seconds(side.server)?;
    let order = Order::Operate {
        kind: side.kind,
        concurrency,
        seconds,
    };
    let mut sample: Sample = side.role.ask(&order).await?;
    sample.server_cpu = measure::cpu_seconds(side.server)? - before;
    Ok(sample)
}

/// Lets two sides take turns. The first round of each warms up and does not count.
pub(crate) async fn alternate(
    how: &How,
    concurrency: usize,
    mut ours: Side<'_>,
    mut peer: Side<'_>,
) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let (mut our_samples, mut peer_samples) = (Vec::new(), Vec::new());
    sample(&mut ours, concurrency, how.seconds / 3.0).await?;
    sample(&mut peer, concurrency, how.seconds / 3.0).await?;
    for _ in 0..how.rounds {
        our_samples.push(sample(&mut ours, concurrency, how.seconds).await?);
        peer_samples.push(sample(&mut peer, concurrency, how.seconds).await?);
    }
    Ok((our_samples, peer_samples))
}

/// Median of one figure of the samples.
pub(crate) fn middle(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    measure::median(samples.iter().map(figure))
}

/// One figure of both sides.
pub(crate) fn compare(
    (ours, peer): &(Vec<Sample>, Vec<Sample>),
    figure: impl Fn(&Sample) -> f64 + Copy,
) -> Found {
    let note = |side: &[Sample]| {
        format!(
            "{}/s, p50 {:.0} us, p99 {:.0} us, server {:.2} us CPU each",
            crate::report::short(middle(side, Sample::rate)),
            middle(side, |sample| sample.p50_us),
            middle(side, |sample| sample.p99_us),
            middle(side, Sample::cpu_us),
        )
    };
    Found::both(middle(ours, figure), middle(peer, figure))
        .note(format!("ours: {}", note(ours)))
        .note(format!("peer: {}", note(peer)))
}
