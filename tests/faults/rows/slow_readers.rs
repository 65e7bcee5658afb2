//! 26: small messages to somebody who does not read for a while.
//!
//! h2 charges small unread DATA frames to a budget of half the connection's window. With windows of the
//! contract a reader that rests keeps its connection; with 1 MiB for streams and connections alike it
//! loses it, which is played too, so that this row is known to bite.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use core_proto::contract::http2::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use core_proto::servers::plugin_channel_server::{PluginChannel, PluginChannelServer};
use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_channel_client::PluginChannelClient;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::{self, CoreMessage, PluginMessage};
use core_tests::{patience, signal};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustix::process::Signal;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::home::Home;
use crate::measure::count;
use crate::report::Row;

const MESSAGES: u64 = 100_000;
/// How long nothing is read.
const REST: Duration = Duration::from_secs(2);
/// Between two messages while nothing is read, so that each travels in a frame of its own, also from a slow
/// debug build.
const PACE: Duration = Duration::from_micros(400);

/// The log keeps all of them: a subscriber that rests misses none.
const TOML: &str = "[limits]\nevent_log_events = 262144\n\
                    [plugins.talker]\nrun.kind = \"remote\"\ntoken_env = \"TALKER_TOKEN\"\n\
                    [plugins.hasty]\nrun.kind = \"remote\"\ntoken_env = \"HASTY_TOKEN\"\n";
/// A plugin with the windows of the contract.
const TALKER: &str = "talker";
/// One with windows of 1 MiB.
const HASTY: &str = "hasty";

#[derive(Clone, Copy)]
struct Windows {
    stream: u32,
    connection: u32,
}

const CONTRACT: Windows = Windows {
    stream: STREAM_WINDOW_BYTES,
    connection: CONNECTION_WINDOW_BYTES,
};
const EQUAL: Windows = Windows {
    stream: 1 << 20,
    connection: 1 << 20,
};

pub(crate) async fn paused(row: Row) -> Result<()> {
    let core = Home::prepare(TOML, &[])
        .env("TALKER_TOKEN", &token(TALKER))
        .env("HASTY_TOKEN", &token(HASTY));
    let home = Home::of(core).await;
    let listening = Listener::begin(&home, CONTRACT).await?;
    let begin = Instant::now();
    let talked = talk(&home, TALKER, CONTRACT, Some(home.pid())).await;
    let took = begin.elapsed();
    row.exactly(
        "connections lost, to and from the core",
        usize::from(talked.is_err()),
        "",
        0,
    );
    let talked = talked.context("a plugin with the windows of the contract")?;
    let heard = listening.end(MESSAGES).await;
    let heard = heard.context("a subscriber with the windows of the contract")?;
    row.exactly("answers in order", talked, "", usize::try_from(MESSAGES)?);
    row.exactly("events in order", heard, "", usize::try_from(MESSAGES)?);
    row.tell("each way", count(talked) / took.as_secs_f64(), "messages/s");

    let bitten = talk(&home, HASTY, EQUAL, None).await;
    let why = bitten.as_ref().err().map(|error| format!("{error:#}"));
    let calm = why
        .as_ref()
        .is_some_and(|why| why.contains("too_many_data_frames"));
    row.require(
        calm,
        format!("1 MiB / 1 MiB windows lose a reader that rests; {why:?}"),
    );
    let directory = home.directory().join("servers");
    std::fs::create_dir_all(&directory).context("a directory")?;
    let kept = resting_server(&directory.join("contract"), CONTRACT).await;
    row.require(
        kept.is_ok(),
        format!("a server of the contract's windows keeps who talks: {kept:?}"),
    );
    let lost = resting_server(&directory.join("equal"), EQUAL).await;
    row.require(
        lost.is_err(),
        format!("a server of 1 MiB / 1 MiB loses who talks: {lost:?}"),
    );
    home.stop(&row).await;
    Ok(())
}

