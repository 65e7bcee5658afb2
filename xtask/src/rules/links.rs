//! Links in markdown to files and headings of the repository lead somewhere.

use std::collections::BTreeSet;

use super::{Finding, file};
use crate::workspace::TextFile;

pub(super) fn check(files: &[TextFile], paths: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for page in files.iter().filter(|file| file.path.ends_with(".md")) {
        for (line, target) in links(&page.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let mut found = |message| findings.push(Finding::new(&page.path, line, message));
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let Some(path) = resolve(&page.path, path) else {
                found(format!("the link to {target} leaves the repository"));
                continue;
            };
            if !exists(paths, &path) {
                found(format!(
                    "the link to {target} leads nowhere: there is no {path}"
                ));
            } else if !anchor.is_empty()
                && let Some(page) = file(files, &path)
                && !anchors(&page.text).contains(anchor)
            {
                found(format!(
                    "the link to {target} leads nowhere: {path} has no such heading"
                ));
            }
        }
    }
    findings
}

/// A tracked file, or a directory that holds one.
fn exists(paths: &[String], path: &str) -> bool {
    let directory = format!("{path}/");
    path.is_empty()
        || paths
            .iter()
            .any(|known| known == path || known.starts_with(&directory))
}

/// The path in the repository that a link in `page` means; `None` outside of it.
fn resolve(page: &str, link: &str) -> Option<String> {
    if link.is_empty() {
        return Some(page.to_owned());
    }
    let mut components: Vec<&str> = match link.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => page.split('/').collect(),
    };
    components.pop();
    for component in link.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()?),
            name => components.push(name),
        }
    }
    Some(components.join("/"))
}

/// Lines and targets of all inline links and link definitions outside of code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        let mut rest = line.as_str();
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            if let Some(end) = rest.find([')', ' ']) {
                links.push((number, rest[..end].trim_matches(['<', '>']).to_owned()));
            }
        }
        if let Some((label, target)) = line.split_once("]: ")
            && label.starts_with('[')
        {
            links.push((number, target.trim().to_owned()));
        }
    }
    links
}

/// Lines from 1 that are not in code blocks, without their code spans.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut fence: Option<&str> = None;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let marks = trimmed.len() - trimmed.trim_start_matches('`').len();
        match fence {
            Some(open) if trimmed.trim_end() == open => fence = None,
            Some(_) => {}
            None if marks >= 3 => fence = Some(&trimmed[..marks]),
            None => {
                let outside = line.split('`').step_by(2).collect::<Vec<_>>();
                lines.push((index + 1, outside.join("`")));
            }
        }
    }
    lines
}

/// Anchors of the headings, as code hosts make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let title = line.trim_start_matches('#');
        if fenced || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let anchor: String = title.trim().to_lowercase().chars().filter(kept).collect();
        anchors.insert(anchor.replace(' ', "-"));
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::super::text_file;
    use super::*;

    fn messages(page: &str) -> Vec<String> {
        let files = [
            text_file("docs/index.md", page),
            text_file("docs/limits.md", "# Limits\n\n## What happens at `them`?\n"),
            text_file("README.md", ""),
        ];
        let paths: Vec<_> = files.iter().map(|file| file.path.clone()).collect();
        let findings = check(&files, &paths);
        findings
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn links_to_files_directories_and_headings_resolve() {
        let page = "[a](limits.md) [b](../README.md) [c](../docs/) [d](/docs/limits.md)\n\
                    [e](limits.md#what-happens-at-them) [f](https://example.com/x)\n";
        assert_eq!(messages(page), [""; 0]);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        assert_eq!(messages("[a](gone.md)").len(), 1);
        assert_eq!(messages("[a](limits.md#gone)").len(), 1);
        assert_eq!(messages("[a](../../outside.md)").len(), 1);
        assert_eq!(messages("[a]: gone.md").len(), 1);
        assert_eq!(
            messages("[a][b] and [c](limits.md) and [d](gone.md)").len(),
            1
        );
    }

    #[test]
    fn code_is_not_looked_at() {
        assert_eq!(
            messages("```\n[a](gone.md)\n```\n`[b](gone.md)`\n"),
            [""; 0]
        );
    }
}
