//! `docker-compose.yml` on a real engine: brought up from images that are built here, called through,
//! stopped, started, and taken down without a trace.
//!
//! Ignored unless asked for, since it needs a docker engine; `cargo xtask test compose` asks for it
//! where there is one. Needs no image from elsewhere: the bases are made of this machine's own files
//! (`images.rs`). Binaries of the workspace must be built.

#![expect(clippy::print_stdout, reason = "a long test says how far it is")]

mod engine;
mod images;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::engine::Engine;
use crate::images::Images;

#[test]
#[ignore = "needs a docker engine: cargo xtask test compose"]
fn the_compose_file_brings_up_a_core_and_two_plugins_and_leaves_nothing() {
    let engine = match Engine::find() {
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
    let images = Images::prepare(engine, &repository(), &scratch()?)?;
    engine.use_context(images.context(), images.environment());
    step("build");
    engine.compose(&["build"])?;
    step("up");
    engine.compose(&["up", "-d"])?;
    step("both plugins are STARTED");
    started(engine)?;

    step("calls");
    let lamp = call(
        engine,
        &["devices.turn_on", "device_id=lamp_hall", "level:=40"],
    )?;
    ensure!(
        lamp["on"] == true && lamp["level"] == 40,
        "the lamp is {lamp}"
    );
    let night = call(engine, &["sunlight.now", "hour:=23"])?;
    ensure!(night["period"] == "night", "at 23 o'clock it says {night}");

    step("events");
    let tail = |topic| {
        let since = ["events", "tail", topic, "--since", "oldest", "--count", "1"];
        corectl(engine, &since)
    };
    let changed = tail("devices.changed")?;
    ensure!(changed["subject"] == "lamp_hall", "the event is {changed}");
    let told = tail("sunlight.changed")?;
    ensure!(told["source"] == "sunlight", "the event is {told}");

    step("the core stops by itself within its grace, and finds its data again");
    engine.compose(&["stop", "core"])?;
    let code = engine.exit_code("core")?;
    ensure!(code == 0, "the core ended with {code}");
    engine.compose(&["start", "core"])?;
    started(engine)?;
    let lamps = call(engine, &["devices.list"])?;
    let stored = corectl(engine, &["storage", "get", "devices", "lamp/lamp_hall"])?;
    ensure!(stored.to_string().contains("40"), "stored: {stored}");
    ensure!(
        lamps.to_string().contains("\"level\":40"),
        "the lamps are {lamps}"
    );

    step("down");
    engine.compose(&["stop"])?;
    for service in ["core", "devices"] {
        let code = engine.exit_code(service)?;
        ensure!(code == 0, "{service} ended with {code}");
    }
    Ok(())
}

fn started(engine: &Engine) -> Result<()> {
    for plugin in ["plugin/devices", "plugin/sunlight"] {
        corectl(
            engine,
            &["wait", plugin, "--for", "started", "--timeout", "90s"],
        )?;
    }
    Ok(())
}

fn call(engine: &Engine, call: &[&str]) -> Result<Value> {
    let waiting = [&["services", "call", "--wait", "--timeout", "60s"], call].concat();
    Ok(corectl(engine, &waiting)?["result"].take())
}

/// What `corectl` in the core's container says, as JSON.
fn corectl(engine: &Engine, arguments: &[&str]) -> Result<Value> {
    // The core may be on its way up, and `corectl` with it: `core-server health` says when.
    let output = engine.exec_when_healthy("core", &[&["corectl", "--json"], arguments].concat())?;
    // Streams say more than one thing; what was asked for comes last.
    let line = output.trim().lines().last().unwrap_or_default();
    serde_json::from_str(if line.is_empty() { "null" } else { line })
        .with_context(|| format!("corectl {}: not JSON: {line}", arguments.join(" ")))
}

fn step(what: &str) {
    println!("compose: {what}");
}

fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A directory for what is made here, under cargo's target directory.
fn scratch() -> Result<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compose");
    std::fs::create_dir_all(&directory).context("cannot make a directory")?;
    Ok(directory)
}
