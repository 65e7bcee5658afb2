//! The handle's side that channels see: opening one, and what it reports.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Admitted, Error, Message, Opening, PluginManager};
use crate::channel::{ChannelId, Hello, Outbox, Run, Verdict};
use crate::security::Credential;

impl PluginManager {
    /// Admits a channel: the begin of a run, or its going on. `Welcome` is in the outbox then.
    ///
    /// # Errors
    /// `BadCredential`, `WireVersion`, `AlreadyConnected`, `NotWanted`, `Backoff`,
    /// `DependencyCycle`, `ShuttingDown`.
    ///
    /// Where another instance holds the run this may take 4 s: that one is asked for a sign of life first.
    ///
    /// # Cancel safety
    /// Dropped, the channel counts as lost.
    pub async fn open(
        &self,
        credential: Credential,
        hello: Hello,
        outbox: Outbox,
    ) -> Result<Admitted, Error> {
        let (reply, answer) = oneshot::channel();
        let hello = Box::new(hello);
        let message = Message::Open(Opening {
            credential,
            hello,
            outbox,
            reply,
        });
        self.mailbox
            .send(message)
            .await
            .map_err(|_| Error::ShuttingDown)?;
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// A hook ended. Never waits; only the end of the awaited hook is kept.
    pub fn hook_done(
        &self,
        run: &Run,
        channel: ChannelId,
        hook_id: u64,
        result: Result<(), String>,
    ) {
        self.shared.reports.hook_done(run, channel, hook_id, result);
    }

    /// More time is asked for. Never waits.
    pub fn extend(&self, run: &Run, channel: ChannelId, hook_id: u64, by: Duration) {
        self.shared.reports.extend(run, channel, hook_id, by);
    }

    /// A plugin's own report on its health. Never waits; the newest counts, once a second.
    pub fn health(&self, run: &Run, channel: ChannelId, degraded: Option<String>) {
        self.shared.reports.health(run, channel, degraded);
    }

    /// What a plugin did with a changed configuration. Never waits; only the first answer to the newest
    /// one counts.
    pub fn config_result(&self, run: &Run, channel: ChannelId, revision: u64, verdict: Verdict) {
        self.shared
            .reports
            .config_result(run, channel, revision, verdict);
    }

    /// A plugin ends by its own will. Never waits.
    pub fn bye(&self, run: &Run, channel: ChannelId, reason: String) {
        self.shared.reports.bye(run, channel, reason);
    }

    /// The credential that a channel was opened with is worth nothing any more. Never waits.
    pub fn credential_over(&self, run: &Run, channel: ChannelId, why: String) {
        self.shared.reports.credential_over(run, channel, why);
    }

    /// A channel is gone. Waits for room in the mailbox: this must not be lost. (Should it be, the
    /// closed outbox is noticed within a second.)
    pub async fn channel_lost(&self, run: &Arc<Run>, channel: ChannelId) {
        let run = Arc::clone(run);
        if self
            .mailbox
            .send(Message::ChannelLost { run, channel })
            .await
            .is_err()
        {
            tracing::debug!(%channel, "a channel was lost after the worker ended");
        }
    }

    /// Reports of channels that were dropped: of ended runs, replaced channels or unknown hooks.
    #[must_use]
    pub fn dropped_reports(&self) -> u64 {
        self.shared.reports.dropped()
    }
}
