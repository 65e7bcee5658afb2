//! Cgroups, version 2: one for each run that has limits, below the core's own.
//!
//! The core uses its own cgroup only where it was handed it (systemd's `Delegate=yes`, a container
//! with a writable cgroup), and only once a plugin has a limit that needs one. A cgroup with
//! controllers for others holds no processes itself, so that the core moves to a leaf,
//! `core-runtime`, beside those of the runs. What cannot be done is said and done without.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::plan::{CgroupLimits, Controllers};

/// Where the core itself goes.
const LEAF: &str = "core-runtime";

/// The core's own cgroup, prepared to hold those of runs. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Home {
    directory: Arc<PathBuf>,
    controllers: Controllers,
    /// Begins the names of this core's cgroups: several cores may share a parent.
    prefix: Arc<str>,
    /// Cgroups that could not be removed yet, since a zombie was in them. Short lock.
    leftovers: Arc<Mutex<Vec<PathBuf>>>,
}

/// Where the core's own cgroup is, from `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn own_directory(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    // proc(5): "36 35 98:0 /root /mount/point options - type source options".
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = path.strip_prefix(root.trim_end_matches('/'))?;
        let directory: PathBuf = Path::new(point)
            .join(below.trim_start_matches('/'))
            .components()
            .collect();
        // Another core of this process has moved it already.
        match directory.file_name() {
            Some(name) if name == LEAF => directory.parent().map(Path::to_owned),
            _ => Some(directory),
        }
    })
}

impl Home {
    /// Finds and prepares the core's own cgroup.
    ///
    /// # Errors
    /// A sentence: what is missing.
    pub(super) fn prepare(prefix: &str) -> Result<Self, String> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let directory = own_directory(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
            .ok_or("no cgroup v2 is mounted")?;
        Self::prepare_at(&directory, prefix, std::process::id())
    }

    fn prepare_at(directory: &Path, prefix: &str, own: u32) -> Result<Self, String> {
        let failed = |what: &str, error: io::Error| {
            format!("{what} in the cgroup {}: {error}", directory.display())
        };
        let offered = fs::read_to_string(directory.join("cgroup.controllers"))
            .map_err(|error| failed("no controllers can be read", error))?;
        let has = |name| offered.split_whitespace().any(|offered| offered == name);
        let controllers = Controllers {
            memory: has("memory"),
            pids: has("pids"),
            cpu: has("cpu"),
        };
        let wanted: Vec<_> = [
            (controllers.memory, "+memory"),
            (controllers.pids, "+pids"),
            (controllers.cpu, "+cpu"),
        ]
        .into_iter()
        .filter_map(|(there, word)| there.then_some(word))
        .collect();
        if wanted.is_empty() {
            return Err(format!(
                "the cgroup {} has none of the controllers memory, pids and cpu",
                directory.display()
            ));
        }
        let leaf = directory.join(LEAF);
        make(&leaf).map_err(|error| failed("no cgroup can be made", error))?;
        write(&leaf.join("cgroup.procs"), &own.to_string())
            .map_err(|error| failed("the core cannot be moved", error))?;
        let enabled = write(&directory.join("cgroup.subtree_control"), &wanted.join(" "));
        if let Err(error) = enabled {
            // Somebody else is in it too: it is not the core's own. Back, as if nothing had been.
            let back = write(&directory.join("cgroup.procs"), &own.to_string())
                .and_then(|()| fs::remove_dir(&leaf));
            if let Err(error) = back {
                tracing::debug!(%error, "the core stays in a cgroup of its own");
            }
            return Err(failed("controllers cannot be handed on", error));
        }
        Ok(Self {
            directory: Arc::new(directory.to_owned()),
            controllers,
            prefix: prefix.into(),
            leftovers: Arc::default(),
        })
    }

    /// What its children can be limited by.
    #[must_use]
    pub(super) fn controllers(&self) -> Controllers {
        self.controllers
    }

    /// Makes the cgroup of a run.
    ///
    /// # Errors
    /// It cannot be made, or a limit cannot be set; nothing is left then.
    pub(super) fn begin(&self, run: &str, limits: &CgroupLimits) -> io::Result<RunGroup> {
        self.leftovers
            .lock()
            .retain(|path| fs::remove_dir(path).is_err() && path.exists());
        let path = self.directory.join(format!("{}-{run}", self.prefix));
        make(&path)?;
        let group = RunGroup {
            path,
            leftovers: Arc::clone(&self.leftovers),
        };
        // On failure the group is dropped, and with it removed.
        group.set(limits)?;
        Ok(group)
    }
}

