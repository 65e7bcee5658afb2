//! The configuration read again by the real binary.

#[path = "binary/core.rs"]
mod core_process;

use core_process::{Core, PATIENCE};
use core_proto::v1;
use core_proto::v1::plugin_change::Kind;
use core_proto::v1::plugin_manager_client::PluginManagerClient;
use rustix::process::Signal;
use tokio::time::Instant;
use tonic::transport::Channel;

const CLEAN: i32 = 0;

/// A plugin that never opens a channel; long enough for a test.
fn sleeper(core: &Core, name: &str, seconds: u32) {
    core.write(
        &format!("plugins/{name}/plugin.toml"),
        &format!(
            "name = \"{name}\"\n[run]\ncommand = \"sleep\"\nargs = [\"{seconds}\"]\n\
             [timeouts]\nconnect = \"60s\"\nterm = \"200ms\"\n"
        ),
    );
}

struct Operator {
    manager: PluginManagerClient<Channel>,
}

impl Operator {
    async fn boot(core: &mut Core) -> Self {
        Self {
            manager: PluginManagerClient::new(core.boot().await),
        }
    }

    /// Name and process id of each plugin.
    async fn plugins(&mut self) -> Vec<(String, u32)> {
        let request = v1::PluginManagerListRequest::default();
        let answer = self.manager.list(request).await.expect("listed");
        let plugins = answer.into_inner().plugins.into_iter();
        plugins.map(|info| (info.name, info.pid)).collect()
    }

    async fn until(&mut self, what: impl Fn(&[(String, u32)]) -> bool) -> Vec<(String, u32)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let plugins = self.plugins().await;
            if what(&plugins) {
                return plugins;
            }
            assert!(Instant::now() < deadline, "it never came: {plugins:?}");
            // A file tells nobody that it has grown.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    async fn reload(&mut self) -> Result<v1::PluginManagerReloadResponse, tonic::Status> {
        let request = v1::PluginManagerReloadRequest::default();
        self.manager
            .reload(request)
            .await
            .map(tonic::Response::into_inner)
    }
}

fn pid(plugins: &[(String, u32)], name: &str) -> u32 {
    let found = plugins.iter().find(|(plugin, _)| plugin == name);
    found.map_or(0, |(_, pid)| *pid)
}