async fn connect(socket: &Path, windows: Windows) -> Result<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://core")
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection);
    endpoint
        .connect_with_connector(connector)
        .await
        .context("connects")
}

fn token(name: &str) -> String {
    format!("0123456789abcdef-of-{name}")
}

/// 40 bytes that say their place.
fn data(number: u64) -> String {
    format!("\"{number:038}\"")
}

fn publish(name: &str, number: u64) -> PluginMessage {
    let event = v1::NewEvent {
        topic: format!("{name}.tick"),
        data: data(number).into(),
        ..Default::default()
    };
    let message = v1::EventBusPublishRequest { event: Some(event) };
    PluginMessage {
        message: Some(ToCore::Request(v1::Request {
            request_id: number + 1,
            method: "EventBus/Publish".to_owned(),
            message: message.encode_to_vec().into(),
            ..Default::default()
        })),
    }
}

/// Publishes all messages over a channel whose answers are not read at first; stops the core for as long
/// in the middle. Returns how many answers came in order.
async fn talk(home: &Home, name: &str, windows: Windows, stops: Option<u32>) -> Result<usize> {
    let channel = connect(&home.directory().join("data/run/core.sock"), windows).await?;
    let (sender, receiver) = mpsc::channel(1_024);
    let hello = v1::Hello {
        ready: true,
        ..Default::default()
    };
    sender
        .send(PluginMessage {
            message: Some(ToCore::Hello(hello)),
        })
        .await?;
    let mut opening = Request::new(ReceiverStream::new(receiver));
    let token = format!("Bearer {}", token(name)).parse().context("ASCII")?;
    opening.metadata_mut().insert("authorization", token);
    let mut frames = PluginChannelClient::new(channel)
        .open(opening)
        .await?
        .into_inner();
    let welcome = frames.message().await?.and_then(|first| first.message);
    ensure!(matches!(welcome, Some(FromCore::Welcome(_))), "{welcome:?}");
    home.operator.until_phase(name, "ready").await;

    let rest = Instant::now() + REST;
    let mut sent = 0;
    while Instant::now() < rest {
        let next = Instant::now() + PACE;
        if sender.send(publish(name, sent)).await.is_err() {
            // Why, is told to whoever reads.
            break;
        }
        sent += 1;
        while Instant::now() < next {
            tokio::task::yield_now().await;
        }
    }
    let name = name.to_owned();
    let sending = tokio::spawn(async move {
        for number in sent..MESSAGES {
            if let Some(pid) = stops.filter(|_| number == MESSAGES / 2) {
                signal(pid, Signal::STOP);
                tokio::spawn(async move {
                    tokio::time::sleep(REST).await;
                    signal(pid, Signal::CONT);
                });
            }
            sender.send(publish(&name, number)).await.ok()?;
        }
        Some(sender)
    });
    let (mut answers, mut last_seq) = (0, 0);
    while answers < MESSAGES {
        let next = tokio::time::timeout(patience(), frames.message())
            .await
            .context("an answer")?;
        let Some(FromCore::Response(answer)) = next?.context("the end")?.message else {
            continue;
        };
        answers += 1;
        ensure!(
            answer.request_id == answers,
            "{} comes as {answers}",
            answer.request_id
        );
        ensure!(answer.error.is_none(), "{:?}", answer.error);
        let seq = v1::EventBusPublishResponse::decode(answer.message)?.seq;
        ensure!(seq > last_seq, "seq {seq} after {last_seq}");
        last_seq = seq;
    }
    drop(sending.await?);
    Ok(usize::try_from(answers)?)
}

/// A subscriber that rests before it reads.
struct Listener {
    reading: tokio::task::JoinHandle<Result<usize>>,
    goal: mpsc::Sender<u64>,
}

