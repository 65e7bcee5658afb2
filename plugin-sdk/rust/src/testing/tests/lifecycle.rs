use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;

use crate::prelude::*;
use crate::testing::{Stage, TestRuntime};

/// What happened, in order.
#[derive(Clone, Default)]
struct Journal {
    lines: Arc<Mutex<Vec<&'static str>>>,
    written: Arc<Notify>,
}

impl Journal {
    fn write(&self, line: &'static str) {
        self.lines.lock().push(line);
        self.written.notify_one();
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.lines.lock())
    }

    async fn wait_for(&self, line: &'static str) {
        while !self.lines.lock().contains(&line) {
            self.written.notified().await;
        }
    }
}

struct Noisy(Journal);

struct Dropped(Journal);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.write("task dropped");
    }
}

#[plugin(name = "noisy")]
impl Noisy {
    #[on_load]
    async fn load(&self, ctx: &Ctx) -> Result {
        self.0.write("load");
        let journal = self.0.clone();
        ctx.spawn(async move {
            journal.write("spawned");
            Ok(())
        });
        Ok(())
    }
    #[on_start]
    async fn start(&self) -> Result {
        self.0.write("start");
        Ok(())
    }
    #[on_stop]
    async fn stop(&self) -> Result {
        self.0.write("stop");
        Ok(())
    }
    #[on_unload]
    fn unload(&self) -> Result {
        self.0.write("unload");
        Ok(())
    }
    #[task]
    async fn work(&self, ctx: &Ctx) -> Result {
        let _dropped = Dropped(self.0.clone());
        ctx.every(secs(3600), || async {
            self.0.write("tick");
            Ok(())
        })
        .await
    }
    #[service]
    async fn echo(&self, number: u8) -> Result<u8> {
        Ok(number)
    }
}

async fn noisy() -> (TestRuntime, Journal) {
    let journal = Journal::default();
    let core = TestRuntime::start(Noisy(journal.clone()))
        .await
        .expect("starts");
    journal.wait_for("tick").await;
    (core, journal)
}

#[tokio::test(start_paused = true)]
async fn hooks_and_tasks_run_in_the_order_of_a_life() {
    let (core, journal) = noisy().await;
    journal.wait_for("spawned").await;
    let mut begun = journal.take();
    assert_eq!(begun.drain(..2).collect::<Vec<_>>(), ["load", "start"]);
    begun.sort_unstable();
    assert_eq!(begun, ["spawned", "tick"]);
    core.stop().await.expect("stops");
    assert_eq!(journal.take(), ["task dropped", "stop"]);
    let error = core
        .call::<u8>("noisy.echo", &1)
        .await
        .expect_err("stopped");
    assert_eq!(error.reason(), "NO_PROVIDER");
    core.start_again().await.expect("starts");
    journal.wait_for("tick").await;
    assert_eq!(journal.take(), ["start", "tick"]);
    core.shutdown().await.expect("ends cleanly");
    assert_eq!(journal.take(), ["task dropped", "stop", "unload"]);
}

#[tokio::test(start_paused = true)]
async fn periodic_work_follows_virtual_time() {
    let (core, journal) = noisy().await;
    journal.take();
    tokio::time::sleep(secs(3 * 3600 + 1)).await;
    assert_eq!(journal.take(), ["tick"; 3]);
    core.ping().await.expect("alive");
}

