//! The time of day, which the VMM's clock device has from the host.

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::ports;

/// The first I/O port of the VMM's clock device.
const CLOCK_PORT: u16 = 0x610;

/// How often the guest's clock is compared with the host's.
const PERIOD: Duration = Duration::from_secs(10);

/// The difference, in nanoseconds, from which on the clock is set at once, as when the host's has been. A smaller one is made
/// up for by a clock that goes slower or faster by half a thousandth (adjtime(3)), so that no program sees time go back.
const SET_FROM: i64 = 500_000_000;

const SECOND: u64 = 1_000_000_000;

/// Sets the guest's clock to the host's.
pub(crate) fn set() -> io::Result<()> {
    let nanoseconds = ports::read_number(CLOCK_PORT)?;
    // Both fit: 2^64 nanoseconds are 2^34 seconds.
    let now = Timespec {
        tv_sec: (nanoseconds / SECOND).cast_signed(),
        tv_nsec: (nanoseconds % SECOND).cast_signed(),
    };
    Ok(clock_settime(ClockId::Realtime, now)?)
}

/// Follows the host's clock: it is stepped and disciplined, the guest's runs by itself.
pub(crate) async fn follow() {
    let mut periods = interval_at(Instant::now() + PERIOD, PERIOD);
    periods.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        periods.tick().await;
        if let Err(error) = approach() {
            log::error!("the clock does not follow the host's any more: {error}");
            return;
        }
    }
}

fn approach() -> io::Result<()> {
    let before = now();
    let host = ports::read_number(CLOCK_PORT)?.cast_signed();
    match correction(before, host, now()) {
        Correction::None => Ok(()),
        Correction::Adjust { microseconds } => adjust(microseconds),
        Correction::Set => set(),
    }
}

/// The guest's time of day in nanoseconds since 1970.
fn now() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(SECOND.cast_signed()).saturating_add(now.tv_nsec)
}

/// What makes the guest's clock the host's.
#[derive(Debug, PartialEq, Eq)]
enum Correction {
    None,
    Adjust { microseconds: i64 },
    Set,
}

/// Which one does when the host's clock was read between two readings of the guest's, all in nanoseconds. How long that took is how
/// little is known of the difference.
fn correction(before: i64, host: i64, after: i64) -> Correction {
    let doubt = after.saturating_sub(before).max(0) / 2;
    let difference = host.saturating_sub(before.saturating_add(doubt));
    if difference.saturating_abs() <= doubt {
        Correction::None
    } else if difference.saturating_abs() < SET_FROM {
        Correction::Adjust { microseconds: difference / 1000 }
    } else {
        Correction::Set
    }
}

/// Has the clock make up for a difference. One that is being made up for is forgotten.
fn adjust(microseconds: i64) -> io::Result<()> {
    // SAFETY: timex is numbers, for which zero is a value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
    timex.offset = microseconds;
    // SAFETY: `timex` is a valid timex that the kernel reads and writes during the call and not after.
    let result = unsafe { libc::adjtimex(&raw mut timex) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: i64 = 1_000_000;

    #[test]
    fn a_difference_that_the_reading_explains_is_none() {
        assert_eq!(correction(100, 100, 100), Correction::None);
        assert_eq!(correction(0, 0, 700 * MILLISECOND), Correction::None);
        assert_eq!(correction(0, 700 * MILLISECOND, 700 * MILLISECOND), Correction::None);
    }

    #[test]
    fn a_small_difference_is_made_up_for_and_a_large_one_at_once() {
        let after = |host| correction(0, host, 2 * MILLISECOND);
        assert_eq!(after(5 * MILLISECOND), Correction::Adjust { microseconds: 4000 });
        assert_eq!(after(-5 * MILLISECOND), Correction::Adjust { microseconds: -6000 });
        assert_eq!(after(SET_FROM), Correction::Adjust { microseconds: 499_000 });
        assert_eq!(after(SET_FROM + MILLISECOND), Correction::Set);
        assert_eq!(after(-SET_FROM), Correction::Set);
    }

    #[test]
    fn no_time_is_too_far_away() {
        assert_eq!(correction(i64::MIN, i64::MAX, i64::MAX), Correction::Set);
        assert_eq!(correction(i64::MAX, i64::MIN, 0), Correction::Set);
    }
}
