//! Licences of all dependencies, from `cargo metadata`: each must allow what we do with it, by an
//! SPDX expression over those that `deny.toml` allows.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::bans;
use crate::rules::Finding;
use crate::steps::{self, Outcome};
use crate::workspace::Workspace;

/// Checks every package of the lock file.
pub(crate) fn run(workspace: &Workspace) -> Result<Outcome> {
    let metadata = workspace.metadata()?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    let allowed = bans::allowed_licences()?;
    let allowed: Vec<_> = allowed.iter().map(String::as_str).collect();
    let check = |package| check(package, &allowed);
    let findings: Vec<_> = packages.iter().filter_map(check).collect();
    Ok(steps::findings(
        &findings,
        &format!("{} packages", packages.len()),
    ))
}

fn check(package: &Value, allowed: &[&str]) -> Option<Finding> {
    let name = package["name"].as_str().unwrap_or("(unnamed)");
    let message = match package["license"].as_str() {
        None => "says nothing of its licence".to_owned(),
        Some(expression) => match allows(expression, allowed) {
            Some(true) => return None,
            Some(false) => format!("its licence \"{expression}\" is not on the list"),
            None => format!("\"{expression}\" is no licence expression"),
        },
    };
    Some(Finding::new(name, 0, message))
}

/// Whether an SPDX expression can be met by `allowed` alone; `None` when it is none. `/` is an old
/// way to write OR.
fn allows(expression: &str, allowed: &[&str]) -> Option<bool> {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let met = either(&mut rest, allowed)?;
    rest.is_empty().then_some(met)
}

fn either(rest: &mut &[&str], allowed: &[&str]) -> Option<bool> {
    let mut met = both(rest, allowed)?;
    while take(rest, "OR") {
        met |= both(rest, allowed)?;
    }
    Some(met)
}

fn both(rest: &mut &[&str], allowed: &[&str]) -> Option<bool> {
    let mut met = licence(rest, allowed)?;
    while take(rest, "AND") {
        met &= licence(rest, allowed)?;
    }
    Some(met)
}

fn licence(rest: &mut &[&str], allowed: &[&str]) -> Option<bool> {
    if take(rest, "(") {
        let met = either(rest, allowed)?;
        return take(rest, ")").then_some(met);
    }
    let (name, after) = rest.split_first()?;
    if matches!(*name, ")" | "OR" | "AND" | "WITH") {
        return None;
    }
    *rest = after;
    let mut name = (*name).to_owned();
    if take(rest, "WITH") {
        let (exception, after) = rest.split_first()?;
        *rest = after;
        name = format!("{name} WITH {exception}");
    }
    Some(allowed.contains(&name.as_str()))
}

fn take(rest: &mut &[&str], word: &str) -> bool {
    match rest.split_first() {
        Some((first, after)) if *first == word => {
            *rest = after;
            true
        }
        _ => false,
    }
}

/// Asks `cargo audit`, offline. Where it or its database is missing nothing is checked, and that is
/// said.
pub(crate) fn advisories(workspace: &Workspace) -> Result<Outcome> {
    let skip = |reason: &str| {
        println!("SKIP: {reason}");
        Ok(Outcome::Skipped(reason.to_owned()))
    };
    let mut version = Command::new("cargo-audit");
    version.args(["audit", "--version"]).stdin(Stdio::null());
    let installed = version.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !installed.is_ok_and(|status| status.success()) {
        return skip("advisories were not checked: cargo-audit is not installed");
    }
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    if !home.is_some_and(|home| home.join("advisory-db").is_dir()) {
        return skip("advisories were not checked: there is no advisory database");
    }
    steps::command(&mut workspace.cargo(["audit", "--no-fetch"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_by_allowed_licences_only() {
        let table = [
            ("MIT", Some(true)),
            ("GPL-3.0-only", Some(false)),
            ("MIT OR GPL-3.0-only", Some(true)),
            ("MIT AND GPL-3.0-only", Some(false)),
            ("MIT/Apache-2.0", Some(true)),
            ("(MIT OR GPL-3.0-only) AND Unicode-3.0", Some(true)),
            ("(MIT AND GPL-3.0-only) OR (ISC)", Some(true)),
            ("Apache-2.0 WITH LLVM-exception", Some(true)),
            ("GPL-3.0-only WITH LLVM-exception OR MIT", Some(true)),
            ("Apache-2.0 WITH Other-exception", Some(false)),
            ("", None),
            ("MIT OR", None),
            ("(MIT", None),
            ("MIT MIT", None),
        ];
        let allowed = [
            "Apache-2.0 WITH LLVM-exception",
            "ISC",
            "MIT",
            "Apache-2.0",
            "Unicode-3.0",
        ];
        for (expression, expected) in table {
            assert_eq!(allows(expression, &allowed), expected, "{expression}");
        }
    }

    #[test]
    fn a_package_without_a_licence_is_found() {
        assert!(check(&serde_json::json!({"name": "x", "license": null}), &["MIT"]).is_some());
        assert!(
            check(
                &serde_json::json!({"name": "x", "license": "MIT"}),
                &["MIT"]
            )
            .is_none()
        );
    }
}