#[tokio::test(start_paused = true)]
async fn an_unloaded_plugin_waits_to_be_wanted_again() {
    let (core, journal) = noisy().await;
    journal.wait_for("spawned").await;
    journal.take();
    core.unload().await.expect("unloads");
    assert_eq!(journal.take(), ["task dropped", "stop", "unload"]);
    assert_eq!(core.stage(), Stage::Unloaded);
    core.start_again().await.expect("wanted");
    journal.wait_for("spawned").await;
    let begun = journal.take();
    assert_eq!(begun[..2], ["load", "start"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_channel_resumes_the_run_and_declares_nothing_again() {
    let (core, journal) = noisy().await;
    journal.wait_for("spawned").await;
    journal.take();
    core.disconnect();
    // The call waits for the channel that comes back.
    let answer: u8 = core.call("noisy.echo", &7).await.expect("back");
    assert_eq!(answer, 7);
    assert_eq!(journal.take(), [""; 0], "no hook, no task");
    let hellos = core.core.desk.lock().hellos.clone();
    assert_eq!(hellos.len(), 2);
    assert_eq!(hellos[0].instance, hellos[1].instance);
    assert_eq!(hellos[0].instance.len(), 16);
    assert_eq!(core.core.desk.lock().generation, 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_run_ends_the_old_one_and_declares_everything_again() {
    let (core, journal) = noisy().await;
    journal.wait_for("spawned").await;
    journal.take();
    core.restart_core();
    core.started().await.expect("again");
    journal.wait_for("spawned").await;
    let lines = journal.take();
    assert_eq!(
        lines[..5],
        ["task dropped", "stop", "unload", "load", "start"]
    );
    assert_eq!(
        core.call::<u8>("noisy.echo", &7).await.expect("registered"),
        7
    );
    assert_eq!(core.core.desk.lock().generation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_was_done_is_not_run_twice() {
    let (core, journal) = noisy().await;
    journal.wait_for("spawned").await;
    journal.take();
    core.repeat_load().await.expect("answered");
    assert_eq!(journal.take(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn frames_of_unknown_kinds_are_ignored() {
    let (core, _) = noisy().await;
    core.send_unknown_frame().await.expect("sent");
    core.ping().await.expect("alive");
    assert_eq!(core.call::<u8>("noisy.echo", &7).await.expect("alive"), 7);
    assert_eq!(core.core.desk.lock().hellos.len(), 1, "on the same channel");
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_the_core_knows_by_another_name_takes_that_name() {
    let plugin = Noisy(Journal::default());
    let core = TestRuntime::connect_as("noisy-2", plugin, &json!({})).expect("JSON");
    core.started().await.expect("starts");
    let mut answer = core.call::<u8>("noisy-2.echo", &7).await;
    while answer
        .as_ref()
        .is_err_and(|error| error.reason() == "NO_SUCH_SERVICE")
    {
        // The registration may still be on its way; a ping comes back after it.
        core.ping().await.expect("alive");
        answer = core.call("noisy-2.echo", &7).await;
    }
    assert_eq!(answer.expect("registered"), 7);
}

#[tokio::test(start_paused = true)]
async fn an_absent_core_is_tried_for_ever() {
    let (core, _) = noisy().await;
    core.go_offline();
    tokio::time::sleep(secs(7200)).await;
    core.go_online();
    assert_eq!(
        core.call::<u8>("noisy.echo", &7).await.expect("it is back"),
        7
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_says_why() {
    let plugin = Plugin::builder("sad")
        .on_load(|_| async { Err(Error::failed_precondition("no bus").with_reason("NO_BUS")) });
    let error = TestRuntime::start(plugin).await.expect_err("it fails");
    assert_eq!(
        (error.code(), error.reason()),
        (Code::FailedPrecondition, "NO_BUS")
    );
    let plugin = Plugin::builder("sad").on_start(|_| async { panic!("no") });
    let error = TestRuntime::start(plugin).await.expect_err("it fails");
    assert_eq!(error.reason(), "PANIC");
}

#[derive(Deserialize)]
struct LampConfig {
    port: u16,
}

#[tokio::test(start_paused = true)]
async fn the_configuration_is_checked_before_the_first_hook() {
    let configured = || {
        Plugin::builder("configured")
            .config::<LampConfig>()
            .on_load(|ctx| async move {
                ctx.storage()
                    .set("port", &ctx.config::<LampConfig>()?.port)
                    .await?;
                Ok(())
            })
    };
    let core = TestRuntime::start_with_config(configured(), &json!({ "port": 80 })).await;
    assert_eq!(
        core.expect("fits").stored("configured", "port"),
        Some(json!(80))
    );
    let error = TestRuntime::start_with_config(configured(), &json!({ "port": "x" })).await;
    let error = error.expect_err("no number");
    assert_eq!(error.reason(), "BAD_CONFIG");
    assert_eq!(error.metadata("field"), Some("port"));
}

struct Live;

#[plugin(name = "live", config = LampConfig)]
impl Live {
    #[on_config]
    async fn changed(&self, ctx: &Ctx, config: LampConfig) -> Result {
        let before = ctx.config::<LampConfig>()?.port;
        match config.port {
            1 => Err(Error::failed_precondition("port 1 is taken")),
            2 => Err(Error::restart_needed("the socket stays open")),
            port => ctx.storage().set("ports", &[before, port]).await.map(drop),
        }
    }

    #[service]
    async fn port(&self, ctx: &Ctx) -> Result<u16> {
        Ok(ctx.config::<LampConfig>()?.port)
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_configuration_is_taken_rejected_or_wants_a_restart() {
    let core = TestRuntime::start_with_config(Live, &json!({ "port": 80 })).await;
    let core = core.expect("started");
    let port = async || core.call::<u16>("live.port", &()).await.expect("a port");
    core.change_config(&json!({ "port": 81 }))
        .await
        .expect("taken");
    assert_eq!(core.stored("live", "ports"), Some(json!([80, 81])));
    assert_eq!(port().await, 81);
    for (config, reason, text) in [
        (json!({ "port": 1 }), "CONFIG_REJECTED", "port 1 is taken"),
        (
            json!({ "port": 2 }),
            "RESTART_NEEDED",
            "the socket stays open",
        ),
        (json!({ "port": "x" }), "CONFIG_REJECTED", "port"),
    ] {
        let error = core.change_config(&config).await.expect_err("not taken");
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.message().contains(text), "{error}");
        assert_eq!(port().await, 81, "the old one stays in force");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_hook_for_it_the_feature_is_not_announced() {
    let plugin = Plugin::builder("plain").config::<LampConfig>();
    let core = TestRuntime::start_with_config(plugin, &json!({ "port": 80 })).await;
    let core = core.expect("started");
    let error = core.change_config(&json!({ "port": 81 })).await;
    assert_eq!(error.expect_err("no hook").reason(), "RESTART_NEEDED");
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_comes_during_on_load_is_taken_after_it() {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inside, wait) = (Arc::clone(&entered), Arc::clone(&go));
    let (at_load, at_change) = (Arc::clone(&seen), Arc::clone(&seen));
    let plugin = Plugin::builder("slow")
        .on_load(move |ctx| {
            let (inside, wait, seen) = (inside.clone(), wait.clone(), at_load.clone());
            async move {
                inside.notify_one();
                wait.notified().await;
                seen.lock().push(ctx.config::<LampConfig>()?.port);
                Ok(())
            }
        })
        .on_config(move |_, config: LampConfig| {
            let seen = at_change.clone();
            async move {
                seen.lock().push(config.port);
                Ok(())
            }
        });
    let core = TestRuntime::connect(plugin, &json!({ "port": 80 })).expect("good");
    entered.notified().await;
    let changed = json!({ "port": 81 });
    let change = core.change_config(&changed);
    let (changed, ()) = tokio::join!(change, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        go.notify_one();
    });
    changed.expect("taken");
    assert_eq!(*seen.lock(), [80, 81]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_task_begins_again() {
    let tries = Arc::new(Mutex::new(0));
    let done = Arc::new(Notify::new());
    let (count, told) = (Arc::clone(&tries), Arc::clone(&done));
    let plugin = Plugin::builder("stubborn").task("try", move |_| {
        let (count, told) = (Arc::clone(&count), Arc::clone(&told));
        async move {
            *count.lock() += 1;
            let tries = *count.lock();
            match tries {
                1 => Err(Error::unavailable("not yet")),
                2 => panic!("not yet either"),
                _ => {
                    told.notify_one();
                    Ok(())
                }
            }
        }
    });
    let _core = TestRuntime::start(plugin).await.expect("starts");
    done.notified().await;
    assert_eq!(*tries.lock(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_child_or_embedded_plugin_ends_when_it_is_refused_for_good() {
    use core_proto::embed::{EmbeddedPlugin, Embedding};
    let plugin: Arc<dyn EmbeddedPlugin> = Noisy(Journal::default()).into();
    assert_eq!(plugin.name(), "noisy");
    let embedding = Embedding {
        token: "t".to_owned(),
        connect: Arc::new(|| Err(std::io::ErrorKind::ConnectionRefused.into())),
    };
    let began = tokio::time::Instant::now();
    plugin.run(embedding).await.expect_err("nobody is there");
    assert!(
        began.elapsed() >= secs(10) && began.elapsed() < secs(12),
        "{:?}",
        began.elapsed()
    );
}
