//! The authorisation point's other half: what known callers may use, and what becomes of uses that they
//! may not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::audit;
use super::gatekeeper::Gatekeeper;
use super::grants::{Effective, Listed, Mode, Verdict};
use super::identity::Caller;
use super::permissions::{Action, Denied, NotGranted, reserved};
use super::policy::Read;
use crate::config::Manage;
use crate::types::{PluginName, Source};

impl Gatekeeper {
    /// What plugins may do from now on; what they could before is returned. Streams that were opened before
    /// and are not granted any more end: see [`Self::loses`].
    pub fn set_permissions(
        &self,
        permissions: HashMap<PluginName, Effective>,
    ) -> Arc<HashMap<PluginName, Effective>> {
        let before = self.inner.permissions.swap(Arc::new(permissions));
        self.inner.changed.send_modify(|revision| *revision += 1);
        before
    }

    /// What a plugin is granted and denied, one by one.
    #[must_use]
    pub fn listed(&self, plugin: &PluginName) -> Listed {
        let permissions = self.inner.permissions.load();
        let held = permissions.get(plugin);
        held.map(Effective::listed).unwrap_or_default()
    }

    /// Whether a plugin may use a part of the core's management.
    #[must_use]
    pub fn may_manage(&self, plugin: &PluginName, part: Manage) -> bool {
        let permissions = self.inner.permissions.load();
        permissions
            .get(plugin)
            .is_some_and(|held| held.manages(part))
    }

    /// Completes when one of these may not be read any more, which was granted before. Looks only when
    /// permissions change.
    pub fn loses<R: IntoIterator<Item = Read>>(
        &self,
        caller: &Caller,
        reads: R,
    ) -> impl Future<Output = Denied> + Send + use<R> {
        let (gatekeeper, caller) = (self.clone(), caller.clone());
        let reads: Vec<_> = reads.into_iter().collect();
        async move {
            let mut changed = gatekeeper.inner.changed.subscribe();
            loop {
                for read in &reads {
                    if let Err(denied) = gatekeeper.goes_on(&caller, read) {
                        return denied;
                    }
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Whether a stream goes on. What is done all the same is not noted again with each change.
    fn goes_on(&self, caller: &Caller, read: &Read) -> Result<(), Denied> {
        let action = match read {
            Read::Events(pattern) => Action::Subscribe(pattern),
            Read::State(pattern) => Action::WatchState(pattern),
            Read::Storage(namespace) => Action::ReadStorage(namespace),
            Read::Management(method, part) => {
                let Source::Plugin(plugin) = &caller.source else {
                    return Ok(());
                };
                if self.may_manage(plugin, *part) {
                    return Ok(());
                }
                let denied = NotGranted::of_management(plugin, method, *part).into();
                self.inner.stats.denied.fetch_add(1, Ordering::Relaxed);
                let decision = audit::decision::DENIED;
                self.note_denial(caller, &denied, Verdict::NotGranted, decision);
                return Err(denied);
            }
        };
        if self.may(&caller.source, action) {
            return Ok(());
        }
        self.authorize(caller, action)
    }

    /// Whether a caller may use a resource. Operators may use all but what is the core's own.
    #[must_use]
    pub fn may(&self, source: &Source, action: Action<'_>) -> bool {
        match self.verdict(source, action) {
            Verdict::Allowed => true,
            Verdict::NotGranted | Verdict::Denied => self.inner.policy.mode == Mode::Audit,
            Verdict::Reserved => false,
        }
    }

    fn verdict(&self, source: &Source, action: Action<'_>) -> Verdict {
        let Source::Plugin(plugin) = source else {
            return match reserved(action) {
                Some(_) if *source != Source::Core => Verdict::Reserved,
                _ => Verdict::Allowed,
            };
        };
        let permissions = self.inner.permissions.load();
        match permissions.get(plugin) {
            Some(held) => held.judge(plugin, action),
            None => Effective::default().judge(plugin, action),
        }
    }

    /// Judges the use of a resource; a denial is counted and audited. In audit mode what is not granted is
    /// done all the same, and noted.
    ///
    /// # Errors
    /// [`Denied`]; a missing grant comes with the entry that would allow it.
    pub fn authorize(&self, caller: &Caller, action: Action<'_>) -> Result<(), Denied> {
        let verdict = self.verdict(&caller.source, action);
        let denied = match (verdict, &caller.source) {
            (Verdict::Allowed, _) => return Ok(()),
            (Verdict::NotGranted, Source::Plugin(plugin)) => NotGranted::new(plugin, action).into(),
            (Verdict::Denied, Source::Plugin(plugin)) => NotGranted::denied(plugin, action).into(),
            (Verdict::Reserved | Verdict::NotGranted | Verdict::Denied, _) => {
                let resource = reserved(action).unwrap_or_default();
                Denied::Reserved {
                    resource: resource.chars().take(300).collect(),
                }
            }
        };
        let is_done = verdict != Verdict::Reserved && self.inner.policy.mode == Mode::Audit;
        let (counter, decision) = if is_done {
            (
                &self.inner.stats.would_be_denied,
                audit::decision::WOULD_BE_DENIED,
            )
        } else {
            (&self.inner.stats.denied, audit::decision::DENIED)
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.note_denial(caller, &denied, verdict, decision);
        if is_done { Ok(()) } else { Err(denied) }
    }

    fn note_denial(
        &self,
        caller: &Caller,
        denied: &Denied,
        verdict: Verdict,
        decision: &'static str,
    ) {
        let (action, resource) = match denied {
            Denied::NotGranted(missing) => missing.subject(),
            Denied::Reserved { resource } => ("write", resource.as_str()),
        };
        self.inner.policy.audit.note(audit::Record {
            decision,
            rule: match verdict {
                Verdict::Reserved => "reserved",
                Verdict::Denied => "deny",
                Verdict::NotGranted | Verdict::Allowed => "not_granted",
            }
            .to_owned(),
            ..audit::Record::of(caller, action, "", resource)
        });
    }
}