/// The cgroup of one run. Dropping it kills what is in it and removes it.
#[derive(Debug)]
pub struct RunGroup {
    path: PathBuf,
    leftovers: Arc<Mutex<Vec<PathBuf>>>,
}

impl RunGroup {
    fn set(&self, limits: &CgroupLimits) -> io::Result<()> {
        let set = |file: &str, value: &str| write(&self.path.join(file), value);
        if let Some(bytes) = limits.memory {
            set("memory.max", &bytes.to_string())?;
            set("memory.oom.group", "1")?;
            // Else a plugin over its limit would fill the swap first. Absent without swap.
            if self.path.join("memory.swap.max").exists() {
                set("memory.swap.max", "0")?;
            }
        }
        if let Some(pids) = limits.pids {
            set("pids.max", &pids.to_string())?;
        }
        if let Some(weight) = limits.cpu_weight {
            set("cpu.weight", &weight.to_string())?;
        }
        Ok(())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file into which a process writes "0" to enter.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn entrance(&self) -> io::Result<File> {
        File::options()
            .write(true)
            .open(self.path.join("cgroup.procs"))
    }

    /// Kills every process in it, those that left their group or session too.
    pub fn kill(&self) {
        if write(&self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // Before Linux 5.14.
        let listed = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in listed.lines().filter_map(|line| line.parse().ok()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                // It may have ended since.
                let _ended = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// How often the kernel has killed in it for want of memory.
    #[must_use]
    pub fn out_of_memory(&self) -> u64 {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        count(&events, "oom_kill")
    }

    /// Memory in use, in bytes.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        let used = fs::read_to_string(self.path.join("memory.current")).ok()?;
        used.trim().parse().ok()
    }
}

impl Drop for RunGroup {
    fn drop(&mut self) {
        self.kill();
        if fs::remove_dir(&self.path).is_err() && self.path.exists() {
            self.leftovers.lock().push(self.path.clone());
        }
    }
}

/// The number after a word, of lines like "oom_kill 3".
fn count(events: &str, word: &str) -> u64 {
    events
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == word)
        .and_then(|(_, number)| number.trim().parse().ok())
        .unwrap_or(0)
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Writes a file that the kernel has made; never makes one.
fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    File::options()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of plain files where the kernel would have its own.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(controllers: &str) -> Self {
            let tree = Self(tempfile::tempdir().expect("a directory"));
            tree.put("cgroup.controllers", controllers);
            for file in [
                "cgroup.procs",
                "cgroup.subtree_control",
                "core-runtime/cgroup.procs",
            ] {
                tree.put(file, "");
            }
            tree
        }

        fn put(&self, file: &str, text: &str) {
            let path = self.0.path().join(file);
            fs::create_dir_all(path.parent().expect("below")).expect("made");
            fs::write(path, text).expect("written");
        }

        fn get(&self, file: &str) -> String {
            fs::read_to_string(self.0.path().join(file)).expect("there")
        }

        fn home(&self) -> Result<Home, String> {
            Home::prepare_at(self.0.path(), "plugin-abc", 42)
        }

        /// The files of a run's cgroup, which the kernel would make.
        fn put_run(&self, run: &str) {
            for file in [
                "memory.max",
                "memory.swap.max",
                "memory.oom.group",
                "pids.max",
                "cpu.weight",
                "cgroup.procs",
                "cgroup.kill",
            ] {
                self.put(&format!("plugin-abc-{run}/{file}"), "");
            }
        }
    }

    #[test]
    fn the_core_moves_to_a_leaf_and_hands_its_controllers_on() {
        let tree = Tree::new("cpuset cpu io memory pids\n");
        let home = tree.home().expect("prepared");
        let all = Controllers {
            memory: true,
            pids: true,
            cpu: true,
        };
        assert_eq!(home.controllers(), all);
        assert_eq!(tree.get("core-runtime/cgroup.procs"), "42");
        assert_eq!(tree.get("cgroup.subtree_control"), "+memory +pids +cpu");
    }

    #[test]
    fn without_controllers_nothing_is_touched() {
        let tree = Tree::new("hugetlb\n");
        let why = tree.home().expect_err("nothing to hand on");
        assert!(why.contains("none of the controllers"), "{why}");
        assert_eq!(tree.get("core-runtime/cgroup.procs"), "");
        let why = Home::prepare_at(Path::new("/nowhere"), "p", 1).expect_err("no cgroup");
        assert!(why.contains("/nowhere"), "{why}");
    }

    #[test]
    fn a_core_that_may_not_hand_on_moves_back() {
        let tree = Tree::new("memory\n");
        fs::remove_file(tree.0.path().join("cgroup.subtree_control")).expect("removed");
        let why = tree.home().expect_err("refused");
        assert!(why.contains("cannot be handed on"), "{why}");
        assert_eq!(tree.get("cgroup.procs"), "42");
    }

    #[test]
    fn a_run_gets_its_limits_and_is_killed_as_a_whole() {
        let tree = Tree::new("memory pids cpu");
        let home = tree.home().expect("prepared");
        tree.put_run("lamp-1");
        let limits = CgroupLimits {
            memory: Some(64 << 20),
            pids: Some(20),
            cpu_weight: Some(50),
        };
        let group = home.begin("lamp-1", &limits).expect("made");
        for (file, value) in [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("pids.max", "20"),
            ("cpu.weight", "50"),
        ] {
            assert_eq!(
                tree.get(&format!("plugin-abc-lamp-1/{file}")),
                value,
                "{file}"
            );
        }
        use std::io::Write as _;
        let mut entrance = group.entrance().expect("open");
        entrance.write_all(b"0").expect("written");
        assert_eq!(tree.get("plugin-abc-lamp-1/cgroup.procs"), "0");
        assert_eq!(group.out_of_memory(), 0);
        tree.put(
            "plugin-abc-lamp-1/memory.events",
            "low 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 1\n",
        );
        assert_eq!(group.out_of_memory(), 1);
        tree.put("plugin-abc-lamp-1/memory.current", "1234\n");
        assert_eq!(group.memory(), Some(1234));
        drop(group);
        assert_eq!(tree.get("plugin-abc-lamp-1/cgroup.kill"), "1");
    }

    #[test]
    fn a_limit_that_cannot_be_set_is_an_error() {
        let tree = Tree::new("memory pids cpu");
        let home = tree.home().expect("prepared");
        let limits = CgroupLimits {
            pids: Some(20),
            ..CgroupLimits::default()
        };
        let error = home.begin("lamp-1", &limits).expect_err("no pids.max");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let left = tree.0.path().join("plugin-abc-lamp-1");
        assert!(!left.exists(), "nothing is left");
    }

    #[test]
    fn what_could_not_be_removed_is_removed_later() {
        let tree = Tree::new("memory");
        let home = tree.home().expect("prepared");
        let limits = CgroupLimits::default();
        tree.put_run("lamp-1");
        drop(home.begin("lamp-1", &limits).expect("made"));
        let first = tree.0.path().join("plugin-abc-lamp-1");
        assert!(first.exists(), "somebody is still in it");
        for file in fs::read_dir(&first).expect("there") {
            fs::remove_file(file.expect("a file").path()).expect("removed");
        }
        drop(home.begin("lamp-2", &limits).expect("made"));
        assert!(!first.exists());
        assert!(!tree.0.path().join("plugin-abc-lamp-2").exists());
    }

    #[test]
    fn the_cores_own_cgroup_is_found_wherever_it_is_mounted() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw\n";
        let own = |mounts: &str, cgroup: &str| {
            own_directory(mounts, cgroup).map(|path| path.display().to_string())
        };
        let unified = "/sys/fs/cgroup/unified";
        let table = [
            (mounts, "4:memory:/x\n0::/\n", Some(unified.to_owned())),
            (
                mounts,
                "0::/a.slice/b.service\n",
                Some(format!("{unified}/a.slice/b.service")),
            ),
            (
                mounts,
                "0::/a.slice/core-runtime\n",
                Some(format!("{unified}/a.slice")),
            ),
            (mounts, "4:memory:/x\n", None),
            ("", "0::/\n", None),
            // A container that sees a part of the tree only.
            (
                "31 30 0:27 /box /cg rw - cgroup2 cgroup2 rw\n",
                "0::/box/core\n",
                Some("/cg/core".to_owned()),
            ),
            (
                "31 30 0:27 /box /cg rw - cgroup2 cgroup2 rw\n",
                "0::/elsewhere\n",
                None,
            ),
        ];
        for (mounts, cgroup, expected) in table {
            assert_eq!(own(mounts, cgroup), expected, "{cgroup}");
        }
    }
}
