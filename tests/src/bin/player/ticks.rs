//! Numbered events, and who checks them.
//!
//! A publisher numbers its events from 1 within an *incarnation*, which is a time and so rises. It
//! publishes the next only when the one before is acknowledged; one whose fate it does not know ends
//! the incarnation. So within an incarnation no number may be missing, but where the core states a gap.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plugin_sdk::prelude::*;

/// Between two events.
const PACE: Duration = Duration::from_millis(5);

#[derive(Debug, Serialize, Deserialize)]
struct Tick {
    incarnation: u64,
    number: u64,
}

fn incarnation() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

pub(crate) fn publisher(name: &str) -> Plugin {
    let topic = format!("{name}.tick");
    Plugin::builder(name)
        .task("tick", move |ctx: Ctx| {
            let topic = topic.clone();
            async move {
                let mut tick = Tick {
                    incarnation: incarnation(),
                    number: 1,
                };
                loop {
                    match ctx.publish(&topic, &tick).await {
                        Ok(_) => tick.number += 1,
                        Err(_) => {
                            tick = Tick {
                                incarnation: incarnation(),
                                number: 1,
                            };
                        }
                    }
                    tokio::time::sleep(PACE).await;
                }
            }
        })
        .build()
}

/// What a subscriber made of what it heard.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
struct Report {
    events: u64,
    /// Stated by the core.
    gaps: u64,
    /// Numbers that are missing without a gap in their place, or out of order.
    violations: Vec<String>,
    #[serde(skip)]
    last: Option<(u64, u64)>,
    #[serde(skip)]
    excused: bool,
}

impl Report {
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

pub(crate) fn subscriber(name: &str, pattern: &str) -> Plugin {
    let report: Arc<Mutex<Report>> = Arc::default();
    let (of_gaps, of_service) = (Arc::clone(&report), Arc::clone(&report));
    // From the oldest: each run checks all that is still in the log.
    let subscription = Subscribe::to(pattern)
        .from_oldest()
        .on_gap(move |_: Ctx, _| {
            let mut report = of_gaps.lock().expect("no panic inside");
            report.gaps += 1;
            report.excused = true;
            async { Ok(()) }
        })
        .handle(move |_: Ctx, event: Event| {
            let tick = event.parse::<Tick>();
            if let Ok(tick) = &tick {
                report.lock().expect("no panic inside").note(tick);
            }
            async move { tick.map(drop) }
        });
    Plugin::builder(name)
        .subscribe(subscription)
        .service(
            Service::new("report")
                .idempotent()
                .handle(move |_: Ctx, (): ()| {
                    let report = of_service.lock().expect("no panic inside").clone();
                    async move { Ok(report) }
                }),
        )
        .build()
}
