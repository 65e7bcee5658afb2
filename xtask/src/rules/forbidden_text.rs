//! No tracked file depends on one machine: no host names of package registries (where packages come
//! from is the machine's own affair) and no absolute paths of somebody's home or work directory.
//!
//! The words are put together here from pieces, so that this file keeps its own rule.

use super::Finding;
use crate::workspace::TextFile;

/// Hosts of registries, in labels.
const HOSTS: &[&[&str]] = &[
    &["index", "crates", "io"],
    &["static", "crates", "io"],
    &["pypi", "org"],
    &["files", "pythonhosted", "org"],
    &["registry", "npmjs", "org"],
    &["deb", "debian", "org"],
    &["security", "debian", "org"],
    &["docker", "io"],
    &["ghcr", "io"],
    &["quay", "io"],
    &["proxy", "golang", "org"],
];

/// First components of absolute paths that name one machine's directories.
const DIRECTORIES: &[&str] = &["root", "home", "work", "Users", "tmp/wt", "tmp/ct"];

/// Files that are exempt, each with its reason.
const EXCEPTIONS: &[(&str, &str)] = &[("Cargo.lock", "cargo writes its registry there")];

pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let hosts: Vec<_> = HOSTS.iter().map(|labels| labels.join(".")).collect();
    let mut findings = Vec::new();
    for file in files {
        if EXCEPTIONS.iter().any(|(path, _)| *path == file.path) {
            continue;
        }
        for (index, line) in file.text.lines().enumerate() {
            let mut found = |message| findings.push(Finding::new(&file.path, index + 1, message));
            for host in &hosts {
                if contains_host(line, host) {
                    found(format!("names a package registry's host, {host}"));
                }
            }
            for directory in DIRECTORIES {
                if contains_path(line, directory) {
                    found(format!(
                        "names an absolute path of one machine, /{directory}/"
                    ));
                }
            }
        }
    }
    findings
}

/// `host` as a whole, or as the end of a longer host name.
fn contains_host(line: &str, host: &str) -> bool {
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    line.match_indices(host).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + host.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

/// `/directory/` at the beginning of a path.
fn contains_path(line: &str, directory: &str) -> bool {
    let needle = format!("/{directory}/");
    let part_of_path = |c: char| c.is_ascii_alphanumeric() || "._-/})*>".contains(c);
    line.match_indices(&needle)
        .any(|(at, _)| !line[..at].chars().next_back().is_some_and(part_of_path))
}

#[cfg(test)]
mod tests {
    use super::super::text_file;
    use super::*;

    #[test]
    fn hosts_are_found_as_whole_names_only() {
        let host = ["docker", "io"].join(".");
        assert!(contains_host(&format!("FROM {host}/library/debian"), &host));
        assert!(contains_host(&format!("https://registry-1.{host}/"), &host));
        assert!(!contains_host(&format!("my{host}"), &host));
        assert!(!contains_host("docker.iona", &host));
    }

    #[test]
    fn paths_are_found_at_their_beginning_only() {
        let path = |directory: &str| format!("/{directory}/x");
        assert!(contains_path(&format!("cd {}", path("root")), "root"));
        assert!(contains_path(&format!("\"{}\"", path("home")), "home"));
        assert!(!contains_path("examples/home/devices", "home"));
        assert!(!contains_path("../home/devices", "home"));
        assert!(!contains_path("{root}/home/devices", "home"));
    }

    #[test]
    fn the_lock_file_is_exempt_and_others_are_not() {
        let line = format!("registry+https://{}", ["index", "crates", "io"].join("."));
        assert!(check(&[text_file("Cargo.lock", &line)]).is_empty());
        assert_eq!(check(&[text_file("README.md", &line)])[0].line, 1);
    }
}
