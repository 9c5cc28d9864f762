//! Both clocks of this machine.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use sharding::times::Now;

/// This moment. `CLOCK_BOOTTIME` runs on while the machine is suspended; `std::time::Instant` does not.
pub(crate) fn now() -> Now {
    Now { boot: read(ClockId::CLOCK_BOOTTIME), wall: read(ClockId::CLOCK_REALTIME) }
}

fn read(clock: ClockId) -> Duration {
    let time: TimeSpec = clock_gettime(clock).expect("every Linux since 2.6.39 has both clocks");
    time.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_forward() {
        let first = now();
        let second = now();
        assert!(second.boot >= first.boot && first.boot > Duration::ZERO);
        assert!(first.wall > Duration::from_secs(1_700_000_000), "the wall clock counts from 1970");
    }
}
