//! 57: plugins on other machines. Each is a network namespace with a cable to this one, which can be
//! pulled: then packets are lost, as no proxy can lose them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use core_proto::contract::env;
use core_proto::v1::{AccessInviteRequest, AccessRevokeCredentialRequest, PluginInfo};
use core_tests::{Client, Faults, Proxy, Way};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::home::{Home, Timeline, plugin};
use crate::measure::ms;
use crate::remote::{self, PATIENT};
use crate::report::Row;
use crate::{CORE, PLAYER};

/// The child that all others hear and call.
const BASE: &str = "base";
/// Milliseconds between two events of a peer.
const PACE: &str = "50";
const SHORT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(60);
/// Ready again so long after the mending.
const RECOVERY: Duration = Duration::from_secs(30);
/// The plugins: one for each way to be elsewhere.
const NAMES: [&str; 3] = ["near", "far", "late"];

pub(crate) async fn elsewhere(row: Row) -> Result<()> {
    let corectl = Path::new(CORE).with_file_name("corectl");
    if !corectl.is_file() {
        row.skip("corectl is not built; `cargo xtask faults` builds it");
        return Ok(());
    }
    let mut machines = Vec::new();
    for index in 0..3 {
        match Machine::make(index).await {
            Ok(machine) => machines.push(machine),
            Err(error) => {
                row.skip(format!("no machine can be made of a namespace: {error:#}"));
                return Ok(());
            }
        }
    }
    let [near, far, late] = machines.as_slice() else {
        unreachable!("three were made");
    };
    let home = home(near.here).await;
    home.all_ready(&[BASE]).await;
    let core = tls_address(&home.operator).await?;

    // One command each: the SDK's own, or corectl's.
    let began = Instant::now();
    let join = invite(&home.operator, "near").await?;
    let _near = near.plugin("near", &[(env::JOIN, &join)])?;
    let join = invite(&home.operator, "far").await?;
    far.runs(&corectl, &["join", &join, "--out", &far.credentials()])
        .await?;
    let _far = far.plugin("far", &[])?;
    let join = invite(&home.operator, "late").await?;
    late.runs(&corectl, &["join", &join, "--out", &late.credentials()])
        .await?;
    let proxy = Proxy::between(near.here.into(), core, row.seed()).await;
    proxy.set(Faults::both(Way {
        latency: Duration::from_millis(500),
        jitter: Duration::from_millis(200),
        ..Way::default()
    }));
    let through = proxy.address().to_string();
    let _late = late.plugin("late", &[(env::ADDR, &through)])?;
    let before = home.all_ready(&NAMES).await;
    row.tell("all joined and ready after", ms(began.elapsed()), "ms");

    let timeline = home.timeline().await;
    let shortly = async {
        pulled_shortly(&row, &home.operator, near, &before[0]).await?;
        renewed(&row, &home.operator, near, &corectl, &before[0]).await
    };
    let (shortly, long) = tokio::join!(
        shortly,
        pulled_long(&row, &home.operator, &timeline, far, &before[1])
    );
    shortly?;
    long?;

    let kills = timeline
        .told()
        .into_iter()
        .filter(|(_, plugin)| plugin.name == "late" && remote::has_ended(plugin, &before[2]))
        .count();
    row.exactly("late link: false kills", kills, "", 0);
    row.require(says(&home.operator, "late").await, "the late one answers");
    for name in NAMES {
        let account = remote::account(&home.operator, name).await?;
        remote::check_account(&row, name, &account);
    }
    revoked(&row, &home.operator, &timeline, "late").await?;
    home.stop(&row).await;
    Ok(())
}

async fn home(address: Ipv4Addr) -> Home {
    let mut toml = format!("[listen]\ntls = [\"{address}:0\"]\ntls_names = [\"{address}\"]\n");
    for name in NAMES {
        toml += &format!(
            "[plugins.{name}]\nrun.kind = \"remote\"\n{PATIENT}\
             permissions.subscribe = [\"{BASE}.>\"]\npermissions.call = [\"{BASE}.>\"]\n"
        );
    }
    let base = plugin(BASE, PLAYER, &["peer", PACE, ""]);
    Home::of(Home::prepare(&toml, &[base])).await
}

