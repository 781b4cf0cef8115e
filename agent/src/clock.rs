//! The time of day, which the VMM's clock device has from the host.

use std::io;

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::ports;

/// The first I/O port of the VMM's clock device.
const CLOCK_PORT: u16 = 0x610;

/// Sets the guest's clock to the host's.
pub(crate) fn set() -> io::Result<()> {
    const SECOND: u64 = 1_000_000_000;
    let nanoseconds = ports::read_number(CLOCK_PORT)?;
    // Both fit: 2^64 nanoseconds are 2^34 seconds.
    let now = Timespec {
        tv_sec: (nanoseconds / SECOND).cast_signed(),
        tv_nsec: (nanoseconds % SECOND).cast_signed(),
    };
    Ok(clock_settime(ClockId::Realtime, now)?)
}
