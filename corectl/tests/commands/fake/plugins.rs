//! The fake's world and its servers for plugins, services and introspection.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use core_proto::contract::metadata;
use core_proto::google::rpc;
use core_proto::servers::plugin_manager_server::PluginManager;
use core_proto::servers::service_registry_server::ServiceRegistry;
use core_proto::v1::plugin_manager_watch_response::Item;
use core_proto::v1::*;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Answers, Shared, World, ago, matches, operators_only, page, plugin, refusal};

impl World {
    /// Three plugins: one as it should be, one in a crash loop, one that has not connected.
    pub(super) fn new() -> Self {
        use PluginState::{Started, Unloaded};
        let devices = PluginInfo {
            description: "Lamps and motion".to_owned(),
            generation: 3,
            restarts: 2,
            pid: 4711,
            sdk: "plugin-sdk-rust 0.1.0".to_owned(),
            services: vec!["devices.turn_on".to_owned(), "devices.fail".to_owned()],
            subscriptions: vec!["motion.>".to_owned()],
            wants: vec!["notifications".to_owned()],
            ..plugin("devices", Started, Started, "ready")
        };
        let automation = PluginInfo {
            reason: "exited".to_owned(),
            message: "exit code 3 after 2 s".to_owned(),
            requires: vec!["devices".to_owned()],
            failures: 8,
            next_attempt_at: Some((std::time::SystemTime::now() + Duration::from_secs(250)).into()),
            last_exit: Some(LastExit {
                code: Some(3),
                message: "exit code 3".to_owned(),
                at: Some(ago(60)),
                ran_for: Some(prost_types::Duration {
                    seconds: 2,
                    nanos: 500_000_000,
                }),
                last_lines: vec!["loading rules".to_owned(), "no rules.toml".to_owned()],
                ..LastExit::default()
            }),
            ..plugin("automation", Unloaded, Started, "crash_loop")
        };
        let camera = PluginInfo {
            kind: PluginKind::Remote.into(),
            ..plugin("camera", Unloaded, Started, "connecting")
        };
        let plugins = [devices, automation, camera];
        Self {
            plugins: plugins.map(|info| (info.name.clone(), info)).into(),
            events: Vec::new(),
            state: BTreeMap::new(),
            storage: BTreeMap::new(),
            permissions: Vec::new(),
            revision: 0,
            insecure: false,
            bad_config: false,
        }
    }
}

impl Shared {
    fn find(&self, name: &str) -> Result<PluginInfo, Status> {
        let world = self.world.lock();
        world.plugins.get(name).cloned().ok_or_else(|| {
            let message = format!("there is no plugin {name:?}");
            refusal(
                Code::NotFound,
                "NO_SUCH_PLUGIN",
                &message,
                &[("plugin", name)],
            )
        })
    }

    /// Sets a plugin's state, as if all went well.
    fn change<T>(
        &self,
        request: &Request<T>,
        name: &str,
        state: PluginState,
        phase: &str,
    ) -> Result<Option<PluginInfo>, Status> {
        operators_only(request)?;
        let before = self.find(name)?;
        if before.state() == PluginState::Unloaded && state == PluginState::Stopped {
            return Err(refusal(
                Code::FailedPrecondition,
                "WRONG_STATE",
                &format!("plugin {name} is UNLOADED and cannot be stopped"),
                &[
                    ("state", "UNLOADED"),
                    ("request", "stop"),
                    ("allowed", "load, start"),
                ],
            ));
        }
        if name == "automation" {
            return Err(refusal(
                Code::FailedPrecondition,
                "PLUGIN_FAILED",
                "plugin automation did not start: exit code 3",
                &[("phase", "crash_loop")],
            ));
        }
        let mut world = self.world.lock();
        let info = world.plugins.get_mut(name).expect("found above");
        info.state = state.into();
        info.desired = state.into();
        info.phase = phase.to_owned();
        let info = info.clone();
        drop(world);
        self.plugin_changed.send_modify(|count| *count += 1);
        Ok(Some(info))
    }
}

#[tonic::async_trait]
impl PluginManager for Shared {
    type WatchStream = Answers<PluginManagerWatchResponse>;
    type LogsStream = Answers<PluginManagerLogsResponse>;

    async fn list(
        &self,
        request: Request<PluginManagerListRequest>,
    ) -> Result<Response<PluginManagerListResponse>, Status> {
        operators_only(&request)?;
        let plugins: Vec<_> = self.world.lock().plugins.values().cloned().collect();
        let (plugins, next_page_token) = page(&plugins, &request.get_ref().page_token)?;
        Ok(Response::new(PluginManagerListResponse {
            plugins,
            next_page_token,
        }))
    }

