//! 49, 50: what a plugin may take, and what it may reach.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::PluginInfo;
use core_tests::signal;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::home::{Home, QUICK, plugin};
use crate::measure::ms;
use crate::report::Row;
use crate::{ECHO, MISBEHAVING, PROBER};

/// Processes of the bounded fork bomb: 2 + 4 + … + 2^6.
const BOMB_LEVELS: u32 = 6;
const BOMB_LIMIT: usize = 40;

pub(crate) async fn hogs(row: Row) -> Result<()> {
    let hog = ["hogs", "50000000", "600000000"];
    let home = Home::start(&[
        plugin("hog", MISBEHAVING, &hog)
            .sections("[limits]\nmemory = \"64MiB\"\n")
            .sections(QUICK),
        plugin("bomber", MISBEHAVING, &["bombs"])
            .sections(&format!("[limits]\npids = {BOMB_LIMIT}\n"))
            .sections(QUICK),
        plugin("bystander", ECHO, &[]),
    ])
    .await;
    home.all_ready(&["bystander", "bomber"]).await;
    let timeline = home.timeline().await;
    let (begin, first) = timeline
        .first("hog", core_tests::patience(), |hog| hog.phase == "ready")
        .await
        .context("the hog is ready")?;
    let ended = timeline
        .first("hog", Duration::from_secs(30), |hog| {
            hog.generation >= first.generation
                && hog
                    .last_exit
                    .as_ref()
                    .is_some_and(|exit| !exit.message.is_empty())
                && hog.phase != "ready"
        })
        .await;
    let after = ended
        .as_ref()
        .map_or(f64::INFINITY, |(at, _)| (*at - begin).as_secs_f64());
    row.at_most("memory hog restarted after", after, "s", 20.0);
    if let Some((_, hog)) = ended {
        let exit = hog.last_exit.clone().unwrap_or_default();
        row.require(
            exit.message.contains("memory"),
            format!("it says that it was for memory: {exit:?}"),
        );
    }
    let modes = home
        .operator
        .plugin("hog")
        .await
        .isolation
        .unwrap_or_default();
    let modes: Vec<_> = modes
        .limits
        .iter()
        .map(|limit| format!("{} {}", limit.name, limit.mode))
        .collect();
    row.note(format!("limits kept as: {}", modes.join(", ")));
    let by_cgroup = modes.iter().any(|mode| mode == "memory cgroup");
    if !by_cgroup {
        row.skip_part("cgroup half: no writable cgroup v2 controllers on this machine");
    }

    let bomber = home.operator.plugin("bomber").await;
    let begin = Instant::now();
    let bomb = home
        .operator
        .call("bomber.bomb", json!([BOMB_LEVELS]))
        .await;
    // Its run may be ended for it before it answers.
    let mut most = home.others_of("bomber").len();
    let asked = Instant::now();
    let said = home
        .operator
        .call("bystander.say", json!({ "text": "well?" }))
        .await;
    row.require(said.is_ok(), "the other plugin answers");
    row.at_most(
        "the other plugin answers after",
        ms(asked.elapsed()),
        "ms",
        1_000.0,
    );
    if by_cgroup {
        row.require(
            bomb.is_ok() && most <= BOMB_LIMIT,
            format!("the kernel keeps the limit of processes: {most}"),
        );
        signal(bomber.pid, Signal::KILL);
    }
    let ended = timeline.first("bomber", Duration::from_secs(25), |now| {
        now.generation > bomber.generation || now.last_exit.is_some()
    });
    let ended = {
        let counting = async {
            loop {
                most = most.max(home.others_of("bomber").len());
                tokio::time::sleep(core_tests::POLL * 2).await;
            }
        };
        tokio::select! {
            ended = ended => ended,
            () = counting => None,
        }
    };
    row.tell("processes of the bomb", f64::from(u32::try_from(most)?), "");
    let after = ended.map_or(f64::INFINITY, |(at, _)| (at - begin).as_secs_f64());
    row.at_most("fork bomb ended after", after, "s", 20.0);
    home.ready_after("bomber", bomber.generation).await;
    // What is left is of the new run.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut left = usize::MAX;
    while left > 1 && Instant::now() < deadline {
        left = home.others_of("bomber").len();
        tokio::time::sleep(core_tests::POLL).await;
    }
    let left = left.saturating_sub(1);
    row.exactly("processes of the bomb after its end", left, "", 0);
    let bystander = home.operator.plugin("bystander").await;
    row.require(bystander.generation == 1, "the other plugin is untouched");
    home.stop(&row).await;
    Ok(())
}

/// Whether this process could make a cgroup with limits.
fn cgroup_is_writable() -> bool {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let probe = root.join(format!("core-faults-{}", std::process::id()));
    let made = controllers.contains("memory") && std::fs::create_dir(&probe).is_ok();
    if made {
        std::fs::remove_dir(&probe).ok();
    }
    made
}

/// A user that is neither root nor anybody: a number needs no entry.
const SOMEBODY: u32 = 64_124;
/// What `fixture-prober` tries that no sandbox allows.
const FORBIDDEN: [&str; 8] = [
    "read_outside",
    "list_outside",
    "write_outside",
    "core_memory",
    "core_environment",
    "core_descriptors",
    "setuid_program",
    "signal_core",
];

