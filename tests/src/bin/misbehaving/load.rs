//! Plugins that take all they can get.

use std::time::Duration;

/// No hog takes more than this, whatever it is told: the machine is not the test's own.
const MOST: usize = 1 << 30;
/// Memory is taken in pieces of this size.
const PIECE: usize = 4 << 20;

/// Takes memory, so many bytes a second up to a limit, and holds it.
pub(crate) fn hog(bytes_per_second: usize, limit: usize) {
    std::thread::spawn(move || {
        let mut held: Vec<Vec<u8>> = Vec::new();
        let pause = Duration::from_secs_f64(PIECE as f64 / bytes_per_second as f64);
        while held.len() * PIECE < limit.min(MOST) {
            // Written to, or the system would not give it.
            held.push(vec![1; PIECE]);
            std::thread::sleep(pause);
        }
        loop {
            std::hint::black_box(&held);
            std::thread::sleep(Duration::from_secs(60));
        }
    });
}