    async fn get(
        &self,
        request: Request<PluginManagerGetRequest>,
    ) -> Result<Response<PluginManagerGetResponse>, Status> {
        let plugin = Some(self.find(&request.get_ref().name)?);
        Ok(Response::new(PluginManagerGetResponse { plugin }))
    }

    async fn load(
        &self,
        request: Request<PluginManagerLoadRequest>,
    ) -> Result<Response<PluginManagerLoadResponse>, Status> {
        let name = &request.get_ref().name;
        let plugin = self.change(&request, name, PluginState::Loaded, "idle")?;
        Ok(Response::new(PluginManagerLoadResponse { plugin }))
    }

    async fn start(
        &self,
        request: Request<PluginManagerStartRequest>,
    ) -> Result<Response<PluginManagerStartResponse>, Status> {
        let name = &request.get_ref().name;
        if name == "lazy" {
            std::future::pending::<()>().await;
        }
        let plugin = self.change(&request, name, PluginState::Started, "ready")?;
        Ok(Response::new(PluginManagerStartResponse { plugin }))
    }

    async fn stop(
        &self,
        request: Request<PluginManagerStopRequest>,
    ) -> Result<Response<PluginManagerStopResponse>, Status> {
        let name = &request.get_ref().name;
        let plugin = self.change(&request, name, PluginState::Stopped, "idle")?;
        Ok(Response::new(PluginManagerStopResponse { plugin }))
    }

    async fn unload(
        &self,
        request: Request<PluginManagerUnloadRequest>,
    ) -> Result<Response<PluginManagerUnloadResponse>, Status> {
        let name = &request.get_ref().name;
        let plugin = self.change(&request, name, PluginState::Unloaded, "idle")?;
        Ok(Response::new(PluginManagerUnloadResponse { plugin }))
    }

    async fn restart(
        &self,
        request: Request<PluginManagerRestartRequest>,
    ) -> Result<Response<PluginManagerRestartResponse>, Status> {
        let name = &request.get_ref().name;
        let plugin = self.change(&request, name, PluginState::Started, "ready")?;
        Ok(Response::new(PluginManagerRestartResponse { plugin }))
    }

    async fn reload(
        &self,
        _request: Request<PluginManagerReloadRequest>,
    ) -> Result<Response<PluginManagerReloadResponse>, Status> {
        if self.world.lock().bad_config {
            let problem = "core.toml:1:1: unknown key \"x\"";
            return Err(refusal(
                Code::FailedPrecondition,
                "CONFIG_REFUSED",
                problem,
                &[],
            ));
        }
        let change = |name: &str, kind: plugin_change::Kind, message: &str| PluginChange {
            name: name.to_owned(),
            kind: kind.into(),
            message: message.to_owned(),
        };
        Ok(Response::new(PluginManagerReloadResponse {
            changes: vec![
                change("camera", plugin_change::Kind::Added, ""),
                change("devices", plugin_change::Kind::Rejected, "port 2 is taken"),
            ],
            unchanged: 1,
            needs_restart: vec!["listen.tcp".to_owned()],
            warnings: Vec::new(),
        }))
    }

    async fn upgrade(
        &self,
        request: Request<PluginManagerUpgradeRequest>,
    ) -> Result<Response<PluginManagerUpgradeResponse>, Status> {
        let asked = request.get_ref();
        if !asked.path.starts_with('/') {
            return Err(refusal(Code::InvalidArgument, "BAD_FIELD", "path", &[]));
        }
        if asked.path.ends_with("bad") {
            let why = "the new version failed; the one before runs again";
            return Err(refusal(
                Code::FailedPrecondition,
                "UPGRADE_ROLLED_BACK",
                why,
                &[],
            ));
        }
        let plugin = self.change(&request, &asked.name, PluginState::Started, "ready")?;
        Ok(Response::new(PluginManagerUpgradeResponse { plugin }))
    }

    async fn start_all(
        &self,
        _request: Request<PluginManagerStartAllRequest>,
    ) -> Result<Response<PluginManagerStartAllResponse>, Status> {
        let plugins = self.world.lock().plugins.clone();
        let result = |plugin: PluginInfo| PluginResult {
            error: (plugin.name == "automation").then(|| rpc::Status {
                code: Code::FailedPrecondition.into(),
                message: "plugin automation did not start: exit code 3".to_owned(),
                ..rpc::Status::default()
            }),
            plugin: Some(plugin),
        };
        Ok(Response::new(PluginManagerStartAllResponse {
            results: plugins.into_values().map(result).collect(),
        }))
    }

