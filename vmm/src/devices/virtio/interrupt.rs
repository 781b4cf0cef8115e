//! How a device interrupts its driver.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::mmio::RegisterFile;

/// `InterruptStatus` bit 0: the device has used a buffer (virtio 1.2, 4.2.2).
pub const USED_BUFFER: u32 = 1 << 0;
/// `InterruptStatus` bit 1: the configuration has changed (virtio 1.2, 4.2.2).
pub const CONFIGURATION_CHANGE: u32 = 1 << 1;

/// The device status's bit `DEVICE_NEEDS_RESET` (virtio 1.2, 2.1).
const DEVICE_NEEDS_RESET: u32 = 64;

/// The one interrupt line of a virtio-mmio device: an irqfd, and the reasons that the driver reads from
/// `InterruptStatus` and clears by `InterruptACK`. Clones share line and reasons.
#[derive(Debug, Clone)]
pub struct Interrupt {
    line: Arc<EventFd>,
    registers: RegisterFile,
    broken: Arc<AtomicBool>,
}

impl Interrupt {
    /// An interrupt that is raised by writing to `line`, which KVM has as an irqfd.
    pub fn new(line: EventFd) -> Self {
        Self::with_registers(line, RegisterFile::default())
    }

    /// An interrupt whose reasons the guest reads in `registers`.
    pub fn with_registers(line: EventFd, registers: RegisterFile) -> Self {
        Self { line: Arc::new(line), registers, broken: Arc::new(AtomicBool::new(false)) }
    }

    /// Tells the driver that buffers were used. Whether the driver wants to know is the queue's business
    /// (`needs_notification`), not this function's.
    ///
    /// # Errors
    /// What the eventfd's write returned.
    pub fn used_buffer(&self) -> io::Result<()> {
        self.raise(USED_BUFFER)
    }

    /// Tells the driver that the device's configuration space has changed.
    ///
    /// # Errors
    /// What the eventfd's write returned.
    pub fn configuration_change(&self) -> io::Result<()> {
        self.raise(CONFIGURATION_CHANGE)
    }

    /// The device has found its queues in a state from which it cannot go on, and has stopped: the driver sees
    /// `DEVICE_NEEDS_RESET` (virtio 1.2, 2.1.2).
    ///
    /// # Errors
    /// What the eventfd's write returned.
    pub fn needs_reset(&self) -> io::Result<()> {
        // In this order: the transport looks at `broken` after it has stored a status without the bit.
        self.broken.store(true, Ordering::SeqCst);
        self.registers.add_status(DEVICE_NEEDS_RESET);
        self.configuration_change()
    }

    /// Whether the device has stopped since it was last reset.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// The reasons that the driver has not acknowledged.
    pub fn status(&self) -> u32 {
        self.registers.interrupt_status()
    }

    /// The driver acknowledges `reasons`.
    pub fn acknowledge(&self, reasons: u32) {
        self.registers.remove_interrupt_status(reasons);
    }

    /// The device has been reset: nothing is pending any more.
    pub fn reset(&self) {
        self.broken.store(false, Ordering::SeqCst);
        self.acknowledge(u32::MAX);
    }

    /// The eventfd to register with KVM.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    fn raise(&self, reason: u32) -> io::Result<()> {
        // In this order: our guest kernel's driver leaves the bit for used buffers as it is, and relies on it with each
        // interrupt.
        self.registers.add_interrupt_status(reason);
        self.line.write(1)
    }
}
