//! The profile `children`: the core as first process of its container, with plugins as child processes.

use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::engine::Engine;
use crate::figures::Figures;
use crate::stack::Stack;
use crate::step;

/// The plugins of the image.
const CHILDREN: [&str; 4] = ["automation", "devices", "host_sensors", "notifications"];
/// Processes that lose their parent at once.
const ORPHANS: u32 = 50;

pub(crate) fn play(engine: &Engine, figures: &Figures) -> Result<()> {
    let stack = Stack {
        engine,
        core: "home",
    };
    let from = SystemTime::now();
    engine.compose(&["up", "-d", "home"])?;
    let took = stack.all_started(&CHILDREN, from)?;
    figures.measured("children: up, all STARTED after", took.as_secs_f64(), "s");
    let level = stack.call(&["devices.turn_on", "device_id=lamp_hall", "level:=40"])?;
    ensure!(level["level"] == 40, "the lamp is {level}");

    step("a child is killed");
    let before = stack.plugin("devices")?;
    let from = SystemTime::now();
    kill(pid_of(&stack, "devices")?)?;
    let took = stack.started_anew("devices", before.generation, from)?;
    figures.measured(
        "children: SIGKILL of one, STARTED after",
        took.as_secs_f64(),
        "s",
    );

    step("processes without a parent come to the first process, and are waited for");
    // They let go of the command's output: `docker exec` waits for its end.
    let script = format!(
        "exec >/dev/null 2>&1; i=0; while [ $i -lt {ORPHANS} ]; do sleep 0.2 & i=$((i+1)); done; \
         sleep 600 &"
    );
    engine.exec("home", &["sh", "-c", &script])?;
    let sleeping = || engine.processes("home", "pid,ppid,stat,comm");
    stack.eventually("no zombies, and the orphan lives", sleeping, |processes| {
        let of = |column: usize, begin: &str| {
            let in_column = |process: &&String| {
                let words: Vec<_> = process.split_whitespace().collect();
                words
                    .get(column)
                    .is_some_and(|word| word.starts_with(begin))
            };
            processes.iter().filter(in_column).count()
        };
        of(2, "Z") == 0 && of(3, "sleep") == 1
    })?;

    let took = stack.stop("home")?;
    figures.at_most("children: docker stop", took.as_secs_f64(), "s", 15.0);
    engine.compose(&["rm", "-f", "home"])?;
    Ok(())
}

/// The process of a child, as this machine numbers it.
fn pid_of(stack: &Stack<'_>, plugin: &str) -> Result<i32> {
    let processes = stack.engine.processes(stack.core, "pid,comm")?;
    let of_plugin = processes
        .iter()
        .filter_map(|process| process.trim().split_once(char::is_whitespace))
        .find(|(_, command)| command.trim() == plugin);
    let (pid, _) = of_plugin.with_context(|| format!("{plugin} is not in {processes:?}"))?;
    pid.parse().context("a process id")
}

/// Kills a process of a container from outside of it.
pub(crate) fn kill(pid: i32) -> Result<()> {
    let pid = Pid::from_raw(pid).context("a process id")?;
    kill_process(pid, Signal::KILL).context("cannot kill it: is the engine on this machine?")
}
