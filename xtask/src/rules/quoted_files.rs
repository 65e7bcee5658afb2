//! Code in documentation that claims to be a file of the repository is that file, byte for byte.
//!
//! The claim stands behind the language of the code block: three backquotes, then
//! `python file=examples/raw/python/plugin.py`.

use super::{Finding, file};
use crate::workspace::TextFile;

pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for page in files.iter().filter(|file| file.path.ends_with(".md")) {
        for quote in quotes(&page.text) {
            let mut found = |message| findings.push(Finding::new(&page.path, quote.line, message));
            match file(files, &quote.path) {
                None => found(format!("quotes {}, which is not there", quote.path)),
                Some(original) => {
                    if let Some(line) = first_difference(&original.text, &quote.code) {
                        found(format!("differs from {} at its line {line}", quote.path));
                    }
                }
            }
        }
    }
    findings
}

/// A code block that claims to be a file.
struct Quote {
    path: String,
    /// Line of the opening fence, from 1.
    line: usize,
    code: String,
}

fn quotes(text: &str) -> Vec<Quote> {
    let mut quotes = Vec::new();
    let mut open: Option<(&str, Option<Quote>)> = None;
    for (index, line) in text.lines().enumerate() {
        match &mut open {
            Some((fence, quote)) if line.trim_end() == *fence => {
                quotes.extend(quote.take());
                open = None;
            }
            Some((_, Some(quote))) => {
                quote.code.push_str(line);
                quote.code.push('\n');
            }
            Some((_, None)) => {}
            None if line.starts_with("```") => {
                let info = line.trim_start_matches('`');
                let fence = &line[..line.len() - info.len()];
                let path = info
                    .split_whitespace()
                    .find_map(|word| word.strip_prefix("file="));
                let quote = path.map(|path| Quote {
                    path: path.to_owned(),
                    line: index + 1,
                    code: String::new(),
                });
                open = Some((fence, quote));
            }
            None => {}
        }
    }
    quotes
}

/// Number of the first line in which two texts differ.
fn first_difference(original: &str, quoted: &str) -> Option<usize> {
    if original == quoted {
        return None;
    }
    let same = original
        .lines()
        .zip(quoted.lines())
        .take_while(|(original, quoted)| original == quoted);
    Some(same.count() + 1)
}

#[cfg(test)]
mod tests {
    use super::super::text_file;
    use super::*;

    #[test]
    fn a_quoted_file_must_be_equal() {
        let original = text_file("a.py", "one\ntwo\n");
        let page = |code: &str| {
            text_file(
                "p.md",
                &format!("Text.\n\n```python file=a.py\n{code}```\n"),
            )
        };
        assert!(check(&[original.clone(), page("one\ntwo\n")]).is_empty());
        let findings = check(&[original, page("one\nthree\n")]);
        assert_eq!(
            findings,
            [Finding::new("p.md", 3, "differs from a.py at its line 2")]
        );
        assert_eq!(
            check(&[page("one\n")])[0].message,
            "quotes a.py, which is not there"
        );
    }

    #[test]
    fn blocks_without_a_claim_are_free() {
        let page = text_file(
            "p.md",
            "```\nfile=a.py\n```\n\n````text\n```x file=b\n```\n````\n",
        );
        assert!(check(&[page]).is_empty());
    }
}
