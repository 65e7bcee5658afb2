//! Where a value came from, and what is wrong with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// As a person would write it: relative to the working directory where that is shorter.
    pub label: String,
    /// Its directory, absolute. Relative paths that stand in the file begin here.
    pub directory: PathBuf,
    /// Place among the files read; problems are listed in this order.
    pub(super) order: u32,
}

impl SourceFile {
    /// A file at an absolute path; `order` is its place among the files read.
    pub(super) fn new(path: &Path, cwd: &Path, order: u32) -> Arc<Self> {
        Arc::new(Self {
            label: label(path, cwd),
            directory: path.parent().unwrap_or(cwd).to_path_buf(),
            order,
        })
    }
}

/// A path as a person would write it: relative to the working directory if it lies below.
pub(super) fn label(path: &Path, cwd: &Path) -> String {
    path.strip_prefix(cwd).unwrap_or(path).display().to_string()
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A place in a file; line and column count characters from 1.
    File {
        /// The file.
        file: Arc<SourceFile>,
        /// Line, from 1.
        line: u32,
        /// Column, from 1.
        column: u32,
    },
    /// A file as a whole, or a directory that should hold one.
    WholeFile(Arc<SourceFile>),
    /// An environment variable.
    Environment(Arc<str>),
    /// A flag of the command line, with its dashes.
    Flag(&'static str),
}

impl Origin {
    /// The directory at which relative paths from here begin.
    pub(super) fn directory<'a>(&'a self, cwd: &'a Path) -> &'a Path {
        match self {
            Self::File { file, .. } | Self::WholeFile(file) => &file.directory,
            Self::Default | Self::Environment(_) | Self::Flag(_) => cwd,
        }
    }

    /// Files in the order read, from top to bottom, then the environment, then flags.
    fn rank(&self) -> (u8, u32, u32, u32) {
        match self {
            Self::WholeFile(file) => (0, file.order, 0, 0),
            Self::File { file, line, column } => (0, file.order, *line, *column),
            Self::Default => (1, 0, 0, 0),
            Self::Environment(_) => (2, 0, 0, 0),
            Self::Flag(_) => (3, 0, 0, 0),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File { file, line, column } => {
                write!(formatter, "{}:{line}:{column}", file.label)
            }
            Self::WholeFile(file) => formatter.write_str(&file.label),
            Self::Environment(name) => formatter.write_str(name),
            Self::Flag(name) => formatter.write_str(name),
        }
    }
}

/// One thing that is wrong, or doubtful, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What, which, and what to do. Never holds a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.origin, self.message)
    }
}

/// The configuration is refused: everything that is wrong with it, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            problem.fmt(formatter)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// What has been found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: Vec<Problem>,
}

impl Problems {
    pub(super) fn add(&mut self, origin: &Origin, message: impl Into<String>) {
        let problem = Problem {
            origin: origin.clone(),
            message: message.into(),
        };
        // The same value may be looked at twice; once is enough for the reader.
        if !self.found.contains(&problem) {
            self.found.push(problem);
        }
    }

    pub(super) fn into_sorted(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|problem| problem.origin.rank());
        self.found
    }

    /// The refusal, if there is a reason for one.
    pub(super) fn into_error(self) -> Option<Error> {
        let problems = self.into_sorted();
        (!problems.is_empty()).then_some(Error { problems })
    }
}
