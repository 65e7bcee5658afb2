//! The rules: what happened, and what to do about it. Pure: the clock is an argument, and actions are
//! returned, not done. So all that matters about an automation is tested by a table.

use std::collections::BTreeMap;

use plugin_sdk::prelude::*;

/// `[config]` of plugin.toml.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rules {
    /// Lamp by room.
    pub(crate) lamps: BTreeMap<String, String>,
    pub(crate) lamp_off_after_seconds: u64,
    /// In percent.
    pub(crate) level_by_night: u8,
    /// A warning that stays is sent again after this, and not before, even if it went and came back.
    pub(crate) remind_after_seconds: u64,
}

impl Default for Rules {
    fn default() -> Self {
        let rooms = ["kitchen", "hall", "bedroom"];
        Self {
            lamps: rooms
                .map(|room| (room.to_owned(), format!("lamp_{room}")))
                .into(),
            lamp_off_after_seconds: 30,
            level_by_night: 30,
            remind_after_seconds: 600,
        }
    }
}

/// Something that the rules may care about.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// Somebody moved, at this time of the day if it is known.
    Motion {
        room: String,
        period: Option<Period>,
    },
    /// The machine was measured.
    Sample { warnings: Vec<Warning> },
    /// Time passed.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Period {
    Day,
    Night,
}

/// As host_sensors says it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Warning {
    pub(crate) kind: String,
    pub(crate) text: String,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub(crate) enum Action {
    TurnOn { device_id: String, level: u8 },
    TurnOff { device_id: String },
    Tell { text: String, urgency: Urgency },
}

/// As notifications takes it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Urgency {
    Info,
    Warning,
}

/// What must be remembered, also over a restart. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// When the lamps that motion switched on go off.
    pub(crate) off_at: BTreeMap<String, u64>,
    /// When people were last told of a kind of warning.
    pub(crate) warned_at: BTreeMap<String, u64>,
}

/// A lamp that could not be switched off is tried again after this.
const RETRY_MS: u64 = 10_000;
/// Lamps that go off in one tick; others wait for the next. What was done is stored in one batch, and
/// that holds 128 writes.
const MOST_AT_ONCE: usize = 100;

/// Decides. The new memory counts once the actions are done.
pub(crate) fn decide(
    rules: &Rules,
    memory: &Memory,
    happening: &Happening,
    now: u64,
) -> (Memory, Vec<Action>) {
    let mut memory = memory.clone();
    let mut actions = Vec::new();
    match happening {
        Happening::Motion { room, period } => {
            if let Some(lamp) = rules.lamps.get(room) {
                let off_at = now.saturating_add(rules.lamp_off_after_seconds.saturating_mul(1000));
                // A lamp of ours that somebody has switched off by hand meanwhile stays off.
                if memory.off_at.insert(lamp.clone(), off_at).is_none() {
                    let night = *period == Some(Period::Night);
                    let level = if night { rules.level_by_night } else { 100 };
                    let device_id = lamp.clone();
                    actions.push(Action::TurnOn { device_id, level });
                    let text = format!("Somebody moved in the {room}");
                    actions.push(Action::Tell {
                        text,
                        urgency: Urgency::Info,
                    });
                }
            }
        }
        Happening::Sample { warnings } => {
            let rest = rules.remind_after_seconds.saturating_mul(1000);
            memory
                .warned_at
                .retain(|_, told| told.saturating_add(rest) > now);
            for Warning { kind, text } in warnings {
                if !memory.warned_at.contains_key(kind) {
                    memory.warned_at.insert(kind.clone(), now);
                    let (text, urgency) = (text.clone(), Urgency::Warning);
                    actions.push(Action::Tell { text, urgency });
                }
            }
        }
        Happening::Tick => {
            let due = memory.off_at.extract_if(.., |_, off_at| *off_at <= now);
            actions.extend(
                due.take(MOST_AT_ONCE)
                    .map(|(device_id, _)| Action::TurnOff { device_id }),
            );
        }
    }
    (memory, actions)
}

/// Corrects the memory when an action has failed.
pub(crate) fn failed(memory: &mut Memory, action: &Action, now: u64) {
    match action {
        // The next motion tries again.
        Action::TurnOn { device_id, .. } => drop(memory.off_at.remove(device_id)),
        Action::TurnOff { device_id } => {
            memory
                .off_at
                .insert(device_id.clone(), now.saturating_add(RETRY_MS));
        }
        // A warning that stays is told again when it is time for the next reminder.
        Action::Tell { .. } => {}
    }
}