async fn tls_address(operator: &Client) -> Result<SocketAddr> {
    let addresses = remote::addresses(operator).await?;
    let mut addresses = addresses.iter();
    let address = addresses.find_map(|address| address.strip_prefix("tls:"));
    Ok(address.context("it listens with TLS")?.parse()?)
}

async fn invite(operator: &Client, name: &str) -> Result<String> {
    let request = AccessInviteRequest {
        plugin: name.to_owned(),
        ..Default::default()
    };
    let invited = operator.access().invite(request).await?;
    Ok(invited.into_inner().join)
}

async fn says(operator: &Client, name: &str) -> bool {
    let service = format!("{name}.say");
    let said = operator.call(&service, json!({ "text": "?" })).await;
    said.is_ok_and(|said| said == json!("?"))
}

/// The same run goes on.
async fn pulled_shortly(
    row: &Row,
    operator: &Client,
    machine: &Machine,
    before: &PluginInfo,
) -> Result<()> {
    machine.cable("down").await?;
    // The fault is that it is away for so long.
    tokio::time::sleep(SHORT).await;
    machine.cable("up").await?;
    let mended = Instant::now();
    while !says(operator, &before.name).await {
        ensure!(mended.elapsed() < RECOVERY, "{} is lost", before.name);
        tokio::time::sleep(core_tests::POLL).await;
    }
    row.at_most("3 s: answers after", ms(mended.elapsed()), "ms", 10_000.0);
    same_run(row, operator, before, "3 s without a cable").await;
    Ok(())
}

async fn same_run(row: &Row, operator: &Client, before: &PluginInfo, what: &str) {
    let after = operator.plugin(&before.name).await;
    let same = after.generation == before.generation
        && remote::registered(&after) == remote::registered(before);
    let brief = remote::brief(&after);
    row.require(same, format!("{what}: the same run goes on: {brief}"));
}

/// Degraded, ended, and back in a new run.
async fn pulled_long(
    row: &Row,
    operator: &Client,
    timeline: &Timeline,
    machine: &Machine,
    before: &PluginInfo,
) -> Result<()> {
    let name = before.name.as_str();
    machine.cable("down").await?;
    let cut = Instant::now();
    let after = |from: Instant, told: Option<(Instant, PluginInfo)>| {
        told.map_or(f64::NAN, |(at, _)| {
            at.saturating_duration_since(from).as_secs_f64()
        })
    };
    let degraded = timeline
        .first(name, LONG, |plugin| plugin.phase == "degraded")
        .await;
    row.at_most("60 s: degraded after", after(cut, degraded), "s", 15.0);
    let left = LONG.saturating_sub(cut.elapsed());
    let ended = timeline
        .first(name, left, |plugin| remote::has_ended(plugin, before))
        .await;
    row.at_most("60 s: the run ends after", after(cut, ended), "s", 30.0);
    tokio::time::sleep_until(cut + LONG).await;
    machine.cable("up").await?;
    let mended = Instant::now();
    let back = timeline
        .first(name, RECOVERY, |plugin| {
            plugin.generation > before.generation && plugin.phase == "ready"
        })
        .await;
    let limit = RECOVERY.as_secs_f64();
    row.at_most("60 s: ready after the end", after(mended, back), "s", limit);
    row.require(says(operator, name).await, "60 s: calls work again");
    Ok(())
}

/// Another certificate for the same key, while the plugin runs.
async fn renewed(
    row: &Row,
    operator: &Client,
    machine: &Machine,
    corectl: &Path,
    before: &PluginInfo,
) -> Result<()> {
    let certificates = || {
        let mut found: Vec<_> = std::fs::read_dir(machine.credentials())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| {
                (
                    entry.path(),
                    std::fs::read(entry.path()).unwrap_or_default(),
                )
            })
            .collect();
        found.sort();
        found
    };
    let old = certificates();
    let renew = ["join", "--renew", "--out", &machine.credentials()];
    machine.runs(corectl, &renew).await?;
    row.require(certificates() != old, "a renewal brings a new certificate");
    // New connections show it.
    machine.cable("down").await?;
    // The fault is that it is away for so long.
    tokio::time::sleep(SHORT).await;
    machine.cable("up").await?;
    row.require(
        says(operator, &before.name).await,
        "it goes on with its new certificate",
    );
    same_run(row, operator, before, "a renewal").await;
    Ok(())
}