    async fn stop_all(
        &self,
        _request: Request<PluginManagerStopAllRequest>,
    ) -> Result<Response<PluginManagerStopAllResponse>, Status> {
        let mut world = self.world.lock();
        for plugin in world.plugins.values_mut() {
            plugin.desired = PluginState::Stopped.into();
            if plugin.state() == PluginState::Started {
                plugin.state = PluginState::Stopped.into();
            }
        }
        let result = |plugin: &PluginInfo| PluginResult {
            plugin: Some(plugin.clone()),
            error: None,
        };
        Ok(Response::new(PluginManagerStopAllResponse {
            results: world.plugins.values().map(result).collect(),
        }))
    }

    async fn watch(
        &self,
        request: Request<PluginManagerWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let names = request.into_inner().names;
        let shared = self.clone();
        let mut first = true;
        // The first item of a `WatchStream` is at once: the snapshot.
        let answers = WatchStream::new(self.plugin_changed.subscribe()).map(move |_| {
            let world = shared.world.lock();
            let chosen = world
                .plugins
                .values()
                .filter(|info| names.is_empty() || names.contains(&info.name));
            let mut items: Vec<_> = chosen.cloned().map(Item::Plugin).collect();
            if std::mem::take(&mut first) {
                items.push(Item::SnapshotEnd(true));
            }
            let answer = |item| Ok(PluginManagerWatchResponse { item: Some(item) });
            tokio_stream::iter(items.into_iter().map(answer).collect::<Vec<_>>())
        });
        Ok(Response::new(Box::pin(flatten(answers))))
    }

    async fn push_logs(
        &self,
        _: Request<Streaming<PluginManagerPushLogsRequest>>,
    ) -> Result<Response<PluginManagerPushLogsResponse>, Status> {
        Err(Status::unimplemented("operators push no lines"))
    }

    async fn set_log_level(
        &self,
        request: Request<PluginManagerSetLogLevelRequest>,
    ) -> Result<Response<PluginManagerSetLogLevelResponse>, Status> {
        operators_only(&request)?;
        let request = request.into_inner();
        self.find(&request.name)?;
        if request.level.as_deref() == Some("loud") {
            let message = "`level` is not valid: \"loud\" is none of off, error, warn";
            let facts = [("field", "level")];
            return Err(refusal(Code::InvalidArgument, "BAD_FIELD", message, &facts));
        }
        let mut world = self.world.lock();
        let info = world.plugins.get_mut(&request.name).expect("found above");
        if let Some(level) = request.level {
            info.log_level = level;
        }
        let level = info.log_level.clone();
        Ok(Response::new(PluginManagerSetLogLevelResponse { level }))
    }

    async fn logs(
        &self,
        request: Request<PluginManagerLogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        self.find(&request.name)?;
        let record = |level: &str, message: String, fields| LogRecord {
            time: Some(ago(60)),
            level: level.to_owned(),
            message,
            fields,
            stream: "stdout".to_owned(),
            generation: 3,
        };
        // "camera" talks much: for readers that go away in the middle.
        let mut records = if request.name == "camera" {
            let line = |number| record("info", format!("frame {number}"), HashMap::new());
            (0..50_000).map(line).collect()
        } else {
            let fields = HashMap::from([("lamp".to_owned(), "\"kitchen\"".to_owned())]);
            vec![
                record("debug", "polling".to_owned(), HashMap::new()),
                record("info", "lamp on".to_owned(), fields),
                record("warn", "lamp\u{1b}[2J slow".to_owned(), HashMap::new()),
            ]
        };
        let levels = ["trace", "debug", "info", "warn", "error"];
        let rank = |level: &str| levels.iter().position(|one| *one == level).unwrap_or(0);
        let least = rank(&request.level);
        records.retain(|record| rank(&record.level) >= least);
        if let Some(since) = &request.since {
            let at = |record: &LogRecord| record.time.map_or(0, |time| time.seconds);
            records.retain(|record| at(record) >= since.seconds);
        }
        if request.tail > 0 {
            let from = records.len().saturating_sub(request.tail as usize);
            records.drain(..from);
        }
        let answers: Vec<_> = records
            .chunks(100)
            .map(|records| {
                Ok(PluginManagerLogsResponse {
                    records: records.to_vec(),
                })
            })
            .collect();
        let kept = tokio_stream::iter(answers);
        if request.follow {
            return Ok(Response::new(Box::pin(kept.chain(tokio_stream::pending()))));
        }
        Ok(Response::new(Box::pin(kept)))
    }
}

