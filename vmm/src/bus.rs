//! The addresses to which devices answer, in I/O port space and in memory space.

use std::sync::{Arc, Mutex, PoisonError};

use crate::control::StopReason;

/// A device at a range of addresses. It runs on the vCPU threads.
pub trait BusDevice: Send {
    /// Reads at `offset` from the start of its range. `data` is preset to what an absent device reads as.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes at `offset` from the start of its range; whatever makes no sense is ignored. An answer stops the VM.
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason>;
}

/// Why a device could not be put on a bus.
#[derive(Debug, thiserror::Error)]
#[error("a device at {start:#x} of {length:#x} bytes overlaps another or exceeds the address space")]
pub struct Overlap {
    start: u64,
    length: u64,
}

struct Slot {
    start: u64,
    length: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// The devices of one address space. Addresses at which there is none read as all ones.
#[derive(Default)]
pub struct Bus {
    slots: Vec<Slot>,
}

impl Bus {
    /// Puts a device at `length` bytes from `start`.
    ///
    /// # Errors
    /// A range that another device has.
    pub fn insert(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), Overlap> {
        let end = start.checked_add(length).ok_or(Overlap { start, length })?;
        let free = self.slots.iter().all(|slot| end <= slot.start || slot.start + slot.length <= start);
        if length == 0 || !free {
            return Err(Overlap { start, length });
        }
        self.slots.push(Slot { start, length, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xFF);
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        }
    }

    /// Writes `data` at `address`. An answer stops the VM.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<StopReason> {
        let (device, offset) = self.find(address, data.len())?;
        device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data)
    }

    /// The device that has the whole of the range, and the offset in it.
    fn find(&self, address: u64, length: usize) -> Option<(&Mutex<dyn BusDevice>, u64)> {
        let slot = self.slots.iter().find(|slot| {
            let offset = address.checked_sub(slot.start);
            let end = offset.and_then(|offset| offset.checked_add(length as u64));
            end.is_some_and(|end| end <= slot.length)
        })?;
        Some((&*slot.device, address - slot.start))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Remembers its last write and reads as its offset.
    struct Probe(Option<(u64, Vec<u8>)>);

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason> {
            self.0 = Some((offset, data.to_vec()));
            None
        }
    }

    fn bus() -> (Bus, Arc<Mutex<Probe>>) {
        let probe = Arc::new(Mutex::new(Probe(None)));
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, probe.clone()).unwrap();
        (bus, probe)
    }

    #[test]
    fn devices_do_not_overlap() {
        let (mut bus, probe) = bus();
        assert!(bus.insert(0x100F, 1, probe.clone()).is_err());
        assert!(bus.insert(0xFF1, 0x10, probe.clone()).is_err());
        assert!(bus.insert(u64::MAX, 2, probe.clone()).is_err());
        assert!(bus.insert(0x1010, 1, probe).is_ok());
    }

    proptest! {
        #[test]
        fn a_device_sees_what_lies_wholly_inside_its_range_and_nothing_else(
            address in prop_oneof![0xFF0u64..0x1020, any::<u64>()], length in 0usize..=64,
        ) {
            let (bus, probe) = bus();
            let inside = address >= 0x1000 && address <= 0x1010 - (length as u64).min(0x10) && length <= 0x10;
            let mut data = vec![0; length];
            bus.read(address, &mut data);
            let expected = if inside { (address - 0x1000) as u8 } else { 0xFF };
            prop_assert!(data.iter().all(|byte| *byte == expected));
            bus.write(address, &data);
            let written = probe.lock().unwrap().0.take();
            prop_assert_eq!(written, inside.then(|| (address - 0x1000, data)));
        }
    }
}
