//! Every RPC of the contract has exactly one row in the table of who may use what, and every row is
//! for an RPC that exists.

use std::collections::BTreeSet;

use core_server::security::{Principal, RULES, rule_of};
use prost::Message as _;
use prost_types::FileDescriptorSet;

/// "package.Service/Method" of every RPC.
fn methods() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(core_proto::FILE_DESCRIPTOR_SET).expect("valid");
    let mut methods = BTreeSet::new();
    for file in &set.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            let of_service = service.method.iter();
            methods.extend(of_service.map(|method| format!("{name}/{}", method.name())));
        }
    }
    methods
}

/// Whether a row, "package.Service/Method" or "package.Service/*", is for this RPC.
fn is_for(row: &str, method: &str) -> bool {
    row == method
        || row
            .strip_suffix('*')
            .is_some_and(|all| method.starts_with(all))
}

#[test]
fn every_rpc_of_the_contract_has_exactly_one_rule() {
    let methods = methods();
    assert!(methods.len() > 30, "the descriptors are there");
    for method in &methods {
        let rows = RULES.iter().filter(|rule| is_for(rule.method, method));
        assert_eq!(rows.count(), 1, "{method}");
        assert!(rule_of(method).is_some(), "{method}");
    }
}

#[test]
fn every_rule_is_for_an_rpc_that_exists() {
    let methods = methods();
    // Served beside the contract, by crates of their own.
    let standard = [
        "grpc.health.v1.Health/*",
        "grpc.reflection.v1.ServerReflection/*",
    ];
    for rule in RULES.iter().filter(|rule| !standard.contains(&rule.method)) {
        let used = methods.iter().any(|method| is_for(rule.method, method));
        assert!(used, "{} is for no RPC", rule.method);
    }
}

#[test]
fn only_health_and_joining_are_open_to_anybody() {
    // Whoever joins has nothing but the join string, which the request carries.
    let anybodys = |method: &str| {
        method.starts_with("grpc.health.") || method == "coreruntime.v1.Enrollment/Join"
    };
    for rule in RULES {
        let open = rule.allows(Principal::Anonymous).is_some();
        assert_eq!(open, anybodys(rule.method), "{}", rule.method);
    }
}
