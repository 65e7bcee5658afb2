//! What is published beside the code says the same as the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::settings;
use super::super::shape::{Shape, join};
use super::super::{Limits, Quota, Quotas, json_schemas, units};
use super::Home;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(name: &str) -> String {
    let path = repository().join("docs/reference").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The TOML blocks of a document, each with the file name that its first line gives in a comment.
fn examples(text: &str) -> Vec<(String, String)> {
    let mut examples = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("```toml\n") {
        let (block, after) = after.split_once("```").expect("a block ends");
        let name = block
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# "));
        let name = name.expect("a block begins with a comment that names its file");
        let name = name.split_whitespace().next().unwrap_or_default();
        examples.push((name.to_owned(), block.to_owned()));
        rest = after;
    }
    examples
}

#[test]
fn the_examples_of_the_documentation_are_accepted() {
    let examples = examples(&document("configuration.md"));
    let names: BTreeSet<_> = examples.iter().map(|(name, _)| name.as_str()).collect();
    assert!(
        names.contains("core.toml") && names.contains("plugin.toml"),
        "{names:?}"
    );
    for (name, text) in examples {
        let home = Home::new()
            .file(
                "plugins/devices/plugin.toml",
                "name = \"devices\"\nrun.command = \"sh\"\n",
            )
            .file("secrets/gateway.token", "0123456789abcdef0123456789abcdef")
            .file("secrets/password", "x")
            .variable("LAMP_API_KEY", "x");
        let home = match name.as_str() {
            "core.toml" => home
                .file(
                    "plugins/lamp/plugin.toml",
                    "name = \"lamp\"\nrun.command = \"sh\"\n",
                )
                .file("core.toml", &text),
            "plugin.toml" => home
                .file("plugins/lamp/secrets/password", "x")
                .file("plugins/lamp/plugin.toml", &text),
            other => panic!("what is {other}?"),
        };
        if let Err(error) = home.load() {
            panic!("{name} is refused:\n{error}\n{text}");
        }
    }
}

/// The dotted names of all settings; `NAME` stands for a plugin's name.
fn names(shape: &'static Shape, path: &str, names: &mut Vec<String>) {
    for field in shape.fields() {
        let name = join(path, field.key);
        match &field.shape {
            Shape::Section(_) => self::names(&field.shape, &name, names),
            _ => names.push(name),
        }
    }
}

#[test]
fn every_setting_is_documented() {
    let text = document("configuration.md");
    let mut wanted = Vec::new();
    names(&settings::CORE, "", &mut wanted);
    wanted.retain(|name| !name.starts_with("limits.") && name != "plugins");
    names(&settings::MANIFEST, "", &mut wanted);
    names(&settings::OVERRIDE, "", &mut wanted);
    // The same keys over and over.
    for name in &mut wanted {
        for table in ["grants", "deny", "quotas"] {
            if name.starts_with(&format!("{table}.")) {
                *name = format!("{table}.*");
            }
        }
    }
    for name in wanted {
        assert!(text.contains(&format!("| `{name}` |")), "{name} has no row");
    }
}

#[test]
fn every_limit_is_documented_with_its_value() {
    let text = document("limits.md");
    let limits = Limits::default();
    let rows: Vec<_> = limits
        .describe()
        .iter()
        .map(|limit| {
            let value = match limit.unit {
                "bytes" if limit.value >= 1024 => units::show_size(limit.value),
                "bytes" => format!("{} bytes", limit.value),
                "milliseconds" => {
                    units::show_duration(std::time::Duration::from_millis(limit.value))
                }
                _ => limit.value.to_string(),
            };
            format!("| `{}` | {value} | {} |", limit.name, limit.at_limit)
        })
        .collect();
    let missing: Vec<_> = rows
        .iter()
        .filter(|row| {
            // The row has one column more in the middle: what is bounded.
            let [name, value, at_limit] =
                row.trim_matches('|').split(" | ").collect::<Vec<_>>()[..]
            else {
                panic!("three columns: {row}")
            };
            !text.lines().any(|line| {
                line.starts_with(&format!("|{name} | "))
                    && line.contains(&format!(" | {value} | "))
                    && line.ends_with(&format!(" | {at_limit}|"))
            })
        })
        .collect();
    assert!(
        missing.is_empty(),
        "docs/reference/limits.md lacks:\n{missing:#?}"
    );
}

#[test]
fn every_quota_is_documented_with_its_default() {
    let text = document("limits.md");
    for quota in Quota::ALL {
        let value = match Quotas::default().limit(quota) {
            bytes if quota.unit() == "bytes per second" => units::show_size(bytes),
            value => value.to_string(),
        };
        let key = quota.key();
        let is_its = |line: &str| {
            line.starts_with(&format!("| `{key}` | ")) && line.contains(&format!(" | {value} | "))
        };
        assert!(text.lines().any(is_its), "limits.md: {key} = {value}");
    }
}

#[test]
fn limits_are_described_once_each_in_order() {
    let described = Limits::default().describe();
    assert!(described.is_sorted_by(|left, right| left.name < right.name));
}

/// `UPDATE_SCHEMAS=1 cargo test -p core-server schemas` writes them anew.
#[test]
fn the_published_schemas_are_those_of_the_code() {
    for (name, schema) in json_schemas() {
        let path = repository().join("schemas").join(name);
        let text = format!("{schema:#}\n");
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::write(&path, &text).expect("writable");
        }
        let published = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            published == text,
            "schemas/{name} is out of date; run: UPDATE_SCHEMAS=1 cargo test -p core-server schemas"
        );
    }
}

#[test]
fn the_defaults_keep_their_own_rules() {
    // `load` checks them like any other layer.
    assert!(Home::new().load().is_ok());
}
