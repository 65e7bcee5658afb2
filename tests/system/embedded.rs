//! The core inside a program, with plugins in the same process.

use core_tests::{Declared, Scratch, TestCore, Told, eventually, plugins};
use plugin_sdk::prelude::{Ctx, Error, Plugin, Service};
use serde_json::{Value, json};
use tonic::Code;

#[tokio::test]
async fn a_program_calls_and_publishes_without_any_socket() {
    let core = TestCore::builder()
        .plugin(Declared::embedded("example").hears_scenes())
        .embed(plugins::echo("example"))
        .start()
        .await;
    core.operator().until_phase("example", "ready").await;
    let runtime = core.runtime();
    let answer: Value = runtime
        .call("example.say", &json!({ "text": "hello" }))
        .await
        .expect("answered");
    assert_eq!(answer["text"], "hello");
    assert_eq!(answer["caller"], "operator");
    runtime
        .publish("scene.test", &json!({ "n": 1 }))
        .expect("published");
    let heard = async || {
        runtime
            .call::<Value>("example.heard", &())
            .await
            .expect("answered")
    };
    eventually!(
        heard().await
            == json!([
                { "topic": "scene.test", "source": "operator", "data": { "n": 1 } }
            ])
    );
    let refused = runtime
        .call::<Value>("example.nothing", &())
        .await
        .expect_err("no such service");
    assert!(refused.to_string().contains("example.nothing"), "{refused}");
    runtime.publish("no topic", &1).expect_err("refused");
    core.shutdown().await;
}

#[tokio::test]
async fn a_program_does_not_start_its_core_on_half_a_home() {
    let home = Scratch::new();
    let data_dir = home.path().join("data");
    let configuration = home.write("core.toml", "");
    let place = || {
        let (data_dir, configuration) = (data_dir.clone(), configuration.clone());
        TestCore::builder().configure(move |config| {
            config.data_dir = data_dir;
            config.file = Some(configuration);
        })
    };
    let refused = async |why: &str| {
        let error = place().try_start().await.err().expect(why);
        let text = core_server::error::chain(&error);
        assert!(text.contains("home::finish"), "{text}");
        text
    };
    home.write("data/restoring/plan.json", "{}");
    let text = refused("half a home").await;
    assert!(text.contains(&data_dir.display().to_string()), "{text}");
    std::fs::remove_dir_all(data_dir.join("restoring")).expect("there");
    // Its configuration is to be another one, with another directory.
    let elsewhere = home.write("elsewhere/restoring/plan.json", "{}");
    let elsewhere = elsewhere.ancestors().nth(2).expect("above").to_owned();
    let mark = json!({ "data_dir": elsewhere }).to_string();
    home.write("core.toml.restore", &mark);
    let text = refused("half a home elsewhere").await;
    assert!(text.contains(&elsewhere.display().to_string()), "{text}");
    std::fs::remove_dir_all(elsewhere.join("restoring")).expect("there");
    place().start().await.shutdown().await;
}

#[tokio::test]
async fn an_embedded_plugin_needs_no_manifest() {
    let core = TestCore::builder()
        .embed(plugins::echo("example"))
        .start()
        .await;
    let info = core.operator().until_phase("example", "ready").await;
    assert_eq!((info.pid, info.version.as_str()), (0, "1.2.3"));
    assert!(info.sdk.starts_with("plugin-sdk-rust"), "{}", info.sdk);
    core.shutdown().await;
}

#[tokio::test]
async fn an_embedded_plugin_has_the_permissions_of_any_other() {
    let core = TestCore::builder()
        .embed(plugins::echo("example"))
        .start()
        .await;
    core.operator().until_phase("example", "ready").await;
    let emit = |topic: &str| json!({ "topic": topic, "data": 1 });
    let operator = core.operator();
    operator
        .call("example.emit", emit("example.own"))
        .await
        .expect("its own");
    let denied = operator
        .call("example.emit", emit("door.open"))
        .await
        .expect_err("another's");
    assert_eq!(Told::by(&denied).code, Code::PermissionDenied);
    core.shutdown().await;
}

#[tokio::test]
async fn an_embedded_plugin_is_stopped_started_and_loaded_anew_like_any_other() {
    let core = TestCore::builder()
        .embed(plugins::echo("example"))
        .start()
        .await;
    let operator = core.operator();
    operator.until_phase("example", "ready").await;
    operator.stop("example").await.expect("stopped");
    operator.start("example").await.expect("started");
    operator.unload("example").await.expect("unloaded");
    let again = operator.start("example").await.expect("started");
    assert_eq!(again.generation, 2);
    let answer = operator
        .call("example.say", json!({ "text": "again" }))
        .await
        .expect("answered");
    assert_eq!(answer["text"], "again");
    core.shutdown().await;
}

#[tokio::test]
async fn a_failing_start_of_an_embedded_plugin_ends_its_run_only() {
    let broken = Plugin::builder("broken")
        .on_start(|_: Ctx| async { Err(Error::failed_precondition("the lamp is broken")) })
        .service(Service::new("on").handle(|_: Ctx, (): ()| async { Ok(()) }))
        .build();
    let core = TestCore::builder()
        .embed(broken)
        .embed(plugins::echo("example"))
        .start()
        .await;
    let operator = core.operator();
    let failed = operator.until_phase("broken", "backoff").await;
    assert!(failed.message.contains("the lamp is broken"), "{failed:?}");
    operator.until_phase("example", "ready").await;
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_hears_of_its_dependencies_and_of_the_cores_end() {
    let (heard, mut news) = tokio::sync::mpsc::unbounded_channel::<String>();
    let listener = Plugin::builder("listener")
        .requires(["example"])
        .on_load(move |ctx: Ctx| {
            let heard = heard.clone();
            // No task of the plugin's: those end with its stop, which may come first.
            tokio::spawn(async move {
                let mut dependencies = ctx.dependencies();
                let say = |text: String| heard.send(text).expect("the test listens");
                say("begun".to_owned());
                loop {
                    tokio::select! {
                        change = dependencies.next() => match change {
                            Some(change) => say(format!("{} {}", change.name, change.available)),
                            None => return,
                        },
                        reason = ctx.going_away() => return say(format!("core: {reason}")),
                    }
                }
            });
            async { Ok(()) }
        })
        .build();
    let core = TestCore::builder()
        .embed(plugins::echo("example"))
        .embed(listener)
        .start()
        .await;
    let operator = core.operator();
    let mut next = async || core_tests::within("news", news.recv()).await.expect("news");
    assert_eq!(next().await, "begun");
    operator.stop("example").await.expect("stopped");
    assert_eq!(next().await, "example false");
    operator.start("example").await.expect("started");
    assert_eq!(next().await, "example true");
    core.shutdown().await;
    let last = next().await;
    assert!(last.starts_with("core: "), "{last}");
}
