//! What plugins write: kept, bounded, sent by remote plugins, more or less on request; and what is
//! kept of their crashes.

use std::time::Duration;

use core_proto::v1::{self, LogRecord};
use core_tests::{
    Client, CoreProcess, Declared, Hello, Outsider, RawPlugin, TestCore, Told, eventually, within,
};
use serde_json::json;
use tonic::{Code, Status};

use super::{CORE, ECHO, MISBEHAVING};

/// Lines that the fixture `floods` writes before it is ready.
const FLOOD_LINES: u64 = 20_000;

/// What is kept of a plugin's lines.
async fn logs(operator: &Client, name: &str) -> Vec<LogRecord> {
    let request = v1::PluginManagerLogsRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    let stream = operator.plugin_manager().logs(request).await;
    let mut stream = stream.expect("logs").into_inner();
    let mut records = Vec::new();
    let mut next = async || within("logs", stream.message()).await.expect("no error");
    while let Some(message) = next().await {
        records.extend(message.records);
    }
    records
}

/// The record with this text, as soon as it is kept.
async fn told(operator: &Client, name: &str, text: &str) -> LogRecord {
    let find = async || {
        let records = logs(operator, name).await;
        records.into_iter().find(|record| record.message == text)
    };
    eventually!(find().await.is_some(), "{name} never said {text:?}");
    find().await.expect("it is kept")
}

async fn set_level(operator: &Client, name: &str, level: Option<&str>) -> Result<String, Status> {
    let request = v1::PluginManagerSetLogLevelRequest {
        name: name.to_owned(),
        level: level.map(ToOwned::to_owned),
    };
    let answer = operator.plugin_manager().set_log_level(request).await?;
    Ok(answer.into_inner().level)
}

async fn push(
    client: &Client,
    batches: Vec<Vec<LogRecord>>,
) -> Result<v1::PluginManagerPushLogsResponse, Status> {
    let batches = batches
        .into_iter()
        .map(|records| v1::PluginManagerPushLogsRequest { records });
    let mut client = client.plugin_manager();
    let answer = client.push_logs(tokio_stream::iter(batches.collect::<Vec<_>>()));
    Ok(within("a push is answered", answer).await?.into_inner())
}

fn line(message: &str) -> LogRecord {
    LogRecord {
        message: message.to_owned(),
        level: "warn".to_owned(),
        fields: [("id".to_owned(), "7".to_owned())].into(),
        ..LogRecord::default()
    }
}

#[tokio::test]
async fn each_line_of_a_flood_is_kept_or_counted_and_the_count_is_told() {
    let flood = Declared::process("child", MISBEHAVING)
        .args(&["floods"])
        .by_hand();
    let core = TestCore::builder().plugin(flood).start().await;
    let operator = core.operator();
    let follow = v1::PluginManagerLogsRequest {
        name: "child".to_owned(),
        follow: true,
        ..Default::default()
    };
    let follower = operator.another_connection();
    let stream = follower.plugin_manager().logs(follow).await;
    let mut stream = stream.expect("logs").into_inner();
    operator.start("child").await.expect("started");
    // Kept, or missed by this reader (who is told), or suppressed: together they are all.
    let (mut kept, mut missed, mut suppressed) = (0, 0, 0);
    let number = |text: &str| text.split(' ').next().and_then(|word| word.parse().ok());
    while kept + missed + suppressed < FLOOD_LINES {
        let batch = within("lines", stream.message()).await;
        for record in batch.expect("no error").expect("it goes on").records {
            let text = record.message.as_str();
            let counted: u64 = number(text).unwrap_or(0);
            match record.stream.as_str() {
                "core" if text.contains("suppressed") => suppressed += counted,
                "core" => missed += counted,
                _ => kept += 1,
            }
        }
    }
    assert_eq!(kept + missed + suppressed, FLOOD_LINES);
    assert!(suppressed > FLOOD_LINES / 2, "{suppressed}");
    assert_eq!(
        operator.plugin("child").await.suppressed_lines,
        suppressed,
        "what is shown is what was said"
    );
    let last = logs(operator, "child").await.pop().expect("lines");
    assert_eq!(last.message, "line 19999 of far too many");
    core.shutdown().await;
}

