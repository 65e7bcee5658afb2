//! Which processes belong to whom. Pure: what is known of the processes comes in, names of the
//! doomed come out.

use std::collections::BTreeSet;

use super::proc_fs::{Mark, Seen, Stream};

/// A process and what it inherited.
#[derive(Clone, Debug)]
pub(super) struct Process {
    /// Itself.
    pub(super) seen: Seen,
    /// What its environment says.
    pub(super) mark: Option<Mark>,
    /// What it reads from and writes to. Only looked up where nothing else tells.
    pub(super) streams: Vec<Stream>,
}

/// A run's leader: the process that the core started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leader {
    /// The plugin.
    pub(super) plugin: String,
    /// Process, group and session id.
    pub(super) pid: u32,
    /// When it started.
    pub(super) started: u64,
    /// Its standard output and error.
    pub(super) streams: Vec<Stream>,
}

/// Who was there before the core, as children of its process. Not plugins', whoever starts them.
#[derive(Clone, Debug, Default)]
pub(super) struct Strangers {
    /// Those children. None is reaped by the core, so that their ids stay theirs.
    pub(super) children: BTreeSet<u32>,
    /// Their sessions, and the core's own: a plugin begins with one of its own and can enter none.
    pub(super) sessions: BTreeSet<u32>,
}

impl Strangers {
    /// Whether it is one of them, or was started by one, as far as its groups tell.
    #[must_use]
    fn include(&self, seen: &Seen) -> bool {
        let ids = [seen.pid, seen.group, seen.session];
        ids.iter().any(|id| self.children.contains(id)) || self.sessions.contains(&seen.session)
    }
}

/// Where the question is asked.
#[derive(Clone, Debug)]
pub(super) struct Household<'a> {
    /// The core's own process.
    pub(super) core: u32,
    /// Children that the core started itself.
    pub(super) own: &'a BTreeSet<u32>,
    /// Every other child of the core is an orphan of a plugin: nobody else has children here.
    pub(super) adopts: bool,
    /// But these.
    pub(super) strangers: &'a Strangers,
    /// The core's instance.
    pub(super) cookie: &'a str,
    /// Leaders of runs that go on.
    pub(super) live: &'a [Leader],
}

impl Household<'_> {
    /// Whether a process is left over from a run whose leader has ended but is not reaped, so that
    /// its id still means its group and session and nobody else's.
    #[must_use]
    pub(super) fn is_left_by(&self, run: &Leader, process: &Process) -> bool {
        let seen = &process.seen;
        if !self.may_be_ended(seen) || seen.pid == run.pid {
            return false;
        }
        if seen.group == run.pid || seen.session == run.pid {
            return true;
        }
        if let Some(mark) = &process.mark
            && mark.cookie == self.cookie
            && mark.plugin == run.plugin
        {
            return true;
        }
        if !self.is_adopted(seen) {
            return false;
        }
        // It has no mark, none that can be read, or another name in it, which anybody can write. Its
        // output tells it, else that nobody else can have left it.
        if process
            .streams
            .iter()
            .any(|stream| run.streams.contains(stream))
        {
            return true;
        }
        let may_be_of = |leader: &Leader| leader.started <= seen.started;
        may_be_of(run) && self.core != 1 && !self.live.iter().any(may_be_of)
    }

    /// Whether a process is to go when the core goes, whichever plugin left it.
    #[must_use]
    pub(super) fn is_left_by_anybody(&self, process: &Process) -> bool {
        let seen = &process.seen;
        let marked = process
            .mark
            .as_ref()
            .is_some_and(|mark| mark.cookie == self.cookie);
        // The first process of a container also adopts what people started in it by hand.
        self.may_be_ended(seen) && (marked || (self.core != 1 && self.is_adopted(seen)))
    }

    fn may_be_ended(&self, seen: &Seen) -> bool {
        seen.pid > 1 && !seen.ended && seen.pid != self.core && !self.own.contains(&seen.pid)
    }

    fn is_adopted(&self, seen: &Seen) -> bool {
        let of_a_live_run = |leader: &Leader| [seen.group, seen.session].contains(&leader.pid);
        self.adopts
            && seen.parent == self.core
            && !self.strangers.include(seen)
            && !self.live.iter().any(of_a_live_run)
    }
}

