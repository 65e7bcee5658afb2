use prost_types::descriptor_proto::ReservedRange;
use prost_types::source_code_info::Location;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
    SourceCodeInfo,
};

use crate::exceptions::Exceptions;
use crate::{lint, step};

fn field(name: &str, number: i32) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        ..Default::default()
    }
}

fn message(name: &str, field: Vec<FieldDescriptorProto>) -> DescriptorProto {
    DescriptorProto {
        name: Some(name.to_owned()),
        field,
        ..Default::default()
    }
}

fn comment(path: &[i32], line: i32) -> Location {
    Location {
        path: path.to_vec(),
        span: vec![line, 0, 9],
        leading_comments: Some(" Words.".to_owned()),
        ..Default::default()
    }
}

fn bare(path: &[i32], line: i32) -> Location {
    Location {
        leading_comments: None,
        ..comment(path, line)
    }
}

fn file(locations: Vec<Location>) -> FileDescriptorProto {
    FileDescriptorProto {
        name: Some("coreruntime/v1/lamp.proto".to_owned()),
        package: Some("coreruntime.v1".to_owned()),
        source_code_info: Some(SourceCodeInfo {
            location: locations,
        }),
        ..Default::default()
    }
}

/// Findings as `place: message`.
fn findings(file: FileDescriptorProto) -> Vec<String> {
    let set = FileDescriptorSet { file: vec![file] };
    let findings = lint(&set, &mut Exceptions::new(&[]));
    findings.iter().map(ToString::to_string).collect()
}

fn lamp_service(input: &str) -> FileDescriptorProto {
    let method = MethodDescriptorProto {
        name: Some("Switch".to_owned()),
        input_type: Some(input.to_owned()),
        output_type: Some(".coreruntime.v1.LampSwitchResponse".to_owned()),
        ..Default::default()
    };
    let service = ServiceDescriptorProto {
        name: Some("Lamp".to_owned()),
        method: vec![method],
        ..Default::default()
    };
    let path = [step::FILE_SERVICE, 0];
    let locations = vec![
        comment(&path, 0),
        comment(&[path[0], path[1], step::SERVICE_METHOD, 0], 1),
    ];
    FileDescriptorProto {
        service: vec![service],
        ..file(locations)
    }
}

#[test]
fn each_rpc_has_a_request_and_a_response_of_its_own() {
    assert!(findings(lamp_service(".coreruntime.v1.LampSwitchRequest")).is_empty());
    let found = findings(lamp_service(".coreruntime.v1.Lamp"));
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("LampSwitchRequest"), "{found:?}");
}

#[test]
fn the_package_is_the_directory_and_ends_in_a_version() {
    let moved = FileDescriptorProto {
        package: Some("coreruntime.lamp".to_owned()),
        ..file(Vec::new())
    };
    assert_eq!(findings(moved).len(), 2);
}

#[test]
fn vendored_packages_are_left_alone() {
    let vendored = FileDescriptorProto {
        package: Some("google.rpc".to_owned()),
        message_type: vec![message("bad_name", vec![field("Bad", 1)])],
        ..file(Vec::new())
    };
    assert!(findings(vendored).is_empty());
}

#[test]
fn fields_directly_below_a_commented_one_share_its_comment() {
    let path = |index| [step::FILE_MESSAGE, 0, step::MESSAGE_FIELD, index];
    let three = vec![field("a", 1), field("b", 2), field("c", 3)];
    let locations = vec![
        comment(&[step::FILE_MESSAGE, 0], 1),
        comment(&path(0), 3),
        bare(&path(1), 4),
        bare(&path(2), 6),
    ];
    let file = FileDescriptorProto {
        message_type: vec![message("Lamp", three)],
        ..file(locations)
    };
    assert_eq!(findings(file), ["coreruntime.v1.Lamp.c:7: has no comment"]);
}

#[test]
fn reserved_numbers_and_names_are_not_used_again() {
    let path = [step::FILE_MESSAGE, 0, step::MESSAGE_FIELD, 0];
    let lamp = DescriptorProto {
        reserved_range: vec![ReservedRange {
            start: Some(4),
            end: Some(6),
        }],
        reserved_name: vec!["power".to_owned()],
        ..message("Lamp", vec![field("power", 5)])
    };
    let file = FileDescriptorProto {
        message_type: vec![lamp],
        ..file(vec![comment(&path[..2], 0), comment(&path, 1)])
    };
    assert_eq!(findings(file).len(), 2);
}

#[test]
fn enums_begin_with_unspecified_and_prefix_their_values() {
    let value = |name: &str, number| EnumValueDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        ..Default::default()
    };
    let with = |value: Vec<EnumValueDescriptorProto>| {
        let path = |index| [step::FILE_ENUM, 0, step::ENUM_VALUE, index];
        let color = EnumDescriptorProto {
            name: Some("LampColor".to_owned()),
            value,
            ..Default::default()
        };
        let locations = vec![
            comment(&[step::FILE_ENUM, 0], 0),
            comment(&path(0), 1),
            comment(&path(1), 3),
        ];
        findings(FileDescriptorProto {
            enum_type: vec![color],
            ..file(locations)
        })
    };
    let good = [
        value("LAMP_COLOR_UNSPECIFIED", 0),
        value("LAMP_COLOR_RED", 1),
    ];
    assert!(with(good.to_vec()).is_empty());
    let bad = [value("LAMP_COLOR_WHITE", 0), value("RED", 1)];
    assert_eq!(with(bad.to_vec()).len(), 2);
}

#[test]
fn an_exception_excuses_and_an_unused_one_is_found() {
    let mut exceptions = Exceptions::new(&[("*.key", "known"), ("a.B.c", "known")]);
    assert!(exceptions.excuse("x.Y.key"));
    assert!(!exceptions.excuse("x.Y.monkey"));
    assert_eq!(exceptions.unused().len(), 1);
}
