//! The simulated house. Pure: no clock, no core.

use std::collections::BTreeMap;

use plugin_sdk::prelude::*;
use rand::RngExt as _;
use rand::rngs::SmallRng;

/// A lamp as others see it, and as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Lamp {
    pub(crate) id: String,
    pub(crate) room: String,
    pub(crate) on: bool,
    /// Brightness in percent, also while it is off.
    pub(crate) level: u8,
}

impl Lamp {
    pub(crate) fn new(room: &str) -> Self {
        Self {
            id: format!("lamp_{room}"),
            room: room.to_owned(),
            on: false,
            level: 100,
        }
    }

    pub(crate) fn turned_on(&self, level: Option<u8>) -> Self {
        Self {
            on: true,
            level: level.unwrap_or(self.level),
            ..self.clone()
        }
    }

    pub(crate) fn turned_off(&self) -> Self {
        Self {
            on: false,
            ..self.clone()
        }
    }
}

/// Somebody moved in front of a detector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Motion {
    pub(crate) device_id: String,
    pub(crate) room: String,
}

impl Motion {
    pub(crate) fn in_room(room: &str) -> Self {
        Self {
            device_id: format!("motion_{room}"),
            room: room.to_owned(),
        }
    }
}

/// The lamps by id.
pub(crate) type Lamps = BTreeMap<String, Lamp>;

pub(crate) fn find<'a>(lamps: &'a Lamps, id: &str) -> Result<&'a Lamp> {
    lamps.get(id).ok_or_else(|| {
        let known: Vec<_> = lamps.keys().map(String::as_str).collect();
        Error::not_found(format!("no lamp {id:?}; there are {}", known.join(", ")))
            .with_reason("NO_SUCH_DEVICE")
    })
}

/// The next random move: after how long, and in which room. Between half of the time and one and a half.
pub(crate) fn next_move<'a>(
    random: &mut SmallRng,
    rooms: &'a [String],
    every_ms: u64,
) -> Option<(u64, &'a str)> {
    if every_ms == 0 || rooms.is_empty() {
        return None;
    }
    let wait = random.random_range(every_ms / 2..=every_ms.saturating_add(every_ms / 2));
    let room = &rooms[random.random_range(0..rooms.len())];
    Some((wait, room))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_lamp_keeps_its_level_while_it_is_off() {
        let lamp = Lamp::new("hall").turned_on(Some(30)).turned_off();
        assert_eq!((lamp.on, lamp.level), (false, 30));
        assert_eq!(lamp.turned_on(None).level, 30);
    }

    #[test]
    fn an_unknown_lamp_is_refused_with_those_there_are() {
        let lamps = ["hall", "kitchen"]
            .map(|room| (Lamp::new(room).id, Lamp::new(room)))
            .into();
        assert_eq!(find(&lamps, "lamp_hall").expect("known").room, "hall");
        let error = find(&lamps, "hall").expect_err("no id");
        assert_eq!(
            (error.code(), error.reason()),
            (Code::NotFound, "NO_SUCH_DEVICE")
        );
        assert_eq!(
            error.message(),
            "no lamp \"hall\"; there are lamp_hall, lamp_kitchen"
        );
    }

    #[test]
    fn the_same_seed_makes_the_same_moves() {
        let rooms = ["hall".to_owned(), "kitchen".to_owned()];
        let moves = |seed| -> Vec<_> {
            let mut random = SmallRng::seed_from_u64(seed);
            (0..20)
                .map_while(|_| next_move(&mut random, &rooms, 1000))
                .collect()
        };
        assert_eq!(moves(7), moves(7));
        assert_ne!(moves(7), moves(8));
        assert_eq!(moves(7).len(), 20);
        assert!(moves(7).iter().all(|(wait, _)| (500..=1500).contains(wait)));
        let mut random = SmallRng::seed_from_u64(7);
        assert_eq!(next_move(&mut random, &rooms, 0), None);
        assert_eq!(next_move(&mut random, &[], 1000), None);
    }
}
