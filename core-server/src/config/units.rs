//! How durations and sizes are written. Pure.

use std::time::Duration;

const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("min", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

const SIZE_UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Reads `250ms`, `10s`, `5min`, `2h`, `1d`.
///
/// # Errors
/// What is wrong, for a person.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    number_and_unit(text, &TIME_UNITS)
        .map(Duration::from_millis)
        .ok_or_else(|| {
            format!("\"{text}\" is not a duration; write an integer and ms, s, min, h or d, like \"10s\"")
        })
}

/// The duration in the largest unit that divides it.
pub(super) fn show_duration(duration: Duration) -> String {
    show(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        &TIME_UNITS,
        "0s",
    )
}

/// Reads `64MiB`, `512KiB`, `1GiB`, `100B`.
///
/// # Errors
/// What is wrong, for a person.
pub(super) fn size(text: &str) -> Result<u64, String> {
    number_and_unit(text, &SIZE_UNITS).ok_or_else(|| {
        format!("\"{text}\" is not a size; write an integer and B, KiB, MiB or GiB, like \"64MiB\"")
    })
}

/// The size in the largest unit that divides it.
pub(super) fn show_size(bytes: u64) -> String {
    show(bytes, &SIZE_UNITS, "0B")
}

fn number_and_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn show(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    units
        .iter()
        .find(|(_, factor)| value > 0 && value.is_multiple_of(*factor))
        .map_or_else(
            || zero.to_owned(),
            |(name, factor)| format!("{}{name}", value / factor),
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_an_integer_and_a_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("10 s", 10_000),
            ("5min", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "5m",
            "1.5s",
            "-1s",
            "1s ",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_an_integer_and_a_binary_unit() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("1 KiB", 1024),
            ("7B", 7),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["64MB", "64", "MiB", "1.5KiB", "-1B"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_as_the_same(value in 0_u64..1 << 50) {
            prop_assert_eq!(size(&show_size(value)), Ok(value));
            let time = Duration::from_millis(value);
            prop_assert_eq!(duration(&show_duration(time)), Ok(time));
        }
    }
}
