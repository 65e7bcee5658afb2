//! A comment on everything that a reader of the contract meets.
//!
//! A comment stands above its element or behind it. Fields and values on the lines directly below a
//! commented one, without a blank line between, share its comment. The request and the response of
//! an RPC share the RPC's; `*_UNSPECIFIED` needs none.

use std::collections::BTreeSet;

use prost_types::FileDescriptorProto;

use crate::Finding;
use crate::{enums, indexed, line_of, location, messages, step};

pub(super) fn check(file: &FileDescriptorProto) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut wanted = |name: &str, path: &[i32]| {
        if !has_comment(file, path) {
            findings.push(Finding::new(name, line_of(file, path), "has no comment"));
        }
    };
    let mut of_methods = BTreeSet::new();
    for (index, service) in indexed(&file.service) {
        let name = format!("{}.{}", file.package(), service.name());
        let path = [step::FILE_SERVICE, index];
        wanted(&name, &path);
        for (index, method) in indexed(&service.method) {
            let path = [path.as_slice(), &[step::SERVICE_METHOD, index]].concat();
            wanted(&format!("{name}.{}", method.name()), &path);
            of_methods.extend([method.input_type(), method.output_type()]);
        }
    }
    for message in messages(file) {
        if !of_methods.contains(format!(".{}", message.name).as_str()) {
            wanted(&message.name, &message.path);
        }
    }
    for found in enums(file) {
        wanted(&found.name, &found.path);
    }
    for message in messages(file) {
        let names = message.element.field.iter().map(|field| field.name());
        let path = [message.path.as_slice(), &[step::MESSAGE_FIELD]].concat();
        findings.extend(group(file, &message.name, &path, names));
    }
    for found in enums(file) {
        let names = found.element.value.iter().map(|value| value.name());
        let path = [found.path.as_slice(), &[step::ENUM_VALUE]].concat();
        findings.extend(
            group(file, &found.name, &path, names)
                .filter(|finding| !finding.place.ends_with("_UNSPECIFIED")),
        );
    }
    findings
}

/// Fields of a message or values of an enum, where neighbours may share a comment.
fn group<'a>(
    file: &FileDescriptorProto,
    owner: &str,
    path: &[i32],
    names: impl Iterator<Item = &'a str>,
) -> impl Iterator<Item = Finding> {
    let mut findings = Vec::new();
    // Line on which the last element with a comment, its own or a shared one, ended.
    let mut covered_to = None;
    for (index, name) in (0..).zip(names) {
        let path = [path, &[index]].concat();
        let (first, last) = lines(file, &path);
        let shares = covered_to.is_some_and(|line: usize| line + 1 == first);
        if shares || has_comment(file, &path) {
            covered_to = Some(last);
        } else {
            covered_to = None;
            findings.push(Finding::new(
                format!("{owner}.{name}"),
                first,
                "has no comment",
            ));
        }
    }
    findings.into_iter()
}

/// First and last line of an element, from 1.
fn lines(file: &FileDescriptorProto, path: &[i32]) -> (usize, usize) {
    let first = line_of(file, path);
    // A span has three numbers when it begins and ends on one line.
    let last = match location(file, path).map(|location| location.span.as_slice()) {
        Some([_, _, last, _]) => usize::try_from(*last).map_or(first, |line| line + 1),
        _ => first,
    };
    (first, last)
}

fn has_comment(file: &FileDescriptorProto, path: &[i32]) -> bool {
    location(file, path).is_some_and(|location| {
        let comments = [&location.leading_comments, &location.trailing_comments];
        let mut texts = comments.into_iter().flatten();
        texts.any(|text| !text.trim().is_empty())
    })
}