/// Whether a process survived another core of this boot: it carries that core's cookie, or is one of
/// its children as they were recorded, or of the session of one.
#[must_use]
pub(super) fn is_survivor(
    process: &Process,
    cookie: &str,
    children: &[(u32, u64)],
    everybody: &[Process],
) -> bool {
    let seen = &process.seen;
    if seen.ended || seen.pid <= 1 {
        return false;
    }
    if process
        .mark
        .as_ref()
        .is_some_and(|mark| mark.cookie == cookie)
    {
        return true;
    }
    let recorded = |pid: u32, started: u64| children.contains(&(pid, started));
    // The id of a session or group stands for a recorded child only while that child is there.
    let leads = |leader: &Process| recorded(leader.seen.pid, leader.seen.started);
    recorded(seen.pid, seen.started)
        || everybody
            .iter()
            .any(|leader| leads(leader) && [seen.group, seen.session].contains(&leader.seen.pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORE: u32 = 100;
    /// The device of all pipes.
    const PIPES: u64 = 14;

    fn process(pid: u32, parent: u32, session: u32, started: u64) -> Process {
        Process {
            seen: Seen {
                pid,
                parent,
                group: session,
                session,
                started,
                ended: false,
            },
            mark: None,
            streams: Vec::new(),
        }
    }

    fn marked(mut process: Process, cookie: &str, plugin: &str) -> Process {
        process.mark = Some(Mark {
            cookie: cookie.to_owned(),
            plugin: plugin.to_owned(),
        });
        process
    }

    fn writing_to(mut process: Process, stream: u64) -> Process {
        process.streams = vec![(0, 0), (PIPES, stream)];
        process
    }

    /// To a file that has the inode of a pipe.
    fn writing_to_file(mut process: Process, inode: u64) -> Process {
        process.streams = vec![(PIPES + 1, inode)];
        process
    }

    fn ended(mut process: Process) -> Process {
        process.seen.ended = true;
        process
    }

    fn leader(plugin: &str, pid: u32, started: u64) -> Leader {
        Leader {
            plugin: plugin.to_owned(),
            pid,
            started,
            streams: vec![(PIPES, u64::from(pid) * 10)],
        }
    }

    #[test]
    fn who_is_left_by_a_run() {
        let own = BTreeSet::from([200, 300, 400]);
        let lamp = leader("lamp", 200, 50);
        let others = [leader("heater", 300, 60)];
        let alone: [Leader; 0] = [];
        let strangers = Strangers {
            children: BTreeSet::from([90]),
            sessions: BTreeSet::from([80, CORE]),
        };
        let at = |adopts, live| Household {
            strangers: &strangers,
            core: CORE,
            own: &own,
            adopts,
            cookie: "c",
            live,
        };
        // What it is, the process, left by lamp: with the other plugin about, and alone.
        let table = [
            ("its leader", process(200, CORE, 200, 50), false, false),
            ("of its group", process(210, CORE, 200, 55), true, true),
            ("a zombie", ended(process(210, CORE, 200, 55)), false, false),
            (
                "marked, of its own session",
                marked(process(211, CORE, 211, 55), "c", "lamp"),
                true,
                true,
            ),
            (
                "marked, not adopted",
                marked(process(211, 5, 211, 55), "c", "lamp"),
                true,
                true,
            ),
            (
                "the other's",
                marked(process(311, CORE, 311, 65), "c", "heater"),
                false,
                true,
            ),
            (
                "by a false name, writes its output",
                writing_to(marked(process(311, CORE, 311, 65), "c", "heater"), 2000),
                true,
                true,
            ),
            (
                "by a false name, before the other",
                marked(process(311, CORE, 311, 55), "c", "nobody"),
                true,
                true,
            ),
            (
                "of another core",
                marked(process(312, 5, 312, 65), "d", "lamp"),
                false,
                false,
            ),
            ("the core", process(CORE, 1, CORE, 1), false, false),
            ("the core's own", process(400, CORE, 400, 70), false, false),
            (
                "of the other's session",
                process(310, CORE, 300, 65),
                false,
                true,
            ),
            (
                "bare, may be the other's",
                process(320, CORE, 320, 65),
                false,
                true,
            ),
            (
                "bare, before the other",
                process(320, CORE, 320, 55),
                true,
                true,
            ),
            (
                "bare, older than it",
                process(320, CORE, 320, 45),
                false,
                false,
            ),
            (
                "bare, writes its output",
                writing_to(process(320, CORE, 320, 65), 2000),
                true,
                true,
            ),
            (
                "bare, writes to a file of that inode",
                writing_to_file(process(320, CORE, 320, 65), 2000),
                false,
                true,
            ),
            (
                "bare, writes the other's",
                writing_to(process(320, CORE, 320, 65), 3000),
                false,
                true,
            ),
            ("a stranger", process(500, 1, 500, 65), false, false),
            ("before the core", process(90, CORE, 80, 65), false, false),
            ("of its session", process(500, CORE, 80, 65), false, false),
            (
                "its child's session",
                process(500, CORE, 90, 65),
                false,
                false,
            ),
            (
                "of the core's session",
                process(500, CORE, CORE, 65),
                false,
                false,
            ),
            ("the first process", process(1, 0, 1, 0), false, false),
        ];
        for (what, process, among_others, by_itself) in table {
            let said = at(true, &others[..]).is_left_by(&lamp, &process);
            assert_eq!(said, among_others, "{what}, among others");
            let said = at(true, &alone[..]).is_left_by(&lamp, &process);
            assert_eq!(said, by_itself, "{what}, by itself");
        }
        let bare = writing_to(process(320, CORE, 320, 55), 2000);
        assert!(
            !at(false, &alone[..]).is_left_by(&lamp, &bare),
            "not the only owner of children"
        );
    }

    #[test]
    fn the_first_process_of_a_container_adopts_strangers_and_spares_them() {
        let own = BTreeSet::from([20]);
        let lamp = leader("lamp", 20, 50);
        let household = Household {
            strangers: &Strangers::default(),
            core: 1,
            own: &own,
            adopts: true,
            cookie: "c",
            live: &[],
        };
        let stranger = process(30, 1, 30, 55);
        assert!(!household.is_left_by(&lamp, &stranger));
        assert!(!household.is_left_by_anybody(&stranger));
        assert!(household.is_left_by(&lamp, &writing_to(stranger.clone(), 200)));
        assert!(household.is_left_by_anybody(&marked(stranger, "c", "lamp")));
    }

    #[test]
    fn survivors_are_told_by_start_or_cookie_and_never_by_id_alone() {
        let children = [(200, 50), (300, 60)];
        let everybody = [
            process(200, 1, 200, 50),
            process(201, 1, 200, 55),
            // The id is somebody else's now, and so is the session.
            process(300, 1, 300, 99),
            process(301, 1, 300, 99),
            marked(process(400, 1, 400, 70), "c", "lamp"),
            marked(process(401, 1, 401, 70), "d", "lamp"),
            ended(marked(process(402, 1, 402, 70), "c", "lamp")),
            process(1, 0, 1, 0),
        ];
        let survivors: Vec<_> = everybody
            .iter()
            .filter(|process| is_survivor(process, "c", &children, &everybody))
            .map(|process| process.seen.pid)
            .collect();
        assert_eq!(survivors, [200, 201, 400]);
    }

    proptest::proptest! {
        /// Whatever the tables look like: nobody's process is taken for a plugin's without a reason.
        #[test]
        fn a_process_without_any_tie_is_never_taken(
            pid in 2u32..1000, parent in 0u32..1000, session in 0u32..1000, started in 0u64..100,
            adopts: bool, lives in proptest::collection::vec((2u32..1000, 0u64..100), 0..4),
        ) {
            let own = lives.iter().map(|(pid, _)| *pid).collect();
            let live: Vec<_> = lives.iter().map(|(pid, at)| leader("other", *pid, *at)).collect();
            let lamp = leader("lamp", 1001, 10);
            let strangers = Strangers::default();
            let strangers = &strangers;
            let household = Household { core: CORE, own: &own, adopts, strangers, cookie: "c", live: &live };
            let process = process(pid, parent, session, started);
            let taken = household.is_left_by(&lamp, &process) || household.is_left_by_anybody(&process);
            proptest::prop_assert!(!taken || (adopts && parent == CORE && !own.contains(&pid)));
        }
    }
}
