//! Text for people: what may reach a terminal, and which name was meant.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Candidates looked at for a suggestion; more would not help anybody.
const MAX_CANDIDATES: usize = 10_000;

/// The text without control characters, which could otherwise move the cursor, change colours or
/// split a table: they come from plugins. Each is shown as an escape.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\n' => clean.push_str("\\n"),
            '\r' => clean.push_str("\\r"),
            '\t' => clean.push_str("\\t"),
            _ if character.is_control() => {
                write!(clean, "\\u{{{:x}}}", u32::from(character))
                    .expect("a String takes everything");
            }
            _ => clean.push(character),
        }
    }
    Cow::Owned(clean)
}

/// The candidate that was probably meant: at most a third of the letters wrong, swapped, missing or
/// too many, or a unique continuation of what was typed.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let candidates: Vec<&str> = candidates.into_iter().take(MAX_CANDIDATES).collect();
    let length = name.chars().count();
    let allowed = (length / 3).max(1).min(length.saturating_sub(1));
    let closest = candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| (1..=allowed).contains(distance))
        .min();
    if let Some((_, candidate)) = closest {
        return Some((*candidate).to_owned());
    }
    let mut continued = candidates
        .iter()
        .filter(|candidate| !name.is_empty() && candidate.starts_with(name));
    match (continued.next(), continued.next()) {
        (Some(candidate), None) if *candidate != name => Some((*candidate).to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_escapes_and_other_text_stays() {
        assert_eq!(printable("Küche \u{1f4a1} 温度"), "Küche \u{1f4a1} 温度");
        assert_eq!(printable("a\u{1b}[31mb\u{9b}c"), "a\\u{1b}[31mb\\u{9b}c");
        assert_eq!(printable("a\nb\tc\r"), "a\\nb\\tc\\r");
    }

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let names = ["devices", "automation", "notifications", "a"];
        let table = [
            ("devcies", Some("devices")),
            ("device", Some("devices")),
            ("autmation", Some("automation")),
            ("noti", Some("notifications")),
            ("devices", None),
            ("zigbee", None),
            ("", None),
        ];
        for (typed, meant) in table {
            assert_eq!(nearest(typed, names).as_deref(), meant, "{typed}");
        }
    }
}
