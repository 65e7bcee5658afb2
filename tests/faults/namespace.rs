//! Other machines: network namespaces, each with a cable to this one that can be pulled, or be bad.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use core_proto::contract::env;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::{LINK, PLAYER};

/// A network namespace, and a pair of interfaces that is its cable. Removed when this is dropped.
pub(crate) struct Machine {
    name: String,
    /// This machine's end of the cable, and the namespace's.
    ends: [String; 2],
    /// This machine's address on the cable.
    pub(crate) here: Ipv4Addr,
    directory: tempfile::TempDir,
}

impl Machine {
    pub(crate) async fn make(index: u8) -> Result<Self> {
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
    pub(crate) async fn cable(&self, how: &str) -> Result<()> {
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

    /// Makes the cable a bad one, both ways: so many packets of a thousand are lost, and all others late.
    pub(crate) async fn worsen(
        &self,
        lost_per_mille: u64,
        delay_ms: u64,
        seed: u64,
    ) -> Result<BadCable> {
        let arguments = [lost_per_mille, delay_ms, seed].map(|number| number.to_string());
        let mut link = self.program(Path::new(LINK));
        link.args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut link = link.spawn()?;
        let says = link.stdout.take().context("its words")?;
        let mut cable = BadCable {
            link,
            says: BufReader::new(says),
        };
        let mut ready = String::new();
        cable.says.read_line(&mut ready).await?;
        ensure!(ready == "ready\n", "packets cannot be queued (NFQUEUE)");
        for (chain, interface) in [("INPUT", "-i"), ("OUTPUT", "-o")] {
            let rule = format!("-A {chain} ! {interface} lo -j NFQUEUE --queue-num 0");
            let rule: Vec<_> = rule.split(' ').collect();
            self.runs(Path::new("iptables"), &rule).await?;
        }
        Ok(cable)
    }

    pub(crate) fn credentials(&self) -> String {
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
    pub(crate) async fn runs(&self, program: &Path, arguments: &[&str]) -> Result<()> {
        let ran = self.program(program).args(arguments).output().await?;
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "{arguments:?}: {}", said.trim());
        Ok(())
    }

    /// Starts a peer with the credentials of this machine; `with` are its arguments.
    pub(crate) fn plugin(
        &self,
        name: &str,
        with: [&str; 2],
        environment: &[(&str, &str)],
    ) -> Result<Child> {
        let mut command = self.program(&PathBuf::from(PLAYER));
        command
            .arg("peer")
            .args(with)
            .env(env::CREDENTIALS_DIR, self.credentials())
            .env(env::PLUGIN, name)
            .envs(environment.iter().copied());
        command.spawn().context("a plugin")
    }
}

/// What makes a cable bad, while it is there; without it nothing passes.
pub(crate) struct BadCable {
    link: Child,
    says: BufReader<ChildStdout>,
}

impl BadCable {
    /// Ends it, and with it the cable: how many packets it saw, and how many it lost.
    pub(crate) async fn end(mut self) -> Result<(f64, f64)> {
        drop(self.link.stdin.take());
        let mut told = String::new();
        self.says.read_to_string(&mut told).await?;
        let (seen, lost) = told.trim().split_once(' ').context("two numbers")?;
        Ok((seen.parse()?, lost.parse()?))
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
