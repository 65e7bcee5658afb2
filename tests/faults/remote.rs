//! Plugins elsewhere: processes that reach the core over TCP, each through a bad network of its own.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::{IntrospectionGetInfoRequest, PluginInfo, PluginState};
use core_tests::peer::Account;
use core_tests::{Client, Outsider, Proxy, within};
use serde_json::json;

use crate::PLAYER;
use crate::home::{Home, PluginFile};
use crate::report::Row;
use crate::stats::Stats;

/// As a home would set it that has bad networks: no crash loop, so that a plugin is awaited for ever.
pub(crate) const PATIENT: &str = "restart.max_failures = 0\nrestart.backoff_max = \"2s\"\n";

/// A peer (`core_tests::peer`) and the network between it and the core.
pub(crate) struct Remote {
    pub(crate) name: String,
    pub(crate) proxy: Proxy,
    arguments: [String; 3],
    process: Option<Outsider>,
}

/// What is declared of a remote peer.
pub(crate) struct Declared<'a> {
    pub(crate) name: &'a str,
    /// Whom it hears and calls.
    pub(crate) other: &'a str,
    pub(crate) pace: Duration,
}

/// A core with these plugins, which are not started yet.
pub(crate) async fn home(
    row: &Row,
    children: &[PluginFile],
    remotes: &[Declared<'_>],
) -> Result<(Home, Vec<Remote>)> {
    let mut toml = "[listen]\ntcp = [\"127.0.0.1:0\"]\n".to_owned();
    for Declared { name, other, .. } in remotes {
        write!(
            toml,
            "[plugins.{name}]\nrun.kind = \"remote\"\ntoken_env = \"{}\"\n{PATIENT}\
             permissions.subscribe = [\"{other}.>\"]\npermissions.call = [\"{other}.>\"]\n",
            variable(name)
        )?;
    }
    let mut core = Home::prepare(&toml, children);
    for Declared { name, .. } in remotes {
        core = core.env(&variable(name), &token(name));
    }
    let home = Home::of(core).await;
    let address = tcp_address(&home.operator).await?;
    let mut plugins = Vec::new();
    for (index, Declared { name, other, pace }) in remotes.iter().enumerate() {
        let seed = row.seed().wrapping_add(u64::try_from(index)?);
        plugins.push(Remote {
            name: (*name).to_owned(),
            proxy: Proxy::before(address, seed).await,
            arguments: [
                "peer".to_owned(),
                pace.as_millis().to_string(),
                (*other).to_owned(),
            ],
            process: None,
        });
    }
    Ok((home, plugins))
}

fn variable(name: &str) -> String {
    format!("TOKEN_OF_{}", name.to_uppercase())
}

fn token(name: &str) -> String {
    format!("{name:-<48}")
}

async fn tcp_address(operator: &Client) -> Result<SocketAddr> {
    let addresses = addresses(operator).await?;
    let mut addresses = addresses.iter();
    addresses
        .find_map(|address| address.parse().ok())
        .context("it listens on TCP")
}

/// Where the core listens, in its own words.
pub(crate) async fn addresses(operator: &Client) -> Result<Vec<String>> {
    let mut introspection = operator.introspection();
    let info = introspection.get_info(IntrospectionGetInfoRequest {}).await;
    let info = info.context("the core tells of itself")?;
    Ok(info.into_inner().addresses)
}

impl Remote {
    /// Starts its process.
    pub(crate) fn start(&mut self) {
        let arguments = self.arguments.each_ref().map(String::as_str);
        let (address, token) = (self.proxy.address().into(), token(&self.name));
        let process = Outsider::start_with(PLAYER, &arguments, &address, &token, &self.name);
        self.process = Some(process);
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("it was started").pid()
    }

    /// Calls it.
    pub(crate) async fn says(&self, operator: &Client, text: &str) -> bool {
        let service = format!("{}.say", self.name);
        let said = operator.call(&service, json!({ "text": text }));
        said.await.is_ok_and(|said| said == json!(text))
    }
}

/// What a peer has to say; asks until it does.
pub(crate) async fn account(operator: &Client, name: &str) -> Result<Account> {
    let service = format!("{name}.account");
    let asking = async {
        loop {
            match operator.call(&service, json!({})).await {
                Ok(account) => return account,
                Err(_) => tokio::time::sleep(core_tests::POLL).await,
            }
        }
    };
    let account = within("a peer tells", asking).await;
    serde_json::from_value(account).context("an account")
}

/// What must hold of every peer at the end: order, no loss but where it is stated, each call done and
/// answered once. Returns what was heard and answered.
pub(crate) fn check_account(row: &Row, name: &str, account: &Account) {
    for (what, found) in [
        ("heard wrongly", &account.heard.violations),
        ("answered wrongly", &account.answered_wrong),
    ] {
        row.require(found.is_empty(), format!("{name}: {what}: {found:?}"));
    }
    row.require(
        account.done_twice.is_empty(),
        format!("{name}: calls done twice: {:?}", account.done_twice),
    );
    row.require(
        account.hung == 0,
        format!("{name}: {} calls hung", account.hung),
    );
    // One may be in the moment of the look.
    let under_way = account.under_way();
    row.require(
        under_way <= 1,
        format!("{name}: {under_way} calls have no end: {account:?}"),
    );
    row.require(
        account.heard.events > 0 && account.answered > 0,
        format!("{name}: hears and is answered: {account:?}"),
    );
}

/// What was done twice or heard twice, of all.
pub(crate) fn duplicates(accounts: &[Account]) -> usize {
    let of_one = |account: &Account| {
        account.done_twice.len() + account.answered_wrong.len() + account.heard.violations.len()
    };
    accounts.iter().map(of_one).sum()
}

/// Nothing of the calls to these plugins is left in the core.
pub(crate) async fn nothing_pending(row: &Row, operator: &Client, names: &[&str]) {
    // Peers go on calling: in some moment there is none.
    let begin = tokio::time::Instant::now();
    for name in names {
        loop {
            let pending = Stats::of(operator).await.pending_at(name);
            if pending == 0 {
                break;
            }
            if begin.elapsed() > core_tests::patience() {
                row.broken(format!("{name}: {pending} calls are pending for ever"));
                break;
            }
            tokio::time::sleep(core_tests::POLL).await;
        }
    }
}

/// What a plugin has registered, sorted.
pub(crate) fn registered(plugin: &PluginInfo) -> (Vec<String>, Vec<String>) {
    let sorted = |list: &[String]| {
        let mut list = list.to_vec();
        list.sort();
        list
    };
    (sorted(&plugin.services), sorted(&plugin.subscriptions))
}

/// What is said of a plugin when it is not as it should be.
pub(crate) fn brief(plugin: &PluginInfo) -> String {
    let PluginInfo {
        name,
        generation,
        phase,
        reason,
        ..
    } = plugin;
    let (services, subscriptions) = registered(plugin);
    format!("{name}: run {generation}, {phase} {reason}, {services:?} {subscriptions:?}")
}

/// The run that this one was in is over.
pub(crate) fn has_ended(plugin: &PluginInfo, before: &PluginInfo) -> bool {
    plugin.generation > before.generation || plugin.state() == PluginState::Unloaded
}
