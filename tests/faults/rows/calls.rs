//! 36, 37: callers that give up, and a provider that dies with a thousand calls.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::{self, CallResponse, RequestCancel, ServiceRegistryCallRequest};
use core_tests::{Client, Hello, RawPlugin, Told, patience, signal, within};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;

use crate::PLAYER;
use crate::home::{Home, QUICK, QUICK_NOTE, plugin};
use crate::measure::{percentile, worst};
use crate::report::Row;
use crate::stats::Stats;

const TOKENS: [(&str, &str); 3] = [
    ("CALLEE", "0123456789abcdef0123456789abcdef0123456789abcdef"),
    ("CALLER", "123456789abcdef0123456789abcdef0123456789abcdef0"),
    ("SECOND", "23456789abcdef0123456789abcdef0123456789abcdef01"),
];
/// Places of the callee.
const PLACES: u32 = 8;
/// Of each kind of giving up.
const ROUNDS: usize = 100;
/// Of those that take their time.
const DEADLINES: usize = 25;
const DEADLINE: Duration = Duration::from_millis(100);
/// No use to go on then.
const FAR_TOO_LATE: Duration = Duration::from_secs(2);

fn remote(name: &str, more: &str) -> String {
    let variable = name.to_uppercase();
    format!("[plugins.{name}]\nrun.kind = \"remote\"\ntoken_env = \"{variable}\"\n{more}")
}

fn call(timeout_id: &str) -> ServiceRegistryCallRequest {
    ServiceRegistryCallRequest {
        service: "callee.work".to_owned(),
        arguments: json!({ "id": timeout_id }).to_string().into(),
        ..Default::default()
    }
}

/// What the callee sees.
#[derive(Debug)]
enum Seen {
    Call(u64),
    Cancel(u64, Instant),
}

/// Plays the callee: never answers before it is told to cancel, and then only if it is to acknowledge.
fn play(mut callee: RawPlugin) -> (mpsc::Receiver<Seen>, mpsc::Sender<Answer>) {
    let (seen, sees) = mpsc::channel(4_096);
    let (tell, mut told) = mpsc::channel(4_096);
    tokio::spawn(async move {
        let mut acknowledges = true;
        loop {
            let frame = tokio::select! {
                frame = callee.next_or_silence(Duration::from_secs(3_600)) => frame,
                answer = told.recv() => match answer {
                    Some(Answer::Acknowledge(does)) => {
                        acknowledges = does;
                        continue;
                    }
                    Some(Answer::Late(call_id)) => {
                        callee.answer(call_id, json!("late")).await;
                        continue;
                    }
                    None => return,
                },
            };
            let at = Instant::now();
            let news = match frame {
                Some(Ok(FromCore::CallRequest(call))) => Seen::Call(call.call_id),
                Some(Ok(FromCore::CallCancel(cancel))) => {
                    if acknowledges {
                        let error = core_proto::google::rpc::Status {
                            code: Code::Cancelled.into(),
                            ..Default::default()
                        };
                        let response = CallResponse {
                            call_id: cancel.call_id,
                            error: Some(error),
                            ..Default::default()
                        };
                        callee.send(ToCore::CallResponse(response)).await;
                    }
                    Seen::Cancel(cancel.call_id, at)
                }
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            };
            if seen.send(news).await.is_err() {
                return;
            }
        }
    });
    (sees, tell)
}

/// What the callee is to do.
#[derive(Debug)]
enum Answer {
    /// Whether it answers what is cancelled.
    Acknowledge(bool),
    /// It answers now what was cancelled long ago.
    Late(u64),
}

struct Stage {
    home: Home,
    /// As the plugin `caller`.
    caller: Client,
    sees: mpsc::Receiver<Seen>,
    tell: mpsc::Sender<Answer>,
}

