//! Rules over the contract, read from its compiled descriptors: the names and numbers that buf's
//! STANDARD asks for, and a comment on everything that a reader meets.
//!
//! `main.rs` walks the files; `names.rs` and `comments.rs` hold the rules; `exceptions.rs` lists what
//! departs from them, each with its reason. Vendored packages (`google`) are left alone.
//!
//! A check against breaking changes starts with the first release: before it there is nothing to
//! break.

mod comments;
mod exceptions;
mod names;
mod tests;

use std::fmt;
use std::fs;
use std::path::Path;

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

use crate::exceptions::Exceptions;

/// Our packages begin so.
const PACKAGE: &str = "coreruntime";

/// Something that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// File or element.
    place: String,
    /// From 1; 0 when no line is meant.
    line: usize,
    /// What is wrong and what to do.
    message: String,
}

impl Finding {
    fn new(place: impl Into<String>, line: usize, message: impl Into<String>) -> Self {
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

#[test]
fn the_contract_keeps_its_rules() {
    let set = FileDescriptorSet::decode(core_proto::FILE_DESCRIPTOR_SET).expect("descriptors");
    assert!(set.file.iter().any(is_ours), "there is a contract");
    let mut exceptions = Exceptions::new(exceptions::LIST);
    let mut findings = lint(&set, &mut exceptions);
    findings.extend(exceptions.unused());
    findings.extend(uncompiled(Path::new(env!("CARGO_MANIFEST_DIR")), &set));
    let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

fn lint(set: &FileDescriptorSet, exceptions: &mut Exceptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in set.file.iter().filter(|file| is_ours(file)) {
        findings.extend(names::check(file));
        findings.extend(comments::check(file));
    }
    findings.retain(|finding| !exceptions.excuse(&finding.place));
    findings
}

fn is_ours(file: &FileDescriptorProto) -> bool {
    file.package().split('.').next() == Some(PACKAGE)
}

/// Files on disk that were not compiled in, and so were not linted.
fn uncompiled(proto: &Path, set: &FileDescriptorSet) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut directories = vec![proto.join(PACKAGE)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the contract") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(proto).unwrap_or(&path).to_string_lossy();
            if name.ends_with(".proto") && !set.file.iter().any(|file| file.name() == name) {
                let message = "is not compiled: add it to proto/build.rs";
                findings.push(Finding::new(name, 0, message));
            }
        }
    }
    findings
}

/// Lines of source, by the path of the element in its file (descriptor.proto, SourceCodeInfo).
fn line_of(file: &FileDescriptorProto, path: &[i32]) -> usize {
    location(file, path)
        .and_then(|location| location.span.first())
        .and_then(|line| usize::try_from(*line).ok())
        .map_or(0, |line| line + 1)
}

fn location<'a>(
    file: &'a FileDescriptorProto,
    path: &[i32],
) -> Option<&'a prost_types::source_code_info::Location> {
    let info = file.source_code_info.as_ref()?;
    info.location.iter().find(|location| location.path == path)
}

/// Field numbers of descriptor.proto, the steps of a path.
mod step {
    pub(super) const FILE_MESSAGE: i32 = 4;
    pub(super) const FILE_ENUM: i32 = 5;
    pub(super) const FILE_SERVICE: i32 = 6;
    pub(super) const MESSAGE_FIELD: i32 = 2;
    pub(super) const MESSAGE_NESTED: i32 = 3;
    pub(super) const MESSAGE_ENUM: i32 = 4;
    pub(super) const ENUM_VALUE: i32 = 2;
    pub(super) const SERVICE_METHOD: i32 = 2;
}

/// A message or enum with its full name and path.
struct Element<'a, T> {
    name: String,
    path: Vec<i32>,
    element: &'a T,
}

/// All messages of a file, nested ones included, but not the entries of maps.
fn messages(file: &FileDescriptorProto) -> Vec<Element<'_, prost_types::DescriptorProto>> {
    let mut found = Vec::new();
    let mut waiting: Vec<_> = indexed(&file.message_type)
        .map(|(index, element)| Element {
            name: format!("{}.{}", file.package(), element.name()),
            path: vec![step::FILE_MESSAGE, index],
            element,
        })
        .collect();
    while let Some(message) = waiting.pop() {
        for (index, element) in indexed(&message.element.nested_type) {
            if element
                .options
                .as_ref()
                .is_some_and(|options| options.map_entry())
            {
                continue;
            }
            waiting.push(Element {
                name: format!("{}.{}", message.name, element.name()),
                path: [message.path.as_slice(), &[step::MESSAGE_NESTED, index]].concat(),
                element,
            });
        }
        found.push(message);
    }
    found
}

/// All enums of a file, nested ones included.
fn enums(file: &FileDescriptorProto) -> Vec<Element<'_, prost_types::EnumDescriptorProto>> {
    let top = indexed(&file.enum_type).map(|(index, element)| Element {
        name: format!("{}.{}", file.package(), element.name()),
        path: vec![step::FILE_ENUM, index],
        element,
    });
    let mut found: Vec<_> = top.collect();
    for message in messages(file) {
        for (index, element) in indexed(&message.element.enum_type) {
            found.push(Element {
                name: format!("{}.{}", message.name, element.name()),
                path: [message.path.as_slice(), &[step::MESSAGE_ENUM, index]].concat(),
                element,
            });
        }
    }
    found
}

/// With their places, as paths count them.
fn indexed<T>(items: &[T]) -> impl Iterator<Item = (i32, &T)> {
    (0..).zip(items)
}
