//! I/O ports of the VMM's own devices. This process has a port only while it uses it: its children would inherit it.

use std::arch::asm;
use std::io;

/// Writes a byte.
pub(crate) fn write_byte(port: u16, value: u8) -> io::Result<()> {
    with_ports(port, 1, || {
        // SAFETY: the port is open, and its device reads the byte and touches no memory of ours.
        unsafe {
            asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
        }
    })
}

/// Reads a number of 64 bits: four bytes at the port, the low ones, then four at the fifth port from there.
pub(crate) fn read_number(port: u16) -> io::Result<u64> {
    with_ports(port, 8, || {
        let low = read_four_bytes(port);
        u64::from(read_four_bytes(port + 4)) << 32 | u64::from(low)
    })
}

fn read_four_bytes(port: u16) -> u32 {
    let value;
    // SAFETY: the ports are open, and their device touches no memory of ours.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Does something with `count` ports from `first` on.
fn with_ports<T>(first: u16, count: u16, work: impl FnOnce() -> T) -> io::Result<T> {
    permit(first, count, true)?;
    let result = work();
    permit(first, count, false)?;
    Ok(result)
}

fn permit(first: u16, count: u16, permitted: bool) -> io::Result<()> {
    // SAFETY: takes no pointer; it decides whether this thread may use these ports, whose devices are the VMM's own.
    let result = unsafe { libc::ioperm(first.into(), count.into(), permitted.into()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
