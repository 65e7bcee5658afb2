//! What the machines decide, done: hooks, routes, gates, processes, the begin and end of runs.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use core_proto::contract::env;
use core_proto::embed::Embedding;
use tokio::sync::watch;
use tokio::time::Instant;

use super::plugin::Plugin;
use super::worker::{ABSENT_RETRY, Worker, sent};
use super::{ChangeKind, Command, Kind};
use crate::channel::{Closed, Outbound, Run};
use crate::routing::Availability;
use crate::supervisor::host::{self, HostEvent, Launch, Order};
use crate::supervisor::lifecycle::{Action, Farewell, Route, RunEvent, Topic};
use crate::supervisor::process;
use crate::supervisor::usage::Gauge;
use crate::types::PluginName;

impl Worker {
    pub(super) fn perform(&mut self, name: &PluginName, action: Action, now: Instant) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let run = plugin.run.clone();
        match action {
            Action::Spawn => self.spawn(name),
            Action::RunHook {
                hook,
                hook_id,
                timeout,
            } => {
                if let Some(run) = run {
                    self.shared.reports.await_hook(run.id(), hook_id);
                    if let Some(link) = run.link() {
                        sent(link.outbox.push(Outbound::RunHook {
                            hook,
                            hook_id,
                            timeout,
                        }));
                    }
                }
            }
            Action::Gate(gate) => run.iter().for_each(|run| run.set_gate(gate)),
            Action::Route(route) => {
                let link = run.and_then(|run| run.link());
                let absent = Availability::Absent {
                    retry_after: Some(ABSENT_RETRY),
                };
                let availability = match (route, link) {
                    (Route::Open, Some(link)) => Availability::Ready(link),
                    (Route::Suspended, _) => Availability::Suspended,
                    (Route::Closed, _) if plugin.changing_over => Availability::Suspended,
                    (Route::Degraded, _) => Availability::Degraded,
                    (Route::Open, None) | (Route::Closed, _) => absent,
                };
                self.work.router.set_availability(name, availability);
            }
            Action::Drain => self.drain(name),
            Action::CloseChannel(farewell) => {
                plugin.liveness = None;
                if let Some(link) = run.and_then(|run| run.set_link(None)) {
                    match farewell {
                        Farewell::Clean => link.outbox.close(),
                        Farewell::RunEnded(reason) => {
                            link.outbox.abort(Closed::RunEnded { reason })
                        }
                        Farewell::ShuttingDown => link.outbox.abort(Closed::ShuttingDown),
                    }
                    self.work.router.link_lost(name, link.channel);
                }
            }
            Action::EndRun => {
                plugin.run = None;
                plugin.instance = bytes::Bytes::new();
                if let Some(run) = run {
                    self.shared.reports.end(run.id());
                    self.work.credentials.revoke_run(run.id());
                    // Before its registrations end, so that none can be made after.
                    self.work.runs.end(&run);
                    self.work.registry.end_run(run.id());
                    self.work.announcer.run_ended(run.id());
                }
                let offer = self.plugins.get_mut(name).and_then(Plugin::end_offer);
                if let Some(revision) = offer {
                    let why = "its run ended before it answered";
                    self.offer_ended(name, revision, ChangeKind::Restarted, why);
                }
            }
            Action::Terminate => order(plugin, Order::Terminate),
            Action::Kill => order(plugin, Order::Kill),
            Action::Announce(topic) => {
                let mut details = plugin.details(now);
                if topic == Topic::Crashed
                    && let Some(report) = plugin.crash_report()
                {
                    plugin.crash_told = Some(report.generation);
                    details["plugin_version"] = report.plugin_version.as_str().into();
                    details["config_revision"] = report.config_revision.into();
                    self.shared.crashes.push(name, report);
                }
                let generation = plugin.state.generation().0;
                let why = details["message"].as_str().filter(|why| !why.is_empty());
                let word = topic.as_str();
                match topic {
                    Topic::CrashLoop => {
                        tracing::error!(plugin = %name, generation, why, "plugin {word}");
                    }
                    Topic::Crashed | Topic::Degraded => {
                        tracing::warn!(plugin = %name, generation, why, "plugin {word}");
                    }
                    _ => tracing::info!(plugin = %name, generation, why, "plugin {word}"),
                }
                self.work
                    .announcer
                    .plugin_event(topic.as_str(), name, details);
            }
        }
    }

    fn drain(&mut self, name: &PluginName) {
        let Some(plugin) = self.plugins.get(name) else {
            return;
        };
        let (router, reports) = (self.work.router.clone(), self.host_events.0.clone());
        let (name, generation) = (name.clone(), plugin.state.generation());
        self.scope.spawn_droppable("drain", async move {
            // Longer than any budget: then nobody listens any more.
            let drained = router.drained(&name);
            if tokio::time::timeout(Duration::from_secs(60), drained)
                .await
                .is_ok()
            {
                let report = (name, generation, HostEvent::Run(RunEvent::Drained));
                drop(reports.send(report).await);
            }
        });
    }

    fn spawn(&mut self, name: &PluginName) {
        let Some(effective) = self.plugins.get(name).map(|plugin| self.effective(plugin)) else {
            return;
        };
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let generation = plugin.state.generation();
        let run = Run::hosted(name.clone(), generation);
        self.work.runs.insert(Arc::clone(&run));
        self.shared.reports.begin(&run);
        let (orders, receiver) = watch::channel(Order::Run);
        plugin.orders = Some(orders);
        plugin.run = Some(Arc::clone(&run));
        plugin.note_run();
        let (reports, reporter) = (self.host_events.0.clone(), name.clone());
        let report = move |event| {
            let (reports, name) = (reports.clone(), reporter.clone());
            async move { drop(reports.send((name, generation, event)).await) }
        };
        match &plugin.manifest.kind {
            Kind::Process(command) => {
                let manifest = &plugin.manifest;
                let command = Command {
                    pass_env: effective.environment(),
                    ..command.clone()
                };
                let run_name = format!("{name}-{}", generation.0);
                let confined = self
                    .machine
                    .confine(&manifest.limits, &manifest.sandbox, &run_name);
                let confinement = match confined {
                    Ok(confinement) => confinement,
                    Err(refusal) => {
                        plugin.isolation = None;
                        let host = host::refuse(refusal.to_string(), report);
                        return self.scope.spawn_droppable("host", host);
                    }
                };
                plugin.isolation = Some(confinement.shown().clone());
                plugin.gauge = Gauge::default();
                let user = confinement.user();
                let token = self.work.credentials.issue(name, run.id(), Some(user));
                let own = [
                    (env::ADDR, self.config.core_address.clone()),
                    (env::TOKEN, token.reveal().to_owned()),
                    (env::PLUGIN, name.to_string()),
                    (env::COOKIE, self.config.cookie.clone()),
                ];
                let home = command.working_dir.clone().into_os_string();
                let environment = process::environment(&command, &own, |name| match name {
                    "HOME" if confinement.has_own_user() => Some(home.clone()),
                    name => std::env::var_os(name),
                });
                let launch = Launch {
                    plugin: name.clone(),
                    generation,
                    command,
                    environment,
                    confinement,
                    log: Arc::clone(&plugin.log),
                };
                let (custody, usage) = (
                    self.work.custody.clone(),
                    (self.meter.clone(), plugin.gauge.clone()),
                );
                let looker = self.start_looker.clone();
                self.scope.spawn_droppable("host", async move {
                    let path = launch.environment.get(OsStr::new("PATH")).cloned();
                    let seen = looker.look(&launch.plugin, &launch.command, path).await;
                    let Some(identity) = seen else {
                        let program = launch.command.program;
                        return report(HostEvent::Run(host::hangs(program))).await;
                    };
                    report(HostEvent::Program(identity)).await;
                    host::carry_process(custody, launch, usage, receiver, report).await;
                });
            }
            Kind::Embedded => {
                let token = self.work.credentials.issue(name, run.id(), None);
                let embedding = Embedding {
                    token: token.reveal().to_owned(),
                    connect: Arc::clone(&self.work.connect),
                };
                let Some(embedded) = self.work.embedded.get(name) else {
                    // It was barred for that, and somebody asked for it nevertheless.
                    let why = "this program has no such plugin built in".to_owned();
                    return self
                        .scope
                        .spawn_droppable("embedded", host::refuse(why, report));
                };
                let embedded = Arc::clone(embedded);
                let host = host::carry_embedded(embedded, embedding, receiver, report);
                self.scope.spawn_droppable("embedded", host);
            }
            Kind::Remote { .. } => {}
        }
    }
}

pub(super) fn order(plugin: &Plugin, order: Order) {
    if let Some(orders) = &plugin.orders {
        orders.send_if_modified(|current| {
            let rises = order > *current;
            *current = order.max(*current);
            rises
        });
    }
}
