//! Devices that come while the machine runs, and go again.
//!
//! The machine has so many slots for them from the start, behind the devices that it boots with: registers that read as
//! zero, in which no driver finds a device. All share one interrupt, since each input of the I/O APIC costs a booting
//! kernel accesses to it, and virtio-mmio drivers share theirs (Linux, `vm_find_vqs()`). The guest is told of a device
//! by whoever had it attached; nothing that it does itself adds one or takes one away.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wiring::{Place, Wiring, WiringError};
use crate::bus::{Bus, BusDevice, Overlap};
use crate::control::{PluggedDevice, StopReason};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::mmio::{MmioTransport, REGISTER_FILE_SIZE, RegisterFile};
use crate::memory::GuestMemory;

/// How many devices can be attached at once.
pub(super) const SLOTS: u8 = 8;

/// Why a device was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum HotPlugError {
    /// All slots are taken.
    #[error("a virtual machine takes {SLOTS} devices while it runs, and has them: take one away first")]
    Full,
    /// There is nothing to be taken away.
    #[error("there is no device in slot {0}")]
    Empty(u8),
    /// KVM refused.
    #[error("{step}: {source}")]
    Kvm {
        /// What was asked of KVM.
        step: &'static str,
        /// Its answer.
        source: kvm_ioctls::Error,
    },
    /// The host refused an eventfd.
    #[error("eventfd: {0}")]
    EventFd(#[from] io::Error),
}

impl From<WiringError> for HotPlugError {
    fn from(WiringError(step, source): WiringError) -> Self {
        Self::Kvm { step, source }
    }
}

/// A place for a device.
struct Slot {
    place: Place,
    registers: RegisterFile,
    transport: Option<MmioTransport>,
}

impl BusDevice for Slot {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match &mut self.transport {
            Some(transport) => transport.read(offset, data),
            None => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason> {
        self.transport.as_mut()?.write(offset, data)
    }
}

/// The slots of a machine.
pub(super) struct HotPlug {
    wiring: Wiring,
    memory: GuestMemory,
    slots: Vec<Arc<Mutex<Slot>>>,
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HotPlug {
    /// Empty slots at these places.
    pub(super) fn new(
        wiring: Wiring,
        memory: GuestMemory,
        places: impl IntoIterator<Item = (Place, RegisterFile)>,
    ) -> Self {
        let slot = |(place, registers)| Arc::new(Mutex::new(Slot { place, registers, transport: None }));
        Self { wiring, memory, slots: places.into_iter().map(slot).collect() }
    }

    /// Puts the slots on the bus.
    pub(super) fn insert_into(&self, bus: &mut Bus) -> Result<(), Overlap> {
        self.slots.iter().try_for_each(|slot| {
            let address = lock(slot).place.address;
            bus.insert(address, REGISTER_FILE_SIZE, Arc::clone(slot) as Arc<Mutex<dyn BusDevice>>)
        })
    }

    /// Puts a device into the first slot that is free.
    pub(super) fn attach(&self, device: Box<dyn VirtioDevice>) -> Result<PluggedDevice, HotPlugError> {
        for (number, slot) in (0..).zip(&self.slots) {
            let mut slot = lock(slot);
            if slot.transport.is_none() {
                slot.attach(device, &self.memory, &self.wiring)?;
                let Place { address, interrupt } = slot.place;
                return Ok(PluggedDevice { slot: number, address, size: REGISTER_FILE_SIZE, interrupt });
            }
        }
        Err(HotPlugError::Full)
    }

    /// Takes the device in a slot away, whatever its driver does with it. When it returns, nothing of the process has to
    /// do with what was behind the device any more.
    pub(super) fn detach(&self, number: u8) -> Result<(), HotPlugError> {
        let empty = || HotPlugError::Empty(number);
        let mut slot = lock(self.slots.get(usize::from(number)).ok_or_else(empty)?);
        let mut transport = slot.transport.take().ok_or_else(empty)?;
        self.wiring.disconnect(&transport, slot.place);
        transport.shut_down();
        slot.registers.clear();
        Ok(())
    }
}

impl Slot {
    fn attach(
        &mut self,
        device: Box<dyn VirtioDevice>,
        memory: &GuestMemory,
        wiring: &Wiring,
    ) -> Result<(), HotPlugError> {
        let transport = MmioTransport::new(device, memory.clone(), self.registers.clone())?;
        if let Err(error) = wiring.connect(&transport, self.place) {
            wiring.disconnect(&transport, self.place);
            self.registers.clear();
            return Err(error.into());
        }
        self.transport = Some(transport);
        Ok(())
    }
}
