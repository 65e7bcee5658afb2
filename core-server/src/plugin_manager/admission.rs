//! Who may open a channel, and what follows: the one door for children, remote and embedded plugins.

use std::time::Duration;

use bytes::Bytes;
use core_proto::contract::{WIRE_VERSION_MAX, WIRE_VERSION_MIN};
use tokio::time::Instant;

use super::plugin::{Plugin, Said};
use super::worker::{Worker, sent};
use super::{Admitted, Error, Kind, Opening};
use crate::channel::handshake::{Claim, claim, negotiate};
use crate::channel::{
    ChannelId, Closed, Hello, Link, Outbound, Outbox, RefusedService, Run, Welcome,
};
use crate::error::{Failure, Reason};
use crate::security::{Action, Credential};
use crate::service_registry::ServiceDescription;
use crate::supervisor::lifecycle::{Event, Phase, RunEvent};
use crate::supervisor::liveness::Liveness;
use crate::supervisor::output::Verbosity;
use crate::types::PluginName;

/// When a plugin that is not wanted may ask again.
const NOT_WANTED_RETRY: Duration = Duration::from_secs(30);
/// When a second process may ask again.
pub(super) const TAKEN_RETRY: Duration = Duration::from_secs(10);
/// Shortest advice.
const MIN_RETRY: Duration = Duration::from_millis(100);
/// Channels of children that were faster than the news of their spawn. More than this are refused as
/// if nothing had been spawned.
const EARLY: usize = 64;

impl Worker {
    /// Judges an `Open` and, if it is good, makes its channel the run's. Answers it now, or when it can be
    /// judged.
    pub(super) fn opening(&mut self, opening: Opening) {
        let plugin = self.plugins.get(&opening.credential.plugin);
        if plugin.is_some_and(Plugin::is_being_spawned) && self.early.len() < EARLY {
            // Judged once its process is known.
            self.early.push(opening);
            return;
        }
        let name = &opening.credential.plugin;
        let admitted = match self.judge(&opening.credential, &opening.hello) {
            Ok((Claim::Taken, _)) => return self.knock(opening),
            Ok((claim, wire_version)) => {
                self.admit(name, claim, wire_version, *opening.hello, opening.outbox)
            }
            Err(error) => Err(error),
        };
        if let Err(Ok(admitted)) = opening.reply.send(admitted) {
            // Whoever opened it is gone already, and will not report its loss.
            self.channel_lost(&admitted.run, admitted.channel);
        }
    }

    /// What an `Open` means, and the wire version that is spoken then.
    fn judge(&mut self, credential: &Credential, hello: &Hello) -> Result<(Claim, u32), Error> {
        if self.shutdown.is_some() {
            return Err(Error::ShuttingDown);
        }
        let name = credential.plugin.clone();
        let bad = || Error::BadCredential {
            plugin: name.clone(),
        };
        let plugin = self.plugins.get(&name).ok_or_else(bad)?;
        if !speaks_for(credential, plugin) {
            return Err(bad());
        }
        let wire_version = match negotiate(hello.wire_versions, WIRE_VERSION_MIN..=WIRE_VERSION_MAX)
        {
            Ok(version) => version,
            Err(error) => {
                self.feed(&name, Event::Incompatible(error.to_string()));
                return Err(error.into());
            }
        };
        let held = (plugin.run.is_some() && !plugin.state.awaits_channel())
            .then_some(plugin.instance.as_ref());
        match claim(held, &hello.instance) {
            Claim::New if !plugin.state.awaits_channel() => Err(refusal(plugin, Instant::now())),
            claim => Ok((claim, wire_version)),
        }
    }