/// The rules in words.
pub(crate) fn explain(rules: &Rules) -> Vec<String> {
    let lamps = rules.lamps.iter().map(|(room, lamp)| {
        let (seconds, level) = (rules.lamp_off_after_seconds, rules.level_by_night);
        format!(
            "motion in the {room}: {lamp} on (by night at {level} %) and notify; \
             off {seconds} s after the last motion"
        )
    });
    let seconds = rules.remind_after_seconds;
    let warning =
        format!("host_sensors warns: notify, at most once in {seconds} s for each kind of warning");
    lamps.chain([warning]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn motion(room: &str, period: Option<Period>) -> Happening {
        Happening::Motion {
            room: room.to_owned(),
            period,
        }
    }

    fn sample(kinds: &[&str]) -> Happening {
        let warning = |kind: &&str| Warning {
            kind: (*kind).to_owned(),
            text: format!("{kind}!"),
        };
        Happening::Sample {
            warnings: kinds.iter().map(warning).collect(),
        }
    }

    fn on(level: u8) -> Vec<Action> {
        let device_id = "lamp_hall".to_owned();
        vec![
            Action::TurnOn { device_id, level },
            tell("Somebody moved in the hall", Urgency::Info),
        ]
    }

    fn tell(text: &str, urgency: Urgency) -> Action {
        Action::Tell {
            text: text.to_owned(),
            urgency,
        }
    }

    fn off() -> Vec<Action> {
        let device_id = "lamp_hall".to_owned();
        vec![Action::TurnOff { device_id }]
    }

    fn warn(kind: &str) -> Vec<Action> {
        vec![tell(&format!("{kind}!"), Urgency::Warning)]
    }

    /// Plays a story of (seconds, what happens, what must be done).
    fn play(story: &[(u64, Happening, Vec<Action>)]) -> Memory {
        let mut memory = Memory::default();
        for (seconds, happening, expected) in story {
            let (after, actions) = decide(&Rules::default(), &memory, happening, seconds * 1000);
            assert_eq!(actions, *expected, "at {seconds} s: {happening:?}");
            memory = after;
        }
        memory
    }

    #[test]
    fn motion_lights_a_room_until_nobody_has_moved_for_a_while() {
        let memory = play(&[
            (0, motion("hall", None), on(100)),
            (20, motion("hall", None), vec![]),
            (30, Happening::Tick, vec![]),
            (49, Happening::Tick, vec![]),
            (50, Happening::Tick, off()),
            (51, Happening::Tick, vec![]),
            (60, motion("hall", Some(Period::Day)), on(100)),
        ]);
        assert_eq!(memory.off_at["lamp_hall"], 90_000);
    }

    #[test]
    fn the_light_is_dim_by_night() {
        play(&[(0, motion("hall", Some(Period::Night)), on(30))]);
    }

    #[test]
    fn a_room_without_a_rule_stays_as_it_is() {
        assert_eq!(
            play(&[(0, motion("garden", None), vec![])]),
            Memory::default()
        );
    }

    #[test]
    fn a_warning_is_not_repeated_before_its_time() {
        let memory = play(&[
            (0, sample(&[]), vec![]),
            (1, sample(&["load"]), warn("load")),
            (2, sample(&["load", "disk"]), warn("disk")),
            (3, sample(&[]), vec![]),
            (4, sample(&["load"]), vec![]),
            (600, sample(&["load"]), vec![]),
            (601, sample(&["load"]), warn("load")),
            (1300, sample(&[]), vec![]),
        ]);
        assert_eq!(memory, Memory::default());
    }

    #[test]
    fn what_failed_is_tried_again() {
        let (mut memory, actions) = decide(
            &Rules::default(),
            &Memory::default(),
            &motion("hall", None),
            0,
        );
        failed(&mut memory, &actions[0], 0);
        let (memory, actions) = decide(&Rules::default(), &memory, &motion("hall", None), 1000);
        assert_eq!(actions, on(100));
        let (mut memory, actions) = decide(&Rules::default(), &memory, &Happening::Tick, 31_000);
        assert_eq!(actions, off());
        failed(&mut memory, &actions[0], 31_000);
        for (now, expected) in [(40_999, vec![]), (41_000, off())] {
            assert_eq!(
                decide(&Rules::default(), &memory, &Happening::Tick, now).1,
                expected
            );
        }
    }

    #[test]
    fn every_rule_is_explained() {
        let lines = explain(&Rules::default());
        assert_eq!(lines.len(), 4);
        assert!(
            lines[1].starts_with("motion in the hall: lamp_hall on"),
            "{lines:?}"
        );
    }
}
