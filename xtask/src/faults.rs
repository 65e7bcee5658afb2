//! `cargo xtask faults`: builds and runs the fault table, which is a program among the tests.

use std::path::Path;

use anyhow::Result;

use crate::steps::{self, Outcome};
use crate::suite;
use crate::workspace::Workspace;

/// What is passed on to the table.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Only these rows: 01, 15. All if none is given.
    rows: Vec<String>,
    /// Rows at their full length.
    #[arg(long)]
    long: bool,
    /// Repeats what was random.
    #[arg(long)]
    seed: Option<u64>,
    /// Lists the rows and ends.
    #[arg(long)]
    list: bool,
}

/// Runs the table; its results stand in `faults/results.json` of the target directory.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<Outcome> {
    // With everything else, as the other steps build it; the table also plays `corectl`.
    let built = steps::command(&mut workspace.cargo(suite::BUILD))?;
    if !matches!(built, Outcome::Passed(_)) {
        return Ok(built);
    }
    let table = ["test", "--workspace", "--test", "faults", "--locked", "--"];
    let mut table = workspace.cargo(table);
    table.args(arguments(options, &workspace.target.join("faults")));
    steps::command(&mut table)
}

fn arguments(options: &Options, directory: &Path) -> Vec<String> {
    if options.list {
        return vec!["list".to_owned()];
    }
    let mut arguments = vec![
        "run".to_owned(),
        "--directory".to_owned(),
        directory.display().to_string(),
    ];
    arguments.extend(options.long.then(|| "--long".to_owned()));
    if let Some(seed) = options.seed {
        arguments.extend(["--seed".to_owned(), seed.to_string()]);
    }
    arguments.extend(options.rows.iter().cloned());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_passed_on() {
        let options = Options {
            rows: vec!["02".to_owned()],
            seed: Some(7),
            ..Options::default()
        };
        assert_eq!(
            arguments(&options, Path::new("target/faults")),
            ["run", "--directory", "target/faults", "--seed", "7", "02"]
        );
        let list = Options {
            list: true,
            ..Options::default()
        };
        assert_eq!(arguments(&list, Path::new("x")), ["list"]);
    }
}
