//! A configuration before it is typed: values that remember where they came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Origin, Problems, SourceFile};

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) data: Data,
    pub(super) origin: Origin,
}

/// A value. The upper half is what is written, the lower half what `shape::Checker` makes of it.
#[derive(Clone, Debug)]
pub(super) enum Data {
    Switch(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Table),
    /// From the environment or a flag: what it is depends on the setting.
    Unread(String),

    Time(Duration),
    Size(u64),
    /// Absolute.
    Path(PathBuf),
    /// `{ file = "…" }` or `{ env = "…" }`.
    Secret(Reference),
    /// Set by an environment variable, where values are often secrets: never shown.
    Concealed(serde_json::Value),
    /// Reported already; kept so that nobody takes it for absent.
    Invalid,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// Absolute.
    File(PathBuf),
    Environment(String),
}

/// A table; each key knows its place.
pub(super) type Table = BTreeMap<String, Entry>;

/// A key's place and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key_origin: Origin,
    pub(super) node: Node,
}

impl Entry {
    /// A key and a value from one place.
    pub(super) fn new(data: Data, origin: Origin) -> Self {
        Self {
            key_origin: origin.clone(),
            node: Node { data, origin },
        }
    }
}

impl Data {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Switch(_) => "true or false",
            Self::Integer(_) | Self::Size(_) => "an integer",
            Self::Float(_) => "a decimal number",
            Self::List(_) => "a list",
            Self::Table(_) | Self::Secret(_) => "a table",
            _ => "text",
        }
    }
}

/// Puts `over` on top of `base`: tables are joined, anything else is replaced.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (key, entry) in over {
        match (base.get_mut(&key), entry) {
            (
                Some(Entry {
                    node:
                        Node {
                            data: Data::Table(below),
                            ..
                        },
                    ..
                }),
                Entry {
                    node:
                        Node {
                            data: Data::Table(above),
                            ..
                        },
                    ..
                },
            ) => merge(below, above),
            (_, entry) => {
                base.insert(key, entry);
            }
        }
    }
}

/// Reads TOML. Syntax errors are reported, and then there is no table: what a parser guesses after an
/// error would be reported as further errors that are none.
pub(super) fn parse(
    text: &str,
    file: &std::sync::Arc<SourceFile>,
    problems: &mut Problems,
) -> Option<Table> {
    let (document, errors) = toml::de::DeTable::parse_recoverable(text);
    let reader = TomlReader {
        file,
        lines: Lines::new(text),
    };
    for error in &errors {
        let start = error.span().map_or(0, |span| span.start);
        let message = error.message().replace('\n', ", ");
        problems.add(&reader.origin(start), format!("not TOML: {message}"));
    }
    errors
        .is_empty()
        .then(|| reader.table(document.get_ref(), problems))
}

struct TomlReader<'a> {
    file: &'a std::sync::Arc<SourceFile>,
    lines: Lines<'a>,
}

impl TomlReader<'_> {
    fn origin(&self, byte: usize) -> Origin {
        let (line, column) = self.lines.place(byte);
        Origin::File {
            file: std::sync::Arc::clone(self.file),
            line,
            column,
        }
    }

    fn table(&self, table: &toml::de::DeTable<'_>, problems: &mut Problems) -> Table {
        let entry = |(key, value): (
            &toml::Spanned<toml::de::DeString<'_>>,
            &toml::Spanned<toml::de::DeValue<'_>>,
        )| {
            let entry = Entry {
                key_origin: self.origin(key.span().start),
                node: self.node(value, problems),
            };
            (key.get_ref().to_string(), entry)
        };
        table.iter().map(entry).collect()
    }

    fn node(&self, value: &toml::Spanned<toml::de::DeValue<'_>>, problems: &mut Problems) -> Node {
        use toml::de::DeValue;
        let origin = self.origin(value.span().start);
        let data = match value.get_ref() {
            DeValue::String(text) => Data::Text(text.to_string()),
            DeValue::Integer(integer) => {
                match i64::from_str_radix(integer.as_str(), integer.radix()) {
                    Ok(integer) => Data::Integer(integer),
                    Err(_) => {
                        problems.add(&origin, format!("{integer} is too large for an integer"));
                        Data::Invalid
                    }
                }
            }
            DeValue::Float(float) => match float.as_str().parse::<f64>() {
                Ok(float) if float.is_finite() => Data::Float(float),
                _ => {
                    problems.add(&origin, format!("{float} is not a finite number"));
                    Data::Invalid
                }
            },
            DeValue::Boolean(switch) => Data::Switch(*switch),
            // JSON, which plugins get, has no dates either.
            DeValue::Datetime(datetime) => Data::Text(datetime.to_string()),
            DeValue::Array(items) => {
                Data::List(items.iter().map(|item| self.node(item, problems)).collect())
            }
            DeValue::Table(table) => Data::Table(self.table(table, problems)),
        };
        Node { data, origin }
    }
}

