//! The JSON Schemas of `core.toml` and `plugin.toml`, for editors. Made from the same description that
//! the files are checked with; a test compares them with what the repository publishes in `schemas/`.

use serde_json::{Map, Value, json};

use super::settings;
use super::shape::{Field, Repeats, Rule, Shape};
use super::tree::{Data, Node};
use super::units;

/// The published schemas: file name and content.
#[must_use]
pub fn json_schemas() -> [(&'static str, Value); 2] {
    [
        (
            "core.schema.json",
            document("core.toml", &settings::CORE, &[]),
        ),
        (
            "plugin.schema.json",
            document("plugin.toml", &settings::MANIFEST, &["name"]),
        ),
    ]
}

fn document(title: &str, shape: &Shape, required: &[&str]) -> Value {
    let mut schema = schema(shape);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = title.into();
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn schema(shape: &Shape) -> Value {
    match shape {
        Shape::Switch => json!({ "type": "boolean" }),
        Shape::Integer(range) => {
            json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() })
        }
        Shape::Size(range) => json!({ "anyOf": [
            { "type": "integer", "minimum": range.start(), "maximum": range.end() },
            { "type": "string", "pattern": "^[0-9]+ *(B|KiB|MiB|GiB)$" },
        ] }),
        Shape::Time(_) => duration(),
        Shape::Seconds(range) => json!({ "anyOf": [
            {
                "type": "integer",
                "minimum": range.start().as_secs(),
                "maximum": range.end().as_secs(),
            },
            duration(),
        ] }),
        Shape::Text(Rule { pattern, .. }) => match pattern {
            Some(pattern) => json!({ "type": "string", "pattern": pattern }),
            None => json!({ "type": "string" }),
        },
        Shape::Choice(words) => json!({ "enum": words }),
        Shape::Path | Shape::Program => json!({ "type": "string", "minLength": 1 }),
        Shape::List(of, repeats) => json!({
            "type": "array",
            "items": schema(of),
            "uniqueItems": *repeats == Repeats::Refused,
        }),
        Shape::Section(_) => json!({
            "type": "object",
            "additionalProperties": false,
            "properties": shape
                .fields()
                .map(|field| (field.key.to_owned(), property(field)))
                .collect::<Map<_, _>>(),
        }),
        Shape::Map(rule, _, of) => {
            let mut object = json!({ "type": "object", "additionalProperties": schema(of) });
            if let Some(pattern) = rule.pattern {
                object["propertyNames"] = json!({ "pattern": pattern });
            }
            object
        }
        Shape::SecretText => json!({ "anyOf": [
            { "type": "string" },
            secret("file"),
            secret("env"),
        ] }),
        Shape::Anything => json!({}),
    }
}

fn duration() -> Value {
    json!({ "type": "string", "pattern": "^[0-9]+ *(ms|s|min|h|d)$" })
}

fn secret(key: &str) -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": [key],
        "properties": { key: { "type": "string", "minLength": 1 } },
    })
}

fn property(field: &Field) -> Value {
    let mut schema = schema(&field.shape);
    schema["description"] = field.about.trim().into();
    if let Some(preset) = field.preset {
        schema["default"] = value(&preset());
    }
    schema
}

/// A default, as it is written.
fn value(data: &Data) -> Value {
    match data {
        Data::Switch(switch) => (*switch).into(),
        Data::Integer(integer) => (*integer).into(),
        Data::Text(text) => text.as_str().into(),
        Data::Time(time) => units::show_duration(*time).into(),
        Data::Size(bytes) => units::show_size(*bytes).into(),
        Data::List(items) => items.iter().map(|Node { data, .. }| value(data)).collect(),
        _ => Value::Null,
    }
}
