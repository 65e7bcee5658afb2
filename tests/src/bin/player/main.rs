//! Well-behaved plugins of the SDK, in roles whose work can be checked afterwards. The first argument
//! names the role:
//!
//! | role | |
//! |---|---|
//! | `spins THREADS` | keeps so many threads busy, and is well |
//! | `publisher` | publishes `NAME.tick`, numbered without a hole, as fast as they are acknowledged |
//! | `subscriber PATTERN` | checks such numbers; service `report` |
//! | `peer PACE_MS OTHER` | see [`Peer`]: publishes and calls, and keeps account |
//! | `holds` | service `hold {id}`: writes the id to the file `begun` and never answers |
//! | `mirror` | keeps a copy of its storage by a watch; service `content` |
//! | `ledger` | writes numbered entries to its storage; what was acknowledged stands in the file `acknowledged` too |

mod holds;
mod ledger;
mod mirror;

use std::process::ExitCode;
use std::time::Duration;

use core_tests::peer::Peer;
use core_tests::ticks;

/// Between two events.
const PACE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let name = std::env::var(core_proto::contract::env::PLUGIN).expect("the core starts it");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let plugin = match arguments[..] {
        ["spins", threads] => {
            spin(threads.parse().expect("a number of threads"));
            core_tests::plugins::echo(&name)
        }
        ["publisher"] => ticks::publisher(&name, PACE),
        ["subscriber", pattern] => ticks::subscriber(&name, pattern),
        ["peer", pace_ms, other] => peer(&name, pace_ms, other).plugin(),
        ["holds"] => holds::holds(&name),
        ["ledger"] => ledger::ledger(&name),
        ["mirror"] => mirror::mirror(&name),
        _ => panic!("no such role: {arguments:?}"),
    };
    plugin_sdk::host::main(plugin)
}

fn peer(name: &str, pace_ms: &str, other: &str) -> Peer {
    Peer {
        name: name.to_owned(),
        other: other.to_owned(),
        pace: Duration::from_millis(pace_ms.parse().expect("milliseconds")),
        incarnations: ticks::by_wall_clock(),
    }
}

/// They end with the process.
fn spin(threads: usize) {
    for _ in 0..threads {
        std::thread::spawn(|| {
            let mut number: u64 = 1;
            loop {
                number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005) + 1);
            }
        });
    }
}