/// Finds line and column of a byte.
struct Lines<'a> {
    text: &'a str,
    /// Byte at which each line begins.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let newlines = text.match_indices('\n').map(|(byte, _)| byte + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(newlines).collect(),
        }
    }

    /// Line and column from 1; columns count characters.
    fn place(&self, byte: usize) -> (u32, u32) {
        let byte = byte.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= byte);
        let start = self.starts[line - 1];
        let characters = self
            .text
            .get(start..byte)
            .map_or(0, |text| text.chars().count());
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (number(line), number(characters + 1))
    }
}

/// `path` from `directory`, without `.` in it. Links are not followed.
pub(super) fn absolute(directory: &Path, path: impl AsRef<Path>) -> PathBuf {
    directory.join(path).components().collect()
}

/// A typed look at a checked table. What is absent or was reported as invalid reads as `None`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    table: Option<&'a Table>,
}

impl<'a> View<'a> {
    pub(super) fn new(table: &'a Table) -> Self {
        Self { table: Some(table) }
    }

    pub(super) fn entry(self, key: &str) -> Option<&'a Entry> {
        self.table?.get(key)
    }

    pub(super) fn node(self, key: &str) -> Option<&'a Node> {
        Some(&self.entry(key)?.node)
    }

    pub(super) fn origin(self, key: &str) -> Origin {
        self.node(key)
            .map_or(Origin::Default, |node| node.origin.clone())
    }

    pub(super) fn section(self, key: &str) -> Self {
        let table = self.node(key).and_then(|node| match &node.data {
            Data::Table(table) => Some(table),
            _ => None,
        });
        Self { table }
    }

    pub(super) fn entries(self) -> impl Iterator<Item = (&'a String, &'a Entry)> {
        self.table.into_iter().flatten()
    }

    pub(super) fn text(self, key: &str) -> Option<&'a str> {
        match &self.node(key)?.data {
            Data::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn switch(self, key: &str) -> Option<bool> {
        match self.node(key)?.data {
            Data::Switch(switch) => Some(switch),
            _ => None,
        }
    }

    /// An integer or a size, neither ever negative once checked.
    pub(super) fn number(self, key: &str) -> Option<usize> {
        match self.node(key)?.data {
            Data::Integer(integer) => usize::try_from(integer).ok(),
            Data::Size(bytes) => usize::try_from(bytes).ok(),
            _ => None,
        }
    }

    pub(super) fn time(self, key: &str) -> Option<Duration> {
        match self.node(key)?.data {
            Data::Time(time) => Some(time),
            _ => None,
        }
    }

    pub(super) fn path(self, key: &str) -> Option<&'a Path> {
        match &self.node(key)?.data {
            Data::Path(path) => Some(path),
            _ => None,
        }
    }

    pub(super) fn list(self, key: &str) -> &'a [Node] {
        match self.node(key).map(|node| &node.data) {
            Some(Data::List(items)) => items,
            _ => &[],
        }
    }

    pub(super) fn texts(self, key: &str) -> impl Iterator<Item = (&'a str, &'a Origin)> {
        self.list(key).iter().filter_map(|node| match &node.data {
            Data::Text(text) => Some((text.as_str(), &node.origin)),
            _ => None,
        })
    }
}
