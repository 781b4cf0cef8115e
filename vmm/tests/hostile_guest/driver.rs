//! A driver's side of the devices, as instructions of a guest.

use saya_vmm::devices::virtio::mmio::REGISTER_FILE_SIZE;
use saya_vmm::layout::VIRTIO_MMIO_BASE;

use crate::assembler::Code;

/// The devices of a machine with two shares, vsock, an interface of two queue pairs and, in the first slot for what comes later, a disk,
/// in their order, and how many queues each has.
pub(crate) const DEVICES: [(&str, u32); 7] =
    [("fs of its own", 2), ("fs", 2), ("vsock", 3), ("net", 5), ("rng", 1), ("balloon", 4), ("blk", 1)];
/// The share that the guest alone changes: it delays writes there, and opens files without telling.
pub(crate) const OWN_FS: u32 = 0;
pub(crate) const FS: u32 = 1;
pub(crate) const VSOCK: u32 = 2;
pub(crate) const BLK: u32 = 6;

/// The status bits of a driver that is ready.
pub(crate) const DRIVER_OK: u32 = 15;

/// A device's register.
pub(crate) fn register(device: u32, offset: u32) -> u32 {
    u32::try_from(VIRTIO_MMIO_BASE).unwrap() + device * u32::try_from(REGISTER_FILE_SIZE).unwrap() + offset
}

/// Where a queue's table, available ring and used ring are.
#[derive(Clone, Copy)]
pub(crate) struct Rings {
    pub(crate) table: u32,
    pub(crate) available: u32,
    pub(crate) used: u32,
    pub(crate) size: u32,
}

impl Rings {
    /// Rings that lie as they should, 16 KiB from `base`.
    pub(crate) fn at(base: u32, size: u32) -> Self {
        Self { table: base, available: base + 0x1000, used: base + 0x2000, size }
    }

    /// Writes a descriptor.
    pub(crate) fn describe(
        &self,
        code: &mut Code,
        index: u32,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let at = self.table + 16 * index;
        code.store_bytes(at, &address.to_le_bytes());
        code.store(at + 8, length);
        code.store(at + 12, u32::from(flags) | u32::from(next) << 16);
    }

    /// Writes an entry of the available ring.
    pub(crate) fn offer(&self, code: &mut Code, entry: u32, head: u16) {
        code.store_word(self.available + 4 + 2 * (entry % self.size.max(1)), head);
    }

    /// Sets the available index.
    pub(crate) fn set_available(&self, code: &mut Code, index: u16) {
        code.store_word(self.available + 2, index);
    }
}

/// Waits for the disk, which comes when the machine runs.
pub(crate) fn wait_for_disk(code: &mut Code) {
    // again: cmp dword [magic value], "virt"; jne again
    code.bytes(&[0x81, 0x3D]);
    code.bytes(&register(BLK, 0).to_le_bytes());
    code.bytes(b"virt");
    code.bytes(&[0x75, 0xF4]);
}

/// Resets a device and agrees with it on all that it offers.
pub(crate) fn negotiate(code: &mut Code, device: u32) {
    for status in [0, 1, 3] {
        code.store(register(device, 0x70), status);
    }
    for page in [0, 1] {
        code.store(register(device, 0x14), page);
        // What the device offers is what the driver takes.
        code.load(register(device, 0x10));
        code.store(register(device, 0x24), page);
        code.bytes(&[0xA3]); // mov [driver features], eax
        code.bytes(&register(device, 0x20).to_le_bytes());
    }
    code.store(register(device, 0x70), 11);
}

/// Gives a device a queue.
pub(crate) fn set_up_queue(code: &mut Code, device: u32, queue: u32, rings: Rings) {
    for (offset, value) in [
        (0x30, queue),
        (0x38, rings.size),
        (0x80, rings.table),
        (0x84, 0),
        (0x90, rings.available),
        (0x94, 0),
        (0xA0, rings.used),
        (0xA4, 0),
        (0x44, 1),
    ] {
        code.store(register(device, offset), value);
    }
}

/// Waits until a queue's chains have all been given back, but not for ever: its device may have stopped.
pub(crate) fn wait_for_answers(code: &mut Code, rings: Rings) {
    // mov edx, 5000; again: mov ax, [available]; cmp ax, [used]; je done; dec edx; jnz again: done
    code.bytes(&[0xBA, 0x88, 0x13, 0, 0, 0x66, 0xA1]);
    code.bytes(&(rings.available + 2).to_le_bytes());
    code.bytes(&[0x66, 0x3B, 0x05]);
    code.bytes(&(rings.used + 2).to_le_bytes());
    code.bytes(&[0x74, 0x03, 0x4A, 0x75, 0xEE]);
}

/// The driver is ready.
pub(crate) fn begin(code: &mut Code, device: u32) {
    code.store(register(device, 0x70), DRIVER_OK);
}

/// Notifies a device of a queue.
pub(crate) fn notify(code: &mut Code, device: u32, queue: u32) {
    code.store(register(device, 0x50), queue);
}
