//! The servers that are measured: a core, and the peers, each in a directory of its own on free
//! loopback ports.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use plugin_sdk::client::{Address, Connection, Dialer};
use tempfile::TempDir;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::process::Server;

/// Longest wait until a server serves.
const START: Duration = Duration::from_secs(15);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(2);

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Where a program is that the distribution installs, or `None`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// How plugins reach a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Tcp,
    Unix,
}

/// A running core.
pub(crate) struct Core {
    server: Server,
    directory: TempDir,
    port: u16,
}

/// Plugins may do as much as they can: that is what is measured.
const NO_QUOTAS: &str = "
[quotas]
publishes_per_second = 0
publish_bytes_per_second = 0
calls_per_second = 0
storage_writes_per_second = 0
storage_write_bytes_per_second = 0
storage_reads_per_second = 0
state_writes_per_second = 0
subscriptions = 0
connections = 0
requests_in_flight = 0
";

/// What a core is started with.
#[derive(Default)]
pub(crate) struct CoreSetup {
    /// Remote plugins: name, and further lines of its table.
    pub(crate) remote: Vec<(String, String)>,
    /// Child plugins: name, and the text of its `plugin.toml`.
    pub(crate) children: Vec<(String, String)>,
    /// Further lines of `core.toml`, before the first table.
    pub(crate) top: String,
    /// Further tables of `core.toml`.
    pub(crate) tables: String,
}

impl CoreSetup {
    /// With a remote plugin.
    pub(crate) fn remote(mut self, name: &str, lines: &str) -> Self {
        self.remote.push((name.to_owned(), lines.to_owned()));
        self
    }
}

impl Core {
    /// Starts a core and waits until it serves.
    pub(crate) async fn start(binary: &Path, setup: &CoreSetup) -> Result<Self> {
        let core = Self::begin(binary, setup)?;
        core.until_serving().await?;
        Ok(core)
    }

    /// Starts a core.
    pub(crate) fn begin(binary: &Path, setup: &CoreSetup) -> Result<Self> {
        let directory = tempfile::tempdir().context("directory of a core")?;
        let port = free_port()?;
        let mut text = format!(
            "{}\nlisten.tcp = [\"127.0.0.1:{port}\"]\nlisten.runtime_dir = \"run\"\n",
            setup.top
        );
        text.push_str(&setup.tables);
        text.push_str(NO_QUOTAS);
        let mut environment = Vec::new();
        for (name, lines) in &setup.remote {
            let variable = token_variable(name);
            writeln!(
                text,
                "\n[plugins.{name}]\nrun.kind = \"remote\"\ntoken_env = \"{variable}\"\n{lines}"
            )?;
            environment.push((variable, token(name)));
        }
        let path = directory.path();
        std::fs::write(path.join("core.toml"), text)?;
        for (name, manifest) in &setup.children {
            let folder = path.join("plugins").join(name);
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("plugin.toml"), manifest)?;
        }
        let log = path.join("core.log");
        let server = Server::start(binary, ["run"], &environment, path, &log)?;
        Ok(Self {
            server,
            directory,
            port,
        })
    }

    /// Waits until health says SERVING; gives back when it first did.
    pub(crate) async fn until_serving(&self) -> Result<u64> {
        let deadline = tokio::time::Instant::now() + START;
        let dialer = Dialer::new(self.operator_address());
        loop {
            if let Ok(connection) = Connection::dial(&dialer, None).await {
                let request = HealthCheckRequest::default();
                let mut health = HealthClient::new(connection.authorized());
                let answer = health.check(request).await;
                if answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving) {
                    return Ok(crate::measure::now_ns());
                }
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the core does not serve: {}", self.log());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("core.log")).unwrap_or_default()
    }

    fn operator_address(&self) -> Address {
        Address::Unix(self.directory.path().join("run/operator.sock"))
    }

    /// A connection of an operator.
    pub(crate) async fn operator(&self) -> Result<Connection> {
        let dialer = Dialer::new(self.operator_address());
        Ok(Connection::dial(&dialer, None).await?)
    }

    /// What a plugin of this name finds in its environment.
    pub(crate) fn environment(&self, name: &str, via: Via) -> HashMap<String, String> {
        let address = match via {
            Via::Tcp => format!("127.0.0.1:{}", self.port),
            Via::Unix => {
                let socket = self.directory.path().join("run/core.sock");
                format!("unix:{}", socket.display())
            }
        };
        HashMap::from([
            ("CORE_ADDR".to_owned(), address),
            ("CORE_TOKEN".to_owned(), token(name)),
            ("CORE_PLUGIN".to_owned(), name.to_owned()),
        ])
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.server.stop().await
    }
}

fn token_variable(name: &str) -> String {
    format!("BENCH_TOKEN_{}", name.replace('-', "_").to_uppercase())
}

/// A token for this plugin: only this machine's loopback sees it, for the time of a measurement.
pub(crate) fn token(name: &str) -> String {
    format!("{name}-0123456789abcdef0123456789abcdef")
}

/// A running peer.
pub(crate) struct Peer {
    server: Server,
    _directory: TempDir,
    pub(crate) port: u16,
}

impl Peer {
    /// A nats-server as its package configures it. `None`: there is none.
    pub(crate) async fn nats() -> Result<Option<Self>> {
        let args = |port: u16, _: &Path| {
            vec![
                "-a".to_owned(),
                "127.0.0.1".to_owned(),
                "-p".to_owned(),
                port.to_string(),
            ]
        };
        Self::start("nats-server", args).await
    }

    /// A redis-server that answers a write once it is on disk. `None`: there is none.
    pub(crate) async fn redis() -> Result<Option<Self>> {
        let args = |port: u16, directory: &Path| {
            [
                "--bind",
                "127.0.0.1",
                "--port",
                &port.to_string(),
                "--dir",
                &directory.display().to_string(),
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
            ]
            .map(str::to_owned)
            .to_vec()
        };
        Self::start("redis-server", args).await
    }

    async fn start(name: &str, args: impl Fn(u16, &Path) -> Vec<String>) -> Result<Option<Self>> {
        let Some(program) = find_program(name) else {
            return Ok(None);
        };
        let directory = tempfile::tempdir().context("directory of a peer")?;
        let port = free_port()?;
        let log = directory.path().join("log");
        let args = args(port, directory.path());
        let server = Server::start(program, args, &[], directory.path(), &log)?;
        let deadline = tokio::time::Instant::now() + START;
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_err()
        {
            if tokio::time::Instant::now() > deadline {
                bail!("{name} does not serve: {}", std::fs::read_to_string(&log)?);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Some(Self {
            server,
            _directory: directory,
            port,
        }))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// What a role of this peer finds in its environment.
    pub(crate) fn environment(&self) -> HashMap<String, String> {
        HashMap::from([("PEER_ADDR".to_owned(), format!("127.0.0.1:{}", self.port))])
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.server.stop().await
    }
}
