//! One h2, and not below 0.4.19: before it about a hundred small unread DATA frames end a whole
//! connection.

use super::{Finding, file};
use crate::workspace::TextFile;

const LOWEST: [u64; 3] = [0, 4, 19];

pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let found = |message: String| vec![Finding::new("Cargo.lock", 0, message)];
    let Some(lock) = file(files, "Cargo.lock") else {
        return found("is not tracked".to_owned());
    };
    let table: toml::Table = match lock.text.parse() {
        Ok(table) => table,
        Err(error) => return found(format!("cannot be read: {error}")),
    };
    let packages = table.get("package").and_then(toml::Value::as_array);
    let versions: Vec<_> = packages
        .into_iter()
        .flatten()
        .filter(|package| package.get("name").and_then(toml::Value::as_str) == Some("h2"))
        .filter_map(|package| package.get("version").and_then(toml::Value::as_str))
        .collect();
    match versions.as_slice() {
        [version] if numbers(version) >= Some(LOWEST) => Vec::new(),
        [version] => found(format!("h2 {version} is older than 0.4.19")),
        versions => found(format!("one h2 expected, not {versions:?}")),
    }
}

fn numbers(version: &str) -> Option<[u64; 3]> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    let mut next = || parts.next().flatten();
    Some([next()?, next()?, next()?])
}

#[cfg(test)]
mod tests {
    use super::super::text_file;
    use super::*;

    fn findings(versions: &[&str]) -> usize {
        let package =
            |version: &&str| format!("[[package]]\nname = \"h2\"\nversion = \"{version}\"\n");
        let text: String = versions.iter().map(package).collect();
        check(&[text_file("Cargo.lock", &text)]).len()
    }

    #[test]
    fn exactly_one_recent_h2_is_wanted() {
        assert_eq!(findings(&["0.4.19"]), 0);
        assert_eq!(findings(&["0.5.0"]), 0);
        assert_eq!(findings(&["0.4.9"]), 1);
        assert_eq!(findings(&["0.3.27", "0.4.20"]), 1);
        assert_eq!(findings(&[]), 1);
    }
}
