//! Programs that were mended: while a plugin rests because it fails, its program is looked at every two
//! seconds, and a changed one is tried at once.
//!
//! What it is compared with is what was there when the plugin was last started, so that a program which
//! was replaced while it ran is noticed as well. Looking is a task of its own: a directory on a slow
//! disk holds nobody up, and the next look waits for its end. One that does not answer at all is left out
//! (`supervisor/program.rs`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Kind;
use super::plugin::Plugin;
use super::worker::Worker;
use crate::supervisor::host::HostEvent;
use crate::supervisor::lifecycle::{Event, Phase};
use crate::supervisor::program::Identity;
use crate::types::{Generation, PluginName};

/// How often the programs of failed plugins are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Whether a look is under way; cleared when it ends, however it does.
pub(super) type Looking = std::sync::Arc<AtomicBool>;

struct Over(Looking);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Plugin {
    /// Whether a changed program could help.
    fn may_be_mended(&self) -> bool {
        let given_up = self.state.phase() == Phase::GivenUp;
        let hosted = matches!(self.manifest.kind, Kind::Process(_));
        hosted && self.program.is_some() && (self.waits_after_failure() || given_up)
    }
}

impl Worker {
    pub(super) fn next_look_at_programs(&self) -> Option<Instant> {
        let needed = self.shutdown.is_none() && self.plugins.values().any(Plugin::may_be_mended);
        needed.then_some(self.next_program_check)
    }

    pub(super) fn look_at_programs(&mut self, now: Instant) {
        if self.next_look_at_programs().is_none_or(|at| at > now) {
            return;
        }
        self.next_program_check = now + LOOK;
        if self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let over = Over(self.looking.clone());
        let concerned = self
            .plugins
            .values()
            .filter(|plugin| plugin.may_be_mended());
        let programs: Vec<_> = concerned
            .filter_map(|plugin| match &plugin.manifest.kind {
                Kind::Process(command) => {
                    let generation = plugin.state.generation();
                    Some((plugin.name().clone(), generation, command.clone()))
                }
                _ => None,
            })
            .collect();
        let (reports, looker) = (self.host_events.0.clone(), self.looker.clone());
        self.scope.spawn_droppable("programs", async move {
            let path = std::env::var_os("PATH");
            for (name, generation, command) in programs {
                // Declared in the manifest, it is where the system looks for the program.
                let own = command.env.get("PATH").map(Into::into);
                let path = own.or_else(|| path.clone());
                let Some(identity) = looker.look(&name, &command, path).await else {
                    continue;
                };
                let report = (name, generation, HostEvent::Program(identity));
                if reports.send(report).await.is_err() {
                    break;
                }
            }
            drop(over);
        });
    }

    /// Notes what a program is when it is started, and tries again when it is another later.
    pub(super) fn program_seen(
        &mut self,
        name: &PluginName,
        generation: Generation,
        identity: Identity,
    ) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        // Seen before the plugin was tried again for some other reason.
        if plugin.state.generation() != generation {
            return;
        }
        let mended = plugin.may_be_mended() && plugin.program.as_ref() != Some(&identity);
        plugin.program = Some(identity);
        if mended {
            tracing::info!(plugin = %name, "its program changed: it is tried now");
            self.feed(name, Event::Changed);
        }
    }
}