#[tokio::test]
async fn sighup_adds_removes_and_restarts_what_changed_and_leaves_the_rest() {
    let mut core = Core::new().env("RUNTIME_SHUTDOWN_TIMEOUT", "3");
    for name in ["same", "gone", "changed"] {
        sleeper(&core, name, 1_000);
    }
    let mut operator = Operator::boot(&mut core).await;
    let all_run = |plugins: &[(String, u32)]| plugins.iter().all(|(_, pid)| *pid != 0);
    let before = operator.until(all_run).await;
    std::fs::remove_dir_all(core.path("plugins/gone")).expect("removed");
    sleeper(&core, "changed", 1_001);
    sleeper(&core, "new", 1_000);
    core.signal(Signal::HUP);
    let gone = pid(&before, "gone");
    let after = operator
        .until(|plugins| {
            pid(plugins, "gone") == 0
                && pid(plugins, "new") != 0
                && ![0, pid(&before, "changed")].contains(&pid(plugins, "changed"))
        })
        .await;
    assert_eq!(pid(&after, "same"), pid(&before, "same"));
    operator
        .until(|plugins| plugins.iter().all(|(name, _)| name != "gone"))
        .await;
    assert!(!std::path::Path::new(&format!("/proc/{gone}")).exists());
    core.signal(Signal::TERM);
    let end = core.end();
    assert_eq!(end.code, Some(CLEAN), "{}{}", end.stdout, end.stderr);
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_why() {
    let mut core = Core::new().env("RUNTIME_SHUTDOWN_TIMEOUT", "3");
    sleeper(&core, "lamp", 1_000);
    let mut operator = Operator::boot(&mut core).await;
    let before = operator.until(|plugins| pid(plugins, "lamp") != 0).await;
    core.write("core.toml", "shutdwon_timeout = 5\n");
    sleeper(&core, "fan", 1_000);
    let refused = operator.reload().await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let reason = refused.metadata().get("core-reason").expect("a reason");
    assert_eq!(reason, "CONFIG_REFUSED");
    let told =
        "core.toml:1:1: unknown key \"shutdwon_timeout\"; did you mean \"shutdown_timeout\"?";
    assert!(refused.message().contains(told), "{}", refused.message());
    core.write("core.toml", "[listen]\ntcp = [\"127.0.0.1:0\"]\n");
    let reloaded = operator.reload().await.expect("good now");
    assert_eq!(reloaded.needs_restart, ["listen.tcp"]);
    assert_eq!(reloaded.unchanged, 1);
    let changes: Vec<_> = reloaded
        .changes
        .iter()
        .map(|change| (change.name.as_str(), change.kind()))
        .collect();
    assert_eq!(changes, [("fan", Kind::Added)]);
    let after = operator.until(|plugins| pid(plugins, "fan") != 0).await;
    assert_eq!(pid(&after, "lamp"), pid(&before, "lamp"));
    core.signal(Signal::TERM);
    let end = core.end();
    assert_eq!(end.code, Some(CLEAN));
}

#[tokio::test]
async fn exit_78_waits_for_another_configuration_and_a_reload_brings_it() {
    let mut core = Core::new().env("RUNTIME_SHUTDOWN_TIMEOUT", "3");
    let manifest = |code: u32| {
        format!(
            "name = \"picky\"\n[run]\ncommand = \"sh\"\nargs = [\"-c\", \"exit {code}\"]\n\
             [restart]\nmode = \"never\"\nmin_uptime = \"0s\"\n"
        )
    };
    core.write("plugins/picky/plugin.toml", &manifest(78));
    let mut operator = Operator::boot(&mut core).await;
    let mut phase = async |expected: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request = v1::PluginManagerGetRequest {
                name: "picky".to_owned(),
            };
            let answer = operator.manager.get(request).await.expect("known");
            let info = answer.into_inner().plugin.expect("a plugin");
            if info.phase == expected {
                return info.generation;
            }
            assert!(Instant::now() < deadline, "{info:?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    assert_eq!(phase("config_error").await, 1);
    core.write("plugins/picky/plugin.toml", &manifest(0));
    core.signal(Signal::HUP);
    assert_eq!(phase("completed").await, 2);
    core.signal(Signal::TERM);
    assert_eq!(core.end().code, Some(CLEAN));
}

#[tokio::test]
async fn the_audit_log_tells_what_a_reload_has_changed_by_name_and_who_asked() {
    let mut core = Core::new().env("RUNTIME_SHUTDOWN_TIMEOUT", "3");
    sleeper(&core, "lamp", 1_000);
    let mut operator = Operator::boot(&mut core).await;
    operator.until(|plugins| pid(plugins, "lamp") != 0).await;
    let secret = "hunter2-and-more-of-it";
    let told =
        || std::fs::read_to_string(core.path("data/security/audit.jsonl")).unwrap_or_default();
    let until = async |parts: &[&str]| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = told();
            let is_it = |line: &str| parts.iter().all(|part| line.contains(part));
            if all.lines().any(is_it) {
                return;
            }
            assert!(Instant::now() < deadline, "no {parts:?} in {all}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    // By a signal.
    let changed = format!(
        "[listen]\ntcp = [\"127.0.0.1:0\"]\n[quotas]\ncalls_per_second = 77\n\
         [plugins.lamp.config]\npassword = \"{secret}\"\n"
    );
    core.write("core.toml", &changed);
    sleeper(&core, "fan", 1_000);
    core.signal(Signal::HUP);
    let names = [
        "quotas.calls_per_second",
        "plugins.lamp.config.password",
        "plugins.fan (added)",
        "listen.tcp (at the next start)",
    ];
    let who = ["\"action\":\"reload\"", "\"operator\":\"SIGHUP\""];
    until(&[&who[..], &names, &["allowed"]].concat()).await;
    // Refused: by its place, never by what stands there.
    core.write("core.toml", &format!("{secret} = 5\n"));
    core.signal(Signal::HUP);
    until(&[&who[..], &["denied", "CONFIG_REFUSED", "core.toml:1:1"]].concat()).await;
    // By a request, whose name it bears.
    core.write("core.toml", "");
    operator.reload().await.expect("good again");
    let own = format!("uid {}", rustix::process::geteuid().as_raw());
    until(&[
        "\"action\":\"reload\"",
        &own,
        "\"request\":\"r",
        "quotas.calls_per_second",
    ])
    .await;
    assert!(!told().contains(secret), "{}", told());
    core.signal(Signal::TERM);
    assert_eq!(core.end().code, Some(CLEAN));
}