impl Stage {
    async fn set() -> Result<Self> {
        let may_call = "permissions.call = [\"callee.>\"]\n";
        let toml = remote("callee", "") + &remote("caller", may_call);
        let mut core = Home::prepare(&toml, &[]);
        for (name, token) in TOKENS {
            core = core.env(name, token);
        }
        let [callee, caller, _] = TOKENS.map(|(_, token)| core.anonymous().with_token(token));
        let home = Home::of(core).await;
        let mut hello = Hello::ready().services(&["callee.work"]);
        hello.0.max_calls_in_flight = PLACES;
        let callee = RawPlugin::open(&callee, hello).await;
        let (sees, tell) = play(callee.context("the callee is admitted")?);
        home.operator.until_phase("callee", "ready").await;
        Ok(Self {
            home,
            caller,
            sees,
            tell,
        })
    }

    async fn call_begins(&mut self) -> Result<u64> {
        match within("the callee sees something", self.sees.recv()).await {
            Some(Seen::Call(call_id)) => Ok(call_id),
            other => anyhow::bail!("a call is awaited, not {other:?}"),
        }
    }

    /// How long after `since` the callee is told.
    async fn cancelled(&mut self, call_id: u64, since: Instant) -> Result<Duration> {
        match within("the callee is told", self.sees.recv()).await {
            Some(Seen::Cancel(told, at)) if told == call_id => {
                let after = at.saturating_duration_since(since);
                // By the call's own deadline it is told in any case.
                ensure!(after < FAR_TOO_LATE, "the callee was told after {after:?}");
                Ok(after)
            }
            other => anyhow::bail!("a cancel of {call_id} is awaited, not {other:?}"),
        }
    }

    async fn leaked(&self) -> usize {
        leaked(&self.home.operator, "callee").await
    }
}

/// Waits until the core holds nothing of calls to a plugin: places, places in line, deadlines. How many
/// there are if that does not come.
async fn leaked(operator: &Client, provider: &str) -> usize {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let stats = Stats::of(operator).await;
        let entries = stats.pending_at(provider) + stats.get("calls_timers");
        if entries == 0 || Instant::now() > deadline {
            return usize::try_from(entries).unwrap_or(usize::MAX);
        }
        tokio::time::sleep(core_tests::POLL).await;
    }
}

pub(crate) async fn given_up(row: Row) -> Result<()> {
    let mut stage = Stage::set().await?;
    let mut told = BTreeMap::new();
    told.insert("unary call dropped", dropped(&mut stage).await?);
    told.insert("connection closed", connections(&mut stage).await?);
    told.insert("request withdrawn", withdrawn(&mut stage).await?);
    told.insert("calling plugin lost", channels(&mut stage).await?);
    told.insert("deadline of an RPC", expired(&mut stage).await?);
    told.insert("deadline of a frame", expired_frames(&mut stage).await?);
    let leaked = stage.leaked().await;
    row.exactly("leaked entries", leaked, "", 0);
    for (kind, samples) in &told {
        row.at_most(
            &format!("{kind}: callee told, worst of {}", samples.len()),
            worst(samples),
            "ms",
            50.0,
        );
    }
    let all: Vec<_> = told.into_values().flatten().collect();
    row.tell("callee told p50", percentile(&all, 50), "ms");
    in_line(&row, &mut stage).await?;
    never_acknowledged(&row, &mut stage).await?;
    row.exactly("leaked entries in the end", stage.leaked().await, "", 0);
    stage.home.stop(&row).await;
    Ok(())
}

async fn dropped(stage: &mut Stage) -> Result<Vec<Duration>> {
    let mut told = Vec::new();
    for _ in 0..ROUNDS {
        let client = stage.home.operator.clone();
        let calling = tokio::spawn(async move { client.call_as(call("")).await });
        let call_id = stage.call_begins().await?;
        let since = Instant::now();
        calling.abort();
        told.push(stage.cancelled(call_id, since).await?);
    }
    Ok(told)
}

async fn connections(stage: &mut Stage) -> Result<Vec<Duration>> {
    let mut told = Vec::new();
    for _ in 0..ROUNDS {
        // The call's task holds all there is of the connection.
        let client = stage.home.operator.another_connection();
        let calling = tokio::spawn(async move { client.call_as(call("")).await });
        let call_id = stage.call_begins().await?;
        let since = Instant::now();
        calling.abort();
        told.push(stage.cancelled(call_id, since).await?);
    }
    Ok(told)
}