#[tokio::test]
async fn a_remote_plugins_lines_are_kept_like_a_childs() {
    let core = TestCore::builder()
        .plugin(Declared::remote("far"))
        .plugin(Declared::process("near", ECHO))
        .start()
        .await;
    let operator = core.operator();
    let _far = Outsider::start(ECHO, &core.plugin_address(), core.token("far"), "far");
    for name in ["far", "near"] {
        operator.until_phase(name, "ready").await;
        let arguments = json!({ "level": "info", "text": "the lamp is on" });
        let called = operator.call(&format!("{name}.log"), arguments).await;
        called.expect("it logs");
        let record = told(operator, name, "the lamp is on").await;
        assert_eq!((record.level.as_str(), record.generation), ("info", 1));
        assert_eq!(record.stream, "stderr");
        let mut fields: Vec<_> = record.fields.keys().map(String::as_str).collect();
        fields.sort_unstable();
        let expected = ["call_id", "caller", "number", "service", "target"];
        assert_eq!(fields, expected, "{name}");
        assert_eq!(record.fields["number"], "7");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_pushes_its_own_lines_and_no_more_than_others_may_write() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready()).await;
    let lamp = lamp.expect("a channel");
    let answer = push(&lamp.client(), vec![vec![line("one")], vec![line("two")]]).await;
    let answer = answer.expect("taken");
    assert_eq!((answer.accepted, answer.suppressed), (2, 0));
    let record = told(operator, "lamp", "two").await;
    assert_eq!(
        (record.level.as_str(), record.fields["id"].as_str()),
        ("warn", "7")
    );
    let flood = vec![vec![line("x"); 2_000]; 2];
    let answer = push(&lamp.client(), flood).await.expect("taken");
    assert_eq!(answer.accepted + answer.suppressed, 4_000);
    assert!(answer.suppressed > 2_000, "{answer:?}");
    let shown = operator.plugin("lamp").await.suppressed_lines;
    assert_eq!(shown, answer.suppressed);
    core.shutdown().await;
}

#[tokio::test]
async fn nobody_else_pushes_lines() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .plugin(Declared::process("child", MISBEHAVING).args(&["environment"]))
        .start()
        .await;
    let operator = core.operator();
    let lines = || vec![vec![line("forged")]];
    let refused = push(operator, lines()).await.expect_err("an operator");
    Told::by(&refused).is(Code::PermissionDenied, "NOT_ALLOWED");
    let refused = push(&core.anonymous(), lines()).await.expect_err("nobody");
    Told::by(&refused).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    let refused = push(&core.remote("lamp"), lines()).await;
    let refused = refused.expect_err("no run yet");
    Told::by(&refused).is(Code::FailedPrecondition, "NO_RUN");
    // What a child writes is read anyway.
    operator.until_phase("child", "ready").await;
    let report = operator.call("child.report", json!({})).await;
    let report = report.expect("its environment");
    let token = report["variables"]["CORE_TOKEN"].as_str().expect("a token");
    let child = core.anonymous().with_token(token);
    let refused = push(&child, lines()).await.expect_err("a child");
    Told::by(&refused)
        .is(Code::PermissionDenied, "NOT_ALLOWED")
        .says("stdout and stderr");
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_logs_more_at_once_and_in_its_next_runs_until_it_is_set_back() {
    let core = TestCore::builder()
        .plugin(Declared::process("echo", ECHO))
        .plugin(Declared::embedded("inside"))
        .embed(core_tests::plugins::echo("inside"))
        .start()
        .await;
    let operator = core.operator();
    operator.until_phase("echo", "ready").await;
    let say = async |text: &str| {
        let arguments = json!({ "level": "debug", "text": text });
        let called = operator.call("echo.log", arguments).await;
        called.expect("it logs");
        // Whatever is said later is read later.
        let mark = format!("after {text}");
        let arguments = json!({ "level": "error", "text": mark });
        let called = operator.call("echo.log", arguments).await;
        called.expect("it logs");
        told(operator, "echo", &mark).await;
        let records = logs(operator, "echo").await;
        records.iter().any(|record| record.message == text)
    };
    assert!(!say("by default").await);
    let set = set_level(operator, "echo", Some("debug")).await;
    assert_eq!(set.expect("set"), "debug");
    // The wish and the call travel on one channel, in this order.
    assert!(say("with debug").await);
    assert_eq!(operator.plugin("echo").await.log_level, "debug");
    let request = v1::PluginManagerRestartRequest {
        name: "echo".to_owned(),
    };
    let again = operator.plugin_manager().restart(request).await;
    again.expect("another run");
    assert!(say("with debug in the next run").await);
    let asked = set_level(operator, "echo", None).await;
    assert_eq!(asked.expect("told"), "debug");
    let back = set_level(operator, "echo", Some("")).await;
    assert_eq!(back.expect("set back"), "");
    assert!(!say("by default again").await);

    for (name, level, code, reason) in [
        ("echo", "loud", Code::InvalidArgument, "BAD_FIELD"),
        ("ghost", "debug", Code::NotFound, "NO_SUCH_PLUGIN"),
        ("inside", "debug", Code::FailedPrecondition, "LOG_SHARED"),
        // This core is embedded in the test.
        ("core", "debug", Code::FailedPrecondition, "LOG_SHARED"),
    ] {
        let refused = set_level(operator, name, Some(level)).await;
        Told::by(&refused.expect_err(name)).is(code, reason);
    }
    core.shutdown().await;
}

