//! Rules over the tracked files that no compiler checks. Each is a pure function from files to
//! findings.

mod file_length;
mod forbidden_text;
mod links;
mod lock_file;
mod quoted_files;

use std::fmt;

use anyhow::Result;

use crate::steps::{self, Outcome};
use crate::workspace::{TextFile, Workspace};

/// Something that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// File or element.
    pub(crate) place: String,
    /// From 1; 0 when no line is meant.
    pub(crate) line: usize,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

impl Finding {
    pub(crate) fn new(place: impl Into<String>, line: usize, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(formatter, "{}: {}", self.place, self.message),
            line => write!(formatter, "{}:{line}: {}", self.place, self.message),
        }
    }
}

/// All rules.
pub(crate) fn run(workspace: &Workspace) -> Result<Outcome> {
    let files = workspace.text_files()?;
    let paths = workspace.tracked_paths()?;
    let mut findings = file_length::check(&files);
    findings.extend(forbidden_text::check(&files));
    findings.extend(links::check(&files, &paths));
    findings.extend(quoted_files::check(&files));
    findings.extend(lock_file::check(&files));
    Ok(steps::findings(
        &findings,
        &format!("{} files", files.len()),
    ))
}

/// The file at `path`, if it is tracked.
fn file<'a>(files: &'a [TextFile], path: &str) -> Option<&'a TextFile> {
    files.iter().find(|file| file.path == path)
}

/// A file for tests of rules.
#[cfg(test)]
fn text_file(path: &str, text: &str) -> TextFile {
    TextFile {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}
