//! The registers as the guest reads them: memory that it may read and not write, so that reading costs no exit.
//!
//! Drivers read a lot: some forty registers while they set a device up, and `InterruptStatus` on every interrupt. KVM
//! maps these words read-only where the registers are; what is written there still exits. The transport is who says
//! what a register reads as, and puts it here after whatever may have changed it. The interrupt alone writes its own
//! words from other threads.

use std::fmt;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use super::registers::{INTERRUPT_STATUS, STATUS};

/// The room of one device's registers: 0x100 bytes of the transport and as many of configuration space, which is
/// more than any device has.
pub const REGISTER_FILE_SIZE: u64 = 0x200;

const WORDS: usize = 128;

/// The registers of one device. Clones share them.
#[derive(Clone)]
pub struct RegisterFile(Backing);

#[derive(Clone)]
enum Backing {
    /// In memory that KVM maps, which lives as long as the process.
    Mapped(&'static [AtomicU32]),
    /// Where no guest looks.
    Own(Arc<[AtomicU32; WORDS]>),
}

impl fmt::Debug for RegisterFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("RegisterFile").finish_non_exhaustive()
    }
}

/// Memory for the registers of several devices, one behind the other.
#[derive(Debug)]
pub struct RegisterMemory {
    words: &'static [AtomicU32],
}

impl RegisterMemory {
    /// Zeroed registers for `devices` devices, in whole pages. It is never unmapped.
    ///
    /// # Errors
    /// The host's refusal.
    pub fn new(devices: usize) -> io::Result<Self> {
        const PAGE: usize = 4096;
        let length = devices.max(1).checked_mul(size_of::<[AtomicU32; WORDS]>());
        let length = length.and_then(|length| length.checked_next_multiple_of(PAGE));
        let length = length.ok_or(io::ErrorKind::OutOfMemory)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let mapping = unsafe { mmap_anonymous(ptr::null_mut(), length, access, MapFlags::PRIVATE) }?;
        // SAFETY: the mapping is zeroed, aligned to pages, `length` bytes long and never unmapped; every pattern of
        // bits is an AtomicU32, and the guest can only read.
        let words = unsafe { std::slice::from_raw_parts(mapping.cast(), length / size_of::<AtomicU32>()) };
        Ok(Self { words })
    }

    /// The registers of the device with this number, if there is room for it.
    pub fn file(&self, index: usize) -> Option<RegisterFile> {
        let start = index.checked_mul(WORDS)?;
        let words = self.words.get(start..start.checked_add(WORDS)?)?;
        Some(RegisterFile(Backing::Mapped(words)))
    }

    /// Address and length of the pages, for KVM.
    pub fn pages(&self) -> (u64, u64) {
        (self.words.as_ptr() as u64, size_of_val(self.words) as u64)
    }
}

impl Default for RegisterFile {
    /// Registers that no guest reads.
    fn default() -> Self {
        Self(Backing::Own(Arc::new([const { AtomicU32::new(0) }; WORDS])))
    }
}

impl RegisterFile {
    /// Has the guest read zeroes: there is no device.
    pub fn clear(&self) {
        (0..REGISTER_FILE_SIZE).step_by(4).for_each(|offset| self.store(offset, 0));
    }

    /// What the guest reads at `offset`.
    pub(super) fn load(&self, offset: u64) -> u32 {
        self.word(offset).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// Has the guest read `value` at `offset`.
    pub(super) fn store(&self, offset: u64, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::SeqCst);
        }
    }

    /// The reasons for an interrupt that the driver has not acknowledged.
    pub(in super::super) fn interrupt_status(&self) -> u32 {
        self.load(INTERRUPT_STATUS)
    }

    /// Adds reasons for an interrupt.
    pub(in super::super) fn add_interrupt_status(&self, reasons: u32) {
        if let Some(word) = self.word(INTERRUPT_STATUS) {
            word.fetch_or(reasons, Ordering::SeqCst);
        }
    }

    /// Removes reasons for an interrupt.
    pub(in super::super) fn remove_interrupt_status(&self, reasons: u32) {
        if let Some(word) = self.word(INTERRUPT_STATUS) {
            word.fetch_and(!reasons, Ordering::SeqCst);
        }
    }

    /// Adds bits to the device status.
    pub(in super::super) fn add_status(&self, bits: u32) {
        if let Some(word) = self.word(STATUS) {
            word.fetch_or(bits, Ordering::SeqCst);
        }
    }

    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        let words = match &self.0 {
            Backing::Mapped(words) => words,
            Backing::Own(words) => words.as_slice(),
        };
        words.get(usize::try_from(offset / 4).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_registers_of_their_own_in_whole_pages() {
        let memory = RegisterMemory::new(9).unwrap();
        let (address, length) = memory.pages();
        assert_eq!((address % 4096, length), (0, 8192));
        let files = [0, 8].map(|index| memory.file(index).unwrap());
        files[1].store(0xFC, 7);
        assert_eq!((files[0].load(0xFC), files[1].load(0xFC)), (0, 7));
        assert_eq!(memory.words[8 * WORDS + 0xFC / 4].load(Ordering::SeqCst), 7);
        assert!(memory.file(16).is_none());
    }
}
