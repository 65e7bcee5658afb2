//! `docs/reference/errors.md` and the contract say the same.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

const PAGE: &str = include_str!("../../docs/reference/errors.md");

/// Field numbers of `FileDescriptorProto.enum_type` and `EnumDescriptorProto.value`, of which the
/// paths of comments are made.
const ENUM_TYPE: i32 = 5;
const VALUE: i32 = 2;

fn error_proto() -> FileDescriptorProto {
    let set = FileDescriptorSet::decode(core_proto::FILE_DESCRIPTOR_SET).expect("valid");
    let is_wanted = |file: &FileDescriptorProto| file.name() == "coreruntime/v1/error.proto";
    set.file.into_iter().find(is_wanted).expect("it is there")
}

/// The reasons of the contract, each with the gRPC code that its comment begins with.
fn contract() -> BTreeMap<String, Option<String>> {
    let file = error_proto();
    let position = file.enum_type.iter().position(|e| e.name() == "Reason");
    let position = position.expect("the enum is there");
    let comments = file.source_code_info.as_ref().expect("comments are kept");
    let values = file.enum_type[position].value.iter().enumerate();
    values
        .filter(|(_, value)| value.number() != 0)
        .map(|(index, value)| {
            let index = i32::try_from(index).expect("few");
            let path = [
                ENUM_TYPE,
                i32::try_from(position).expect("few"),
                VALUE,
                index,
            ];
            let comment = comments.location.iter().find(|at| at.path == path);
            let comment = comment.map_or("", |at| at.leading_comments()).trim_start();
            let is_code = |c: char| c.is_ascii_uppercase() || c == '_';
            let code = &comment[..comment.find(|c| !is_code(c)).unwrap_or(comment.len())];
            let name = value.name().trim_start_matches("REASON_").to_owned();
            (name, (code.len() > 1).then(|| code.to_owned()))
        })
        .collect()
}

/// The rows of the page: reason, code, meaning, remedy.
fn page() -> Vec<[String; 4]> {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| {
        let cells: Vec<_> = row.trim_end_matches('|').split(" | ").collect();
        let [reason, code, meaning, remedy] = cells.try_into().ok()?;
        let reason = reason.trim_end_matches('`');
        Some([reason, code, meaning, remedy].map(|cell| cell.trim().to_owned()))
    })
    .collect()
}

#[test]
fn the_page_names_exactly_the_reasons_of_the_contract_each_once() {
    let rows = page();
    let on_page: BTreeSet<_> = rows.iter().map(|[reason, ..]| reason.clone()).collect();
    let in_contract: BTreeSet<_> = contract().into_keys().collect();
    assert_eq!(on_page, in_contract);
    assert_eq!(rows.len(), on_page.len(), "a reason stands twice");
}

#[test]
fn the_page_gives_each_reason_the_code_of_the_contract() {
    let contract = contract();
    for [reason, code, meaning, remedy] in page() {
        let expected = contract.get(&reason).and_then(Option::as_deref);
        assert_eq!(code, expected.unwrap_or("the provider's"), "{reason}");
        assert!(!meaning.is_empty() && !remedy.is_empty(), "{reason}");
    }
}
