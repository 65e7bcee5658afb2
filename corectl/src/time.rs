//! Times as people read and write them.
//!
//! Tables show ages ("3m ago") and local times; JSON has RFC 3339 in UTC.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A time given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// So long before now.
    Ago(Duration),
    /// Then.
    At(Timestamp),
    /// As far back as there is anything.
    Oldest,
}

impl Moment {
    /// Reads a duration ("10m"), an RFC 3339 time, or "oldest".
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "oldest" {
            return Ok(Self::Oldest);
        }
        Self::parse_time(text)
    }

    /// Reads a duration ("10m") or an RFC 3339 time.
    pub(crate) fn parse_time(text: &str) -> Result<Self, String> {
        if let Ok(duration) = humantime::parse_duration(text) {
            return Ok(Self::Ago(duration));
        }
        let at = text.parse().map(Self::At);
        at.map_err(|_invalid| {
            "neither a duration (10m, 1h30m) nor a time (2026-01-31T12:00:00Z)".to_owned()
        })
    }

    /// The instant meant; nothing for the oldest.
    pub(crate) fn resolve(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Ago(duration) => {
                let signed = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
                Some(now.saturating_sub(signed).unwrap_or(Timestamp::MIN))
            }
            Self::At(at) => Some(at),
            Self::Oldest => None,
        }
    }
}

/// From the wire; nothing if absent or outside what a calendar can show.
pub(crate) fn from_wire(timestamp: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    let timestamp = timestamp?;
    Timestamp::new(timestamp.seconds, timestamp.nanos).ok()
}

/// To the wire. The wire wants nanoseconds that count forward, also before 1970.
pub(crate) fn to_wire(timestamp: Timestamp) -> prost_types::Timestamp {
    let nanos = timestamp.as_nanosecond();
    let second = 1_000_000_000;
    prost_types::Timestamp {
        seconds: i64::try_from(nanos.div_euclid(second)).expect("a Timestamp's seconds fit"),
        nanos: i32::try_from(nanos.rem_euclid(second)).expect("below a second"),
    }
}

/// A time to live, for the wire. What is too long for it the core would refuse too.
pub(crate) fn to_wire_duration(time: Option<Duration>) -> Option<prost_types::Duration> {
    let longest = prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    };
    time.map(|time| prost_types::Duration::try_from(time).unwrap_or(longest))
}

/// RFC 3339 in UTC, for JSON.
pub(crate) fn rfc3339(timestamp: Option<&prost_types::Timestamp>) -> Option<String> {
    from_wire(timestamp).map(|timestamp| timestamp.to_string())
}

/// Seconds with fractions, for JSON.
pub(crate) fn seconds(duration: &prost_types::Duration) -> f64 {
    let seconds = i32::try_from(duration.seconds).unwrap_or(i32::MAX);
    f64::from(seconds) + f64::from(duration.nanos) / 1e9
}

/// From the wire; negative ones, which the contract does not have, are nothing.
pub(crate) fn duration(duration: &prost_types::Duration) -> Duration {
    Duration::try_from(*duration).unwrap_or_default()
}

/// "3m ago", or "in 12s" for what is to come; "-" if unknown.
pub(crate) fn relative(timestamp: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    let Some(timestamp) = from_wire(timestamp) else {
        return "-".to_owned();
    };
    let difference = now.duration_since(timestamp);
    let age = short(difference.unsigned_abs());
    if difference.is_negative() {
        format!("in {age}")
    } else {
        format!("{age} ago")
    }
}

/// A duration in its two largest units: "2d 4h", "12s", "350ms".
pub(crate) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |large, unit, small, part| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit} {small}{part}")
        }
    };
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => pair(minutes, "m", seconds % 60, "s"),
        3600..86400 => pair(hours, "h", minutes % 60, "m"),
        _ => pair(days, "d", hours % 24, "h"),
    }
}

/// Date and time in the zone of this machine (`TZ`), to the second.
pub(crate) fn local(timestamp: Option<&prost_types::Timestamp>) -> String {
    format_local(timestamp, "%Y-%m-%d %H:%M:%S")
}

/// Time of day in the zone of this machine, to the millisecond: for streams, whose lines are near.
pub(crate) fn clock(timestamp: Option<&prost_types::Timestamp>) -> String {
    format_local(timestamp, "%H:%M:%S%.3f")
}

fn format_local(timestamp: Option<&prost_types::Timestamp>, format: &str) -> String {
    from_wire(timestamp).map_or_else(
        || "-".to_owned(),
        |timestamp| {
            let zoned = timestamp.to_zoned(TimeZone::system());
            zoned.strftime(format).to_string()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("RFC 3339")
    }

    #[test]
    fn moments_are_read_as_durations_times_or_the_oldest() {
        let now = at("2026-01-31T12:00:00Z");
        let table = [
            ("10m", Some(at("2026-01-31T11:50:00Z"))),
            ("1h 30m", Some(at("2026-01-31T10:30:00Z"))),
            ("2026-01-30T00:00:00Z", Some(at("2026-01-30T00:00:00Z"))),
            (
                "2026-01-30T02:00:00+02:00",
                Some(at("2026-01-30T00:00:00Z")),
            ),
            ("oldest", None),
        ];
        for (text, expected) in table {
            let moment = Moment::parse(text).expect(text);
            assert_eq!(moment.resolve(now), expected, "{text}");
        }
        for text in ["", "yesterday", "10", "2026-01-30"] {
            Moment::parse(text).expect_err(text);
        }
        Moment::parse_time("oldest").expect_err("only events have an oldest");
    }

    #[test]
    fn durations_are_shown_in_their_two_largest_units() {
        let table = [
            (0, "350ms"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m 1s"),
            (3600, "1h"),
            (3661, "1h 1m"),
            (86400 * 2 + 3600 * 4, "2d 4h"),
        ];
        for (seconds, expected) in table {
            let millis = Duration::from_millis(350);
            assert_eq!(short(Duration::from_secs(seconds) + millis), expected);
        }
    }

    #[test]
    fn past_and_future_are_told_apart() {
        let now = at("2026-01-31T12:00:00Z");
        let wire = |text: &str| to_wire(at(text));
        assert_eq!(relative(Some(&wire("2026-01-31T11:57:00Z")), now), "3m ago");
        assert_eq!(relative(Some(&wire("2026-01-31T12:00:12Z")), now), "in 12s");
        assert_eq!(relative(None, now), "-");
    }

    #[test]
    fn the_wire_s_nanoseconds_count_forward_before_1970_too() {
        for text in ["1969-12-31T23:59:59.25Z", "2026-01-31T12:00:00.123456789Z"] {
            let wire = to_wire(at(text));
            assert!((0..1_000_000_000).contains(&wire.nanos));
            assert_eq!(rfc3339(Some(&wire)).as_deref(), Some(text));
        }
    }
}
