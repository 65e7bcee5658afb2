//! What the core itself tells: lifecycle events under `core.plugin.*`, state keys `core.plugin.<name>`
//! and `core.info`.

use serde_json::json;

use crate::event_bus::{EventBus, NewEvent};
use crate::plugin_manager::{Announcer, PluginInfo};
use crate::state_engine::StateEngine;
use crate::types::{Epoch, Payload, PluginName, RunId, Source, StateKey, Topic};

/// The plugin manager's voice.
#[derive(Debug)]
pub(super) struct Announcements {
    bus: EventBus,
    state: StateEngine,
}

impl Announcements {
    pub(super) fn new(bus: EventBus, state: StateEngine) -> Self {
        Self { bus, state }
    }
}

impl Announcer for Announcements {
    fn plugin_event(
        &self,
        topic: &'static str,
        plugin: &PluginName,
        mut details: serde_json::Value,
    ) {
        let topic = format!("core.plugin.{topic}");
        let topic = Topic::parse(&topic).expect("the topics of the lifecycle follow the grammar");
        let event = |details: &serde_json::Value| {
            let payload = Payload {
                data: details.to_string().into(),
                ..Payload::default()
            };
            NewEvent {
                subject: plugin.as_str().into(),
                ..NewEvent::new(topic.clone(), payload)
            }
        };
        let mut whole = event(&details);
        if self.bus.check(&whole).is_err() {
            // Long last lines must not keep a crash from being told; the log has them.
            if let Some(lines) = details.pointer_mut("/last_exit/last_lines") {
                *lines = json!([]);
            }
            whole = event(&details);
        }
        if let Err(error) = self.bus.publish(&Source::Core, whole) {
            tracing::error!(%plugin, %error, "a lifecycle event was refused");
        }
    }

    fn subscriptions(&self, plugin: &PluginName) -> Vec<String> {
        let patterns = self.bus.list_subscriptions(plugin);
        patterns.iter().map(ToString::to_string).collect()
    }

    fn plugin_state(&self, info: &PluginInfo) {
        let value = json!({
            "state": info.state.as_str(),
            "phase": info.phase.as_str(),
            "generation": info.generation.0,
            "since": jiff::Timestamp::try_from(info.since).ok().map(|time| time.to_string()),
        });
        set(&self.state, &plugin_key(&info.name), &value);
    }

    fn run_ended(&self, run: &RunId) {
        self.state.end_run(run);
    }

    fn plugin_removed(&self, plugin: &PluginName) {
        let key = plugin_key(plugin);
        let key = StateKey::parse(&key).expect("the core's keys follow the grammar");
        if let Err(error) = self.state.delete(&Source::Core, &key, None, None) {
            tracing::error!(%key, %error, "the core's own state was refused");
        }
    }
}

/// The key of a plugin's newest state.
fn plugin_key(plugin: &PluginName) -> String {
    format!("core.plugin.{plugin}")
}

/// Says that this core runs.
pub(super) fn core_started(state: &StateEngine, epoch: Epoch) {
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": jiff::Timestamp::now().to_string(),
        "epoch": epoch.0,
    });
    set(state, "core.info", &value);
}

fn set(state: &StateEngine, key: &str, value: &serde_json::Value) {
    let key = StateKey::parse(key).expect("the core's keys follow the grammar");
    if let Err(error) = state.set(&Source::Core, &key, value.to_string().into(), None, None) {
        tracing::error!(%key, %error, "the core's own state was refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_bus;
    use crate::state_engine;
    use crate::types::Revision;

    #[test]
    fn a_crash_with_endless_last_lines_is_told_without_them() {
        let bus = EventBus::new(event_bus::Config::default(), crate::grpc::encode_event);
        let state = StateEngine::new(state_engine::Config::default(), Revision::ABSENT);
        let announcements = Announcements::new(bus.clone(), state);
        let lamp = PluginName::parse("lamp").expect("good name");
        let lines = vec!["\"".repeat(8 << 10); 20];
        let details = json!({ "reason": "crashed", "last_exit": { "last_lines": lines } });
        announcements.plugin_event("crashed", &lamp, details);
        assert_eq!(bus.stats().published, 1);
    }
}
