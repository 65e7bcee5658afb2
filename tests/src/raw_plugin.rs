//! A plugin that a test plays by hand: it speaks frames, without an SDK, and can break every rule.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::run_hook::Hook;
use core_proto::v1::{self, CallRequest, CoreMessage, Response, RunHook, Welcome};
use prost::Message as _;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::client::Client;
use crate::frames::FrameCodec;
use crate::wait::within;

/// Frames that wait to be sent. A test that sends more without reading blocks, which no test does.
const OUTBOX: usize = 4_096;

/// What a plugin says first; the knobs of a [`v1::Hello`].
#[derive(Clone, Debug)]
pub struct Hello(pub v1::Hello);

impl Hello {
    /// A minimal plugin's: `ready`, no services, an instance of its own.
    #[must_use]
    pub fn ready() -> Self {
        Self(v1::Hello {
            ready: true,
            instance: instance(),
            sdk_name: "raw".to_owned(),
            ..Default::default()
        })
    }

    /// One with hooks.
    #[must_use]
    pub fn with_hooks() -> Self {
        let mut hello = Self::ready();
        hello.0.ready = false;
        hello
    }

    /// With these services, by full name.
    #[must_use]
    pub fn services(mut self, names: &[&str]) -> Self {
        let described = names.iter().map(|&name| v1::ServiceDescription {
            name: name.to_owned(),
            ..Default::default()
        });
        self.0.services.extend(described);
        self
    }

    /// With this feature.
    #[must_use]
    pub fn feature(mut self, feature: &str) -> Self {
        self.0.features.push(feature.to_owned());
        self
    }

    /// With this instance.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<Bytes>) -> Self {
        self.0.instance = instance.into();
        self
    }

    /// With this range of wire versions.
    #[must_use]
    pub fn wire(mut self, min: u32, max: u32) -> Self {
        (self.0.wire_version_min, self.0.wire_version_max) = (min, max);
        self
    }
}

/// 16 bytes that no other call in any process gives.
fn instance() -> Bytes {
    use std::hash::{BuildHasher as _, RandomState};
    let half = || RandomState::new().hash_one(0).to_le_bytes();
    [half(), half()].concat().into()
}

/// An open channel.
#[derive(Debug)]
pub struct RawPlugin {
    client: Client,
    sender: mpsc::Sender<Bytes>,
    frames: Streaming<CoreMessage>,
    waiting: VecDeque<FromCore>,
    next_request: u64,
    /// Heartbeats are answered without being asked; else they are frames like others.
    pub answers_pings: bool,
    /// What the core said first.
    pub welcome: Welcome,
}

impl RawPlugin {
    /// Opens a channel and reads the `Welcome`.
    ///
    /// # Errors
    /// The core's refusal.
    pub async fn open(client: &Client, hello: Hello) -> Result<Self, Status> {
        let hello = v1::PluginMessage {
            message: Some(ToCore::Hello(hello.0)),
        };
        Self::open_with(client, hello.encode_to_vec()).await
    }

    /// Opens a channel with any bytes as first message.
    ///
    /// # Errors
    /// The core's refusal.
    ///
    /// # Panics
    /// When the core answers with something else than `Welcome` or a refusal.
    pub async fn open_with(client: &Client, first: impl Into<Bytes>) -> Result<Self, Status> {
        let (sender, receiver) = mpsc::channel(OUTBOX);
        sender.try_send(first.into()).expect("room");
        let mut frames = Self::open_stream(client, ReceiverStream::new(receiver)).await?;
        let first = within("the core answers a Hello", frames.message()).await?;
        let first = first.and_then(|first| first.message);
        let Some(FromCore::Welcome(welcome)) = first else {
            panic!("the first message must be Welcome: {first:?}");
        };
        Ok(Self {
            client: client.clone(),
            sender,
            frames,
            waiting: VecDeque::new(),
            next_request: 1,
            answers_pings: true,
            welcome,
        })
    }

    /// Opens the stream alone, with whatever is sent on it.
    ///
    /// # Errors
    /// The core's refusal.
    ///
    /// # Panics
    /// When it cannot connect.
    pub async fn open_stream(
        client: &Client,
        frames: impl tokio_stream::Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<CoreMessage>, Status> {
        let mut grpc = tonic::client::Grpc::new(client.link());
        within("the core is reached", grpc.ready())
            .await
            .expect("connected");
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(
            "/coreruntime.v1.PluginChannel/Open",
        );
        let opened = grpc.streaming(tonic::Request::new(frames), path, FrameCodec);
        Ok(within("the channel opens or is refused", opened)
            .await?
            .into_inner())
    }

    /// A client with this plugin's credential that speaks for this run.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone().with_run(&self.welcome.run)
    }

    /// Sends any bytes as one frame.
    ///
    /// # Panics
    /// When the channel has ended.
    pub async fn send_bytes(&self, frame: impl Into<Bytes>) {
        let sent = within("a frame is taken", self.sender.send(frame.into())).await;
        sent.expect("an open channel");
    }

