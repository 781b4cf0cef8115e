//! The guest's console: a serial port that takes bytes into a bounded ring.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

use crate::bus::BusDevice;
use crate::control::{PANIC_PATIENCE, StopReason};

/// The first I/O port of the serial port, a PC's COM1.
pub const SERIAL_PORT: u64 = 0x3F8;
/// The number of its ports.
pub const SERIAL_PORTS: u64 = 8;

/// How many of the guest's last bytes are kept.
const RING: usize = 64 * 1024;

/// How the kernel starts the line in which it says why it panicked.
const PANIC: &str = "Kernel panic - not syncing: ";

/// How many of the last bytes are looked at for it, whatever the guest writes; a line of the kernel's log has 1 KiB at
/// most (`LOG_LINE_MAX`).
const LINE: usize = 2048;

/// The last 64 KiB that the guest has written to its console. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Console {
    ring: Arc<Mutex<VecDeque<u8>>>,
    /// Whether bytes go to the VMM's standard error as well.
    echo: bool,
}

impl Console {
    /// A console that also writes to standard error what it keeps.
    pub fn echoing() -> Self {
        Self { echo: true, ..Self::default() }
    }

    /// The last bytes as text, `limit` at most, without control characters other than newline and tab: it is shown
    /// on terminals and in logs.
    pub fn tail(&self, limit: usize) -> String {
        let text = self.text();
        let printable = |c: char| c == '\n' || c == '\t' || !c.is_control();
        let clean: String = text.chars().filter(|c| printable(*c)).collect();
        let start = clean.len().saturating_sub(limit);
        let start = (start..=clean.len()).find(|&index| clean.is_char_boundary(index));
        start.and_then(|start| clean.get(start..)).unwrap_or_default().to_owned()
    }

    /// What the kernel said when it panicked, if it did.
    pub fn panic_message(&self) -> Option<String> {
        let text = self.text();
        let (_, rest) = text.rsplit_once(PANIC)?;
        let line = rest.lines().next().unwrap_or_default().trim();
        Some(line.chars().filter(|c| !c.is_control()).take(512).collect())
    }

    /// Whether the line that ends what is kept tells of a panic.
    fn ends_in_panic(&self) -> bool {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let backwards = ring.iter().rev().take(LINE).skip_while(|byte| **byte == b'\n');
        let mut line: Vec<u8> = backwards.take_while(|byte| **byte != b'\n').copied().collect();
        line.reverse();
        line.windows(PANIC.len()).any(|part| part == PANIC.as_bytes())
    }

    /// All that is kept, as it is.
    pub(crate) fn text(&self) -> String {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, second) = ring.as_slices();
        String::from_utf8_lossy(&[first, second].concat()).into_owned()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.echo {
            io::stderr().write_all(bytes)?;
        }
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = bytes.get(bytes.len().saturating_sub(RING)..).unwrap_or_default();
        let excess = (ring.len() + kept.len()).saturating_sub(RING);
        ring.drain(..excess);
        ring.extend(kept);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port interrupts nobody: its one user polls.
#[derive(Debug)]
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        Ok(())
    }
}

/// A 16550 that is always ready to take a byte and never has one.
pub struct SerialPort {
    serial: Serial<NoInterrupt, NoEvents, Console>,
    patience: Duration,
    /// When the guest said that its kernel has panicked.
    panicked: Option<Instant>,
}

impl SerialPort {
    /// A serial port that writes to `console`.
    pub fn new(console: Console) -> Self {
        Self { serial: Serial::new(NoInterrupt, console), patience: PANIC_PATIENCE, panicked: None }
    }

    /// Takes a byte. `true` when a kernel that has panicked has written for long enough.
    fn take(&mut self, offset: u8, byte: u8) -> bool {
        // A standard error that is gone makes the guest's console silent, no more.
        let _ = self.serial.write(offset, byte);
        if self.panicked.is_none() && byte == b'\n' && self.serial.writer().ends_in_panic() {
            self.panicked = Some(Instant::now());
        }
        self.panicked.is_some_and(|since| since.elapsed() >= self.patience)
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.serial.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason> {
        let offset = u8::try_from(offset).ok()?;
        // More than one byte is a string instruction, which writes to the same port again and again.
        for byte in data {
            if self.take(offset, *byte) {
                // What the reset at the end of a panic is, and found to be a panic in the same way.
                return Some(StopReason::Rebooted);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "a hundred thousand bytes, one by one")]
    fn the_ring_keeps_the_last_bytes_and_no_more() {
        let mut console = Console::default();
        for _ in 0..3 {
            console.write_all(&[b'a'; 40_000]).unwrap();
        }
        console.write_all(b"end").unwrap();
        assert_eq!(console.text().len(), RING);
        assert!(console.text().ends_with("aend"));
        console.write_all(&[b'b'; RING + 5]).unwrap();
        assert_eq!(console.text(), "b".repeat(RING));
    }

    #[test]
    fn the_tail_holds_no_terminal_escapes_and_no_half_characters() {
        let mut console = Console::default();
        console.write_all("\x1b[31mrot\x07 äöü\r\n".as_bytes()).unwrap();
        assert_eq!(console.tail(100), "[31mrot äöü\n");
        assert_eq!(console.tail(4), "ü\n", "5 bytes would be needed for öü");
    }

    #[test]
    fn a_panic_is_told_from_other_output_by_its_line() {
        let mut console = Console::default();
        console.write_all(b"[    0.1] hello\n").unwrap();
        assert_eq!(console.panic_message(), None);
        let text = b"[    0.2] Kernel panic - not syncing: No working init found.  Try passing\r\n[    0.3] CPU: 0\n";
        console.write_all(text).unwrap();
        assert_eq!(console.panic_message().unwrap(), "No working init found.  Try passing");
    }

    #[test]
    fn the_serial_port_is_ready_and_takes_bytes() {
        let console = Console::default();
        let mut port = SerialPort::new(console.clone());
        let mut status = [0];
        port.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60, "transmitter empty");
        port.write(0, b"a");
        port.write(0, b"bc");
        assert_eq!(console.tail(10), "abc");
    }

    #[test]
    fn a_kernel_that_has_panicked_does_not_write_for_ever() {
        let text = b"[    0.2] hello\n[    0.3] Kernel panic - not syncing: VFS\n[    0.4] CPU: 0\n";
        let mut port = SerialPort { patience: Duration::MAX, ..SerialPort::new(Console::default()) };
        assert_eq!(port.write(0, text), None, "it may say where");
        port.patience = Duration::ZERO;
        assert_eq!(port.write(0, b"[    0.0] Linux version\n"), Some(StopReason::Rebooted));
        let mut hurried = SerialPort { patience: Duration::ZERO, ..SerialPort::new(Console::default()) };
        assert_eq!(hurried.write(0, b"[    0.2] hello\n\n[    0.3] no panic"), None);
        assert_eq!(hurried.write(0, text), Some(StopReason::Rebooted));
        assert_eq!(hurried.serial.writer().panic_message().unwrap(), "VFS");
    }

    #[test]
    fn the_divisor_latch_is_not_output() {
        let console = Console::default();
        let mut port = SerialPort::new(console.clone());
        port.write(3, &[0x83]);
        port.write(0, &[1]);
        port.write(3, &[0x03]);
        port.write(0, b"x");
        assert_eq!(console.tail(10), "x");
    }
}