/// A stream of streams as one, in order.
fn flatten<T: Send + 'static>(
    streams: impl tokio_stream::Stream<Item = tokio_stream::Iter<std::vec::IntoIter<T>>>
    + Send
    + Unpin
    + 'static,
) -> impl tokio_stream::Stream<Item = T> + Send {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let mut streams = streams;
        while let Some(mut items) = streams.next().await {
            while let Some(item) = items.next().await {
                if sender.send(item).await.is_err() {
                    return;
                }
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

fn services() -> Vec<ServiceInfo> {
    let service = |name: &str, summary: &str, available| ServiceInfo {
        description: Some(ServiceDescription {
            name: name.to_owned(),
            summary: summary.to_owned(),
            parameters: vec!["id".to_owned()],
            input_schema: "{\"type\": \"object\"}".into(),
            idempotent: true,
            ..ServiceDescription::default()
        }),
        provider: name.split('.').next().unwrap_or("").to_owned(),
        available,
        registered_at: Some(ago(7200)),
        stats: Some(ServiceStats {
            calls: 4,
            errors: 1,
            in_flight: 0,
            total_time: Some(prost_types::Duration {
                seconds: 0,
                nanos: 10_000_000,
            }),
            latency: vec![LatencyBucket {
                at_most: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 2_500_000,
                }),
                calls: 4,
            }],
        }),
    };
    vec![
        service("camera.picture", "A picture", false),
        service("devices.fail", "Says no", true),
        service("devices.slow", "Never answers", true),
        service("devices.turn_on", "Turns a lamp on", true),
    ]
}

#[tonic::async_trait]
impl ServiceRegistry for Shared {
    type WatchStream = Answers<ServiceRegistryWatchResponse>;

    async fn register(
        &self,
        _request: Request<ServiceRegistryRegisterRequest>,
    ) -> Result<Response<ServiceRegistryRegisterResponse>, Status> {
        Err(Status::unimplemented("not for operators"))
    }

    async fn unregister(
        &self,
        _request: Request<ServiceRegistryUnregisterRequest>,
    ) -> Result<Response<ServiceRegistryUnregisterResponse>, Status> {
        Err(Status::unimplemented("not for operators"))
    }

    /// Each service shows one kind of answer.
    async fn call(
        &self,
        request: Request<ServiceRegistryCallRequest>,
    ) -> Result<Response<ServiceRegistryCallResponse>, Status> {
        let call = request.into_inner();
        let result = |content_type: &str, result: prost::bytes::Bytes| {
            Ok(Response::new(ServiceRegistryCallResponse {
                content_type: content_type.to_owned(),
                result,
            }))
        };
        match call.service.as_str() {
            "devices.turn_on" => result("", call.arguments),
            "devices.nothing" => result("", prost::bytes::Bytes::new()),
            "devices.picture" => result("image/png", prost::bytes::Bytes::from_static(b"\x89PNG")),
            "devices.slow" => std::future::pending().await,
            "camera.picture" if call.wait_for_ready => result("", "\"waited\"".into()),
            "camera.picture" => {
                let message = "the provider of camera.picture is not started";
                let mut status = refusal(Code::Unavailable, "NO_PROVIDER", message, &[]);
                let delay = "250".parse().expect("ASCII");
                status.metadata_mut().insert(metadata::RETRY_MS, delay);
                Err(status)
            }
            "devices.fail" => {
                let mut status = Status::not_found("no lamp 9");
                let origin = metadata::ORIGIN_PROVIDER.parse().expect("ASCII");
                status.metadata_mut().insert(metadata::ORIGIN, origin);
                Err(status)
            }
            other => Err(no_such_service(other)),
        }
    }

    async fn list(
        &self,
        request: Request<ServiceRegistryListRequest>,
    ) -> Result<Response<ServiceRegistryListResponse>, Status> {
        let request = request.into_inner();
        let mut services = services();
        services.retain(|service| {
            let name = service.description.as_ref().map_or("", |it| &it.name);
            request.pattern.is_empty() || matches(&request.pattern, name)
        });
        let (services, next_page_token) = page(&services, &request.page_token)?;
        Ok(Response::new(ServiceRegistryListResponse {
            services,
            next_page_token,
        }))
    }

    async fn describe(
        &self,
        request: Request<ServiceRegistryDescribeRequest>,
    ) -> Result<Response<ServiceRegistryDescribeResponse>, Status> {
        let name = request.into_inner().name;
        let service = services().into_iter().find(|service| {
            service
                .description
                .as_ref()
                .is_some_and(|it| it.name == name)
        });
        if service.is_none() {
            return Err(no_such_service(&name));
        }
        Ok(Response::new(ServiceRegistryDescribeResponse { service }))
    }

    async fn watch(
        &self,
        _request: Request<ServiceRegistryWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("corectl does not watch services"))
    }
}

fn no_such_service(name: &str) -> Status {
    let message = format!("service {name:?} is not registered");
    refusal(Code::NotFound, "NO_SUCH_SERVICE", &message, &[])
}
