//! What a configuration may hold, as data: one description gives the check of every layer, the names
//! of environment variables, the defaults, and the published JSON Schemas. The descriptions themselves
//! are in `settings.rs` and `limits.rs`.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use crate::error::did_you_mean;

use super::error::{Origin, Problems};
use super::tree::{Data, Entry, Node, Reference, Table, absolute};
use super::units;

/// What a value must be.
#[derive(Debug)]
pub(super) enum Shape {
    /// `true` or `false`.
    Switch,
    /// An integer.
    Integer(RangeInclusive<u64>),
    /// A number of bytes: an integer or `"64MiB"`.
    Size(RangeInclusive<u64>),
    /// A duration: `"10s"`.
    Time(RangeInclusive<Duration>),
    /// A duration that may also be a bare integer of seconds.
    Seconds(RangeInclusive<Duration>),
    /// Text that keeps a rule.
    Text(&'static Rule),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path; relative ones begin at the file that holds them, else at the working directory.
    Path,
    /// A program: a path if it has a slash, else looked for on PATH.
    Program,
    /// A list without repetitions, or one that may repeat.
    List(&'static Shape, Repeats),
    /// A table of known keys, in groups.
    Section(&'static [&'static [Field]]),
    /// A table whose keys are chosen by the writer.
    Map(&'static Rule, Case, &'static Shape),
    /// Text, or where the text is.
    SecretText,
    /// Anything that JSON can say, or where a text is.
    Anything,
}

/// A rule that a text must keep.
pub(super) struct Rule {
    /// `Err`: what is wrong, for a person.
    pub(super) check: fn(&str) -> Result<(), String>,
    /// The same as far as a regular expression can say it, for the JSON Schema.
    pub(super) pattern: Option<&'static str>,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Rule({:?})", self.pattern)
    }
}

/// Whether a list may hold the same text twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeats {
    Allowed,
    Refused,
}

/// How the keys of a map are written in names of environment variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    /// As they are.
    Kept,
    /// In upper case, while the key itself is in lower case.
    Lower,
}

/// A known key.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) shape: Shape,
    /// The value when nobody sets it; absent: there is none, or it depends on other settings.
    pub(super) preset: Option<fn() -> Data>,
    /// For people, in the JSON Schema.
    pub(super) about: &'static str,
}

impl Field {
    pub(super) const fn new(key: &'static str, shape: Shape, about: &'static str) -> Self {
        Self {
            key,
            shape,
            preset: None,
            about,
        }
    }

    pub(super) const fn preset(self, preset: fn() -> Data) -> Self {
        Self {
            preset: Some(preset),
            ..self
        }
    }
}

impl Shape {
    /// The known keys, if it has some.
    pub(super) fn fields(&self) -> impl Iterator<Item = &'static Field> {
        let groups: &'static [&'static [Field]] = match self {
            Self::Section(groups) => groups,
            _ => &[],
        };
        groups.iter().flat_map(|group| group.iter())
    }

    pub(super) fn field(&self, key: &str) -> Option<&'static Field> {
        self.fields().find(|field| field.key == key)
    }

    /// The values that stand when nobody sets anything.
    pub(super) fn presets(&self) -> Table {
        let entry = |field: &'static Field| {
            let data = match (&field.shape, field.preset) {
                (Self::Section(_), _) => Data::Table(field.shape.presets()),
                (_, Some(preset)) => preset(),
                (_, None) => return None,
            };
            Some((field.key.to_owned(), Entry::new(data, Origin::Default)))
        };
        self.fields().filter_map(entry).collect()
    }
}

/// Checks layers against a shape and makes values what they mean.
pub(super) struct Checker<'a> {
    /// Absolute.
    pub(super) cwd: &'a Path,
    pub(super) problems: &'a mut Problems,
}

/// Where the checker is: the section's path, and the nearest root for "it belongs elsewhere".
#[derive(Clone, Copy)]
struct At<'a> {
    path: &'a str,
    root: &'a Shape,
    root_path: &'a str,
}

