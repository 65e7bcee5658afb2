//! Settings from environment variables: `RUNTIME_<SECTION>__<KEY>`, two underscores between sections.
//! `RUNTIME_DB_PATH` is the original name of `storage.path`.

use std::collections::BTreeMap;

use crate::error::did_you_mean;

use super::error::{Origin, Problems};
use super::shape::{Case, Shape};
use super::tree::{Data, Entry, Table};

/// What every variable of ours begins with.
const PREFIX: &str = "RUNTIME_";
/// systemd's own: the directory that `RuntimeDirectory=` made.
pub(super) const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";
const DB_PATH: &str = "RUNTIME_DB_PATH";

/// The environment of this process. Variables that are not UTF-8 are passed over: none of ours is.
#[must_use]
pub fn process_environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The settings that variables set, unchecked.
pub(super) fn layer(
    variables: &BTreeMap<String, String>,
    shape: &'static Shape,
    problems: &mut Problems,
) -> Table {
    let mut top = Table::new();
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if name == RUNTIME_DIRECTORY {
            continue;
        }
        let origin = Origin::Environment(name.as_str().into());
        let path = if name == DB_PATH {
            Ok(vec!["storage".to_owned(), "path".to_owned()])
        } else {
            find(rest, shape)
        };
        match path {
            Ok(path) => {
                if let Err(earlier) = insert(&mut top, &path, value, &origin) {
                    let setting = path.join(".");
                    let message =
                        format!("sets {setting}, which {earlier} sets too; keep one of the two");
                    problems.add(&origin, message);
                }
            }
            Err(suggestion) => {
                let message = format!("there is no such setting{suggestion}");
                problems.add(&origin, message);
            }
        }
    }
    top
}

/// The path of the setting that a variable names.
///
/// # Errors
/// A suggestion, or nothing.
fn find(rest: &str, shape: &'static Shape) -> Result<Vec<String>, String> {
    let mut shape = shape;
    let mut path = Vec::new();
    let mut seen = PREFIX.to_owned();
    let mut segments = rest.split("__").peekable();
    while let Some(segment) = segments.next() {
        match shape {
            Shape::Section(_) => {
                let named = |key: &str| key.to_ascii_uppercase() == segment;
                let Some(field) = shape.fields().find(|field| named(field.key)) else {
                    let rest: Vec<_> = std::iter::once(segment).chain(segments).collect();
                    return Err(suggest(&seen, &rest.join("__"), shape));
                };
                path.push(field.key.to_owned());
                shape = &field.shape;
            }
            Shape::Map(_, case, of) => {
                path.push(match case {
                    Case::Kept => segment.to_owned(),
                    Case::Lower => segment.to_ascii_lowercase(),
                });
                shape = of;
            }
            // What is inside is the plugin's own, or says where a secret is; in lower case.
            Shape::Anything | Shape::SecretText => path.push(segment.to_ascii_lowercase()),
            _ => return Err(suggest(&seen, "", shape)),
        }
        seen.push_str(segment);
        if segments.peek().is_some() {
            seen.push_str("__");
        }
    }
    match shape {
        Shape::Section(_) | Shape::Map(..) => {
            Err("; it is a section: add \"__\" and a key".to_owned())
        }
        _ => Ok(path),
    }
}

/// `; did you mean "…"?` among the settings below `shape`, or nothing. Only what follows `seen` is
/// compared: with the common beginning everything would look alike.
fn suggest(seen: &str, rest: &str, shape: &'static Shape) -> String {
    let mut names = Vec::new();
    leaves(shape, String::new(), &mut names);
    if seen == PREFIX {
        names.push(DB_PATH.trim_start_matches(PREFIX).to_owned());
    }
    did_you_mean(rest, names.iter().map(String::as_str)).replacen('"', &format!("\"{seen}"), 1)
}

/// The names of the settings of a section, as variables name them.
fn leaves(shape: &'static Shape, path: String, names: &mut Vec<String>) {
    for field in shape.fields() {
        let name = format!("{path}{}", field.key.to_ascii_uppercase());
        match &field.shape {
            Shape::Section(_) => leaves(&field.shape, format!("{name}__"), names),
            Shape::Map(..) => {}
            _ => names.push(name),
        }
    }
}

/// # Errors
/// The variable that set it, or something above or below it, already.
fn insert(table: &mut Table, path: &[String], value: &str, origin: &Origin) -> Result<(), Origin> {
    let Some((key, section)) = path.split_last() else {
        return Ok(());
    };
    let mut table = table;
    for name in section {
        let empty = || Entry::new(Data::Table(Table::new()), origin.clone());
        let entry = table.entry(name.clone()).or_insert_with(empty);
        let Data::Table(below) = &mut entry.node.data else {
            return Err(entry.node.origin.clone());
        };
        table = below;
    }
    if let Some(earlier) = table.get(key) {
        return Err(earlier.node.origin.clone());
    }
    let entry = Entry::new(Data::Unread(value.to_owned()), origin.clone());
    table.insert(key.clone(), entry);
    Ok(())
}
