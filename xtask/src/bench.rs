//! `cargo xtask bench`: builds the core as it ships and measures it beside its peers.

use anyhow::Result;

use crate::steps::{self, Outcome};
use crate::workspace::Workspace;

/// The profile that ships; figures of any other would say little.
const BUILD: [&str; 8] = [
    "build",
    "--profile",
    "dist",
    "--package",
    "core-server",
    "--package",
    "core-bench",
    "--locked",
];

/// What is passed on to the bench.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Only these rows; all if none is given.
    names: Vec<String>,
    /// Fewer and shorter rounds: to see that everything works, not to compare.
    #[arg(long)]
    quick: bool,
    /// Fails when a target that was met before is missed by more than 15 %.
    #[arg(long)]
    check: bool,
    /// Lists the rows and ends.
    #[arg(long)]
    list: bool,
    /// Writes which targets are met into `bench/met.json`, what `--check` compares with.
    #[arg(long)]
    record: bool,
}

/// Measures; the results stand in `bench/results.json` of the target directory.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<Outcome> {
    let built = steps::command(&mut workspace.cargo(BUILD))?;
    if !matches!(built, Outcome::Passed(_)) {
        return Ok(built);
    }
    let mut bench = std::process::Command::new(workspace.target.join("dist/core-bench"));
    bench.current_dir(&workspace.root).args(arguments(options));
    steps::command(&mut bench)
}

fn arguments(options: &Options) -> Vec<String> {
    let flags = [
        (options.quick, "--quick"),
        (options.check, "--check"),
        (options.list, "--list"),
    ];
    let mut arguments: Vec<String> = flags
        .iter()
        .filter(|(is_set, _)| *is_set)
        .map(|(_, flag)| (*flag).to_owned())
        .collect();
    if options.record {
        arguments.extend(["--record".to_owned(), "bench/met.json".to_owned()]);
    }
    arguments.extend(options.names.iter().cloned());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_passed_on() {
        let options = Options {
            names: vec!["event_1_1".to_owned()],
            quick: true,
            record: true,
            ..Options::default()
        };
        let expected = ["--quick", "--record", "bench/met.json", "event_1_1"];
        assert_eq!(arguments(&options), expected);
    }
}
