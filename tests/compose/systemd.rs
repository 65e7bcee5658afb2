//! `deploy/systemd/` on a real systemd: the first process of a container that is made of this machine's
//! own files. The units are those that ship, unchanged; installed as docs/how-to/systemd.md has it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::engine::Engine;
use crate::images::{self, Built};

const SYSTEMD: &str = "/lib/systemd/systemd";
/// What the units, and this test inside the container, run.
const TOOLS: [&str; 8] = [
    "/bin/systemctl",
    "/bin/journalctl",
    "/bin/sh",
    "/bin/kill",
    "/bin/cat",
    "/bin/ls",
    "/usr/bin/find",
    "/lib/systemd/systemd-journald",
];
/// Of systemd's own units no more than a system needs that runs one service.
const UNITS: [&str; 18] = [
    "basic.target",
    "final.target",
    "local-fs.target",
    "local-fs-pre.target",
    "multi-user.target",
    "network-online.target",
    "network.target",
    "paths.target",
    "shutdown.target",
    "slices.target",
    "sockets.target",
    "sysinit.target",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "time-sync.target",
    "timers.target",
    "umount.target",
];
const USERS: &str = "root:x:0:0::/:/bin/sh\ncore-runtime:x:990:990::/:/usr/sbin/nologin\n";
const GROUPS: &str = "root:x:0:\ncore-runtime:x:990:\n";
/// A plugin below the core, which goes with it.
const PLUGIN: &str = "devices";
/// `WatchdogSec` of the unit, and what the kill and the start take.
const WATCHDOG: Duration = Duration::from_secs(30 + 10);
/// Anything else.
const SOON: Duration = Duration::from_secs(30);

/// Why this machine cannot make such a container.
pub(crate) fn missing() -> Option<String> {
    let files = TOOLS.iter().chain([&SYSTEMD]);
    let mut absent = files.filter(|file| !Path::new(file).exists());
    absent.next().map(|file| format!("there is no {file} here"))
}

pub(crate) fn play(engine: &Engine, repository: &Path, scratch: &Path) -> Result<()> {
    let root = scratch.join("systemd");
    make(&root, repository).context("the files of the image")?;
    let image = format!("{}/systemd", engine.project());
    images::import(engine, &root, &image, &[])?;
    fs::remove_dir_all(&root).context("cannot remove the image's files")?;
    let machine = Machine::start(engine, &image)?;
    acts(&machine).inspect_err(|_| {
        println!(
            "{}",
            machine
                .run(&["journalctl", "--no-pager", "--lines=60"])
                .unwrap_or_default()
        );
    })
}

fn acts(machine: &Machine<'_>) -> Result<()> {
    machine.eventually("systemd is up", SOON, || {
        let state = machine.run(&["systemctl", "show", "--property=SystemState", "--value"])?;
        Ok(["running", "degraded"].contains(&state.trim()))
    })?;
    let units = ["core-runtime.service", "core-runtime-backup.timer"];
    // Returns when the core has told that it serves.
    machine.run(&[&["systemctl", "enable", "--now"], &units[..]].concat())?;
    machine.serves()?;

    machine.run(&["systemctl", "reload", "core-runtime"])?;
    machine.property("StatusText", "")?;
    machine.run(&[
        "sh",
        "-c",
        "cd /etc/core-runtime && cat core.toml >good && echo nonsense = 1 >>core.toml",
    ])?;
    machine.run(&["systemctl", "reload", "core-runtime"])?;
    machine.eventually("a refused reload is told", SOON, || {
        Ok(machine.show("StatusText")?.contains("nonsense"))
    })?;
    machine.property("ActiveState", "active")?;
    machine.run(&["sh", "-c", "cd /etc/core-runtime && cat good >core.toml"])?;
    machine.run(&["systemctl", "reload", "core-runtime"])?;
    machine.eventually("and forgotten", SOON, || {
        Ok(machine.show("StatusText")?.is_empty())
    })?;

    machine.run(&["systemctl", "start", "core-runtime-backup"])?;
    let backups = "/var/lib/core-runtime/backups";
    let kept = machine.run(&[
        "find",
        backups,
        "-name",
        "runtime-*.tar",
        "-user",
        "core-runtime",
        "-perm",
        "600",
    ])?;
    ensure!(
        kept.lines().count() == 1,
        "one backup, its owner's alone: {kept:?}"
    );
    let next = machine.run(&[
        "systemctl",
        "show",
        "core-runtime-backup.timer",
        "--property=NextElapseUSecRealtime",
        "--value",
    ])?;
    ensure!(!next.trim().is_empty(), "the next one is planned");

    machine.is_started_again("killed", SOON, |pid| machine.signal("KILL", pid))?;
    machine.serves()?;
    machine.is_started_again("hung", WATCHDOG, |pid| machine.signal("STOP", pid))?;
    machine.serves()?;

    let began = Instant::now();
    machine.run(&["systemctl", "stop", "core-runtime"])?;
    println!("systemd: stopped in {:.2} s", began.elapsed().as_secs_f64());
    machine.property("Result", "success")?;
    let left = machine.run(&["sh", "-c", "cat /proc/[0-9]*/comm"])?;
    ensure!(
        !left.lines().any(|name| name == PLUGIN),
        "the plugin is gone: {left}"
    );
    Ok(())
}

