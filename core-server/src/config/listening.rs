//! The settings of `[listen]`.

use super::settings::ADDRESSES;
use super::shape::{Field, Repeats, Rule, Shape};
use super::tree::Data;

pub(super) const LISTEN: &[Field] = &[
    Field::new(
        "runtime_dir",
        Shape::Path,
        "Holds core.sock and operator.sock. Default: $RUNTIME_DIRECTORY, else \
         $XDG_RUNTIME_DIR/core-runtime, else run in data_dir.",
    ),
    Field::new("tcp", ADDRESSES, "TCP addresses without TLS, as IP:PORT.")
        .preset(|| Data::List(Vec::new())),
    Field::new("tls", ADDRESSES, "TCP addresses with TLS, as IP:PORT.")
        .preset(|| Data::List(Vec::new())),
    Field::new(
        "tls_names",
        HOSTS,
        "Names and IP addresses by which other machines reach the core: its certificate is for them, \
         and join strings name them. Default: as it finds them.",
    )
    .preset(|| Data::List(Vec::new())),
    Field::new(
        "tls_certificate",
        Shape::Path,
        "A certificate of your own, PEM with its chain. Default: the core makes one.",
    ),
    Field::new(
        "tls_key",
        Shape::Path,
        "The key of tls_certificate, readable by its owner only.",
    ),
    Field::new(
        "insecure_plaintext",
        Shape::Switch,
        "Allows plaintext from other machines: tokens and data can be read on the way.",
    )
    .preset(|| Data::Switch(false)),
];

const HOSTS: Shape = Shape::List(&Shape::Text(&HOST), Repeats::Refused);

static HOST: Rule = Rule {
    check: |text| {
        let is_name = !text.is_empty()
            && text.len() <= 253
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
        if is_name || text.parse::<std::net::IpAddr>().is_ok() {
            return Ok(());
        }
        Err(format!(
            "\"{text}\" is neither a host name nor an IP address"
        ))
    },
    pattern: None,
};
