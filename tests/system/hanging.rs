//! File systems that do not answer. A mount whose server never says a word is a real one: whoever looks
//! at it waits for ever, as with a dead NFS server.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use core_tests::{CoreProcess, patience, within};
use rustix::process::Signal;

use super::{CORE, ECHO};

/// A file system that never answers, until it is dropped: then everything on it is an error.
struct DeadMount {
    place: PathBuf,
    server: Child,
}

impl DeadMount {
    /// `None`: this machine allows none, or only to root.
    fn new(place: &Path) -> Option<Self> {
        std::fs::create_dir_all(place).expect("ours");
        // Who holds the descriptor is the server, and does nothing.
        let script = "exec 3<>/dev/fuse || exit 1; mount -i -t fuse \
                      -o fd=3,rootmode=40000,user_id=0,group_id=0 none \"$0\" && exec sleep 120";
        let server = Command::new("sh")
            .args(["-c", script])
            .arg(place)
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let mut mount = Self {
            place: place.to_owned(),
            server,
        };
        let is_there = || {
            let mounts = std::fs::read_to_string("/proc/mounts").expect("readable");
            mounts.contains(&place.display().to_string())
        };
        loop {
            if is_there() {
                return Some(mount);
            }
            if mount.server.try_wait().expect("ours").is_some() {
                return None;
            }
            std::thread::sleep(patience() / 1000);
        }
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
        drop(Command::new("umount").arg("-l").arg(&self.place).status());
    }
}

/// How many threads of a core fork.
fn spawners(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("spawner"))
        .count()
}

fn manifest(name: &str, program: &Path) -> String {
    let program = program.display();
    format!("name = \"{name}\"\n[run]\ncommand = \"{program}\"\n[restart]\nbackoff = \"20s\"\n")
}

fn executable(path: &Path, content: &str) {
    std::fs::write(path, content).expect("ours");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("ours");
}

#[tokio::test]
async fn a_start_that_hangs_holds_nobody_else_up_and_says_what_hangs() {
    let mut core = CoreProcess::new(CORE, "");
    let home = core.directory().to_owned();
    let place = home.join("dead");
    let Some(mount) = DeadMount::new(&place) else {
        eprintln!("skipped: this machine allows no file system of one's own");
        return;
    };
    let script = home.join("script");
    executable(&script, &format!("#!{}/interpreter\n", place.display()));
    // One whose interpreter is there, and one that is there itself. The first in line, both.
    core = core
        .plugin("a-script", &manifest("a-script", &script))
        .plugin("b-program", &manifest("b-program", &place.join("program")))
        .plugin("good", &manifest("good", Path::new(ECHO)));
    let operator = core.start().await;
    operator.until_phase("good", "ready").await;
    for name in ["a-script", "b-program"] {
        let info = operator.until_phase(name, "backoff").await;
        assert_eq!(info.reason, "spawn_failed", "{name}");
        assert!(info.message.contains("hangs"), "{}", info.message);
    }
    // As often as one likes: it hangs, and takes no more of what starts the others.
    for _ in 0..10 {
        let hung = within("answered", operator.start("a-script")).await;
        assert!(hung.is_err(), "it hangs again");
    }
    assert_eq!(
        spawners(core.pid()),
        2,
        "one hangs, one is there for the others"
    );
    let generation = operator.plugin("good").await.generation;
    within("unloaded", operator.unload("good"))
        .await
        .expect("in time");
    let good = within("started", operator.start("good"))
        .await
        .expect("others start");
    assert_eq!(good.generation, generation + 1);
    // The file system comes back, and with it the program.
    drop(mount);
    executable(&script, &format!("#!/bin/sh\nexec {ECHO}\n"));
    operator.until_phase("a-script", "ready").await;
    core.signal(Signal::TERM);
    let status = core.wait(patience()).await;
    assert!(status.success(), "{status}:\n{}", core.log());
}
