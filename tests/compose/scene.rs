//! The demo's scene, over containers: the home senses, reacts, and does what it is told; and each
//! container is as closed as the compose file says.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::stack::{PLUGINS, Stack};

/// A value that nobody has by default.
pub(crate) const LEVEL: u64 = 42;

/// Plays it; the lamp in the hall is off afterwards, at [`LEVEL`].
pub(crate) fn play(stack: &Stack<'_>) -> Result<()> {
    let oldest = |topic: &str| {
        let since = ["events", "tail", topic, "--since", "oldest", "--count", "1"];
        stack.corectl(&since)
    };
    let sample = oldest("host_sensors.sample")?;
    let memory = sample["data"]["memory"]["total_bytes"].as_u64();
    ensure!(memory > Some(0), "the machine is not measured: {sample}");
    let sent = oldest("notifications.sent")?;
    ensure!(
        sent["data"]["sender"] == "automation",
        "the warning of the machine reaches people as {sent}"
    );

    stack.call(&["devices.simulate_motion", "room=hall"])?;
    lamp_becomes(stack, "on by motion", |lamp| lamp["on"] == true)?;
    let level = format!("level:={LEVEL}");
    let lamp = stack.call(&["devices.turn_on", "device_id=lamp_hall", &level])?;
    ensure!(lamp["level"] == LEVEL, "the lamp is {lamp}");
    stack.call(&["devices.turn_off", "device_id=lamp_hall"])?;
    lamp_becomes(stack, "off by call", |lamp| lamp["on"] == false)?;

    let night = stack.call(&["sunlight.now", "hour:=23"])?;
    ensure!(night["period"] == "night", "at 23 o'clock it says {night}");
    let told = oldest("sunlight.changed")?;
    ensure!(told["source"] == "sunlight", "the event is {told}");
    Ok(())
}

fn lamp_becomes(stack: &Stack<'_>, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let lamp = || Ok(stack.corectl(&["state", "get", "devices.lamp_hall"])?["value"].take());
    stack.eventually(&format!("the lamp is {what}"), lamp, wanted)
}

/// The lamp in the hall is at [`LEVEL`], in storage and for callers.
pub(crate) fn lamp_is_kept(stack: &Stack<'_>) -> Result<()> {
    let stored = stack.corectl(&["storage", "get", "devices", "lamp/lamp_hall"])?;
    ensure!(stored["value"]["level"] == LEVEL, "stored: {stored}");
    let lamps = stack.call(&["devices.list"])?;
    let mut lamps = lamps.as_array().into_iter().flatten();
    let lamp = lamps.find(|lamp| lamp["id"] == "lamp_hall");
    let level = lamp.context("there is no lamp in the hall")?["level"].as_u64();
    ensure!(level == Some(LEVEL), "the lamp is at {level:?}");
    Ok(())
}

/// Nothing is plaintext, nobody is root, and each plugin sees its own credentials and no others.
pub(crate) fn everything_is_closed(stack: &Stack<'_>) -> Result<()> {
    let status = stack.corectl(&["status"])?;
    ensure!(status["insecure_plaintext"] == false, "it says {status}");
    let addresses = status["addresses"].as_array().context("addresses")?;
    let open = addresses.iter().filter_map(Value::as_str);
    let open: Vec<_> = open
        .filter(|address| !address.starts_with("unix:") && !address.starts_with("tls:"))
        .collect();
    ensure!(open.is_empty(), "it listens without TLS on {open:?}");

    let confined = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} \
                    {{.HostConfig.SecurityOpt}} {{.HostConfig.PidsLimit}}";
    for service in PLUGINS.into_iter().chain([stack.core]) {
        let found = stack.engine.inspect(service, confined)?;
        let wanted = "10001:10001 true [ALL] [no-new-privileges:true] 256";
        ensure!(found == wanted, "{service} is {found}, not {wanted}");
        let memory = stack.engine.inspect(service, "{{.HostConfig.Memory}}")?;
        ensure!(memory != "0", "{service} has no limit of memory");
    }
    let mut tokens = BTreeSet::new();
    for plugin in PLUGINS {
        let mounts = "{{range .Mounts}}{{.Name}} {{.Destination}} {{.RW}};{{end}}";
        let mounts = stack.engine.inspect(plugin, mounts)?;
        let own = format!(
            "{}_credentials-{plugin} /credentials false;",
            stack.engine.project()
        );
        ensure!(mounts == own, "{plugin} sees {mounts}");
        let read = "cat /credentials/token; for file in /credentials/*; do echo $file; done";
        let seen = stack.engine.exec(plugin, &["sh", "-c", read])?;
        let (token, files) = seen.split_once('\n').context("a token")?;
        ensure!(
            files.trim() == "/credentials/ca.pem\n/credentials/token",
            "{plugin} sees {files}"
        );
        tokens.insert(token.to_owned());
    }
    ensure!(tokens.len() == PLUGINS.len(), "plugins share tokens");
    Ok(())
}

/// The operators' tool in a container of its own asks over the private network, with an operator's token; a
/// plugin's is not enough.
pub(crate) fn tool_elsewhere(stack: &Stack<'_>) -> Result<()> {
    let engine = stack.engine;
    let image = engine.build("corectl")?;
    let made = stack.corectl(&["tokens", "create", "--operator", "--label", "elsewhere"])?;
    let token = made["token"].as_str().context("a token")?;
    // It trusts the same CA as the plugins.
    let credentials = format!("{}_credentials-devices:/credentials:ro", engine.project());
    let network = engine.network();
    let run = |given: &str, command: &[&str]| {
        let contained = [
            "run",
            "--rm",
            "--read-only",
            "--cap-drop=ALL",
            "--network",
            &network,
        ];
        let given = ["--volume", &credentials, "--env", given];
        let core = [
            "--env=CORE_ADDR=core:7443",
            "--env=CORE_CA_FILE=/credentials/ca.pem",
        ];
        engine.docker(&[&contained[..], &given, &core, &[&image], command].concat())
    };
    let operators = format!("CORE_TOKEN={token}");
    let version = run(&operators, &["--version"])?;
    ensure!(version.starts_with("corectl "), "it says {version}");
    let listed = run(&operators, &["--json", "plugins", "list"])?;
    let listed: Value = serde_json::from_str(&listed).context("JSON")?;
    let listed = listed["plugins"].as_array().map_or(0, Vec::len);
    ensure!(listed == PLUGINS.len(), "it sees {listed} plugins");
    let refused = run(
        "CORE_TOKEN_FILE=/credentials/token",
        &["--json", "tokens", "list"],
    );
    ensure!(
        refused.is_err(),
        "a plugin's token made an operator: {refused:?}"
    );

    let id = made["credential"]["id"].as_str().context("an id")?;
    stack.corectl(&["tokens", "revoke", id])?;
    let refused = run(&operators, &["status"]);
    ensure!(refused.is_err(), "a revoked token is good: {refused:?}");
    Ok(())
}