async fn revoked(row: &Row, operator: &Client, timeline: &Timeline, name: &str) -> Result<()> {
    let before = operator.plugin(name).await;
    let request = AccessRevokeCredentialRequest {
        plugin: name.to_owned(),
        ..Default::default()
    };
    let began = Instant::now();
    operator.access().revoke_credential(request).await?;
    let ended = timeline
        .first(name, RECOVERY, |plugin| remote::has_ended(plugin, &before))
        .await;
    let took = ended.map_or(f64::NAN, |(at, _)| ms(at.saturating_duration_since(began)));
    row.at_most("revoked: the run ends after", took, "ms", 1_000.0);
    Ok(())
}

/// A network namespace, and a pair of interfaces that is its cable. Removed when this is dropped.
struct Machine {
    name: String,
    /// This machine's end of the cable, and the namespace's.
    ends: [String; 2],
    /// This machine's address on the cable.
    here: Ipv4Addr,
    directory: tempfile::TempDir,
}

impl Machine {
    async fn make(index: u8) -> Result<Self> {
        let own = std::process::id();
        let name = format!("core-machine-{own}-{index}");
        // Names of interfaces have 15 characters at most.
        let (left, there) = (format!("cm{own}h{index}"), format!("cm{own}t{index}"));
        // From the range for tests of networks (RFC 2544): nobody else's.
        let third = u8::try_from(own % 256)?;
        let here = Ipv4Addr::new(198, 18, third, 4 * index + 1);
        let address = Ipv4Addr::new(198, 18, third, 4 * index + 2);
        ip(&["netns", "add", &name]).await?;
        let machine = Self {
            name,
            ends: [left, there],
            here,
            directory: tempfile::tempdir().context("a directory")?,
        };
        let (name, [left, there]) = (&machine.name, &machine.ends);
        let (own_end, its_end) = (format!("{here}/30"), format!("{address}/30"));
        let veth = [
            "link", "add", left, "type", "veth", "peer", "name", there, "netns", name,
        ];
        ip(&veth).await?;
        ip(&["address", "add", &own_end, "dev", left]).await?;
        ip(&["link", "set", left, "up"]).await?;
        ip(&["-n", name, "address", "add", &its_end, "dev", there]).await?;
        ip(&["-n", name, "link", "set", "lo", "up"]).await?;
        machine.cable("up").await?;
        Ok(machine)
    }

    /// `up` or `down`.
    async fn cable(&self, how: &str) -> Result<()> {
        ip(&["-n", &self.name, "link", "set", &self.ends[1], how]).await?;
        if how == "up" {
            // All of this machine's addresses are behind the cable; its route goes with it.
            let here = self.here.to_string();
            ip(&[
                "-n", &self.name, "route", "replace", "default", "via", &here,
            ])
            .await?;
        }
        Ok(())
    }

    fn credentials(&self) -> String {
        self.directory
            .path()
            .join("credentials")
            .display()
            .to_string()
    }

    /// A program on this machine.
    fn program(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(program)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a program to its end.
    async fn runs(&self, program: &Path, arguments: &[&str]) -> Result<()> {
        let ran = self.program(program).args(arguments).output().await?;
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "{arguments:?}: {}", said.trim());
        Ok(())
    }

    /// Starts a peer with the credentials of this machine.
    fn plugin(&self, name: &str, environment: &[(&str, &str)]) -> Result<Child> {
        let mut command = self.program(&PathBuf::from(PLAYER));
        command
            .args(["peer", PACE, BASE])
            .env(env::CREDENTIALS_DIR, self.credentials())
            .env(env::PLUGIN, name)
            .envs(environment.iter().copied());
        command.spawn().context("a plugin")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The cable by itself: connections that a killed plugin left hold the namespace for minutes.
        // Whether all is gone nobody can be told here.
        for remove in [
            ["link", "delete", &self.ends[0]],
            ["netns", "delete", &self.name],
        ] {
            let mut ip = std::process::Command::new("ip");
            ip.args(remove).stderr(Stdio::null()).status().ok();
        }
    }
}

async fn ip(arguments: &[&str]) -> Result<()> {
    let ran = Command::new("ip").args(arguments).output().await;
    let ran = ran.context("ip (iproute2) is not installed")?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(
        ran.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        said.trim()
    );
    Ok(())
}
