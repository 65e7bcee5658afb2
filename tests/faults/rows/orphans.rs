//! 16, 17, 18: nothing outlives the core, and the core leaves no zombies.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::{CoreProcess, is_alive, patience, signal};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::home::{Home, PluginFile, QUICK, plugin};
use crate::measure::ms;
use crate::report::Row;
use crate::{CORE, ECHO, MISBEHAVING, processes};

/// Double-forked orphans of row 18.
const ORPHANS: usize = 200;

/// What a killed core may leave for a while.
#[derive(Debug, Default)]
struct Family {
    /// Plugins' own processes and those of their groups.
    groups: Vec<u32>,
    /// Processes in sessions of their own.
    escapees: Vec<u32>,
    guardian: Vec<u32>,
}

impl Family {
    async fn of(home: &Home, escapees_of: &[&str]) -> Self {
        let mut escapees = Vec::new();
        for name in escapees_of {
            escapees.push(home.number_in(name, "escapee.pid").await);
        }
        let mut family = Self {
            escapees,
            ..Self::default()
        };
        for process in processes::descendants(home.pid()) {
            if process.state == 'Z' || family.escapees.contains(&process.pid) {
                continue;
            }
            if process.command.contains("guardian") {
                family.guardian.push(process.pid);
            } else {
                family.groups.push(process.pid);
            }
        }
        family
    }

    fn alive(&self) -> usize {
        [&self.groups, &self.escapees, &self.guardian]
            .into_iter()
            .map(|pids| living(pids))
            .sum()
    }
}

fn living(pids: &[u32]) -> usize {
    pids.iter().filter(|pid| is_alive(**pid)).count()
}

