//! Arguments and values from the command line: `key=value`, `key:=json`, one JSON text, or `-` for
//! standard input.
//!
//! The result is always JSON text, put together from what was typed: numbers keep their digits.

use std::io::Read as _;

use core_proto::contract::MAX_MESSAGE_BYTES;

use crate::cli::ValueArgs;
use crate::failure::Failure;
use crate::json;

/// Stands for standard input.
const STDIN: &str = "-";

/// How to write arguments, for errors.
const FORMS: &str = "write key=value (text), key:=json, or - for JSON on standard input";

/// An object of `key=value` (text) and `key:=json` pairs, as JSON text.
///
/// # Errors
/// [`Failure::Usage`] naming the pair that is not one, has no JSON, or stands twice.
pub(crate) fn object(pairs: &[String]) -> Result<String, Failure> {
    let mut members: Vec<(&str, String)> = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let (key, value) = member(pair)?;
        if members.iter().any(|(other, _)| *other == key) {
            return Err(Failure::usage(format!("{key:?} is given twice"), ""));
        }
        members.push((key, value));
    }
    let members = members.iter().map(|(key, value)| (*key, value.as_str()));
    Ok(json::object(members))
}

/// One pair: its key, and its value as JSON text. The first `=` separates; a `:` before it makes the
/// value JSON.
fn member(pair: &str) -> Result<(&str, String), Failure> {
    let refuse = |message: String, hint: &str| Err(Failure::usage(message, hint));
    let Some((left, value)) = pair.split_once('=') else {
        let hint = if pair.starts_with(['{', '[']) {
            "one JSON text goes after --args (or --data for events), or on standard input with -"
        } else {
            FORMS
        };
        return refuse(format!("not a key=value pair: {pair:?}"), hint);
    };
    let (key, value) = match left.strip_suffix(':') {
        Some(key) => match json::check(value) {
            Ok(()) => (key, value.to_owned()),
            Err(error) => {
                return refuse(
                    format!("the value of {key:?} is not JSON: {error}"),
                    &format!("for text write {key}={value}"),
                );
            }
        },
        None => (left, json::string(value)),
    };
    if key.is_empty() {
        return refuse(format!("no key in {pair:?}"), FORMS);
    }
    Ok((key, value))
}

/// The arguments of a call: JSON object, JSON array, or nothing. A lone scalar becomes an array of
/// one, as everywhere in the contract.
///
/// # Errors
/// [`Failure::Usage`] for what is no JSON; [`Failure::Io`] if standard input cannot be read.
pub(crate) fn of_call(pairs: &[String], args: Option<&str>) -> Result<Vec<u8>, Failure> {
    let text = match args {
        Some(text) => text.to_owned(),
        None if pairs == [STDIN] => read_stdin()?,
        None if pairs.is_empty() => return Ok(Vec::new()),
        None => return object(pairs).map(String::into_bytes),
    };
    positional_or_named(&text).map(String::into_bytes)
}

fn positional_or_named(text: &str) -> Result<String, Failure> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(String::new());
    }
    checked("the arguments are", text)?;
    Ok(if text.starts_with(['{', '[']) {
        text.to_owned()
    } else {
        format!("[{text}]")
    })
}

/// The data of an event: JSON of any kind; `{}` if nothing is given.
///
/// # Errors
/// As [`of_call`].
pub(crate) fn of_event(pairs: &[String], data: Option<&str>) -> Result<Vec<u8>, Failure> {
    let text = match data {
        Some(text) => text.to_owned(),
        None if pairs == [STDIN] => read_stdin()?,
        None => return object(pairs).map(String::into_bytes),
    };
    checked("the data is", &text)?;
    Ok(text.trim().to_owned().into_bytes())
}

/// A value to write: one JSON text, kept as it is, or text made into a JSON string.
///
/// # Errors
/// As [`of_call`].
pub(crate) fn of_value(value: &ValueArgs) -> Result<Vec<u8>, Failure> {
    let text = if value.value == STDIN {
        read_stdin()?
    } else {
        value.value.clone()
    };
    if value.string {
        return Ok(json::string(&text).into_bytes());
    }
    let trimmed = text.trim();
    json::check(trimmed).map_err(|error| {
        Failure::usage(
            format!("the value is not JSON: {error}"),
            "--string takes it as text",
        )
    })?;
    Ok(trimmed.to_owned().into_bytes())
}

