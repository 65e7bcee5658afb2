//! Bytes that are nearly messages: seeded, so that what was found is found again.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Largest message that it makes.
const MOST_BYTES: usize = 64 << 10;

/// Makes messages out of good ones.
pub(crate) struct Mutator {
    random: StdRng,
    samples: Vec<Vec<u8>>,
}

impl Mutator {
    /// From these good messages.
    pub(crate) fn new(seed: u64, samples: Vec<Vec<u8>>) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            samples,
        }
    }

    /// A number below this one.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.random.random_range(0..limit.max(1))
    }

    /// The next message: a good one, changed in one to six places; or fields without sense; or noise.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut bytes = match self.below(10) {
            0 => self.noise(200),
            1 | 2 => self.fields(3),
            _ => {
                let index = self.below(self.samples.len());
                self.samples[index].clone()
            }
        };
        for _ in 0..=self.below(6) {
            self.change(&mut bytes);
        }
        bytes.truncate(MOST_BYTES);
        bytes
    }

    fn noise(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| self.random.random()).collect()
    }

    /// Fields of any number and any type, well formed most of the time.
    fn fields(&mut self, depth: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..=self.below(5) {
            let number = [1, 2, 3, 4, 5, 6, 7, 10, 15, 16, 2_047, 536_870_911][self.below(12)];
            let kind = self.below(8) as u64;
            varint(&mut bytes, number << 3 | kind);
            match kind {
                0 => varint(&mut bytes, self.odd_number()),
                1 => bytes.extend(self.odd_number().to_le_bytes()),
                2 => {
                    let inner = if depth > 0 && self.below(2) == 0 {
                        self.fields(depth - 1)
                    } else {
                        self.noise(40)
                    };
                    let length = match self.below(8) {
                        0 => self.odd_number(),
                        _ => inner.len() as u64,
                    };
                    varint(&mut bytes, length);
                    bytes.extend(inner);
                }
                5 => bytes.extend(&self.odd_number().to_le_bytes()[..4]),
                // Groups, and types that are none.
                _ => {}
            }
        }
        bytes
    }

    /// Numbers at which code breaks.
    fn odd_number(&mut self) -> u64 {
        let near = [
            0,
            1,
            127,
            128,
            255,
            1 << 16,
            1 << 31,
            1 << 32,
            1 << 62,
            1 << 63,
            u64::MAX,
        ];
        near[self.below(near.len())]
            .wrapping_add(self.below(3) as u64)
            .wrapping_sub(1)
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let length = self.below(16).min(bytes.len() - at.min(bytes.len()));
        match self.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = self.random.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let noise = self.noise(16);
                bytes.splice(at..at, noise);
            }
            5 => {
                let piece = bytes[at..at + length].repeat(1 + self.below(40));
                bytes.splice(at..at, piece);
            }
            6 => {
                // The head of this one, the tail of another.
                let index = self.below(self.samples.len());
                let other = &self.samples[index];
                let from = self.random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            _ => {
                let mut number = Vec::new();
                varint(&mut number, self.odd_number());
                bytes.splice(at..at + length, number);
            }
        }
    }
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