    fn admit(
        &mut self,
        name: &PluginName,
        claim: Claim,
        wire_version: u32,
        hello: Hello,
        outbox: Outbox,
    ) -> Result<Admitted, Error> {
        let joining = if claim == Claim::Resume {
            Joining::Resumed
        } else {
            self.take_requirements(name, &hello)?;
            self.take_asks(name, &hello);
            Joining::New
        };
        let run = self.plugins.get(name).and_then(|plugin| plugin.run.clone());
        let run = run.unwrap_or_else(|| self.begin_remote(name));
        Ok(self.attach(run, hello, outbox, wire_version, joining))
    }

    /// A remote plugin says itself what it requires, beside what the configuration says.
    fn take_requirements(&mut self, name: &PluginName, hello: &Hello) -> Result<(), Error> {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return Ok(());
        };
        if !matches!(plugin.manifest.kind, Kind::Remote { .. }) {
            return Ok(());
        }
        let mut requires = plugin.manifest.requires.clone();
        requires.extend(hello.requires.iter().cloned());
        requires.sort();
        requires.dedup();
        let mut graph = self.graph.clone();
        graph.set(name.clone(), requires.iter().cloned());
        if let Some(path) = graph.cycle_through(name) {
            return Err(Error::DependencyCycle { path });
        }
        plugin.requires = requires;
        self.graph = graph;
        let missing = self.missing(name);
        self.feed(name, Event::Dependencies(missing));
        Ok(())
    }

    fn begin_remote(&mut self, name: &PluginName) -> std::sync::Arc<Run> {
        let plugin = self
            .plugins
            .get_mut(name)
            .expect("the caller has just found it");
        // The machine counts the same way when it hears of the channel.
        let run = Run::new(name.clone(), plugin.state.generation().next());
        plugin.run = Some(std::sync::Arc::clone(&run));
        plugin.note_run();
        self.work.runs.insert(std::sync::Arc::clone(&run));
        self.shared.reports.begin(&run);
        run
    }

    fn attach(
        &mut self,
        run: std::sync::Arc<Run>,
        hello: Hello,
        outbox: Outbox,
        wire_version: u32,
        joining: Joining,
    ) -> Admitted {
        let name = run.plugin().clone();
        let now = Instant::now();
        let asked = usize::try_from(hello.max_calls_in_flight).unwrap_or(usize::MAX);
        let link = Link {
            channel: ChannelId::next(),
            plugin: name.clone(),
            outbox: outbox.clone(),
            max_calls_in_flight: if asked == 0 {
                self.config.max_calls_in_flight
            } else {
                asked
            },
        };
        let admitted = Admitted {
            run: std::sync::Arc::clone(&run),
            channel: link.channel,
        };
        if let Some(old) = run.set_link(Some(link)) {
            old.outbox.abort(Closed::Replaced);
            self.work.router.link_lost(&name, old.channel);
        }
        let refused = match joining {
            Joining::New => self.register(&run, &hello),
            Joining::Resumed => Vec::new(),
        };
        let interval = hello.heartbeat.then_some(self.config.liveness.interval);
        let plugin = self
            .plugins
            .get_mut(&name)
            .expect("a run belongs to a known plugin");
        let config = serde_json::to_vec(&plugin.manifest.config).unwrap_or_else(|_| b"{}".to_vec());
        let permissions = self.work.gatekeeper.listed(&name);
        let welcome = Welcome {
            run: run.id().clone(),
            plugin: name.clone(),
            generation: run.generation(),
            wire_version,
            heartbeat_interval: interval,
            live_config: hello.live_config,
            config: Bytes::from(config),
            config_revision: plugin.config_revision,
            refused,
            resumed: joining == Joining::Resumed,
            permissions,
            max_message_bytes: self.config.max_message_bytes,
            max_payload_bytes: self.config.max_payload_bytes,
        };
        sent(outbox.push(Outbound::Welcome(Box::new(welcome))));
        if plugin.log_level != Verbosity::Default {
            let level = plugin.log_level.as_str();
            sent(outbox.push(Outbound::LogLevel { level }));
        }
        let times = self.config.liveness;
        let liveness = match (joining, plugin.liveness.take()) {
            (Joining::New, before) => {
                Liveness::new(times, before.as_ref().map_or(0, Liveness::sent), now)
            }
            (Joining::Resumed, before) => {
                let patience = plugin.manifest.timeouts.suspend;
                Liveness::resumed(times, before.as_ref(), patience, now)
            }
        };
        plugin.liveness = hello.heartbeat.then_some(liveness);
        plugin.live_config = hello.live_config;
        plugin.said = Said::from(&hello);
        match joining {
            // It began before this configuration, perhaps; `Welcome` has brought it.
            Joining::New => plugin.note_run(),
            Joining::Resumed => plugin.send_offer(),
        }
        if joining == Joining::Resumed {
            self.tell_of_dependencies(&name, &outbox);
        }
        let plugin = self
            .plugins
            .get_mut(&name)
            .expect("a run belongs to a known plugin");
        let resumable = !hello.instance.is_empty();
        let event = match joining {
            Joining::New => Event::Opened {
                ready: hello.ready,
                resumable,
            },
            Joining::Resumed => Event::Run(run.generation(), RunEvent::Resumed),
        };
        plugin.instance = hello.instance;
        self.feed(&name, event);
        admitted
    }

    /// What became of those that it looks at, while it had no channel, it has not heard.
    fn tell_of_dependencies(&self, name: &PluginName, outbox: &Outbox) {
        let Some(plugin) = self.plugins.get(name) else {
            return;
        };
        for other in self.plugins.values() {
            if plugin.looks_at(other.name()) {
                let (name, available) = (other.name().clone(), other.state.is_available());
                sent(outbox.push(Outbound::DependencyChanged { name, available }));
            }
        }
    }

    fn register(&self, run: &std::sync::Arc<Run>, hello: &Hello) -> Vec<RefusedService> {
        let mut refused = Vec::new();
        for service in &hello.services {
            let description = match service {
                Ok(description) => description,
                Err(service) => {
                    refused.push(service.clone());
                    continue;
                }
            };
            if let Err(failure) = self.register_one(run, description) {
                if failure.reason() == Some(Reason::NotGranted) {
                    // Taken in as soon as it is granted; see `tell_permissions`.
                    self.work.registry.withhold(run, description.clone());
                }
                refused.push(RefusedService {
                    name: description.name.to_string(),
                    failure,
                });
            }
        }
        refused
    }

    fn register_one(
        &self,
        run: &std::sync::Arc<Run>,
        description: &ServiceDescription,
    ) -> Result<(), Failure> {
        let caller = self.work.gatekeeper.channel_caller(run, None);
        let provide = Action::Provide(description.name.as_str());
        self.work.gatekeeper.authorize(&caller, provide)?;
        self.work
            .registry
            .register(run, description.clone())
            .map_err(Failure::from)
    }
}

/// How a channel joins its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joining {
    New,
    Resumed,
}

/// A hosted plugin's credential names its live run; a remote plugin's names none.
fn speaks_for(credential: &Credential, plugin: &Plugin) -> bool {
    match (&plugin.manifest.kind, &credential.run) {
        (Kind::Remote { .. }, None) => true,
        (Kind::Process(_) | Kind::Embedded, Some(run)) => plugin.is_run(run),
        _ => false,
    }
}

/// Why a plugin without a run may not begin one.
fn refusal(plugin: &Plugin, now: Instant) -> Error {
    let name = plugin.name().clone();
    let explanation = plugin.explanation();
    match (plugin.state.phase(), plugin.state.next_attempt_at()) {
        (Phase::Backoff | Phase::CrashLoop, Some(at)) => Error::Backoff {
            plugin: name,
            explanation,
            retry_after: at.saturating_duration_since(now).max(MIN_RETRY),
        },
        _ => Error::NotWanted {
            plugin: name,
            explanation,
            retry_after: NOT_WANTED_RETRY,
        },
    }
}