/// A root directory with systemd, and the core installed in it.
fn make(root: &Path, repository: &Path) -> Result<()> {
    images::renew(root)?;
    for directory in [
        "usr/lib",
        "usr/lib64",
        "usr/bin",
        "usr/sbin",
        "usr/local/bin",
        "etc/systemd/system",
        "etc/core-runtime/plugins",
        "var/lib",
        "var/log",
        "tmp",
        "run",
        "proc",
        "sys",
        "dev",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    for link in ["lib", "lib64", "bin", "sbin"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link))?;
    }
    for file in TOOLS.iter().chain([&SYSTEMD]) {
        images::copy_program(root, Path::new(file))?;
    }
    for unit in UNITS {
        images::copy_file(root, &Path::new("/lib/systemd/system").join(unit))?;
    }
    let etc = root.join("etc");
    fs::write(etc.join("passwd"), USERS)?;
    fs::write(etc.join("group"), GROUPS)?;
    fs::write(etc.join("machine-id"), "uninitialized\n")?;
    std::os::unix::fs::symlink(
        "/lib/systemd/system/multi-user.target",
        etc.join("systemd/system/default.target"),
    )?;

    let built = Built::find(repository)?;
    let shipped = repository.join("deploy/systemd");
    for program in ["core-server", "corectl"] {
        built.install(program, root, Path::new("usr/local/bin"))?;
    }
    for entry in fs::read_dir(&shipped)? {
        let path = entry?.path();
        let of_systemd = path
            .extension()
            .is_some_and(|extension| extension != "toml");
        let directory = if of_systemd {
            "systemd/system"
        } else {
            "core-runtime"
        };
        fs::copy(
            &path,
            etc.join(directory)
                .join(path.file_name().context("a file")?),
        )?;
    }
    let plugin = Path::new("etc/core-runtime/plugins").join(PLUGIN);
    built.install(PLUGIN, root, &plugin)?;
    let manifest = repository
        .join("examples/home")
        .join(PLUGIN)
        .join("plugin.toml");
    fs::copy(manifest, root.join(plugin).join("plugin.toml"))?;
    Ok(())
}

/// The container; it goes with this value.
struct Machine<'a> {
    engine: &'a Engine,
    id: String,
}

impl<'a> Machine<'a> {
    fn start(engine: &'a Engine, image: &str) -> Result<Self> {
        let label = engine.label();
        // Mounts of the units' sandboxes need the one capability; groups of processes are systemd's.
        let id = engine.docker(&[
            "run",
            "--detach",
            "--label",
            &label,
            "--network=none",
            "--cap-add=SYS_ADMIN",
            "--security-opt=seccomp=unconfined",
            "--security-opt=apparmor=unconfined",
            "--security-opt=systempaths=unconfined",
            "--cgroupns=host",
            "--volume=/sys/fs/cgroup:/sys/fs/cgroup",
            "--tmpfs=/run",
            "--tmpfs=/tmp",
            image,
            SYSTEMD,
            "--log-target=console",
        ])?;
        Ok(Self {
            engine,
            id: id.trim().to_owned(),
        })
    }

    fn run(&self, command: &[&str]) -> Result<String> {
        self.engine.docker(&[&["exec", &self.id], command].concat())
    }

    fn signal(&self, signal: &str, pid: &str) -> Result<()> {
        self.run(&["kill", &format!("-{signal}"), pid]).map(drop)
    }

    fn show(&self, property: &str) -> Result<String> {
        let shown = self.run(&[
            "systemctl",
            "show",
            "--value",
            "--property",
            property,
            "core-runtime",
        ])?;
        Ok(shown.trim().to_owned())
    }

    fn property(&self, property: &str, wanted: &str) -> Result<()> {
        let shown = self.show(property)?;
        ensure!(shown == wanted, "{property} is {shown:?}, not {wanted:?}");
        Ok(())
    }

    /// The core answers root, and its plugin is ready.
    fn serves(&self) -> Result<()> {
        let operators = "CORE_ADDR=unix:/run/core-runtime/operator.sock";
        self.eventually("the plugin is ready", SOON, || {
            let listed = self.engine.docker(&[
                "exec", "--env", operators, &self.id, "corectl", "plugins", "list",
            ])?;
            Ok(listed
                .lines()
                .any(|line| line.starts_with(PLUGIN) && line.contains("ready")))
        })
    }

    /// What is done to the core's process makes systemd start another.
    fn is_started_again(
        &self,
        what: &str,
        within: Duration,
        harm: impl Fn(&str) -> Result<()>,
    ) -> Result<()> {
        let (pid, restarts) = (self.show("MainPID")?, self.show("NRestarts")?);
        let began = Instant::now();
        harm(&pid)?;
        self.eventually(
            &format!("a core that was {what} is started again"),
            within,
            || Ok(self.show("NRestarts")? != restarts && self.show("ActiveState")? == "active"),
        )?;
        println!(
            "systemd: {what}, serves again after {:.2} s",
            began.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Asks until it holds.
    fn eventually(
        &self,
        what: &str,
        within: Duration,
        mut holds: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let began = Instant::now();
        let mut answer = holds();
        while !matches!(answer, Ok(true)) {
            if began.elapsed() > within {
                bail!("not within {within:?}: {what}; last: {answer:?}");
            }
            // systemd has no signal for a bystander outside.
            std::thread::sleep(Duration::from_millis(200));
            answer = holds();
        }
        Ok(())
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.engine.docker(&["rm", "--force", &self.id]) {
            println!("the container stays behind: {error:#}");
        }
    }
}
