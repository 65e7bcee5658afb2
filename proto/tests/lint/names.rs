//! Names and numbers.

use std::collections::BTreeSet;

use prost_types::{DescriptorProto, FileDescriptorProto};

use crate::Finding;
use crate::{Element, enums, indexed, line_of, messages, step};

pub(super) fn check(file: &FileDescriptorProto) -> Vec<Finding> {
    let mut findings = Vec::new();
    let directory = file.name().rsplit_once('/').map_or("", |(path, _)| path);
    if directory.replace('/', ".") != file.package() {
        let message = format!("stands in {directory}/, not in the directory of its package");
        findings.push(Finding::new(file.package(), 0, message));
    }
    if !is_version(file.package().rsplit('.').next().unwrap_or_default()) {
        findings.push(Finding::new(
            file.package(),
            0,
            "the package must end in a version: v1",
        ));
    }
    if file.service.len() > 1 {
        findings.push(Finding::new(
            file.name(),
            0,
            "at most one service in a file",
        ));
    }
    for (index, service) in indexed(&file.service) {
        let name = format!("{}.{}", file.package(), service.name());
        let path = [step::FILE_SERVICE, index];
        pascal(&mut findings, file, &name, &path);
        for (index, method) in indexed(&service.method) {
            let name = format!("{name}.{}", method.name());
            let path = [path.as_slice(), &[step::SERVICE_METHOD, index]].concat();
            pascal(&mut findings, file, &name, &path);
            let stem = format!(".{}.{}{}", file.package(), service.name(), method.name());
            let types = [
                (method.input_type(), format!("{stem}Request")),
                (method.output_type(), format!("{stem}Response")),
            ];
            for (found, expected) in types {
                if found != expected {
                    let message = format!("uses {found}; its own type would be {expected}");
                    findings.push(Finding::new(&name, line_of(file, &path), message));
                }
            }
        }
    }
    for message in messages(file) {
        pascal(&mut findings, file, &message.name, &message.path);
        fields(&mut findings, file, &message);
    }
    for found in enums(file) {
        pascal(&mut findings, file, &found.name, &found.path);
        let prefix = format!("{}_", upper_snake(found.element.name()));
        for (index, value) in indexed(&found.element.value) {
            let name = format!("{}.{}", found.name, value.name());
            let path = [found.path.as_slice(), &[step::ENUM_VALUE, index]].concat();
            let mut wrong =
                |message| findings.push(Finding::new(&name, line_of(file, &path), message));
            if !value.name().starts_with(&prefix) {
                wrong(format!("must begin with {prefix}"));
            }
            if index == 0 && (value.name() != format!("{prefix}UNSPECIFIED") || value.number() != 0)
            {
                wrong(format!("the first value must be {prefix}UNSPECIFIED = 0"));
            }
        }
    }
    findings
}

fn fields(
    findings: &mut Vec<Finding>,
    file: &FileDescriptorProto,
    message: &Element<'_, DescriptorProto>,
) {
    let mut numbers = BTreeSet::new();
    for (index, field) in indexed(&message.element.field) {
        let name = format!("{}.{}", message.name, field.name());
        let path = [message.path.as_slice(), &[step::MESSAGE_FIELD, index]].concat();
        let mut wrong = |message| findings.push(Finding::new(&name, line_of(file, &path), message));
        if !is_lower_snake(field.name()) {
            wrong("must be lower_snake_case".to_owned());
        }
        if !numbers.insert(field.number()) {
            wrong(format!("number {} stands twice", field.number()));
        }
        let ranges = &message.element.reserved_range;
        let reserved = |range: &prost_types::descriptor_proto::ReservedRange| {
            (range.start()..range.end()).contains(&field.number())
        };
        if ranges.iter().any(reserved) {
            wrong(format!("number {} is reserved", field.number()));
        }
        if message
            .element
            .reserved_name
            .iter()
            .any(|reserved| reserved == field.name())
        {
            wrong("its name is reserved".to_owned());
        }
    }
    for oneof in &message.element.oneof_decl {
        // Proto3 `optional` is a oneof of its own, whose name begins with an underscore.
        if !is_lower_snake(oneof.name().trim_start_matches('_')) {
            let name = format!("{}.{}", message.name, oneof.name());
            findings.push(Finding::new(name, 0, "must be lower_snake_case"));
        }
    }
}

fn pascal(findings: &mut Vec<Finding>, file: &FileDescriptorProto, name: &str, path: &[i32]) {
    let last = name.rsplit('.').next().unwrap_or_default();
    let good = last.starts_with(|c: char| c.is_ascii_uppercase())
        && last.chars().all(|c| c.is_ascii_alphanumeric());
    if !good {
        findings.push(Finding::new(
            name,
            line_of(file, path),
            "must be PascalCase",
        ));
    }
}

fn is_lower_snake(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.contains("__")
        && !name.ends_with('_')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn is_version(name: &str) -> bool {
    let digits = name.strip_prefix('v').unwrap_or_default();
    digits.starts_with(|c: char| c.is_ascii_digit() && c != '0')
}

fn upper_snake(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_uppercase());
    }
    snake
}