    /// Sends any bytes as one frame, if the channel is open.
    ///
    /// # Errors
    /// The channel has ended.
    pub async fn try_send_bytes(&self, frame: impl Into<Bytes>) -> Result<(), Status> {
        let sent = within("a frame is taken", self.sender.send(frame.into())).await;
        sent.map_err(|_| Status::ok("the channel ended"))
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// When the channel has ended.
    pub async fn send(&self, message: ToCore) {
        let message = v1::PluginMessage {
            message: Some(message),
        };
        self.send_bytes(message.encode_to_vec()).await;
    }

    /// Answers a call.
    pub async fn answer(&self, call_id: u64, result: Value) {
        let response = v1::CallResponse {
            call_id,
            result: result.to_string().into(),
            ..Default::default()
        };
        self.send(ToCore::CallResponse(response)).await;
    }

    /// Ends a hook, well.
    pub async fn hook_done(&self, hook: &RunHook) {
        let done = v1::HookDone {
            hook_id: hook.hook_id,
            error: None,
        };
        self.send(ToCore::HookDone(done)).await;
    }

    /// Says goodbye, if anybody still listens.
    pub async fn try_bye(&self, reason: &str) {
        let bye = ToCore::Bye(v1::Bye {
            reason: reason.to_owned(),
        });
        let frame = v1::PluginMessage { message: Some(bye) }.encode_to_vec();
        within("a frame is taken", self.sender.send(frame.into()))
            .await
            .ok();
    }

    /// Says goodbye.
    pub async fn bye(&self, reason: &str) {
        let bye = v1::Bye {
            reason: reason.to_owned(),
        };
        self.send(ToCore::Bye(bye)).await;
    }

    /// The next frame, answered `Ping`s aside.
    ///
    /// # Errors
    /// How the channel ended; `Ok` as code when it just ended.
    pub async fn next(&mut self) -> Result<FromCore, Status> {
        match self.waiting.pop_front() {
            Some(message) => Ok(message),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<FromCore, Status> {
        within("a frame arrives", self.frame()).await
    }

    async fn frame(&mut self) -> Result<FromCore, Status> {
        loop {
            let message = self.frames.message().await?;
            let Some(message) = message else {
                return Err(Status::ok("the channel ended"));
            };
            match message
                .message
                .expect("every frame of the core is of a known kind")
            {
                FromCore::Ping(ping) if self.answers_pings => {
                    let pong = ToCore::Pong(v1::Pong { nonce: ping.nonce });
                    let pong = v1::PluginMessage {
                        message: Some(pong),
                    }
                    .encode_to_vec();
                    // Closed by this side: then nobody waits for it.
                    self.sender.send(pong.into()).await.ok();
                }
                message => return Ok(message),
            }
        }
    }

    /// The next frame, or `None` when none comes for so long.
    pub async fn next_or_silence(&mut self, silence: Duration) -> Option<Result<FromCore, Status>> {
        if let Some(message) = self.waiting.pop_front() {
            return Some(Ok(message));
        }
        tokio::time::timeout(silence, self.frame()).await.ok()
    }

    /// The next call.
    ///
    /// # Panics
    /// When something else comes first.
    pub async fn expect_call(&mut self) -> CallRequest {
        match self.next().await {
            Ok(FromCore::CallRequest(call)) => call,
            other => panic!("a call is awaited, not {other:?}"),
        }
    }

    /// The next hook.
    ///
    /// # Panics
    /// When something else comes first.
    pub async fn expect_hook(&mut self, expected: Hook) -> RunHook {
        match self.next().await {
            Ok(FromCore::RunHook(hook)) if hook.hook() == expected => hook,
            other => panic!("{expected:?} is awaited, not {other:?}"),
        }
    }

    /// Does LOAD and START as the core asks.
    pub async fn go_through_start(&mut self) {
        for expected in [Hook::Load, Hook::Start] {
            let hook = self.expect_hook(expected).await;
            self.hook_done(&hook).await;
        }
    }

    /// Sends a `Request` frame and returns its id.
    pub async fn send_request(&mut self, method: &str, message: &impl prost::Message) -> u64 {
        self.send_encoded(method, message.encode_to_vec()).await
    }

    /// As [`Self::send_request`], of a message that is encoded already.
    pub async fn send_encoded(&mut self, method: &str, message: impl Into<Bytes>) -> u64 {
        let request_id = self.next_request;
        self.next_request += 1;
        let request = v1::Request {
            request_id,
            method: method.to_owned(),
            message: message.into(),
            ..Default::default()
        };
        self.send(ToCore::Request(request)).await;
        request_id
    }

    /// Waits for the answer to a `Request`; other frames keep their place.
    ///
    /// # Panics
    /// When the channel ends first.
    pub async fn response(&mut self, request_id: u64) -> Response {
        let is_answer = |message: &FromCore| matches!(message, FromCore::Response(response) if response.request_id == request_id);
        if let Some(place) = self.waiting.iter().position(is_answer)
            && let Some(FromCore::Response(response)) = self.waiting.remove(place)
        {
            return response;
        }
        loop {
            match self.read().await.expect("the answer to a request") {
                FromCore::Response(response) if response.request_id == request_id => {
                    return response;
                }
                other => self.waiting.push_back(other),
            }
        }
    }

    /// Sends a `Request` frame and reads the answer.
    ///
    /// # Errors
    /// The core's error, as a status.
    ///
    /// # Panics
    /// When the answer is not of the type expected.
    pub async fn request<A: prost::Message + Default>(
        &mut self,
        method: &str,
        message: &impl prost::Message,
    ) -> Result<A, core_proto::google::rpc::Status> {
        let request_id = self.send_request(method, message).await;
        let response = self.response(request_id).await;
        match response.error {
            Some(error) => Err(error),
            None => Ok(A::decode(response.message).expect("the method's response")),
        }
    }

    /// Closes the sending side and waits for the end of the channel.
    pub async fn close(mut self) -> Status {
        // Dropping the only sender ends the request stream.
        let (closed, _) = mpsc::channel(1);
        self.sender = closed;
        self.end().await
    }

    /// How the channel ends; frames before that are passed over.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}