/// Kills the core; when the last of the groups, of the escapees and of the guardian was gone, in
/// milliseconds, infinite for those that are there still after `patience`; and how many of each there were after
/// one, two and three seconds.
async fn kill_core(
    home: &mut Home,
    family: &Family,
    patience: Duration,
) -> ([f64; 3], [[usize; 3]; 3]) {
    let begin = Instant::now();
    home.core().kill().await;
    let mut gone = [f64::INFINITY; 3];
    let mut after = [[0; 3]; 3];
    let mut seconds = 0;
    loop {
        let elapsed = begin.elapsed();
        for (gone, pids) in
            gone.iter_mut()
                .zip([&family.groups, &family.escapees, &family.guardian])
        {
            if gone.is_infinite() && living(pids) == 0 {
                *gone = ms(elapsed);
            }
        }
        while seconds < 3 && elapsed >= Duration::from_secs(seconds as u64 + 1) {
            let all = [&family.groups, &family.escapees, &family.guardian];
            after[seconds] = all.map(|pids| living(pids));
            seconds += 1;
        }
        let all_gone = gone.iter().all(|gone| gone.is_finite());
        if elapsed > patience || (all_gone && elapsed > Duration::from_millis(3_010)) {
            return (gone, after);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn core_killed(row: Row) -> Result<()> {
    let mut plugins: Vec<PluginFile> = (0..7)
        .map(|number| plugin(&format!("good-{number}"), ECHO, &[]))
        .collect();
    plugins.extend([
        plugin("deaf", MISBEHAVING, &["--deaf", "--ignores-term", "serves"]),
        plugin("parent", MISBEHAVING, &["--child", "serves"]),
        plugin("lax", MISBEHAVING, &["--escapee", "serves"]),
    ]);
    let names: Vec<String> = (0..7).map(|number| format!("good-{number}")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.extend(["deaf", "parent", "lax"]);
    let mut home = Home::start(&plugins).await;
    home.all_ready(&names).await;
    let family = Family::of(&home, &["lax"]).await;
    row.require(
        family.groups.len() == 11,
        format!("ten plugins and a child: {family:?}"),
    );
    row.require(!family.guardian.is_empty(), "there is a guardian");
    let (gone, after) = kill_core(&mut home, &family, Duration::from_secs(6)).await;
    row.at_most("leaders and groups gone after", gone[0], "ms", 1_000.0);
    row.at_most("setsid children gone after", gone[1], "ms", 2_000.0);
    row.at_most("guardian gone after", gone[2], "ms", 3_000.0);
    let [[groups, escapees, _], [late, late_escapees, _], last] = after;
    row.exactly("orphans after 1 s, but the setsid child", groups, "", 0);
    row.tell("the setsid child after 1 s", number(escapees), "");
    row.exactly("orphans after 2 s", late + late_escapees, "", 0);
    row.exactly("orphans and guardian after 3 s", last.iter().sum(), "", 0);
    let left = processes::below(home.directory());
    row.require(left.is_empty(), format!("nothing else is left: {left:?}"));
    Ok(())
}

pub(crate) async fn layers(row: Row) -> Result<()> {
    // The sweep at boot does nothing for a core that dies.
    let only = |signal: bool, guardian: bool| {
        format!(
            "[supervision]\nparent_death_signal = {signal}\nguardian = {guardian}\n\
             subreaper = false\nboot_sweep = true\n"
        )
    };
    let deaf = |name: &str, more: &[&str]| {
        let mut arguments = vec!["--deaf", "--ignores-term"];
        arguments.extend(more);
        arguments.push("serves");
        plugin(name, MISBEHAVING, &arguments)
    };

    // 1: the parent-death signal. The leaders are deaf: nothing else could end them.
    let mut home =
        Home::start_with(&only(true, false), &[deaf("one", &[]), deaf("two", &[])]).await;
    home.all_ready(&["one", "two"]).await;
    let family = Family::of(&home, &[]).await;
    row.require(
        family.guardian.is_empty(),
        "no guardian when it is switched off",
    );
    let (gone, _) = kill_core(&mut home, &family, Duration::from_secs(4)).await;
    row.at_most("layer 1: leaders gone after", gone[0] / 1000.0, "s", 1.0);
    drop(home);

    // 2: the guardian.
    let plugins = [deaf("one", &["--child"]), deaf("two", &["--escapee"])];
    let mut home = Home::start_with(&only(false, true), &plugins).await;
    home.all_ready(&["one", "two"]).await;
    let family = Family::of(&home, &["two"]).await;
    let (gone, _) = kill_core(&mut home, &family, Duration::from_secs(5)).await;
    row.at_most("layer 2: groups gone after", gone[0] / 1000.0, "s", 1.0);
    row.at_most(
        "layer 2: setsid children gone after",
        gone[1] / 1000.0,
        "s",
        2.0,
    );
    drop(home);

    // 3: the SDK.
    let plugins = [plugin("one", ECHO, &[]), plugin("two", ECHO, &[])];
    let mut home = Home::start_with(&only(false, false), &plugins).await;
    home.all_ready(&["one", "two"]).await;
    let family = Family::of(&home, &[]).await;
    let (gone, _) = kill_core(&mut home, &family, Duration::from_secs(14)).await;
    row.at_most(
        "layer 3: SDK leaders gone after",
        gone[0] / 1000.0,
        "s",
        11.0,
    );
    drop(home);

    // The same where the standard input does not end with the core: somebody else holds it.
    let script = format!("mkfifo held; sleep 60 >held & exec {ECHO} <held");
    let held = plugin("held", "/bin/sh", &["-c", &script]);
    let mut home = Home::start_with(&only(false, false), &[held]).await;
    let leader = home.operator.until_phase("held", "ready").await.pid;
    let mut family = Family::of(&home, &[]).await;
    let holders: Vec<u32> = family.groups.extract_if(.., |pid| *pid != leader).collect();
    let (gone, after) = kill_core(&mut home, &family, Duration::from_secs(14)).await;
    row.exactly(
        "layer 3: without a channel it stays for a while",
        after[2][0],
        "",
        1,
    );
    row.at_most(
        "layer 3: SDK leader without a channel gone after",
        gone[0] / 1000.0,
        "s",
        11.0,
    );
    holders.iter().for_each(|pid| signal(*pid, Signal::KILL));
    drop(home);

    // 4: the next boot.
    let plugins = [deaf("one", &["--child"]), deaf("two", &["--escapee"])];
    let mut home = Home::start_with(&only(false, false), &plugins).await;
    home.all_ready(&["one", "two"]).await;
    for name in ["one", "two"] {
        // It has its Welcome, and not only sent its Hello: without one it would go by itself.
        home.operator
            .call(&format!("{name}.pid"), json!([]))
            .await
            .context("it serves")?;
    }
    let family = Family::of(&home, &["two"]).await;
    let before = processes::descendants(home.pid());
    home.core().kill().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let gone: Vec<_> = before
        .iter()
        .filter(|process| family.groups.contains(&process.pid) && !is_alive(process.pid))
        .collect();
    row.require(
        gone.is_empty() && living(&family.escapees) == 1,
        format!("with no layer but the last they outlive the core: {gone:?} are gone"),
    );
    let begin = Instant::now();
    let operator = home.core().start().await;
    operator.until_phase("one", "ready").await;
    operator.until_phase("two", "ready").await;
    row.exactly("layer 4: left at the next boot", family.alive(), "", 0);
    row.tell("layer 4: boot to ready", begin.elapsed().as_secs_f64(), "s");
    home.core().signal(Signal::TERM);
    home.core().wait(patience()).await;
    drop(home);

    guardian_replaced(&row).await
}

async fn guardian_replaced(row: &Row) -> Result<()> {
    let plugins = [plugin(
        "lax",
        MISBEHAVING,
        &["--deaf", "--child", "--escapee", "serves"],
    )];
    let mut home = Home::start(&plugins).await;
    home.all_ready(&["lax"]).await;
    let family = Family::of(&home, &["lax"]).await;
    let Some(first) = family.guardian.first().copied() else {
        row.broken("there is no guardian");
        return Ok(());
    };
    let begin = Instant::now();
    signal(first, Signal::KILL);
    let mut replaced = f64::INFINITY;
    while begin.elapsed() < Duration::from_secs(4) {
        let now = Family::of(&home, &["lax"]).await;
        if now.guardian.iter().any(|pid| *pid != first) {
            replaced = begin.elapsed().as_secs_f64();
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    row.at_most("guardian killed: replaced after", replaced, "s", 1.0);
    // It was told everything again.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let family = Family::of(&home, &["lax"]).await;
    let (gone, _) = kill_core(&mut home, &family, Duration::from_secs(5)).await;
    row.at_most(
        "its successor: groups gone after",
        gone[0] / 1000.0,
        "s",
        1.0,
    );
    row.at_most(
        "its successor: setsid gone after",
        gone[1] / 1000.0,
        "s",
        2.0,
    );
    Ok(())
}

pub(crate) async fn as_init(row: Row) -> Result<()> {
    let plugins = || {
        [
            plugin("maker", MISBEHAVING, &["orphans"]),
            plugin("leaver", ECHO, &[]).sections(QUICK),
        ]
    };
    let namespace = ["--pid", "--fork", "--mount-proc", "--kill-child=KILL"];
    let possible = tokio::process::Command::new("unshare")
        .args(namespace)
        .arg("true")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    if possible.is_ok_and(|status| status.success()) {
        let unshare = which("unshare").context("unshare is on PATH")?;
        let arguments = namespace.iter().copied().chain(["--", CORE]);
        let core = plugins().iter().fold(
            CoreProcess::new(&unshare, "").args(arguments),
            |core, plugin| core.plugin(plugin.name(), &plugin.text()),
        );
        let mut home = Home::of(core).await;
        let children = processes::descendants(home.pid());
        let init = children.iter().find(|process| process.parent == home.pid());
        let init = init.context("the core inside the namespace")?.pid;
        orphans_of(&row, &home, init, "as PID 1").await?;
        signal(init, Signal::TERM);
        let status = home.core().wait(patience()).await;
        row.require(status.success(), format!("PID 1 ends in order: {status}"));
    } else {
        row.skip_part("as PID 1: `unshare --pid` is not allowed here");
    }
    let home = Home::start(&plugins()).await;
    orphans_of(&row, &home, home.pid(), "as subreaper").await?;
    home.stop(&row).await;
    Ok(())
}

/// Makes orphans and exits at the same time; `core` must reap the ones and learn of the others.
async fn orphans_of(row: &Row, home: &Home, core: u32, how: &str) -> Result<()> {
    home.all_ready(&["maker", "leaver"]).await;
    let maker = home.operator.another_connection();
    let making = tokio::spawn(async move { maker.call("maker.orphans", json!([ORPHANS])).await });
    let (mut most, mut adopted, mut lost, mut exits) = (0, 0, 0, 0);
    while !making.is_finished() {
        let before = home.operator.until_phase("leaver", "ready").await;
        let code = 40 + i32::try_from(exits % 20)?;
        // It ends while it handles this.
        home.operator
            .call("leaver.exit", json!({ "code": code }))
            .await
            .err();
        let after = home.ready_after("leaver", before.generation).await;
        exits += 1;
        let told = after.last_exit.and_then(|exit| exit.code);
        lost += usize::from(told != Some(code));
        most = most.max(processes::zombies_of(core).len());
        let family = processes::descendants(core);
        let orphan = |process: &&processes::Process| {
            process.parent == core && process.command.starts_with("sh -c")
        };
        adopted = adopted.max(family.iter().filter(orphan).count());
    }
    row.require(adopted > 0, format!("{how} the core adopts orphans"));
    making
        .await
        .context("the maker's task")?
        .context("the maker answers")?;
    let made = Instant::now();
    // The last ones live for 0.2 s.
    let mut clean = f64::INFINITY;
    while made.elapsed() < Duration::from_secs(3) {
        let orphans = processes::descendants(core);
        let waiting = orphans
            .iter()
            .any(|process| process.command.starts_with("sh -c"));
        if !waiting && orphans.iter().all(|process| process.state != 'Z') {
            clean = ms(made.elapsed()) - 200.0;
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    row.at_most(
        &format!("zombies gone after ({how})"),
        clean.max(0.0),
        "ms",
        1_000.0,
    );
    row.exactly(
        &format!("zombies left ({how})"),
        processes::zombies_of(core).len(),
        "",
        0,
    );
    row.exactly(&format!("lost statuses ({how})"), lost, "", 0);
    row.tell(
        &format!("own children that exited meanwhile ({how})"),
        number(exits),
        "",
    );
    row.tell(&format!("most zombies seen ({how})"), number(most), "");
    Ok(())
}

/// Where a program is found.
fn which(program: &str) -> Option<String> {
    let path = std::env::var("PATH").ok()?;
    let candidates = path
        .split(':')
        .map(|directory| Path::new(directory).join(program));
    let found = candidates
        .into_iter()
        .find(|candidate| candidate.is_file())?;
    Some(found.to_str()?.to_owned())
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