fn checked(what: &str, text: &str) -> Result<(), Failure> {
    json::check(text).map_err(|error| {
        Failure::usage(
            format!("{what} not JSON: {error}"),
            "quote JSON for the shell: '{\"id\": 1}'",
        )
    })
}

/// The text itself, or all of standard input for "-".
///
/// # Errors
/// Standard input cannot be read.
pub(crate) fn or_stdin(text: &str) -> Result<String, Failure> {
    if text == STDIN {
        return read_stdin();
    }
    Ok(text.to_owned())
}

/// All of standard input; more than a message can carry is refused unread.
fn read_stdin() -> Result<String, Failure> {
    let limit = MAX_MESSAGE_BYTES as u64;
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(limit + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::io("read standard input", error))?;
    if text.len() as u64 > limit {
        return Err(Failure::usage(
            format!("standard input is longer than a message may be ({limit} bytes)"),
            "",
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn pairs_become_an_object_in_the_order_given() {
        let table: [(&[&str], &str); 8] = [
            (&[], "{}"),
            (&["id=7"], r#"{"id":"7"}"#),
            (&["id:=7", "on:=true"], r#"{"id":7,"on":true}"#),
            (
                &["big:=12345678901234567890"],
                r#"{"big":12345678901234567890}"#,
            ),
            (&["empty="], r#"{"empty":""}"#),
            (&["url=http://x/?a=b:=c"], r#"{"url":"http://x/?a=b:=c"}"#),
            (&["s=say \"hi\"\n"], r#"{"s":"say \"hi\"\n"}"#),
            (&["l:=[1, {\"a\": null}]"], r#"{"l":[1, {"a": null}]}"#),
        ];
        for (given, expected) in table {
            let object = object(&pairs(given)).expect(expected);
            assert_eq!(object, expected);
            json::check(&object).expect("the result is JSON");
        }
    }

    #[test]
    fn what_is_no_pair_is_refused_with_the_way_to_write_it() {
        let table: [(&[&str], &str); 6] = [
            (&["id"], "key=value"),
            (&["=7"], "key=value"),
            (&[":=7"], "key=value"),
            (&["id:=seven"], "id=seven"),
            (&["{\"id\":1}"], "--args"),
            (&["id=1", "id:=2"], ""),
        ];
        for (given, hint) in table {
            let failure = object(&pairs(given)).expect_err("not pairs");
            assert_eq!(failure.exit().number(), 2, "{given:?}");
            let said = failure.hint().unwrap_or_default();
            assert!(said.contains(hint), "{given:?}: {said}");
        }
    }

    #[test]
    fn arguments_are_an_object_an_array_or_nothing() {
        let table = [
            (None, ""),
            (Some("[1,2]"), "[1,2]"),
            (Some(" {\"id\": 1} "), "{\"id\": 1}"),
            (Some("-5"), "[-5]"),
            (Some("\"kitchen\""), "[\"kitchen\"]"),
            (Some("null"), "[null]"),
        ];
        for (args, expected) in table {
            let arguments = of_call(&[], args).expect(expected);
            assert_eq!(arguments, expected.as_bytes());
        }
        let failure = of_call(&[], Some("[1,")).expect_err("cut off");
        assert_eq!(failure.exit().number(), 2);
    }

    #[test]
    fn an_event_has_json_of_any_kind_as_data() {
        assert_eq!(of_event(&[], None).expect("none"), b"{}");
        assert_eq!(of_event(&[], Some("42")).expect("scalar"), b"42");
        assert_eq!(
            of_event(&pairs(&["on:=true"]), None).expect("pairs"),
            b"{\"on\":true}"
        );
        of_event(&[], Some("on")).expect_err("no JSON");
    }

    #[test]
    fn a_value_is_json_or_with_string_text() {
        let value = |value: &str, string| ValueArgs {
            value: value.to_owned(),
            string,
            if_revision: None,
            ttl: None,
        };
        assert_eq!(
            of_value(&value("{\"a\": 1}", false)).expect("JSON"),
            b"{\"a\": 1}"
        );
        assert_eq!(of_value(&value("away", true)).expect("text"), b"\"away\"");
        let failure = of_value(&value("away", false)).expect_err("no JSON");
        assert!(failure.hint().expect("a hint").contains("--string"));
    }
}
