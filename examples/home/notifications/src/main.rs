//! Messages to the people of the house. It writes them to its log; a real one would reach a telephone.
//!
//! What it shows: a service that others call and need not wait for; the caller's name, stamped by the
//! core; a bounded history in storage, written together with the event that tells of it.
//!
//! The history is a ring of [`KEPT`] keys: number 217 overwrites number 117 under the key `017`. One
//! write per message, nothing to prune, and a crash at any moment leaves a history that is in order.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use plugin_sdk::prelude::*;

/// Messages kept.
const KEPT: u64 = 100;

/// How urgent a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Urgency {
    #[default]
    Info,
    Warning,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Notification {
    /// Counts from 1.
    number: u64,
    text: String,
    urgency: Urgency,
    /// Who sent it; stamped by the core, so it can be trusted.
    sender: String,
    /// Seconds since 1970.
    sent_at: u64,
}

#[derive(Default)]
struct Notifications {
    /// Number of the newest message.
    newest: AtomicU64,
}

#[plugin(name = "notifications")]
impl Notifications {
    /// Goes on counting where the last run ended.
    #[on_load]
    async fn count(&self, ctx: &Ctx) -> Result {
        let newest = history(ctx)
            .await?
            .first()
            .map_or(0, |newest| newest.number);
        self.newest.store(newest, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the people of the house something.
    #[service]
    async fn send(
        &self,
        ctx: &Ctx,
        text: String,
        urgency: Option<Urgency>,
    ) -> Result<Notification> {
        if text.trim().is_empty() {
            return Err(Error::invalid_argument(
                "text: a notification says something",
            ));
        }
        let notification = Notification {
            number: self.newest.fetch_add(1, Ordering::Relaxed) + 1,
            text,
            urgency: urgency.unwrap_or_default(),
            sender: ctx.caller().to_owned(),
            sent_at: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        let sent = NewEvent::new("notifications.sent", &notification)?;
        let batch = Batch::new()
            .set(key(notification.number), &notification)?
            .event(sent);
        ctx.storage().apply(batch).await?;

        let Notification {
            number,
            text,
            sender,
            ..
        } = &notification;
        match notification.urgency {
            Urgency::Info => tracing::info!(number, sender, "{text}"),
            Urgency::Warning => tracing::warn!(number, sender, "{text}"),
        }
        Ok(notification)
    }

    /// The newest messages, newest first; 10 unless more are asked for, 100 at most.
    #[service(read_only)]
    async fn recent(&self, ctx: &Ctx, limit: Option<usize>) -> Result<Vec<Notification>> {
        let mut found = history(ctx).await?;
        found.truncate(limit.unwrap_or(10));
        Ok(found)
    }
}

fn key(number: u64) -> String {
    format!("sent/{:03}", number % KEPT)
}

/// All that is kept, newest first.
async fn history(ctx: &Ctx) -> Result<Vec<Notification>> {
    let entries = ctx.storage().scan("sent/").await?;
    let mut found = entries
        .iter()
        .map(|entry| entry.parse())
        .collect::<Result<Vec<Notification>>>()?;
    found.sort_by_key(|found| Reverse(found.number));
    Ok(found)
}

plugin_sdk::main!(Notifications::default());

#[cfg(test)]
mod tests;
