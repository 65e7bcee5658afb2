//! What the core tells its guardian: one datagram, one line of text, one [`Notice`]. The guardian
//! answers once, [`READY`]. Pure.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The guardian's only answer: it knows the cookie and watches.
pub(super) const READY: &[u8] = b"ready";

/// No notice is longer, in bytes: a path fits, and so does a word before it.
pub(super) const LONGEST_NOTICE: usize = 4096 + 64;

/// One thing that the guardian is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// What this core's children carry in their environment. The first of all.
    Cookie(String),
    /// A run's leader; its group has the same number.
    Group { serial: u64, leader: u32 },
    /// A run's cgroup directory.
    Cgroup { serial: u64, directory: PathBuf },
    /// Nothing is left of a run. Said while its leader is not reaped yet: until then its number is
    /// nobody else's.
    Gone { serial: u64 },
    /// The core ends in order; nothing is to be killed.
    End,
}

impl Notice {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Cookie(cookie) => format!("cookie {cookie}").into_bytes(),
            Self::Group { serial, leader } => {
                let mut line = group_prefix(*serial);
                line.extend_from_slice(leader.to_string().as_bytes());
                line
            }
            Self::Cgroup { serial, directory } => {
                let mut line = format!("cgroup {serial} ").into_bytes();
                line.extend_from_slice(directory.as_os_str().as_bytes());
                line
            }
            Self::Gone { serial } => format!("gone {serial}").into_bytes(),
            Self::End => b"end".to_vec(),
        }
    }

    /// `None`: it is none.
    pub(super) fn decode(line: &[u8]) -> Option<Self> {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let number = |bytes| text(bytes)?.parse::<u64>().ok();
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let (word, first, second) = (words.next()?, words.next(), words.next());
        match (word, first, second) {
            (b"cookie", Some(cookie), None) if !cookie.is_empty() => {
                Some(Self::Cookie(text(cookie)?.to_owned()))
            }
            (b"group", Some(serial), Some(leader)) => Some(Self::Group {
                serial: number(serial)?,
                // 0 and 1 would mean the guardian's own group and everybody.
                leader: u32::try_from(number(leader)?).ok().filter(|pid| *pid > 1)?,
            }),
            (b"cgroup", Some(serial), Some(directory)) => {
                let directory = Path::new(OsStr::from_bytes(directory));
                directory.is_absolute().then_some(Self::Cgroup {
                    serial: number(serial)?,
                    directory: directory.to_owned(),
                })
            }
            (b"gone", Some(serial), None) => Some(Self::Gone {
                serial: number(serial)?,
            }),
            (b"end", None, None) => Some(Self::End),
            _ => None,
        }
    }
}

/// A [`Notice::Group`] without the number at its end, which only the child knows.
pub(super) fn group_prefix(serial: u64) -> Vec<u8> {
    format!("group {serial} ").into_bytes()
}

/// A decimal number, written without allocation: the child does it between `fork` and `exec`.
/// Returns how many bytes of `into` it takes.
pub(super) fn write_decimal(mut number: u32, into: &mut [u8; 10]) -> usize {
    let mut at = into.len();
    loop {
        at -= 1;
        // Below ten, so that nothing is cut.
        into[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    into.copy_within(at.., 0);
    into.len() - at
}

/// What the guardian looks after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Charge {
    /// Of this core; empty until it was told.
    pub(super) cookie: String,
    /// By serial number.
    pub(super) runs: BTreeMap<u64, Ward>,
}

/// What is known of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ward {
    /// Its leader, and when that started.
    pub(super) leader: Option<(u32, u64)>,
    /// Its cgroup.
    pub(super) cgroup: Option<PathBuf>,
}

impl Charge {
    /// Notes what it is told. `started` tells when a process started; one that is not there any more
    /// is not noted, for its number may become a stranger's.
    pub(super) fn note(&mut self, notice: Notice, started: impl FnOnce(u32) -> Option<u64>) {
        match notice {
            Notice::Cookie(cookie) => self.cookie = cookie,
            Notice::Group { serial, leader } => {
                if let Some(started) = started(leader) {
                    self.runs.entry(serial).or_default().leader = Some((leader, started));
                }
            }
            Notice::Cgroup { serial, directory } => {
                self.runs.entry(serial).or_default().cgroup = Some(directory);
            }
            Notice::Gone { serial } => {
                self.runs.remove(&serial);
            }
            Notice::End => *self = Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn notices() -> impl Strategy<Value = Notice> {
        prop_oneof![
            "[0-9a-f]{1,32}".prop_map(Notice::Cookie),
            (any::<u64>(), 2u32..).prop_map(|(serial, leader)| Notice::Group { serial, leader }),
            (any::<u64>(), "/[^\0]{0,40}").prop_map(|(serial, path)| Notice::Cgroup {
                serial,
                directory: path.into(),
            }),
            any::<u64>().prop_map(|serial| Notice::Gone { serial }),
            Just(Notice::End),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(notice in notices()) {
            prop_assert_eq!(Notice::decode(&notice.encode()), Some(notice));
        }

        #[test]
        fn nothing_that_is_read_is_dangerous(line in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(Notice::Group { leader, .. }) = Notice::decode(&line) {
                prop_assert!(leader > 1);
            }
        }

        #[test]
        fn decimals_are_as_the_library_writes_them(number: u32) {
            let mut digits = [0; 10];
            let length = write_decimal(number, &mut digits);
            let expected = number.to_string();
            prop_assert_eq!(&digits[..length], expected.as_bytes());
        }

        /// A guardian that is told everything again, as after its restart, knows the same.
        #[test]
        fn telling_it_again_changes_nothing(all in proptest::collection::vec(notices(), 0..20)) {
            let mut charge = Charge::default();
            for notice in &all {
                charge.note(notice.clone(), |pid| Some(u64::from(pid)));
            }
            let mut again = charge.clone();
            again.note(Notice::Cookie(charge.cookie.clone()), |_| None);
            for (serial, ward) in &charge.runs {
                let (serial, ward) = (*serial, ward.clone());
                if let Some((leader, started)) = ward.leader {
                    again.note(Notice::Group { serial, leader }, |_| Some(started));
                }
                if let Some(directory) = ward.cgroup {
                    again.note(Notice::Cgroup { serial, directory }, |_| None);
                }
            }
            prop_assert_eq!(again, charge);
        }
    }

    #[test]
    fn what_is_no_notice_is_refused() {
        for line in [
            "",
            "cookie",
            "cookie ",
            "group 1",
            "group 1 0",
            "group 1 1",
            "group x 5",
            "group 1 -5",
            "group 1 99999999999",
            "cgroup 1 relative",
            "gone",
            "gone 1 2",
            "end now",
            "hello",
        ] {
            assert_eq!(Notice::decode(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn a_run_is_looked_after_from_its_group_to_its_end() {
        let mut charge = Charge::default();
        let group = |serial, leader| Notice::Group { serial, leader };
        charge.note(Notice::Cookie("c".to_owned()), |_| None);
        charge.note(group(1, 200), |_| Some(50));
        charge.note(group(2, 300), |_| None);
        assert_eq!(charge.runs.len(), 1, "one that is not there is not noted");
        assert_eq!(charge.runs[&1].leader, Some((200, 50)));
        charge.note(Notice::Gone { serial: 1 }, |_| None);
        charge.note(Notice::Gone { serial: 7 }, |_| None);
        assert!(charge.runs.is_empty());
        charge.note(group(3, 400), |_| Some(60));
        charge.note(Notice::End, |_| None);
        assert_eq!(charge, Charge::default());
    }
}