impl Checker<'_> {
    /// Checks a whole layer; `path` is where it stands, empty for the top of a file.
    pub(super) fn check(&mut self, table: Table, shape: &Shape, path: &str) -> Table {
        let at = At {
            path,
            root: shape,
            root_path: path,
        };
        self.section(table, shape, at)
    }

    fn section(&mut self, table: Table, shape: &Shape, at: At<'_>) -> Table {
        let mut checked = Table::new();
        for (key, Entry { key_origin, node }) in table {
            let Some(field) = shape.field(&key) else {
                let message = unknown_key(&key, shape, at);
                self.problems.add(&key_origin, message);
                continue;
            };
            let path = join(at.path, &key);
            let node = self.node(node, &field.shape, At { path: &path, ..at });
            checked.insert(key, Entry { key_origin, node });
        }
        checked
    }

    fn node(&mut self, node: Node, shape: &Shape, at: At<'_>) -> Node {
        let Node { data, origin } = node;
        let kind = data.kind();
        match self.data(data, shape, &origin, at) {
            Ok(data) => Node { data, origin },
            Err(fault) => {
                let message = match fault {
                    Fault::Reported => None,
                    Fault::Kind(expected) => Some(format!("must be {expected}, not {kind}")),
                    Fault::Value(wrong) => Some(wrong),
                };
                if let Some(message) = message {
                    self.problems
                        .add(&origin, format!("{}: {message}", at.path));
                }
                Node {
                    data: Data::Invalid,
                    origin,
                }
            }
        }
    }

    fn data(
        &mut self,
        data: Data,
        shape: &Shape,
        origin: &Origin,
        at: At<'_>,
    ) -> Result<Data, Fault> {
        if matches!(data, Data::Invalid) {
            return Err(Fault::Reported);
        }
        match (shape, data) {
            (Shape::Switch, Data::Switch(switch)) => Ok(Data::Switch(switch)),
            (Shape::Switch, Data::Unread(text)) => match text.as_str() {
                "true" => Ok(Data::Switch(true)),
                "false" => Ok(Data::Switch(false)),
                _ => Err(Fault::Value(format!(
                    "must be true or false, not \"{text}\""
                ))),
            },
            (Shape::Switch, _) => Err(Fault::Kind("true or false")),

            (Shape::Integer(range), data) => integer(&data, "an integer")?
                .within(range, |value| value.to_string())
                .map(|value| Data::Integer(i64::try_from(value).unwrap_or(i64::MAX))),
            (Shape::Size(range), Data::Text(text)) => {
                let bytes = units::size(&text).map_err(Fault::Value)?;
                bytes
                    .within(range, |value| units::show_size(*value))
                    .map(Data::Size)
            }
            (Shape::Size(range), Data::Unread(text)) => {
                let bytes = text
                    .parse()
                    .or_else(|_| units::size(&text))
                    .map_err(Fault::Value)?;
                bytes
                    .within(range, |value| units::show_size(*value))
                    .map(Data::Size)
            }
            (Shape::Size(range), Data::Size(bytes)) => bytes
                .within(range, |value| units::show_size(*value))
                .map(Data::Size),
            (Shape::Size(range), data) => {
                integer(&data, "a size like \"64MiB\" or an integer of bytes")?
                    .within(range, |value| units::show_size(*value))
                    .map(Data::Size)
            }
            (Shape::Seconds(range), Data::Integer(seconds)) => {
                let seconds = u64::try_from(seconds)
                    .map_err(|_| Fault::Value(format!("must not be negative, but is {seconds}")))?;
                time(Duration::from_secs(seconds), range)
            }
            (Shape::Seconds(range), Data::Unread(text)) if text.parse::<u64>().is_ok() => {
                time(Duration::from_secs(text.parse().unwrap_or_default()), range)
            }
            (Shape::Time(range) | Shape::Seconds(range), Data::Text(text) | Data::Unread(text)) => {
                time(units::duration(&text).map_err(Fault::Value)?, range)
            }
            (Shape::Time(range) | Shape::Seconds(range), Data::Time(value)) => time(value, range),
            (Shape::Time(_), Data::Integer(integer)) => Err(Fault::Value(format!(
                "a duration needs a unit: \"{integer}s\" or \"{integer}ms\""
            ))),
            (Shape::Time(_) | Shape::Seconds(_), _) => Err(Fault::Kind("a duration like \"10s\"")),

            (Shape::Text(rule), Data::Text(text) | Data::Unread(text)) => {
                (rule.check)(&text).map_err(Fault::Value)?;
                Ok(Data::Text(text))
            }
            (Shape::Text(_), _) => Err(Fault::Kind("text")),
            (Shape::Choice(words), Data::Text(text) | Data::Unread(text)) => choice(text, words),
            (Shape::Choice(_), _) => Err(Fault::Kind("text")),

            (Shape::Path, Data::Text(text) | Data::Unread(text)) => {
                Ok(Data::Path(path(&text, origin, self.cwd)?))
            }
            (Shape::Path, _) => Err(Fault::Kind("a path")),
            (Shape::Program, Data::Text(text) | Data::Unread(text)) => {
                if text.contains('/') {
                    let path = path(&text, origin, self.cwd)?;
                    return Ok(Data::Text(path.to_string_lossy().into_owned()));
                }
                not_empty(&text)?;
                Ok(Data::Text(text))
            }
            (Shape::Program, _) => Err(Fault::Kind("the name or path of a program")),

            (Shape::List(of, repeats), Data::List(items)) => Ok(self.list(items, of, *repeats, at)),
            (Shape::List(of, repeats), Data::Unread(text)) => {
                let item = |text: &str| Node {
                    data: Data::Unread(text.trim().to_owned()),
                    origin: origin.clone(),
                };
                let items = text.split(',').filter(|text| !text.trim().is_empty());
                Ok(self.list(items.map(item).collect(), of, *repeats, at))
            }
            (Shape::List(..), _) => Err(Fault::Kind("a list")),

            (Shape::Section(_), Data::Table(table)) => {
                Ok(Data::Table(self.section(table, shape, at)))
            }
            (Shape::Map(keys, _, of), Data::Table(table)) => {
                Ok(Data::Table(self.map(table, keys, of, at)))
            }
            (Shape::Section(_) | Shape::Map(..), _) => Err(Fault::Kind("a table")),

            (Shape::SecretText, Data::Text(text)) => Ok(Data::Text(text)),
            (Shape::SecretText, Data::Unread(text)) => Ok(Data::Concealed(text.into())),
            (Shape::SecretText, Data::Table(table)) => reference(&table, self.cwd)?
                .map(Data::Secret)
                .ok_or(Fault::Kind("text, { file = \"…\" } or { env = \"…\" }")),
            (Shape::SecretText, _) => Err(Fault::Kind("text, { file = \"…\" } or { env = \"…\" }")),
            (Shape::Anything, Data::Table(table)) => Ok(match reference(&table, self.cwd)? {
                Some(reference) => Data::Secret(reference),
                None => Data::Table(self.free_table(table, at)),
            }),
            (Shape::Anything, Data::List(items)) => {
                Ok(self.list(items, &Shape::Anything, Repeats::Allowed, at))
            }
            (Shape::Anything, Data::Unread(text)) => Ok(Data::Concealed(json_or_text(&text))),
            (Shape::Anything, data) => Ok(data),
        }
    }

    fn list(&mut self, items: Vec<Node>, of: &Shape, repeats: Repeats, at: At<'_>) -> Data {
        let mut checked: Vec<Node> = Vec::with_capacity(items.len());
        for item in items {
            let item = self.node(item, of, at);
            let twice = repeats == Repeats::Refused
                && checked
                    .iter()
                    .any(|earlier| same(&earlier.data, &item.data));
            if twice {
                let shown = match &item.data {
                    Data::Text(text) => format!("\"{text}\""),
                    Data::Integer(integer) => integer.to_string(),
                    _ => "an item".to_owned(),
                };
                let message = format!("{}: {shown} stands there twice", at.path);
                self.problems.add(&item.origin, message);
            }
            checked.push(item);
        }
        Data::List(checked)
    }

    fn map(&mut self, table: Table, keys: &Rule, of: &Shape, at: At<'_>) -> Table {
        let mut checked = Table::new();
        for (key, Entry { key_origin, node }) in table {
            if let Err(wrong) = (keys.check)(&key) {
                self.problems
                    .add(&key_origin, format!("{}: {wrong}", at.path));
                continue;
            }
            let path = join(at.path, &key);
            // A section with a name of its own is the root of what stands in it.
            let at = match of {
                Shape::Section(_) => At {
                    path: &path,
                    root: of,
                    root_path: &path,
                },
                _ => At { path: &path, ..at },
            };
            let node = self.node(node, of, at);
            checked.insert(key, Entry { key_origin, node });
        }
        checked
    }

    fn free_table(&mut self, table: Table, at: At<'_>) -> Table {
        let entries = table.into_iter().map(|(key, Entry { key_origin, node })| {
            let path = join(at.path, &key);
            let node = self.node(node, &Shape::Anything, At { path: &path, ..at });
            (key, Entry { key_origin, node })
        });
        entries.collect()
    }
}

