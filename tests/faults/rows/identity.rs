//! 24, 25: who a plugin is.

use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::{Client, Hello, RawPlugin, Told, patience, signal};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::MISBEHAVING;
use crate::home::{Home, QUICK, QUICK_NOTE, plugin};
use crate::measure::ms;
use crate::report::Row;

pub(crate) async fn stale_run(row: Row) -> Result<()> {
    row.note(QUICK_NOTE);
    let home = Home::start(&[plugin("lamp", MISBEHAVING, &["replays"]).sections(QUICK)]).await;
    let first = home.operator.until_phase("lamp", "ready").await;
    // Answered once its identity is on disk for the next run.
    home.operator
        .call("lamp.verdicts", json!({}))
        .await
        .context("the first run")?;
    signal(first.pid, Signal::KILL);
    home.ready_after("lamp", first.generation).await;
    let verdicts = home.operator.call("lamp.verdicts", json!({})).await;
    let verdicts = verdicts.context("the second run")?;
    let stale = "FailedPrecondition STALE_RUN";
    let unknown = "Unauthenticated";
    let mut accepted = 0;
    let mut tried = 0;
    let mut judge = |what: String, verdict: &Value, expected: &str| {
        let verdict = verdict.as_str().unwrap_or("nothing");
        tried += 1;
        accepted += usize::from(verdict == "accepted");
        row.require(
            verdict.starts_with(expected),
            format!("{what}: {expected}, not {verdict}"),
        );
    };
    let with = &verdicts["open with the old token"];
    judge("open with the old token".to_owned(), with, unknown);
    for (how, expected) in [
        ("old run", stale),
        ("old token", unknown),
        ("old token and run", unknown),
    ] {
        for what in ["publish", "state", "storage", "register"] {
            judge(format!("{how}: {what}"), &verdicts[how][what], expected);
        }
    }
    row.exactly("accepted", accepted, "", 0);
    row.tell("tried", f64::from(tried), "");
    let stored = home.operator.stored("lamp", "stale").await;
    row.require(
        stored.is_ok_and(|stored| stored.is_none()),
        "nothing was written",
    );
    let state = home.operator.state("lamp.stale").await;
    row.require(state.is_ok_and(|state| state.is_none()), "no state changed");
    home.stop(&row).await;
    Ok(())
}

pub(crate) async fn second_process(row: Row) -> Result<()> {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let toml = "[plugins.lamp]\nrun.kind = \"remote\"\ntoken_env = \"LAMP_TOKEN\"\n";
    let core = Home::prepare(toml, &[]).env("LAMP_TOKEN", TOKEN);
    let client = core.anonymous().with_token(TOKEN);
    let home = Home::of(core).await;
    let hello = || Hello::ready().services(&["lamp.on"]);
    let own = Hello::ready().0.instance;
    let mut first = open(&client, hello().instance(own.clone())).await?;
    let generation = home.operator.until_phase("lamp", "ready").await.generation;

    let mut refused = 0;
    let claims = [hello(), hello().instance("")];
    let tried = claims.len();
    for claim in claims {
        match RawPlugin::open(&client.another_connection(), claim).await {
            Ok(_) => row.broken("a second process was admitted"),
            Err(status) => {
                let told = Told::by(&status);
                let as_promised = told.code == tonic::Code::AlreadyExists && told.retry;
                row.require(
                    as_promised,
                    format!("ALREADY_EXISTS with RetryInfo, not {told:?}"),
                );
                refused += 1;
            }
        }
    }
    row.exactly("second processes refused", refused, "", tried);
    let answered = answer_one(&home.operator, &mut first).await;
    row.require(answered, "the first is unharmed");

    let begin = Instant::now();
    let mut again = open(&client.another_connection(), hello().instance(own)).await?;
    let replaced = begin.elapsed();
    row.at_most("own channel replaced after", ms(replaced), "ms", 1_000.0);
    let ended = tokio::time::timeout(patience(), first.end()).await;
    row.require(ended.is_ok(), "the old channel is ended");
    let answered = answer_one(&home.operator, &mut again).await;
    row.require(answered, "calls come over the new channel");
    let after = home.operator.plugin("lamp").await;
    row.require(
        after.generation == generation,
        format!("the same run, not {}", after.generation),
    );
    drop(again);
    home.stop(&row).await;
    Ok(())
}

async fn open(client: &Client, hello: Hello) -> Result<RawPlugin> {
    RawPlugin::open(client, hello).await.context("admitted")
}

/// Whether a call reaches the plugin over this channel, and its answer the caller.
async fn answer_one(operator: &Client, channel: &mut RawPlugin) -> bool {
    let call = operator.call("lamp.on", json!({}));
    let answering = async {
        let call = channel.expect_call().await;
        channel.answer(call.call_id, json!(true)).await;
    };
    let both = async { tokio::join!(call, answering).0 };
    matches!(
        tokio::time::timeout(Duration::from_secs(10), both).await,
        Ok(Ok(Value::Bool(true)))
    )
}
