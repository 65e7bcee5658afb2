//! A Rust file longer than 600 lines usually holds a second idea.

use super::Finding;
use crate::workspace::TextFile;

const MAX_LINES: usize = 600;

/// Longer files that stay whole, each with its reason.
const EXCEPTIONS: &[(&str, &str)] = &[(
    "core-server/src/supervisor/lifecycle/tests/mod.rs",
    "one table: every event against every state",
)];

pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    check_with(files, EXCEPTIONS)
}

fn check_with(files: &[TextFile], exceptions: &[(&str, &str)]) -> Vec<Finding> {
    let excused = |path: &str| exceptions.iter().any(|(excused, _)| *excused == path);
    let too_long =
        |file: &&TextFile| file.path.ends_with(".rs") && file.text.lines().count() > MAX_LINES;
    let mut findings: Vec<_> = files
        .iter()
        .filter(|file| too_long(file) && !excused(&file.path))
        .map(|file| {
            let lines = file.text.lines().count();
            let message = format!(
                "{lines} lines, more than {MAX_LINES}: look for the second idea, or add it with \
                 its reason to xtask/src/rules/file_length.rs"
            );
            Finding::new(&file.path, 0, message)
        })
        .collect();
    for (path, _) in exceptions {
        if !files
            .iter()
            .any(|file| file.path == *path && too_long(&file))
        {
            let message = "needs no exception in xtask/src/rules/file_length.rs any more";
            findings.push(Finding::new(*path, 0, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::text_file;
    use super::*;

    #[test]
    fn a_long_file_needs_a_reason_and_a_reason_needs_a_long_file() {
        let long = "\n".repeat(MAX_LINES + 1);
        let files = [
            text_file("a.rs", &long),
            text_file("a.md", &long),
            text_file("b.rs", "\n"),
        ];
        let places = |exceptions| -> Vec<_> {
            let findings = check_with(&files, exceptions);
            findings.into_iter().map(|finding| finding.place).collect()
        };
        assert_eq!(places(&[]), ["a.rs"]);
        assert!(places(&[("a.rs", "one table")]).is_empty());
        assert_eq!(places(&[("a.rs", "one table"), ("b.rs", "x")]), ["b.rs"]);
    }
}