async fn withdrawn(stage: &mut Stage) -> Result<Vec<Duration>> {
    let mut told = Vec::new();
    let mut caller = RawPlugin::open(&stage.caller, Hello::ready()).await?;
    for _ in 0..ROUNDS {
        let request_id = caller.send_request("ServiceRegistry/Call", &call("")).await;
        let call_id = stage.call_begins().await?;
        let since = Instant::now();
        let cancel = RequestCancel { request_id };
        caller.send(ToCore::RequestCancel(cancel)).await;
        told.push(stage.cancelled(call_id, since).await?);
        let answer = caller.response(request_id).await;
        let code = answer.error.map(|error| error.code);
        ensure!(code == Some(Code::Cancelled.into()), "answered {code:?}");
    }
    caller.bye("done").await;
    stage
        .home
        .operator
        .until_phase("caller", "connecting")
        .await;
    Ok(told)
}

async fn channels(stage: &mut Stage) -> Result<Vec<Duration>> {
    let mut told = Vec::new();
    let instance = [7; 16].as_slice();
    // Far fewer rounds: each is a new channel.
    for _ in 0..ROUNDS / 4 {
        let hello = Hello::ready().instance(instance);
        let connection = stage.caller.another_connection();
        let mut caller = RawPlugin::open(&connection, hello).await?;
        drop(connection);
        caller.send_request("ServiceRegistry/Call", &call("")).await;
        let call_id = stage.call_begins().await?;
        let since = Instant::now();
        drop(caller);
        told.push(stage.cancelled(call_id, since).await?);
    }
    Ok(told)
}

/// How late after its deadline the callee is told.
async fn expired(stage: &mut Stage) -> Result<Vec<Duration>> {
    let mut told = Vec::new();
    for _ in 0..DEADLINES {
        let client = stage.home.operator.clone();
        let deadline = Instant::now() + DEADLINE;
        let calling = tokio::spawn(async move {
            let mut request = tonic::Request::new(call(""));
            request.set_timeout(DEADLINE);
            client.call_as(request).await
        });
        let call_id = stage.call_begins().await?;
        told.push(stage.cancelled(call_id, deadline).await?);
        let status = calling.await?.expect_err("its time is over");
        // tonic's client has a timer of its own for the same moment, and calls that CANCELLED.
        let expected = [Code::DeadlineExceeded, Code::Cancelled];
        ensure!(expected.contains(&status.code()), "{status:?}");
    }
    Ok(told)
}

async fn expired_frames(stage: &mut Stage) -> Result<Vec<Duration>> {
    let mut told = Vec::new();
    let mut caller = RawPlugin::open(&stage.caller, Hello::ready().instance([8; 16].as_slice()));
    // The run of the lost channels ends first.
    let mut open = loop {
        match caller.await {
            Ok(open) => break open,
            Err(_) => tokio::time::sleep(core_tests::POLL * 10).await,
        }
        caller = RawPlugin::open(&stage.caller, Hello::ready().instance([8; 16].as_slice()));
    };
    for index in 0..DEADLINES {
        let request_id = 1_000 + u64::try_from(index)?;
        let request = v1::Request {
            request_id,
            method: "ServiceRegistry/Call".to_owned(),
            message: prost::Message::encode_to_vec(&call("")).into(),
            timeout: Some(DEADLINE.try_into()?),
            ..Default::default()
        };
        let deadline = Instant::now() + DEADLINE;
        open.send(ToCore::Request(request)).await;
        let call_id = stage.call_begins().await?;
        told.push(stage.cancelled(call_id, deadline).await?);
        let answer = open.response(request_id).await;
        let code = answer.error.map(|error| error.code);
        let expected = Some(Code::DeadlineExceeded.into());
        ensure!(code == expected, "answered {code:?}");
    }
    open.bye("done").await;
    Ok(told)
}

