//! What `deny.toml` says of dependencies, as far as the lock file alone can tell: packages that are banned,
//! versions that are, packages that there may be one of, and where packages come from.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::rules::Finding;
use crate::steps::{self, Outcome};
use crate::workspace::Workspace;

const DENY: &str = include_str!("../../deny.toml");

/// How `cargo metadata` names crates.io.
const REGISTRY: &str = "registry+";

fn deny() -> Result<toml::Table> {
    DENY.parse().context("deny.toml")
}

/// The licences that it allows.
pub(crate) fn allowed_licences() -> Result<Vec<String>> {
    let deny = deny()?;
    let allowed = deny["licenses"]["allow"].as_array();
    let words = allowed.context("licenses.allow is no list")?.iter();
    Ok(words
        .filter_map(|word| word.as_str().map(str::to_owned))
        .collect())
}

/// A ban.
#[derive(Debug, PartialEq, Eq)]
struct Ban {
    name: String,
    /// Only versions below this.
    below: Option<[u64; 3]>,
    /// One is fine.
    several_only: bool,
}

impl Ban {
    fn read(entry: &toml::Value) -> Result<Self> {
        let text = entry.get("crate").and_then(toml::Value::as_str);
        let text = text.context("a ban names a crate")?;
        let (name, below) = match text.split_once("@<") {
            Some((name, version)) => (name, Some(parse(version)?)),
            None => (text, None),
        };
        let several = entry.get("deny-multiple-versions");
        Ok(Self {
            name: name.to_owned(),
            below,
            several_only: several.and_then(toml::Value::as_bool) == Some(true),
        })
    }
}

fn parse(version: &str) -> Result<[u64; 3]> {
    // What follows a "-" or a "+" does not count here.
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Result<Vec<u64>, _> = core.split('.').map(str::parse).collect();
    match numbers.with_context(|| version.to_owned())?[..] {
        [major, minor, patch] => Ok([major, minor, patch]),
        _ => bail!("{version} is no version"),
    }
}

/// Checks every package of the lock file.
pub(crate) fn run(workspace: &Workspace) -> Result<Outcome> {
    let metadata = workspace.metadata()?;
    let packages = metadata["packages"].as_array();
    let packages = packages.context("cargo metadata has no packages")?;
    let deny = deny()?;
    let bans = deny["bans"]["deny"]
        .as_array()
        .context("bans.deny is no list")?;
    let bans: Result<Vec<_>> = bans.iter().map(Ban::read).collect();
    let registries = deny["sources"]["allow-registry"].as_array();
    let registries = registries.context("sources.allow-registry is no list")?;
    let registries: Vec<_> = registries.iter().filter_map(toml::Value::as_str).collect();
    let findings = check(packages, &bans?, &registries)?;
    Ok(steps::findings(
        &findings,
        &format!("{} packages", packages.len()),
    ))
}

fn check(packages: &[Value], bans: &[Ban], registries: &[&str]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("(unnamed)");
        let version = package["version"].as_str().unwrap_or_default();
        // Of a package of the workspace there is none.
        if let Some(source) = package["source"].as_str() {
            let known = source
                .strip_prefix(REGISTRY)
                .is_some_and(|registry| registries.contains(&registry));
            if !known {
                findings.push(Finding::new(name, 0, format!("comes from {source}")));
            }
        }
        for ban in bans.iter().filter(|ban| ban.name == name) {
            let several = packages
                .iter()
                .filter(|other| other["name"] == package["name"]);
            let is_banned = match (ban.several_only, ban.below) {
                (true, _) => several.count() > 1,
                (false, Some(below)) => parse(version)? < below,
                (false, None) => true,
            };
            if is_banned {
                let message = format!("{version} is banned by deny.toml, which says why");
                findings.push(Finding::new(name, 0, message));
            }
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CRATES_IO: &str = "https://github.com/rust-lang/crates.io-index";

    fn package(name: &str, version: &str) -> Value {
        let source = format!("registry+{CRATES_IO}");
        json!({ "name": name, "version": version, "source": source })
    }

    fn found(packages: &[Value]) -> usize {
        let deny = deny().expect("good");
        let bans = deny["bans"]["deny"].as_array().expect("a list");
        let bans: Result<Vec<_>> = bans.iter().map(Ban::read).collect();
        let found = check(packages, &bans.expect("good"), &[CRATES_IO]);
        found.expect("good versions").len()
    }

    #[test]
    fn what_is_banned_is_found_and_what_is_not_is_left_alone() {
        assert_eq!(
            found(&[package("h2", "0.4.19"), package("ring", "0.17.0")]),
            0
        );
        assert_eq!(found(&[package("h2", "0.4.18")]), 1);
        assert_eq!(found(&[package("h2", "0.4.19"), package("h2", "0.5.0")]), 2);
        assert_eq!(found(&[package("openssl-sys", "0.9.1")]), 1);
    }

    #[test]
    fn what_comes_from_elsewhere_is_found() {
        let git = json!({ "name": "x", "version": "1.0.0", "source": "git+ssh://elsewhere/x" });
        let own = json!({ "name": "y", "version": "1.0.0", "source": null });
        assert_eq!(found(&[git, own]), 1);
    }

    #[test]
    fn the_licences_are_those_of_the_file() {
        let allowed = allowed_licences().expect("good");
        assert!(allowed.contains(&"MIT".to_owned()));
        assert!(!allowed.iter().any(|licence| licence.starts_with("GPL")));
    }
}