/// Why a value is refused.
enum Fault {
    /// It was said already.
    Reported,
    /// It should have been this kind of thing.
    Kind(&'static str),
    /// Anything else, for a person.
    Value(String),
}

/// Checks that a value lies in a range.
trait Within: Sized {
    fn within(
        self,
        range: &RangeInclusive<Self>,
        show: impl Fn(&Self) -> String,
    ) -> Result<Self, Fault>;
}

impl<T: PartialOrd> Within for T {
    fn within(
        self,
        range: &RangeInclusive<Self>,
        show: impl Fn(&Self) -> String,
    ) -> Result<Self, Fault> {
        if range.contains(&self) {
            return Ok(self);
        }
        let (low, high) = (show(range.start()), show(range.end()));
        let value = show(&self);
        Err(Fault::Value(format!(
            "must be between {low} and {high}, but is {value}"
        )))
    }
}

fn integer(data: &Data, expected: &'static str) -> Result<u64, Fault> {
    match data {
        Data::Integer(integer) => u64::try_from(*integer)
            .map_err(|_| Fault::Value(format!("must not be negative, but is {integer}"))),
        Data::Unread(text) => text
            .parse()
            .map_err(|_| Fault::Value(format!("must be {expected}, not \"{text}\""))),
        _ => Err(Fault::Kind(expected)),
    }
}

fn time(time: Duration, range: &RangeInclusive<Duration>) -> Result<Data, Fault> {
    time.within(range, |time| units::show_duration(*time))
        .map(Data::Time)
}

fn choice(text: String, words: &[&'static str]) -> Result<Data, Fault> {
    if words.contains(&text.as_str()) {
        return Ok(Data::Text(text));
    }
    let list = words
        .iter()
        .map(|word| format!("\"{word}\""))
        .collect::<Vec<_>>()
        .join(", ");
    let suggestion = did_you_mean(&text, words.iter().copied());
    Err(Fault::Value(format!(
        "\"{text}\" is not one of {list}{suggestion}"
    )))
}

fn not_empty(text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(Fault::Value("is empty".to_owned()));
    }
    Ok(())
}

fn path(text: &str, origin: &Origin, cwd: &Path) -> Result<std::path::PathBuf, Fault> {
    not_empty(text)?;
    if text == "~" || text.starts_with("~/") {
        let message = format!("\"{text}\": \"~\" is not expanded here; write the whole path");
        return Err(Fault::Value(message));
    }
    if text.contains('\0') {
        return Err(Fault::Value("a path cannot hold a zero byte".to_owned()));
    }
    Ok(absolute(origin.directory(cwd), text))
}

/// `{ file = "…" }` and `{ env = "…" }`, and nothing else.
fn reference(table: &Table, cwd: &Path) -> Result<Option<Reference>, Fault> {
    let mut entries = table.iter();
    let (Some((key, entry)), None) = (entries.next(), entries.next()) else {
        return Ok(None);
    };
    let text = match &entry.node.data {
        Data::Text(text) => text,
        // The environment may say where a secret is, too.
        Data::Unread(text) => text,
        _ => return Ok(None),
    };
    match key.as_str() {
        "file" => Ok(Some(Reference::File(path(text, &entry.node.origin, cwd)?))),
        "env" => {
            not_empty(text)?;
            Ok(Some(Reference::Environment(text.clone())))
        }
        _ => Ok(None),
    }
}

/// A value from the environment for a place where anything may stand: JSON if it reads as a number,
/// a switch, a list or an object, else text.
fn json_or_text(text: &str) -> serde_json::Value {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Null) | Err(_) => text.into(),
        Ok(value) => value,
    }
}

