//! `docker-compose.yml` on a real engine: brought up from images that are built here, played through,
//! broken in every way that an engine offers, and taken down without a trace.
//!
//! Ignored unless asked for, since it needs a docker engine; `cargo xtask test compose` asks for it
//! where there is one. Needs no image from elsewhere: the bases are made of this machine's own files
//! (`images.rs`). Binaries of the workspace must be built; `COMPOSE_BINARIES` names a directory with
//! others. What is measured stands in `compose/results.json` of the target directory.
//!
//! One test of the stack, since one serves all of it: bringing one up is most of the time. Beside it a
//! container with a systemd runs the units of `deploy/systemd/` (`systemd.rs`).

#![expect(clippy::print_stdout, reason = "a long test says how far it is")]

mod children;
mod engine;
mod faults;
mod figures;
mod images;
mod scene;
mod stack;
mod systemd;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};

use crate::engine::Engine;
use crate::figures::Figures;
use crate::images::Images;
use crate::stack::{PLUGINS, Stack};

#[test]
#[ignore = "needs a docker engine: cargo xtask test compose"]
fn the_compose_file_holds_what_it_promises_and_leaves_nothing() {
    on_an_engine("compose", play);
}

#[test]
#[ignore = "needs a docker engine: cargo xtask test compose"]
fn the_units_hold_on_a_real_systemd() {
    if let Some(missing) = systemd::missing() {
        println!("SKIP: {missing}");
        return;
    }
    on_an_engine("units", |engine| {
        systemd::play(engine, &repository(), &scratch()?)
    });
}

/// Plays on a real engine, if there is one, and sees to it that nothing stays behind.
fn on_an_engine(name: &str, play: impl FnOnce(&Engine) -> Result<()>) {
    let engine = match Engine::find(name) {
        Ok(engine) => engine,
        Err(missing) => {
            println!("SKIP: {missing}");
            return;
        }
    };
    let mut failures = Vec::new();
    if let Err(error) = play(&engine) {
        engine.show_logs();
        failures.push(format!("{error:#}"));
    }
    if let Err(error) = engine.clean() {
        failures.push(format!("not everything could be removed: {error:#}"));
    }
    match engine.leftovers() {
        Ok(left) if left.is_empty() => {}
        Ok(left) => failures.push(format!("still there: {}", left.join(", "))),
        Err(error) => failures.push(format!("{error:#}")),
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn play(engine: &Engine) -> Result<()> {
    let scratch = scratch()?;
    let figures = Figures::default();
    let images = Images::prepare(engine, &repository(), &scratch)?;
    engine.use_context(images.context(), images.environment());
    step("build");
    images.build(engine)?;
    let played = acts(engine, &figures);
    figures.write(&scratch.join("results.json"))?;
    played?;
    let broken = figures.broken();
    if !broken.is_empty() {
        bail!("promises were broken: {}", broken.join("; "));
    }
    Ok(())
}

fn acts(engine: &Engine, figures: &Figures) -> Result<()> {
    let stack = Stack {
        engine,
        core: "core",
    };
    step("up");
    let from = SystemTime::now();
    engine.compose(&["up", "-d"])?;
    let took = stack.all_started(&PLUGINS, from)?;
    figures.measured("up: all STARTED after", took.as_secs_f64(), "s");
    step("everything is closed");
    scene::everything_is_closed(&stack)?;
    step("corectl in a container of its own");
    scene::tool_elsewhere(&stack)?;
    step("the scene");
    scene::play(&stack)?;
    scene::lamp_is_kept(&stack)?;
    faults::idle(&stack, figures)?;

    faults::of_plugins(&stack, figures)?;
    faults::of_the_core(&stack, figures)?;
    step("a plugin is replaced by a newer image");
    faults::replaced(&stack, figures)?;

    step("down and up: the volumes stay");
    for service in PLUGINS {
        let took = stack.stop(service)?;
        figures.at_most(
            format!("{service}: docker stop"),
            took.as_secs_f64(),
            "s",
            10.0,
        );
    }
    let took = stack.stop("core")?;
    figures.at_most("core: docker stop", took.as_secs_f64(), "s", 15.0);
    engine.compose(&["down"])?;
    ensure!(
        engine.container("core").is_err(),
        "the core's container is still there"
    );
    engine.compose(&["up", "-d"])?;
    stack.all_started(&PLUGINS, SystemTime::now())?;
    scene::lamp_is_kept(&stack)?;
    engine.compose(&["stop"])?;
    for service in PLUGINS.into_iter().chain(["core"]) {
        let code = engine.exit_code(service)?;
        ensure!(code == 0, "{service} ended with {code}");
    }

    step("the profile of children");
    children::play(engine, figures)
}

/// Says what comes next, and how long everything took so far.
pub(crate) fn step(what: &str) {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    println!("compose: {:5.1} s  {what}", BEGUN.elapsed().as_secs_f64());
}

fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A directory for what is made here, under cargo's target directory.
fn scratch() -> Result<PathBuf> {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = temporary.with_file_name("compose");
    std::fs::create_dir_all(&directory).context("cannot make a directory")?;
    Ok(directory)
}
