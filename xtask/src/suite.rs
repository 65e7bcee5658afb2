//! `cargo xtask test`: everything that CI checks, cheap first. CI runs this and nothing else.
//!
//! One profile throughout, so that nothing is built for one step only. The compose tests are
//! `#[ignore]`d for everybody else and run here, where a docker engine is.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, bail};

use crate::bans;
use crate::demo;
use crate::faults;
use crate::fuzz;
use crate::licences;
use crate::rules;
use crate::steps::{self, Outcome, Step};
use crate::units;
use crate::workspace::Workspace;

/// With the tests, so that the features of dependencies are those of the steps after it: a build of
/// the binaries alone would make half of the dependencies a second time.
pub(crate) const BUILD: [&str; 5] = [
    "build",
    "--workspace",
    "--all-targets",
    "--locked",
    "--keep-going",
];

const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        about: "cargo fmt --check",
        needs: &[],
        run: |workspace| steps::command(&mut workspace.cargo(["fmt", "--all", "--check"])),
    },
    Step {
        name: "rules",
        about: "lengths of files, the lock file, host names and paths, links, quoted files",
        needs: &[],
        run: rules::run,
    },
    Step {
        name: "licences",
        about: "licences of all dependencies",
        needs: &[],
        run: licences::run,
    },
    Step {
        name: "bans",
        about: "banned packages, a single h2, where packages come from",
        needs: &[],
        run: bans::run,
    },
    Step {
        name: "advisories",
        about: "known vulnerabilities of dependencies",
        needs: &[],
        run: licences::advisories,
    },
    Step {
        name: "clippy",
        about: "cargo clippy, warnings are errors",
        needs: &[],
        run: |workspace| {
            let arguments = "clippy --workspace --all-targets --locked --keep-going -- -D warnings";
            steps::command(&mut workspace.cargo(arguments.split(' ')))
        },
    },
    Step {
        name: "rustdoc",
        about: "cargo doc, warnings are errors",
        needs: &[],
        run: |workspace| {
            // Essays of modules link to what is private: these pages are for whoever works here.
            let arguments =
                "doc --workspace --no-deps --document-private-items --locked --keep-going";
            let mut doc = workspace.cargo(arguments.split(' '));
            steps::command(doc.env("RUSTDOCFLAGS", "-D warnings"))
        },
    },
    Step {
        name: "build",
        about: "everything, tests included",
        needs: &[],
        run: |workspace| steps::command(&mut workspace.cargo(BUILD)),
    },
    Step {
        name: "units",
        about: "the units of deploy/systemd, verified by systemd",
        needs: &["build"],
        run: units::verify,
    },
    Step {
        name: "tests",
        about: "unit and system tests",
        needs: &["build"],
        run: tests,
    },
    Step {
        name: "doctests",
        about: "examples in documentation",
        needs: &["build"],
        run: |workspace| {
            let arguments = ["test", "--workspace", "--doc", "--locked"];
            steps::command(&mut workspace.cargo(arguments))
        },
    },
    Step {
        name: "demo",
        about: "cargo demo --exit: one scene with real processes",
        needs: &["build"],
        run: demo::scene,
    },
    Step {
        name: "faults",
        about: "the fault table: real cores and plugins, every promise with its figure",
        needs: &["build"],
        run: |workspace| faults::run(workspace, &faults::Options::default()),
    },
    Step {
        name: "fuzz",
        about: "the targets of fuzz/, some seconds each",
        needs: &[],
        run: fuzz::run,
    },
    Step {
        name: "compose",
        about: "docker-compose.yml on a real engine",
        needs: &["build"],
        run: compose,
    },
];

/// Prints the steps.
pub(crate) fn list() -> ExitCode {
    for step in STEPS {
        println!("{:<14} {}", step.name, step.about);
    }
    ExitCode::SUCCESS
}

/// Runs the steps named, or all.
pub(crate) fn run(workspace: &Workspace, names: &[String]) -> Result<ExitCode> {
    for name in names {
        if !STEPS.iter().any(|step| step.name == name) {
            bail!("there is no step {name:?}; `cargo xtask test --list` shows them");
        }
    }
    let wanted = |step: &&Step| names.is_empty() || names.iter().any(|name| name == step.name);
    let chosen: Vec<_> = STEPS.iter().filter(wanted).collect();
    let reports = steps::run_all(workspace, &chosen);
    println!("{}", steps::summary(&reports));
    let failed = |report: &steps::Report| matches!(report.outcome, Outcome::Failed(_));
    Ok(if reports.iter().any(failed) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn tests(workspace: &Workspace) -> Result<Outcome> {
    if has_nextest(workspace) {
        println!("runner: cargo nextest");
        let mut run = workspace.cargo(["nextest", "run", "--workspace", "--locked"]);
        return steps::command(&mut run);
    }
    println!("runner: cargo test (cargo-nextest is not installed)");
    let arguments = "test --workspace --lib --bins --tests --locked --no-fail-fast";
    steps::command(&mut workspace.cargo(arguments.split(' ')))
}

fn has_nextest(workspace: &Workspace) -> bool {
    let mut version = workspace.cargo(["nextest", "--version"]);
    succeeds(version.stdout(Stdio::null()).stderr(Stdio::null()))
}

fn compose(workspace: &Workspace) -> Result<Outcome> {
    let quiet = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        succeeds(command.stdout(Stdio::null()).stderr(Stdio::null()))
    };
    if !quiet("docker", &["info"]) {
        return Ok(skip("no docker engine answers `docker info`"));
    }
    if !quiet("docker", &["compose", "version"]) && !quiet("docker-compose", &["version"]) {
        return Ok(skip(
            "neither `docker compose` nor `docker-compose` is installed",
        ));
    }
    let built = steps::command(&mut workspace.cargo(BUILD))?;
    if !matches!(built, Outcome::Passed(_)) {
        return Ok(built);
    }
    let arguments = "test --workspace --test compose --locked -- --ignored --nocapture";
    steps::command(&mut workspace.cargo(arguments.split(' ')))
}

fn skip(reason: &str) -> Outcome {
    println!("SKIP: {reason}");
    Outcome::Skipped(reason.to_owned())
}

fn succeeds(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::STEPS;

    #[test]
    fn each_step_needs_only_earlier_ones_and_names_are_unique() {
        for (index, step) in STEPS.iter().enumerate() {
            let earlier: Vec<_> = STEPS[..index].iter().map(|step| step.name).collect();
            assert!(!earlier.contains(&step.name), "{} stands twice", step.name);
            for needed in step.needs {
                assert!(earlier.contains(needed), "{} needs {needed}", step.name);
            }
        }
    }
}
