//! Arguments and results between JSON on the wire and the handler's own types.
//!
//! Arguments arrive as a JSON object (named), a JSON array (positional) or nothing. A type that is a
//! struct takes all three: positional ones in the order of its fields, absent ones if the field is an
//! `Option` or has a default. What does not fit is `INVALID_ARGUMENT` with the path of the fault in
//! the message and in `metadata["field"]`.

use bytes::Bytes;
use serde::Serialize;
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// What a type looks like to serde, as far as arguments care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A struct with these fields, in order.
    Struct(&'static [&'static str]),
    /// Nothing at all.
    Unit,
    /// Something else: a number, a map, an enum, any JSON.
    Other,
}

/// Finds out how `T` deserialises, without any input.
pub(crate) fn shape_of<T: DeserializeOwned>() -> Shape {
    let mut shape = Shape::Other;
    // The probe never yields a value; what it learned stands in `shape`.
    if T::deserialize(Probe(&mut shape)).is_ok() {
        return Shape::Other;
    }
    shape
}

struct Probe<'a>(&'a mut Shape);

#[derive(Debug)]
struct Probed;

impl std::fmt::Display for Probed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("only a probe")
    }
}
impl std::error::Error for Probed {}
impl serde::de::Error for Probed {
    fn custom<T: std::fmt::Display>(_message: T) -> Self {
        Self
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Probed;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Probed> {
        Err(Probed)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Probed> {
        *self.0 = Shape::Struct(fields);
        Err(Probed)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Probed> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Probed> {
        *self.0 = Shape::Unit;
        Err(Probed)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Reads the arguments of a call.
pub(crate) fn decode<T: DeserializeOwned>(arguments: &[u8]) -> Result<T> {
    let arguments = arguments.trim_ascii();
    match (shape_of::<T>(), arguments.first()) {
        (Shape::Unit, None) => json(b"null"),
        (Shape::Unit, Some(_)) => match arguments {
            b"{}" | b"[]" | b"null" => json(b"null"),
            _ => Err(bad_field(".", "this service takes no arguments")),
        },
        (Shape::Struct(_), None) => json(b"{}"),
        (Shape::Struct(fields), Some(b'[')) => json(&named(fields, arguments)?),
        (Shape::Other, None) => json(b"null").or_else(|_| json(b"{}")),
        _ => json(arguments),
    }
}

/// Turns positional arguments into named ones.
fn named(fields: &[&str], arguments: &[u8]) -> Result<Vec<u8>> {
    let values: Vec<&RawValue> = serde_json::from_slice(arguments)
        .map_err(|error| bad_field(".", &format!("not JSON: {error}")))?;
    if values.len() > fields.len() {
        return Err(bad_field(
            ".",
            &format!(
                "{} arguments were given, at most {} are taken: {}",
                values.len(),
                fields.len(),
                fields.join(", ")
            ),
        ));
    }
    let mut object = Vec::with_capacity(arguments.len() + 16 * values.len());
    object.push(b'{');
    for (index, (field, value)) in fields.iter().zip(values).enumerate() {
        if index > 0 {
            object.push(b',');
        }
        // Names of fields are Rust identifiers or what `serde(rename)` says: quoted properly.
        serde_json::to_writer(&mut object, field)?;
        object.push(b':');
        object.extend_from_slice(value.get().as_bytes());
    }
    object.push(b'}');
    Ok(object)
}

/// Reads JSON; the error names the path at which it did not fit.
pub(crate) fn json<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| fault(&error.path().to_string(), &error.inner().to_string()))?;
    deserializer
        .end()
        .map_err(|error| bad_field(".", &format!("not one JSON text: {error}")))?;
    Ok(value)
}

fn fault(path: &str, message: &str) -> Error {
    // `?` stands for a place that a broken text did not reach.
    let path = match path.trim_end_matches('?').trim_end_matches('.') {
        "" => ".",
        path => path,
    };
    // The position in the text says nothing to a caller who passed values.
    let message = message.split(" at line ").next().unwrap_or(message);
    // serde reports a missing field at the struct around it.
    let missing = message
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split('`').next());
    match missing {
        Some(name) if path == "." => bad_field(name, message),
        Some(name) => bad_field(&format!("{path}.{name}"), message),
        None => bad_field(path, message),
    }
}

fn bad_field(path: &str, message: &str) -> Error {
    let text = match path {
        "." => message.to_owned(),
        _ => format!("{path}: {message}"),
    };
    Error::invalid_argument(text)
        .with_reason("BAD_FIELD")
        .with_metadata("field", path)
}

/// Reads the result of a call. A caller that wants nothing (`()`) is content with anything.
pub(crate) fn decode_result<T: DeserializeOwned>(result: &[u8]) -> Result<T> {
    let text = match shape_of::<T>() {
        Shape::Unit => b"null",
        _ if result.is_empty() => b"null".as_slice(),
        _ => result,
    };
    json(text).map_err(|error| {
        Error::internal(format!(
            "the result is not of the type asked for: {}",
            error.message()
        ))
        .with_reason("BAD_RESULT")
        .with_outcome(crate::error::Outcome::Unknown)
    })
}

/// Writes the arguments of a call: an object or an array as it is, `()` as nothing, and a lone
/// scalar as an array of one.
pub(crate) fn encode(arguments: &(impl Serialize + ?Sized)) -> Result<Bytes> {
    let text = encode_json(arguments)?;
    Ok(match text.first() {
        Some(b'{' | b'[') => text,
        _ if text == "null" => Bytes::new(),
        _ => [b"[", text.as_ref(), b"]"].concat().into(),
    })
}

/// A time for the wire.
pub(crate) fn duration(time: std::time::Duration) -> Result<Option<prost_types::Duration>> {
    let sent = prost_types::Duration::try_from(time);
    sent.map(Some).map_err(|error| {
        Error::invalid_argument(format!("{time:?}: {error}")).with_reason("BAD_FIELD")
    })
}

/// Writes a value as JSON.
pub(crate) fn encode_json(value: &(impl Serialize + ?Sized)) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| {
        Error::invalid_argument(format!("the value cannot be written as JSON: {error}"))
            .with_reason("NOT_JSON")
    })
}

