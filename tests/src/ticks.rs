//! Numbered events, and who checks them.
//!
//! A publisher numbers its events from 1 within an *incarnation*, which rises. It publishes the next only
//! when the one before is acknowledged; one whose fate it does not know ends the incarnation. So within an
//! incarnation no number may be missing, but where the core states a gap.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plugin_sdk::Subscription;
use plugin_sdk::prelude::*;

/// Makes numbers for incarnations: each above those before, in whatever process.
pub type Incarnations = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Debug, Serialize, Deserialize)]
struct Tick {
    incarnation: u64,
    number: u64,
}

/// Incarnations by the wall clock.
#[must_use]
pub fn by_wall_clock() -> Incarnations {
    Arc::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
    })
}

/// Publishes ticks for as long as this is polled, so long after one another.
///
/// # Errors
/// Never.
pub async fn publish(
    ctx: Ctx,
    topic: String,
    pace: Duration,
    incarnations: Incarnations,
) -> Result<()> {
    let first = || Tick {
        incarnation: incarnations(),
        number: 1,
    };
    let mut tick = first();
    loop {
        match ctx.publish(&topic, &tick).await {
            Ok(_) => tick.number += 1,
            Err(_) => tick = first(),
        }
        tokio::time::sleep(pace).await;
    }
}

/// What a subscriber made of the ticks of one publisher.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Heard.
    pub events: u64,
    /// Stated by the core.
    pub gaps: u64,
    /// Numbers that are missing without a gap in their place, or out of order, or there twice.
    pub violations: Vec<String>,
    #[serde(skip)]
    last: Option<(u64, u64)>,
    #[serde(skip)]
    excused: bool,
}

impl Report {
    /// A gap was stated.
    pub fn note_gap(&mut self) {
        self.gaps += 1;
        self.excused = true;
    }

    fn note(&mut self, tick: &Tick) {
        self.events += 1;
        let (incarnation, number) = (tick.incarnation, tick.number);
        let follows = match self.last {
            None => true,
            Some((same, last)) if same == incarnation => number == last + 1,
            Some((before, _)) => before < incarnation && number == 1,
        };
        let only_forwards = self.last.is_none_or(|last| last < (incarnation, number));
        let excused = std::mem::take(&mut self.excused) && only_forwards;
        if !follows && !excused && self.violations.len() < 100 {
            let last = self.last;
            self.violations
                .push(format!("{incarnation}/{number} after {last:?}"));
        }
        self.last = Some((incarnation, number));
    }
}

/// A subscription, from the oldest tick that there still is, that writes its report.
#[must_use]
pub fn checked(pattern: &str, report: &Arc<Mutex<Report>>) -> Subscription {
    let (of_gaps, of_events) = (Arc::clone(report), Arc::clone(report));
    Subscribe::to(pattern)
        .from_oldest()
        .on_gap(move |_: Ctx, _| {
            of_gaps.lock().expect("no panic inside").note_gap();
            async { Ok(()) }
        })
        .handle(move |_: Ctx, event: Event| {
            let tick = event.parse::<Tick>();
            if let Ok(tick) = &tick {
                of_events.lock().expect("no panic inside").note(tick);
            }
            async move { tick.map(drop) }
        })
}

/// A plugin that publishes `NAME.tick`.
#[must_use]
pub fn publisher(name: &str, pace: Duration) -> Plugin {
    let topic = format!("{name}.tick");
    Plugin::builder(name)
        .task("tick", move |ctx: Ctx| {
            publish(ctx, topic.clone(), pace, by_wall_clock())
        })
        .build()
}

/// A plugin that checks ticks; its service `report` says what came of it.
#[must_use]
pub fn subscriber(name: &str, pattern: &str) -> Plugin {
    let report: Arc<Mutex<Report>> = Arc::default();
    Plugin::builder(name)
        .subscribe(checked(pattern, &report))
        .service(
            Service::new("report")
                .idempotent()
                .handle(move |_: Ctx, (): ()| {
                    let report = report.lock().expect("no panic inside").clone();
                    async move { Ok(report) }
                }),
        )
        .build()
}
