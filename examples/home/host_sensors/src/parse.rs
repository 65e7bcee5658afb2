//! The text of Linux's `/proc` and `/sys`, read. Pure: text in, value or a message out.

use crate::sample::{Load, Space};

/// `/proc/loadavg`: "0.52 0.58 0.59 1/467 12345".
pub(crate) fn load(text: &str) -> Result<Load, String> {
    let mut numbers = text.split_ascii_whitespace();
    let mut next = |what| number(numbers.next(), what);
    Ok(Load {
        one: next("load of 1 minute")?,
        five: next("load of 5 minutes")?,
        fifteen: next("load of 15 minutes")?,
    })
}

/// `/proc/uptime`: seconds since boot, and seconds that all processors were idle.
pub(crate) fn uptime_seconds(text: &str) -> Result<f64, String> {
    number(text.split_ascii_whitespace().next(), "uptime")
}

/// `/proc/meminfo`. "Available" is the kernel's estimate of what programs can still get; "free" would
/// leave out the caches that are given up on demand.
pub(crate) fn memory(text: &str) -> Result<Space, String> {
    let bytes = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let words = line.ok_or_else(|| format!("no line {name}"))?;
        let kibibytes: u64 = number(words.split_ascii_whitespace().next(), name)?;
        Ok::<_, String>(kibibytes.saturating_mul(1024))
    };
    Ok(Space {
        total_bytes: bytes("MemTotal")?,
        available_bytes: bytes("MemAvailable")?,
    })
}

/// A file of `/sys` that holds thousandths of a degree: "48312".
pub(crate) fn celsius(text: &str) -> Result<f64, String> {
    let thousandths: f64 = number(Some(text.trim()), "temperature")?;
    Ok(thousandths / 1000.0)
}

fn number<T: std::str::FromStr>(word: Option<&str>, what: &str) -> Result<T, String> {
    let word = word.ok_or_else(|| format!("{what} is missing"))?;
    word.parse()
        .map_err(|_| format!("{what}: {word:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_averages_are_the_first_three_numbers() {
        let expected = Load {
            one: 0.52,
            five: 1.5,
            fifteen: 12.0,
        };
        assert_eq!(load("0.52 1.50 12.00 1/467 12345\n"), Ok(expected));
        assert_eq!(
            load("0.52 x"),
            Err("load of 5 minutes: \"x\" is not a number".to_owned())
        );
        assert_eq!(load(""), Err("load of 1 minute is missing".to_owned()));
    }

    #[test]
    fn memory_counts_what_programs_can_still_get() {
        let text = "MemTotal:        8000 kB\nMemFree:          100 kB\nMemAvailable:    2000 kB\n";
        let expected = Space {
            total_bytes: 8_192_000,
            available_bytes: 2_048_000,
        };
        assert_eq!(memory(text), Ok(expected));
        assert!((expected.used_percent() - 75.0).abs() < 1e-9);
        assert_eq!(
            memory("MemTotal: 8000 kB\n"),
            Err("no line MemAvailable".to_owned())
        );
        let half = "MemTotal:\nMemAvailable: 1 kB";
        assert_eq!(memory(half), Err("MemTotal is missing".to_owned()));
    }

    #[test]
    fn uptime_is_the_first_number() {
        assert_eq!(uptime_seconds("350735.47 234388.90\n"), Ok(350_735.47));
        assert_eq!(uptime_seconds(" \n"), Err("uptime is missing".to_owned()));
    }

    #[test]
    fn temperatures_are_given_in_thousandths() {
        assert_eq!(celsius("48312\n"), Ok(48.312));
        assert_eq!(celsius("-5000"), Ok(-5.0));
        assert_eq!(
            celsius(""),
            Err("temperature: \"\" is not a number".to_owned())
        );
    }
}
