//! Another configuration, and other versions of plugins, while the core runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use core_server::config::{Config, Replaced, Upgrade, UpgradeSource};
use core_server::plugin_manager::{ChangeKind, Command, Kind, Manifest};
use core_server::types::PluginName;
use core_tests::{Declared, TestCore};
use plugin_sdk::prelude::{Ctx, Deserialize, Error, Plugin, Service};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{ECHO, MISBEHAVING};

#[derive(Deserialize)]
struct Thermostat {
    degrees: u32,
}

/// Takes configurations up to 30 degrees.
fn thermostat() -> Plugin {
    Plugin::builder("thermostat")
        .config::<Thermostat>()
        .on_config(|_: Ctx, config: Thermostat| async move {
            match config.degrees {
                0..=30 => Ok(()),
                _ => Err(Error::failed_precondition("too hot")),
            }
        })
        .service(
            Service::new("degrees")
                .handle(|ctx: Ctx, (): ()| async move { Ok(ctx.config::<Thermostat>()?.degrees) }),
        )
        .build()
}

fn name(text: &str) -> PluginName {
    PluginName::parse(text).expect("a good name")
}

#[tokio::test]
async fn a_plugin_with_on_config_takes_another_configuration_without_a_restart() {
    let configured = |core: &TestCore, degrees: u32| {
        let mut manifest = Manifest::new(name("thermostat"), Kind::Embedded);
        manifest.config.insert("degrees".to_owned(), json!(degrees));
        Config {
            plugins: vec![manifest],
            ..Config::for_tests(core.directory())
        }
    };
    let core = TestCore::builder()
        .plugin(Declared::embedded("thermostat").config(json!({ "degrees": 20 })))
        .embed(thermostat())
        .start()
        .await;
    core.operator().until_phase("thermostat", "ready").await;
    let runtime = core.runtime();
    let degrees = async || {
        runtime
            .call::<u32>("thermostat.degrees", &())
            .await
            .expect("answered")
    };
    for (asked, kind, answered) in [
        (21, ChangeKind::Reconfigured, 21),
        (99, ChangeKind::Rejected, 21),
        (22, ChangeKind::Reconfigured, 22),
    ] {
        let reloaded = runtime
            .reload(configured(&core, asked))
            .await
            .expect("reloaded");
        assert_eq!(reloaded.changes[0].kind, kind, "{reloaded:?}");
        assert_eq!(degrees().await, answered);
    }
    let info = runtime.plugin_manager().get("thermostat").expect("known");
    assert_eq!(info.generation.0, 1, "never restarted");
    core.shutdown().await;
}

/// Callers of `echo.say`, 200 calls a second, until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    answered: Arc<AtomicU32>,
    failed: Arc<AtomicU32>,
}

impl Load {
    const CALLERS: u64 = 20;

    fn begin(core: &TestCore) -> Self {
        let (stop, answered, failed) =
            <(Arc<AtomicBool>, Arc<AtomicU32>, Arc<AtomicU32>)>::default();
        let tasks = (0..Self::CALLERS).map(|caller| {
            let operator = core.operator().another_connection();
            let (stop, answered, failed) = (stop.clone(), answered.clone(), failed.clone());
            tokio::spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_millis(5 * Self::CALLERS));
                while !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let text = format!("from {caller}");
                    let answer: Result<Value, _> =
                        operator.call("echo.say", json!({ "text": text })).await;
                    match answer {
                        Ok(answer) => {
                            assert_eq!(answer["text"], text, "another call's answer");
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(_) => drop(failed.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            })
        });
        let tasks = tasks.collect();
        Self {
            stop,
            tasks,
            answered,
            failed,
        }
    }

    async fn end(self) -> (u32, u32) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no call hangs or gets another's answer");
        }
        (
            self.answered.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
        )
    }
}

fn version(core: &TestCore, version: &str, program: &str, args: &[&str]) -> Manifest {
    let command = Command {
        program: program.into(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: std::collections::BTreeMap::new(),
        pass_env: Vec::new(),
        working_dir: core.directory().join("data/plugins/echo"),
    };
    Manifest {
        version: version.to_owned(),
        ..Manifest::new(name("echo"), Kind::Process(command))
    }
}

#[tokio::test]
async fn upgrades_under_load_lose_no_call_when_good_and_go_back_when_bad() {
    let core = TestCore::builder()
        .plugin(Declared::process("echo", ECHO))
        .start()
        .await;
    core.operator().until_phase("echo", "ready").await;
    let manager = core.runtime().plugin_manager();
    let upgrade = async |manifest: Manifest| {
        let record = Upgrade {
            source: UpgradeSource::Program(ECHO.into()),
            replaces: Replaced::default(),
        };
        let deadline = Instant::now() + core_tests::patience();
        manager.upgrade(manifest, record, deadline).await
    };
    let load = Load::begin(&core);
    let info = upgrade(version(&core, "2", ECHO, &[])).await.expect("good");
    assert_eq!((info.version.as_str(), info.generation.0), ("2", 2));
    let (answered, failed) = load.end().await;
    assert!(answered > 0);
    assert_eq!(failed, 0, "of {answered} calls; callers wait in the gap");

    let load = Load::begin(&core);
    let bad = version(&core, "3", MISBEHAVING, &["exit-at-start", "3"]);
    let error = upgrade(bad).await.expect_err("it goes back");
    assert!(
        error.to_string().contains("the one before runs again"),
        "{error}"
    );
    let shown = core
        .operator()
        .until("echo", "the old version again", |plugin| {
            plugin.phase == "ready" && plugin.version == "2"
        })
        .await;
    assert_eq!(shown.reason, "upgrade_rolled_back");
    assert_eq!(shown.generation, 4, "taken back once");
    let (answered, failed) = load.end().await;
    assert!(answered > 0);
    assert_eq!(failed, 0, "of {answered} calls");
    core.shutdown().await;
}