pub(crate) async fn probes(row: Row) -> Result<()> {
    // One that is open to everybody, for the sandbox to close, and one that is closed to other users.
    let outside = tempfile::tempdir().context("a directory")?;
    let hidden = tempfile::tempdir().context("a directory")?;
    for (directory, mode) in [(&outside, 0o777), (&hidden, 0o700)] {
        std::fs::set_permissions(directory.path(), Permissions::from_mode(mode))
            .context("a mode")?;
        std::fs::write(directory.path().join("secret"), "text").context("a secret")?;
    }
    let setuid = outside.path().join("id");
    std::fs::copy("/usr/bin/id", &setuid).context("a program")?;
    std::fs::set_permissions(&setuid, Permissions::from_mode(0o4755)).context("its mode")?;

    let somebody =
        format!("[sandbox]\nuser = \"{SOMEBODY}\"\ngroup = \"{SOMEBODY}\"\nrequired = true\n");
    let mut plugins = vec![
        plugin("facts", PROBER, &["facts"]),
        plugin("environment", MISBEHAVING, &["environment"]),
        plugin("closed", PROBER, &["probes"]).sections("[sandbox]\nlandlock = true\n"),
        plugin("strict", PROBER, &["facts"])
            .sections("[limits]\ncpu_weight = 50\nrequired = [\"cpu_weight\"]\n"),
        plugin("stricter", PROBER, &["facts"])
            .sections("[sandbox]\nlandlock = true\nrequired = true\n"),
    ];
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        plugins.push(plugin("somebody", PROBER, &["probes"]).sections(&somebody));
    } else {
        row.skip_part("a user of its own: only root can start a process as another user");
    }
    let core = Home::prepare("", &plugins).env("HOUSE_SECRET", "of the core alone");
    // Others may pass through, not look.
    let passable = Permissions::from_mode(0o711);
    std::fs::set_permissions(core.directory(), passable).context("its mode")?;
    let home = Home::of(core).await;
    let mut judge = Judge::default();

    home.all_ready(&["facts", "environment", "closed"]).await;
    let facts = ask(&home, "facts.facts", json!({})).await?;
    let descriptors = facts["descriptors"].as_array().cloned().unwrap_or_default();
    judge.probe(
        "inherited descriptors",
        descriptors.len() == 3,
        &facts["descriptors"],
    );
    judge.probe(
        "rights by programs",
        facts["no_new_privs"] == "1",
        &facts["no_new_privs"],
    );
    let report = ask(&home, "environment.report", json!({})).await?;
    let secret = report["variables"]
        .to_string()
        .contains("of the core alone");
    judge.probe(
        "secrets of the core's environment",
        !secret,
        &report["variables"],
    );

    let attempt = |outside: &tempfile::TempDir| json!({ "core": home.pid(), "outside": outside.path(), "setuid": setuid });
    let closed = home.operator.plugin("closed").await;
    let isolation = closed.isolation.context("a child is isolated")?;
    row.note(format!("landlock here: {}", isolation.landlock));
    if isolation.landlock == "full" {
        let found = ask(&home, "closed.probe", attempt(&outside)).await?;
        judge.all(&FORBIDDEN, "landlock", &found);
    } else {
        row.require(
            !isolation.notes.is_empty(),
            "what is missing of landlock is said",
        );
        let why = format!("landlock is {}: {:?}", isolation.landlock, isolation.notes);
        row.skip_part(why);
    }
    if is_root {
        home.all_ready(&["somebody"]).await;
        let found = ask(&home, "somebody.probe", attempt(&hidden)).await?;
        judge.all(&FORBIDDEN, "another user", &found);
        row.require(
            found["own_directory"] == "done",
            format!("its own directory is open to it: {found}"),
        );
    }
    let refuses = async |name: &str, in_force: bool| {
        let decided =
            |plugin: &PluginInfo| ["ready", "config_error"].contains(&plugin.phase.as_str());
        let decided = home.operator.until(name, "a decision", decided).await;
        let expected = if in_force { "ready" } else { "config_error" };
        row.require(
            decided.phase == expected && decided.restarts == 0,
            format!(
                "{name}: `required` and {in_force} in force: {}",
                decided.phase
            ),
        );
    };
    refuses("strict", cgroup_is_writable()).await;
    refuses("stricter", isolation.landlock == "full").await;
    let (probed, denied) = (judge.probed, judge.denied);
    row.exactly("denied of those probed", denied, "", probed);
    row.tell("probed", f64::from(u32::try_from(probed)?), "");
    for open in judge.open {
        row.broken(open);
    }
    home.stop(&row).await;
    Ok(())
}

/// Counts what was tried and what was denied.
#[derive(Default)]
struct Judge {
    probed: usize,
    denied: usize,
    open: Vec<String>,
}

impl Judge {
    fn probe(&mut self, what: &str, is_denied: bool, found: &Value) {
        self.probed += 1;
        self.denied += usize::from(is_denied);
        if !is_denied {
            self.open.push(format!("{what}: {found}"));
        }
    }

    fn all(&mut self, probes: &[&str], by: &str, found: &Value) {
        for what in probes {
            let verdict = found[what].as_str().unwrap_or_default();
            let is_denied = verdict.starts_with("denied");
            self.probe(&format!("{what} against {by}"), is_denied, &found[what]);
        }
    }
}

async fn ask(home: &Home, service: &str, arguments: Value) -> Result<Value> {
    let answer = home.operator.call(service, arguments).await;
    answer.with_context(|| service.to_owned())
}