fn same(left: &Data, right: &Data) -> bool {
    match (left, right) {
        (Data::Text(left), Data::Text(right)) => left == right,
        (Data::Integer(left), Data::Integer(right)) => left == right,
        _ => false,
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn unknown_key(key: &str, shape: &Shape, at: At<'_>) -> String {
    let place = if at.path.is_empty() {
        String::new()
    } else {
        format!(" in [{}]", at.path)
    };
    // TOML's own trap: a key after a [section] belongs to that section.
    let hint = match elsewhere(at.root, at.root_path, key) {
        Some(home) if home.is_empty() => {
            "; it belongs at the top of the file, before the first [section]".to_owned()
        }
        Some(home) => format!("; it belongs in [{home}]"),
        None => did_you_mean(key, shape.fields().map(|field| field.key)),
    };
    format!("unknown key \"{key}\"{place}{hint}")
}

/// The only section below `shape` that knows `key`.
fn elsewhere(shape: &Shape, path: &str, key: &str) -> Option<String> {
    fn collect(shape: &Shape, path: &str, key: &str, found: &mut Vec<String>) {
        for field in shape.fields() {
            if field.key == key {
                found.push(path.to_owned());
            }
            collect(&field.shape, &join(path, field.key), key, found);
        }
    }
    let mut found = Vec::new();
    collect(shape, path, key, &mut found);
    // Several: any of them would be a guess.
    match found.as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    }
}
