//! Ending the virtual machine: one byte to the VMM's power port. The guest has no ACPI.

use std::io;

use rustix::system::{RebootCommand, reboot};

use crate::ports;

/// The I/O port that the VMM's power device answers on.
const POWER_PORT: u16 = 0x604;
/// What it takes for "off".
const OFF: u8 = 0;

/// Writes what is cached to the file systems and switches the machine off.
///
/// Returns only when that failed.
pub(crate) fn off() -> io::Error {
    rustix::fs::sync();
    match ports::write_byte(POWER_PORT, OFF) {
        // The machine ends at that write; here it has no such port.
        Ok(()) => match reboot(RebootCommand::PowerOff) {
            Ok(()) => io::Error::other("the machine goes on after a power-off"),
            Err(error) => error.into(),
        },
        Err(error) => error,
    }
}