/// Who gives up while in line is never seen by the callee.
async fn in_line(row: &Row, stage: &mut Stage) -> Result<()> {
    let mut holding = JoinSet::new();
    let mut held = Vec::new();
    for _ in 0..PLACES {
        let client = stage.home.operator.clone();
        holding.spawn(async move { client.call_as(call("holds")).await });
        held.push(stage.call_begins().await?);
    }
    let mut waiting = JoinSet::new();
    for _ in 0..ROUNDS {
        let client = stage.home.operator.clone();
        waiting.spawn(async move { client.call_as(call("waits")).await });
    }
    let line = i64::try_from(ROUNDS)?;
    let waits = |stats: &Stats| stats.get_of("plugin_calls_waiting", "callee") == line;
    core_tests::eventually!(waits(&Stats::of(&stage.home.operator).await));
    waiting.shutdown().await;
    let line_is_empty = |stats: &Stats| stats.get_of("plugin_calls_waiting", "callee") == 0;
    core_tests::eventually!(line_is_empty(&Stats::of(&stage.home.operator).await));
    holding.shutdown().await;
    for _ in 0..PLACES {
        match within("the callee is told", stage.sees.recv()).await {
            Some(Seen::Cancel(call_id, _)) if held.contains(&call_id) => {}
            other => row.broken(format!("in line: the callee sees {other:?}")),
        }
    }
    row.exactly("in line: leaked entries", stage.leaked().await, "", 0);
    Ok(())
}

/// A callee that says nothing holds its places for 5 s; what it says then is dropped and counted.
async fn never_acknowledged(row: &Row, stage: &mut Stage) -> Result<()> {
    stage.tell.send(Answer::Acknowledge(false)).await?;
    let before = Stats::of(&stage.home.operator).await;
    let mut calling = JoinSet::new();
    let mut calls = Vec::new();
    for _ in 0..PLACES {
        let client = stage.home.operator.clone();
        calling.spawn(async move { client.call_as(call("")).await });
        calls.push(stage.call_begins().await?);
    }
    let since = Instant::now();
    calling.shutdown().await;
    let leaked = stage.leaked().await;
    row.between(
        "never acknowledged: places freed after",
        since.elapsed().as_secs_f64(),
        "s",
        4.9,
        6.0,
    );
    row.exactly("never acknowledged: leaked entries", leaked, "", 0);
    for call_id in &calls {
        stage.tell.send(Answer::Late(*call_id)).await?;
    }
    let dropped = "calls_answers_dropped_total";
    let expected = before.get(dropped) + i64::from(PLACES);
    let all_dropped = |stats: &Stats| stats.get(dropped) == expected;
    core_tests::eventually!(all_dropped(&Stats::of(&stage.home.operator).await));
    Ok(())
}

/// Calls of each kind that are pending when the provider dies: of two plugins, and RPCs.
const OF_EACH_PLUGIN: u64 = 400;
const UNARY: u64 = 200;
const CALLS: usize = 1_000;
/// After the answers: a second one would come by then.
const AFTERWARDS: Duration = Duration::from_secs(1);