/// Writes the result of a handler; `()` as nothing.
pub(crate) fn encode_result<T: Serialize + 'static>(result: &T) -> Result<Bytes> {
    if std::any::TypeId::of::<T>() == std::any::TypeId::of::<()>() {
        return Ok(Bytes::new());
    }
    serde_json::to_vec(result)
        .map(Bytes::from)
        .map_err(|error| Error::internal(format!("the result cannot be written as JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Color {
        red: u8,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct TurnOn {
        device_id: String,
        level: Option<u8>,
        color: Option<Color>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Wrapped(TurnOn);

    fn turn_on(level: Option<u8>) -> TurnOn {
        TurnOn {
            device_id: "k".to_owned(),
            level,
            color: None,
        }
    }

    #[test]
    fn named_and_positional_arguments_mean_the_same() {
        for (text, expected) in [
            (r#"{"device_id":"k","level":7}"#, turn_on(Some(7))),
            (r#"{"device_id":"k"}"#, turn_on(None)),
            (r#"["k",7]"#, turn_on(Some(7))),
            (r#"["k"]"#, turn_on(None)),
            (r#" [ "k" , null ] "#, turn_on(None)),
        ] {
            assert_eq!(decode::<TurnOn>(text.as_bytes()).expect(text), expected);
        }
        assert_eq!(
            decode::<Wrapped>(br#"["k"]"#).expect("newtype"),
            Wrapped(turn_on(None))
        );
    }

    #[test]
    fn a_fault_is_named_by_its_path() {
        for (text, field, part) in [
            ("", "device_id", "missing field"),
            ("{}", "device_id", "missing field"),
            (r#"{"device_id":5}"#, "device_id", "expected a string"),
            (r#"["k","x"]"#, "level", "expected u8"),
            (
                r#"["k",1,null,4]"#,
                ".",
                "at most 3 are taken: device_id, level, color",
            ),
            (r#"{"device_id":"k","levl":1}"#, "levl", "unknown field"),
            (
                r#"{"device_id":"k","color":{"red":300}}"#,
                "color.red",
                "300",
            ),
            (
                r#"{"device_id":"k","color":{}}"#,
                "color.red",
                "missing field",
            ),
            ("{", ".", "EOF"),
            ("{} {}", "device_id", "missing"),
            ("5", ".", "expected struct TurnOn"),
        ] {
            let error = decode::<TurnOn>(text.as_bytes()).expect_err(text);
            assert_eq!(error.code(), crate::Code::InvalidArgument);
            assert_eq!(error.metadata("field"), Some(field), "{text}: {error}");
            assert!(error.message().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn nothing_is_nothing() {
        for text in ["", "{}", "[]", "null", "  "] {
            decode::<()>(text.as_bytes()).expect(text);
        }
        decode::<()>(b"[1]").expect_err("too much");
        assert_eq!(decode::<Value>(b"").expect("any JSON"), Value::Null);
        assert!(
            decode::<BTreeMap<String, u8>>(b"")
                .expect("a map")
                .is_empty()
        );
    }

    #[test]
    fn lone_scalars_travel_as_an_array_of_one() {
        assert_eq!(encode(&5).expect("number"), "[5]");
        assert_eq!(encode("x").expect("text"), r#"["x"]"#);
        assert_eq!(encode(&()).expect("nothing"), "");
        assert_eq!(encode(&("x", 5)).expect("tuple"), r#"["x",5]"#);
        assert_eq!(
            encode(&serde_json::json!({"a":1})).expect("object"),
            r#"{"a":1}"#
        );
    }

    #[test]
    fn a_caller_that_wants_nothing_takes_anything() {
        decode_result::<()>(b"{\"a\":1}").expect("ignored");
        assert_eq!(decode_result::<Option<u8>>(b"").expect("none"), None);
        assert_eq!(decode_result::<u8>(b"7").expect("number"), 7);
        decode_result::<u8>(b"\"7\"").expect_err("text");
    }
}