#[tokio::test]
async fn the_cores_own_log_changes_its_level_while_it_runs() {
    let mut core = CoreProcess::new(CORE, "[log]\nfilter = \"info\"\nformat = \"json\"\n");
    let operator = core.start().await;
    let asked = set_level(&operator, "core", None).await;
    assert_eq!(asked.expect("told"), "info");
    // The refusal of a request is told at debug.
    let refuse = async || {
        let nobody = core.anonymous();
        let request = v1::PluginManagerListRequest::default();
        let refused = nobody.plugin_manager().list(request).await;
        refused.expect_err("nobody may");
    };
    let refusals = || core.log().matches("\"refused\"").count();
    refuse().await;
    assert_eq!(refusals(), 0);
    let filter = "info,core_server::grpc=debug";
    let set = set_level(&operator, "core", Some(filter)).await;
    assert_eq!(set.expect("set"), filter);
    refuse().await;
    eventually!(refusals() == 1, "{}", core.log());
    let bad = set_level(&operator, "core", Some("info,x=loud")).await;
    Told::by(&bad.expect_err("bad"))
        .is(Code::InvalidArgument, "BAD_FIELD")
        .says("x=loud");
    let back = set_level(&operator, "core", Some("")).await;
    assert_eq!(back.expect("set back"), "info");
    core.kill().await;
}

#[tokio::test]
async fn crashes_are_reported_kept_and_published() {
    let plugin = Declared::process("child", MISBEHAVING)
        .args(&["exit-at-start", "3"])
        .by_hand()
        .restart(|restart| {
            restart.backoff_base = Duration::from_millis(10);
            restart.max_failures = 3;
        });
    let core = TestCore::builder().plugin(plugin).start().await;
    let operator = core.operator();
    let mut news = operator
        .subscribe(&["core.plugin.crashed", "core.plugin.crash_loop"])
        .await;
    operator.start("child").await.expect_err("it crashes");
    operator.until_phase("child", "crash_loop").await;
    let child = operator.plugin("child").await;
    assert_eq!(child.failures, 3);
    assert_eq!(child.restart.expect("told").max_failures, 3);
    let generations: Vec<_> = child.crash_reports.iter().map(|it| it.generation).collect();
    assert_eq!(generations, [3, 2, 1], "newest first");
    for report in &child.crash_reports {
        assert_eq!(
            (report.reason.as_str(), report.config_revision),
            ("exited", 1)
        );
        let exit = report.exit.as_ref().expect("how it ended");
        assert_eq!((exit.code, exit.forced), (Some(3), false));
        assert_eq!(exit.last_lines, ["boom: it cannot go on"]);
    }
    for (generation, topic) in [
        (1, "core.plugin.crashed"),
        (2, "core.plugin.crashed"),
        (3, "core.plugin.crashed"),
        (3, "core.plugin.crash_loop"),
    ] {
        let event = news.event().await;
        assert_eq!(
            (event.topic.as_str(), event.subject.as_str()),
            (topic, "child")
        );
        let data: serde_json::Value = serde_json::from_slice(&event.data).expect("JSON");
        assert_eq!(data["generation"], generation);
        assert_eq!(data["config_revision"], 1);
        assert_eq!(data["last_exit"]["code"], 3);
        assert_eq!(
            data["last_exit"]["last_lines"],
            json!(["boom: it cannot go on"])
        );
    }
    let request = v1::PluginManagerListRequest::default();
    let list = operator.plugin_manager().list(request).await;
    let listed = list.expect("listed").into_inner().plugins;
    assert!(listed[0].crash_reports.is_empty(), "lists stay small");
    core.shutdown().await;
}
