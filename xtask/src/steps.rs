//! Running named steps one after the other, and the table at the end.
//!
//! A failed step does not end the run: the picture stays as complete as it can cheaply be. A step
//! that needs the outcome of a failed one is skipped, and says so.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::rules::Finding;
use crate::workspace::Workspace;

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With a remark for the table; may be empty.
    Passed(String),
    /// Why, in a few words; details were printed.
    Failed(String),
    /// Why it could not run.
    Skipped(String),
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// One word, for the command line and the table.
    pub(crate) name: &'static str,
    /// What it checks.
    pub(crate) about: &'static str,
    /// Steps without whose success it is pointless.
    pub(crate) needs: &'static [&'static str],
    pub(crate) run: fn(&Workspace) -> Result<Outcome>,
}

/// What became of a step.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) name: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) time: Duration,
}

/// Runs steps in order, printing a headline and an end for each.
pub(crate) fn run_all(workspace: &Workspace, steps: &[&Step]) -> Vec<Report> {
    let mut reports: Vec<Report> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        println!(
            "\n==== {}/{} {}: {}",
            index + 1,
            steps.len(),
            step.name,
            step.about
        );
        let begun = Instant::now();
        let outcome = match unmet(step, &reports) {
            Some(needed) => Outcome::Skipped(format!("not run: {needed} did not pass")),
            None => (step.run)(workspace).unwrap_or_else(|error| {
                println!("{error:#}");
                Outcome::Failed("could not be run to its end".to_owned())
            }),
        };
        let time = begun.elapsed();
        println!("---- {}", line(step.name, &outcome, time));
        reports.push(Report {
            name: step.name,
            outcome,
            time,
        });
    }
    reports
}

/// The first step that `step` needs and that was run without success.
fn unmet(step: &Step, reports: &[Report]) -> Option<&'static str> {
    let failed = |name: &&'static str| {
        reports
            .iter()
            .any(|report| report.name == *name && !matches!(report.outcome, Outcome::Passed(_)))
    };
    step.needs.iter().copied().find(failed)
}

/// Outcome of a command that shows its own output.
pub(crate) fn command(command: &mut Command) -> Result<Outcome> {
    let status = command.status()?;
    Ok(if status.success() {
        Outcome::Passed(String::new())
    } else {
        Outcome::Failed(status.to_string())
    })
}

/// Outcome of a check that finds things; prints them.
pub(crate) fn findings(findings: &[Finding], checked: &str) -> Outcome {
    for finding in findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        Outcome::Passed(checked.to_owned())
    } else {
        Outcome::Failed(format!("{} found", findings.len()))
    }
}

/// The table, and as its last line the count that test runners' readers know.
pub(crate) fn summary(reports: &[Report]) -> String {
    let mut text = String::from("\n==== summary\n");
    for report in reports {
        // Writing to a String cannot fail.
        writeln!(text, "{}", line(report.name, &report.outcome, report.time)).ok();
    }
    let count = |wanted: fn(&Outcome) -> bool| {
        let of_kind = reports.iter().filter(|report| wanted(&report.outcome));
        of_kind.count()
    };
    let total: Duration = reports.iter().map(|report| report.time).sum();
    writeln!(text, "steps took {}", seconds(total)).ok();
    write!(
        text,
        "{} passed, {} failed, {} skipped",
        count(|outcome| matches!(outcome, Outcome::Passed(_))),
        count(|outcome| matches!(outcome, Outcome::Failed(_))),
        count(|outcome| matches!(outcome, Outcome::Skipped(_))),
    )
    .ok();
    text
}

fn line(name: &str, outcome: &Outcome, time: Duration) -> String {
    let (word, remark) = match outcome {
        Outcome::Passed(remark) => ("ok", remark),
        Outcome::Failed(why) => ("FAILED", why),
        Outcome::Skipped(why) => ("SKIP", why),
    };
    format!("{name:<14} {word:<7} {:>9}  {remark}", seconds(time))
        .trim_end()
        .to_owned()
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &'static str, outcome: Outcome) -> Report {
        Report {
            name,
            outcome,
            time: Duration::from_millis(1500),
        }
    }

    fn step(needs: &'static [&'static str]) -> Step {
        Step {
            name: "step",
            about: "",
            needs,
            run: |_| Ok(Outcome::Passed(String::new())),
        }
    }

    #[test]
    fn the_last_line_of_the_summary_counts_every_step_once() {
        let reports = [
            report("fmt", Outcome::Passed(String::new())),
            report("clippy", Outcome::Failed("exit status: 101".to_owned())),
            report("compose", Outcome::Skipped("no docker engine".to_owned())),
        ];
        let summary = summary(&reports);
        assert_eq!(
            summary.lines().last(),
            Some("1 passed, 1 failed, 1 skipped")
        );
        assert!(summary.contains("compose        SKIP        1.5 s  no docker engine"));
    }

    #[test]
    fn a_step_waits_for_what_it_needs_but_not_for_what_was_not_asked_for() {
        let failed = [report("build", Outcome::Failed("x".to_owned()))];
        assert_eq!(unmet(&step(&["build"]), &failed), Some("build"));
        let passed = [report("build", Outcome::Passed(String::new()))];
        assert_eq!(unmet(&step(&["build"]), &passed), None);
        assert_eq!(unmet(&step(&["build"]), &[]), None);
    }
}