impl Listener {
    async fn begin(home: &Home, windows: Windows) -> Result<Self> {
        let socket = home.directory().join("data/run/operator.sock");
        let channel = connect(&socket, windows).await?;
        let mut client = v1::event_bus_client::EventBusClient::new(channel);
        let request = v1::EventBusSubscribeRequest {
            patterns: vec![format!("{TALKER}.tick")],
            ..Default::default()
        };
        let mut stream = client.subscribe(request).await?.into_inner();
        stream.message().await?.context("Subscribed")?;
        let (goal, mut ending) = mpsc::channel(1);
        let reading = tokio::spawn(async move {
            tokio::time::sleep(2 * REST).await;
            let mut heard = 0;
            let mut goal = u64::MAX;
            while heard < goal {
                tokio::select! {
                    told = ending.recv() => goal = told.context("a goal")?,
                    message = stream.message() => {
                        for event in message?.context("the end")?.events {
                            ensure!(event.data == data(heard), "{event:?} comes as {heard}");
                            heard += 1;
                        }
                    }
                }
            }
            Ok(usize::try_from(heard)?)
        });
        Ok(Self { reading, goal })
    }

    /// Waits until it has heard so many.
    async fn end(self, goal: u64) -> Result<usize> {
        self.goal.send(goal).await.ok();
        tokio::time::timeout(patience(), self.reading)
            .await
            .context("all events")??
    }
}

/// A server whose handler rests before it reads: somebody talks to it as plugins talk to the core.
async fn resting_server(socket: &PathBuf, windows: Windows) -> Result<()> {
    let listener = UnixListenerStream::new(UnixListener::bind(socket).context("listens")?);
    let read = Arc::<Mutex<usize>>::default();
    let resting = PluginChannelServer::new(Resting {
        read: Arc::clone(&read),
    });
    let serving = Server::builder()
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .add_service(resting)
        .serve_with_incoming(listener);
    let serving = tokio::spawn(serving);
    let talked = talk_to(socket).await;
    serving.abort();
    let sent = talked?;
    let read = *read.lock().expect("no panic inside");
    ensure!(read == sent, "{read} of {sent} were read");
    Ok(())
}

async fn talk_to(socket: &Path) -> Result<usize> {
    let channel = connect(socket, CONTRACT).await?;
    let (sender, receiver) = mpsc::channel(1_024);
    let mut client = PluginChannelClient::new(channel);
    let opened = client.open(ReceiverStream::new(receiver)).await;
    let mut frames = opened.context("opened")?.into_inner();
    let rest = Instant::now() + REST / 2;
    let mut sent = 0;
    while Instant::now() < rest {
        let next = Instant::now() + PACE;
        let message = PluginMessage {
            message: Some(ToCore::Pong(v1::Pong { nonce: 1 << 40 })),
        };
        // Where the window is used up nobody waits for it: it comes back after the rest.
        let taken = tokio::time::timeout(2 * REST, sender.send(message)).await;
        taken
            .context("the window")?
            .context("the channel is open")?;
        sent += 1;
        while Instant::now() < next {
            tokio::task::yield_now().await;
        }
    }
    drop(sender);
    // Answers nothing and ends when all was read.
    let end = tokio::time::timeout(patience(), frames.message())
        .await
        .context("an end")?;
    ensure!(
        end.context("the connection was lost")?.is_none(),
        "an answer"
    );
    Ok(sent)
}

struct Resting {
    read: Arc<Mutex<usize>>,
}

#[tonic::async_trait]
impl PluginChannel for Resting {
    type OpenStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<CoreMessage, Status>> + Send>>;

    async fn open(
        &self,
        request: Request<Streaming<PluginMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let mut messages = request.into_inner();
        let (sender, receiver) = mpsc::channel(1);
        let read = Arc::clone(&self.read);
        tokio::spawn(async move {
            tokio::time::sleep(REST).await;
            loop {
                match messages.message().await {
                    Ok(Some(_)) => *read.lock().expect("no panic inside") += 1,
                    Ok(None) => break,
                    Err(status) => {
                        sender.send(Err(status)).await.ok();
                        break;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
