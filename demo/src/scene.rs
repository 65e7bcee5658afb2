//! One scripted scene, every step checked: the home starts, senses, reacts, loses a plugin and gets it
//! back, forgets nothing, and leaves nothing behind.

use std::fmt::Display;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use core_proto::v1::{Event, PluginInfo, PluginState};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::checkout::Checkout;
use crate::client::{Client, Events};
use crate::core_process::{Core, alive};
use crate::home::{Signals, started, tail};
use crate::prepare::{self, Home, Residents};
use crate::python::{self, Python};
use crate::remote::{self, Remote};
use crate::tool::Tool;

/// The room in which the scene plays, and its lamp.
const ROOM: &str = "hall";
const LAMP: &str = "lamp_hall";
/// The lamp's brightness while it is on: a value that nobody has by default.
const LEVEL: u64 = 42;

/// Plays the scene.
pub(crate) async fn play(checkout: &Checkout) -> Result<ExitCode> {
    let demo = checkout.directory()?;
    let python = python::prepare(checkout, &demo.join("python"));
    let home = empty_home(checkout, demo.join("scene"), python.as_ref().ok())?;
    let mut script = Script { passed: 0 };
    let mut remark = String::new();
    if let Err(error) = &python {
        // The outermost words stand in a line of their own, which summaries show.
        println!("SKIP  the Python plugin, as a child and remote: {error}");
        for cause in error.chain().skip(1) {
            println!("      {cause}");
        }
        remark = format!("the Python plugins were skipped: {error}");
    }
    let mut signals = Signals::new()?;
    let played = tokio::select! {
        played = acts(checkout, &home, &mut script, python.as_ref().ok()) => played,
        () = signals.any() => Err(anyhow::anyhow!("interrupted")),
    };
    match played {
        Ok(()) => {
            let but = if remark.is_empty() { "" } else { "; " };
            println!("scene: all {} checks passed{but}{remark}", script.passed);
        }
        Err(error) => {
            println!("{}", tail(&home.log()));
            println!(
                "scene: failed after {} checks passed: {error:#}",
                script.passed
            );
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn empty_home(checkout: &Checkout, directory: PathBuf, python: Option<&Python>) -> Result<Home> {
    if directory.exists() {
        fs::remove_dir_all(&directory).context("cannot clear the home of the last scene")?;
    }
    prepare::home(checkout, directory, python, Residents::Still)
}

/// The scene. The core is killed if an act fails: it is dropped.
async fn acts(
    checkout: &Checkout,
    home: &Home,
    script: &mut Script,
    python: Option<&Python>,
) -> Result<()> {
    let mut core = Core::start(checkout, home)?;
    let client = script.check("the core answers", core.answers(home)).await?;
    let mut events = client.events().await?;
    script
        .check("all plugins are STARTED", started(&client, home))
        .await?;

    script
        .check("this machine is measured", measured(&mut events))
        .await?;
    script
        .check(
            "a warning of the machine reaches people",
            warned(&mut events),
        )
        .await?;
    script
        .check("motion switches the lamp on", motion(&client, &mut events))
        .await?;
    script
        .check(
            "the lamp is switched off by call",
            switched_off(&client, &mut events),
        )
        .await?;
    let tool = Tool { checkout, home };
    script
        .check(
            "corectl sees and steers the home",
            steered(tool, &mut events),
        )
        .await?;
    if let Some(python) = python {
        script
            .check("the Python plugin answers", sunlight(&client, "sunlight"))
            .await?;
        script
            .check(
                "a remote Python plugin over TCP",
                visited(&client, home, python),
            )
            .await?;
    }
    let killed = script
        .check("devices is killed and comes back", killed(&client))
        .await?;
    script
        .check("its lamps are as they were", lamps_are_kept(&client))
        .await?;

    let first_family = core.family()?;
    script
        .check("the core stops cleanly", stops_cleanly(&mut core))
        .await?;
    let mut core = Core::start(checkout, home)?;
    let client = script
        .check("the core starts again", core.answers(home))
        .await?;
    script
        .check("all plugins are STARTED again", started(&client, home))
        .await?;
    script
        .check("storage kept the lamps", lamps_are_kept(&client))
        .await?;

    let second_family = core.family()?;
    script
        .check("the core stops cleanly again", stops_cleanly(&mut core))
        .await?;
    script
        .check("nothing of it is left", async {
            let all: std::collections::BTreeSet<_> =
                first_family.union(&second_family).copied().collect();
            ensure!(
                all.len() > 2 * home.plugins.len(),
                "too few processes were seen: {all:?}"
            );
            ensure!(
                all.iter().any(|process| process.pid == killed),
                "{killed} was not seen"
            );
            let left = alive(&all)?;
            ensure!(left.is_empty(), "still alive: {left:?}");
            let socket = home.operator_socket();
            ensure!(!socket.exists(), "{} is still there", socket.display());
            Ok(format!("{} processes ended", all.len()))
        })
        .await?;
    Ok(())
}

/// Prints what holds and what does not.
struct Script {
    passed: u32,
}

impl Script {
    async fn check<T: Remark>(
        &mut self,
        what: &str,
        check: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        match Box::pin(check).await {
            Ok(value) => {
                self.passed += 1;
                let seconds = begun.elapsed().as_secs_f64();
                println!("ok    {what} ({seconds:.2} s){}", value.remark());
                Ok(value)
            }
            Err(error) => {
                println!("FAIL  {what}: {error:#}");
                Err(error.context(what.to_owned()))
            }
        }
    }
}

/// What a passed check shows beside its name.
trait Remark {
    fn remark(&self) -> String {
        String::new()
    }
}

impl Remark for Client {}

impl<T: Display> Remark for T {
    fn remark(&self) -> String {
        format!(": {self}")
    }
}

async fn measured(events: &mut Events) -> Result<Value> {
    let sample = events
        .after(0, |event| event.topic == "host_sensors.sample")
        .await?;
    let sample = data(&sample)?;
    let memory = sample["memory"]["total_bytes"].as_u64();
    ensure!(
        memory.is_some_and(|bytes| bytes > 0),
        "no memory was measured: {sample}"
    );
    let load = sample["load"]["one"].as_f64();
    ensure!(load.is_some(), "no load was measured: {sample}");
    Ok(json!({"memory": memory, "load": load}))
}

/// Motion is simulated; the automation must switch the lamp on.
async fn motion(client: &Client, events: &mut Events) -> Result<Value> {
    let mark = events.mark();
    client
        .call("devices.simulate_motion", &json!({"room": ROOM}))
        .await?;
    events
        .after(mark, |event| event.topic == "devices.motion")
        .await?;
    let changed = |event: &Event| event.topic == "devices.changed" && event.subject == LAMP;
    let changed = events.after(mark, changed).await?;
    ensure!(
        data(&changed)?["on"] == true,
        "devices.changed does not say on"
    );
    // The lamp's event comes with its storage, the state right after it.
    let is_on = |lamp: &Value| lamp["on"] == true;
    let lamp = client
        .state_becomes(&format!("devices.{LAMP}"), is_on)
        .await?;
    Ok(lamp)
}

/// The sensors warn (the home is made so), the automation reports it, and people are told.
async fn warned(events: &mut Events) -> Result<Value> {
    let from_automation = |event: &Event| {
        event.topic == "notifications.sent"
            && data(event).is_ok_and(|sent| sent["sender"] == "automation")
    };
    let sent = events.after(0, from_automation).await?;
    Ok(data(&sent)?["text"].clone())
}

/// Leaves a mark on the lamp, its level, and switches it off.
async fn switched_off(client: &Client, events: &mut Events) -> Result<Value> {
    let mark = events.mark();
    let on = json!({"device_id": LAMP, "level": LEVEL});
    client.call("devices.turn_on", &on).await?;
    let lamp = client
        .call("devices.turn_off", &json!({"device_id": LAMP}))
        .await?;
    ensure!(lamp["on"] == false, "the answer is {lamp}");
    let off = |event: &Event| {
        event.topic == "devices.changed"
            && event.subject == LAMP
            && data(event).is_ok_and(|lamp| lamp["on"] == false)
    };
    events.after(mark, off).await?;
    let is_off = |lamp: &Value| lamp["on"] == false;
    client
        .state_becomes(&format!("devices.{LAMP}"), is_off)
        .await?;
    Ok(lamp)
}

/// The operators' tool, with what it says and how it ends.
async fn steered(tool: Tool<'_>, events: &mut Events) -> Result<String> {
    let plugins = &tool.home.plugins;
    let status = tool.json(&["status", "--json"]).await?;
    let running = status["plugins"]["started"].as_u64();
    ensure!(running == Some(plugins.len() as u64), "status is {status}");
    let list = tool.prints(&["plugins", "list"]).await?;
    let absent = plugins.iter().find(|name| !list.contains(name.as_str()));
    ensure!(absent.is_none(), "{absent:?} is not in the list:\n{list}");

    let lamps = tool.prints(&["services", "call", "devices.list"]).await?;
    ensure!(lamps.contains(LAMP), "devices.list says {lamps}");
    let key = format!("devices.{LAMP}");
    let state = tool.json(&["state", "get", &key, "--json"]).await?;
    let lamp = &state["value"];
    ensure!(lamp["level"] == LEVEL, "the state is {state}");
    let stored = tool.prints(&["storage", "list", "devices"]).await?;
    ensure!(
        stored.contains(&format!("lamp/{LAMP}")),
        "storage lists {stored}"
    );

    let mark = events.mark();
    tool.prints(&["events", "publish", "scene.greeting", "from=corectl"])
        .await?;
    let greeting = |event: &Event| event.topic == "scene.greeting";
    let greeting = data(&events.after(mark, greeting).await?)?;
    ensure!(
        greeting == json!({"from": "corectl"}),
        "the event says {greeting}"
    );
    tool.ends_with(3, &["services", "call", "devices.nonsense"])
        .await?;
    Ok(format!("{} started, {lamp}", plugins.len()))
}

/// The plugin comes by itself, serves and goes.
async fn visited(client: &Client, home: &Home, python: &Python) -> Result<Value> {
    let addresses = client.info().await?.addresses;
    let tcp = addresses
        .iter()
        .find(|address| !address.starts_with("unix:"));
    let mut remote = Remote::start(home, python, tcp.context("the core has no TCP address")?)?;
    let serves = async {
        client
            .plugins_become(|plugins| {
                let plugin = plugins.get(remote::NAME);
                plugin.is_some_and(|plugin| plugin.state() == PluginState::Started)
            })
            .await?;
        sunlight(client, remote::NAME).await
    };
    let now = tokio::select! {
        now = serves => now?,
        status = remote.ended() => bail!("it ended: {}", status?),
    };
    let status = remote.stopped().await?;
    ensure!(status.code() == Some(0), "it ended with {status}");
    client
        .plugins_become(|plugins| {
            let plugin = plugins.get(remote::NAME);
            plugin.is_some_and(|plugin| plugin.state() != PluginState::Started)
        })
        .await
        .context("the core believes that it is still there")?;
    Ok(now)
}

/// Asks the plugin of that name for day or night.
async fn sunlight(client: &Client, plugin: &str) -> Result<Value> {
    let service = format!("{plugin}.now");
    let night = client.call(&service, &json!({"hour": 23})).await?;
    ensure!(night["period"] == "night", "at 23 o'clock it says {night}");
    client.call(&service, &json!({})).await
}

/// Kills the process of `devices`; gives the id of the one that follows.
async fn killed(client: &Client) -> Result<i32> {
    let before = client.plugin("devices").await?;
    let pid = i32::try_from(before.pid).ok().and_then(Pid::from_raw);
    kill_process(pid.context("devices has no process")?, Signal::KILL).context("cannot kill it")?;
    let is_back = |plugin: &PluginInfo| {
        plugin.generation > before.generation && plugin.state() == PluginState::Started
    };
    let plugins = client
        .plugins_become(|plugins| plugins.get("devices").is_some_and(is_back))
        .await?;
    let after = &plugins["devices"];
    if after.pid == before.pid || after.pid == 0 {
        bail!(
            "its process id is {}, before it was {}",
            after.pid,
            before.pid
        );
    }
    client.call("devices.list", &json!({})).await?;
    i32::try_from(after.pid).context("a process id")
}

/// The lamp has the level that the scene gave it, in storage and for callers.
async fn lamps_are_kept(client: &Client) -> Result<Value> {
    let stored = client.stored("devices", &format!("lamp/{LAMP}")).await?;
    let stored = stored.context("storage does not know the lamp")?;
    ensure!(stored["level"] == LEVEL, "storage says {stored}");
    let lamps = client.call("devices.list", &json!({})).await?;
    let lamp = lamps
        .as_array()
        .into_iter()
        .flatten()
        .find(|lamp| lamp["id"] == LAMP);
    ensure!(
        lamp == Some(&stored),
        "storage says {stored}, the list {lamps}"
    );
    Ok(stored)
}

async fn stops_cleanly(core: &mut Core) -> Result<String> {
    let status = core.stopped().await?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(status.to_string())
}

fn data(event: &Event) -> Result<Value> {
    serde_json::from_slice(&event.data).with_context(|| format!("{}: not JSON", event.topic))
}
