//! Ending the virtual machine: one byte to the VMM's power port. The guest has no ACPI.

use std::io;

use rustix::system::{RebootCommand, reboot};

/// The I/O port that the VMM's power device answers on.
const POWER_PORT: u16 = 0x604;
/// What it takes for "off".
const OFF: u8 = 0;

/// Writes what is cached to the file systems and switches the machine off.
///
/// Returns only when that failed.
pub(crate) fn off() -> io::Error {
    rustix::fs::sync();
    match write_port(POWER_PORT, OFF) {
        // The machine ends at that write; here it has no such port.
        Ok(()) => match reboot(RebootCommand::PowerOff) {
            Ok(()) => io::Error::other("the machine goes on after a power-off"),
            Err(error) => error.into(),
        },
        Err(error) => error,
    }
}

fn write_port(port: u16, value: u8) -> io::Result<()> {
    // SAFETY: takes no pointer; it lets this process alone write to that one port.
    let result = unsafe { libc::ioperm(port.into(), 1, 1) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the port was opened just now, and its device reads the byte and touches no memory of ours.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}