pub(crate) async fn provider_killed(row: Row) -> Result<()> {
    row.note(QUICK_NOTE);
    let may_call = "permissions.call = [\"provider.>\"]\n";
    let toml = remote("caller", may_call) + &remote("second", may_call);
    let provider = plugin("provider", PLAYER, &["holds"]).sections(QUICK);
    let mut core = Home::prepare(&toml, &[provider]);
    for (name, token) in TOKENS {
        core = core.env(name, token);
    }
    let [_, caller, second] = TOKENS.map(|(_, token)| core.anonymous().with_token(token));
    let home = Home::of(core).await;
    let before = home.operator.until_phase("provider", "ready").await;

    let hold = |id: u64| ServiceRegistryCallRequest {
        service: "provider.hold".to_owned(),
        arguments: json!({ "id": id }).to_string().into(),
        ..Default::default()
    };
    let mut callers = JoinSet::new();
    let mut first = 0;
    for client in [caller, second] {
        let mut plugin = RawPlugin::open(&client, Hello::ready()).await?;
        let mut ids = BTreeSet::new();
        for id in first..first + OF_EACH_PLUGIN {
            ids.insert(plugin.send_request("ServiceRegistry/Call", &hold(id)).await);
        }
        first += OF_EACH_PLUGIN;
        callers.spawn(answers_of(plugin, ids));
    }
    let mut rpcs = JoinSet::new();
    let connections = [(); 2].map(|()| home.operator.another_connection());
    for (id, client) in (first..first + UNARY).zip(connections.iter().cycle()) {
        let client = client.clone();
        rpcs.spawn(async move { (client.call_as(hold(id)).await, Instant::now()) });
    }
    let begun = home.data_of("provider").join("begun");
    let read = || std::fs::read_to_string(&begun).unwrap_or_default();
    core_tests::eventually!(read().lines().count() == CALLS);
    let pending = Stats::of(&home.operator).await.pending_at("provider");
    row.require(
        pending == i64::try_from(CALLS)?,
        format!("{CALLS} calls are pending, not {pending}"),
    );

    let killed = Instant::now();
    signal(before.pid, Signal::KILL);
    let mut after = Vec::new();
    let mut answers: Vec<usize> = Vec::new();
    let mut wrong = BTreeMap::<String, u32>::new();
    while let Some(ended) = rpcs.join_next().await {
        let (answer, at) = ended?;
        after.push(at.saturating_duration_since(killed));
        answers.push(1);
        let told = answer.map_err(|status| Told::by(&status));
        let right = told.as_ref().is_err_and(|told| {
            (told.code, told.reason.as_str(), told.outcome.as_str())
                == (Code::Unavailable, "PROVIDER_LOST", "unknown")
        });
        if !right {
            *wrong.entry(format!("{told:?}")).or_default() += 1;
        }
    }
    while let Some(ended) = callers.join_next().await {
        let Answers {
            of_each,
            wrong: more,
        } = ended?;
        for times in of_each.into_values() {
            answers.push(times.len());
            after.extend(times.first().map(|at| at.saturating_duration_since(killed)));
        }
        wrong.extend(more);
    }
    row.at_most("answered, worst", worst(&after), "ms", 100.0);
    row.tell("answered p50", percentile(&after, 50), "ms");
    row.exactly("calls", answers.len(), "", CALLS);
    let once = answers.iter().filter(|count| **count == 1).count();
    row.exactly("answered exactly once", once, "", CALLS);
    row.require(
        wrong.is_empty(),
        format!("each is answered PROVIDER_LOST, outcome unknown: {wrong:?}"),
    );
    // It is not idempotent: nothing is tried again.
    home.ready_after("provider", before.generation).await;
    tokio::time::sleep(AFTERWARDS).await;
    row.exactly("calls begun", read().lines().count(), "", CALLS);
    let ids: BTreeSet<_> = read().lines().map(str::to_owned).collect();
    row.exactly("different calls begun", ids.len(), "", CALLS);
    // The core remembers for 3 s that the provider was suspended.
    let left = leaked(&home.operator, "provider").await;
    row.exactly("leaked entries", left, "", 0);
    home.stop(&row).await;
    Ok(())
}

struct Answers {
    /// By request: when each answer came.
    of_each: BTreeMap<u64, Vec<Instant>>,
    wrong: BTreeMap<String, u32>,
}

/// Reads answers until all are there, and for a while afterwards.
async fn answers_of(mut plugin: RawPlugin, ids: BTreeSet<u64>) -> Answers {
    let mut answers = Answers {
        of_each: ids.into_iter().map(|id| (id, Vec::new())).collect(),
        wrong: BTreeMap::new(),
    };
    let mut missing = answers.of_each.len();
    loop {
        let silence = if missing == 0 { AFTERWARDS } else { patience() };
        let Some(Ok(frame)) = plugin.next_or_silence(silence).await else {
            return answers;
        };
        let FromCore::Response(response) = frame else {
            continue;
        };
        let at = Instant::now();
        let times = answers.of_each.entry(response.request_id).or_default();
        missing -= usize::from(times.is_empty());
        times.push(at);
        let code = response.error.as_ref().map(|error| error.code);
        if code != Some(Code::Unavailable.into()) {
            *answers.wrong.entry(format!("{response:?}")).or_default() += 1;
        }
    }
}
