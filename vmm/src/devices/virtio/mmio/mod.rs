//! The virtio-mmio transport (virtio 1.2, section 4.2): registers through which a driver finds, configures and
//! notifies one device.

mod queues;
mod register_file;
mod registers;
mod status;

use std::io;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::queues::QueueSetup;
use self::registers::INTERRUPT_ACK;
use self::status::Status;
use super::interrupt::USED_BUFFER;
use super::{Activation, Interrupt, VirtioDevice};
use crate::bus::BusDevice;
use crate::control::StopReason;
use crate::memory::GuestMemory;

pub use register_file::{REGISTER_FILE_SIZE, RegisterFile, RegisterMemory};
pub use registers::QUEUE_NOTIFY;

/// `VIRTIO_F_VERSION_1`: the device is not a legacy one.
const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_RING_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;

/// A virtio device with its registers.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Interrupt,
    /// What the guest reads without asking.
    registers: RegisterFile,
    status: Status,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected_queue: u32,
    queues: Vec<QueueSetup>,
    notifications: Vec<EventFd>,
    generation: u32,
    activated: bool,
}

impl MmioTransport {
    /// A device that has just been reset, whose registers the guest reads in `registers`.
    ///
    /// # Errors
    /// The host's refusal of an eventfd.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        registers: RegisterFile,
    ) -> io::Result<Self> {
        let queues: Vec<_> = device.queue_sizes().iter().map(|&size| QueueSetup::new(size)).collect();
        let notifications = queues.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<Result<_, _>>()?;
        let line = EventFd::new(EFD_NONBLOCK)?;
        let transport = Self {
            device,
            memory,
            interrupt: Interrupt::with_registers(line, registers.clone()),
            registers,
            status: Status::empty(),
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            selected_queue: 0,
            queues,
            notifications,
            generation: 0,
            activated: false,
        };
        transport.publish_registers();
        transport.publish_config();
        Ok(transport)
    }

    /// The eventfds to attach to writes of each queue's number to [`QUEUE_NOTIFY`], in the queues' order.
    pub fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The device's name.
    pub fn name(&self) -> &'static str {
        self.device.name()
    }

    /// Stops the device, whatever its driver does.
    pub fn shut_down(&mut self) {
        self.reset();
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            registers::MAGIC_VALUE => registers::MAGIC,
            registers::VERSION => registers::CURRENT_VERSION,
            registers::DEVICE_ID => self.device.device_type(),
            registers::VENDOR_ID => registers::VENDOR,
            registers::DEVICE_FEATURES => page(self.device.features(), self.device_features_page),
            registers::QUEUE_NUM_MAX => self.selected().map_or(0, |queue| u32::from(queue.max_size())),
            registers::QUEUE_READY => self.selected().map_or(0, |queue| u32::from(queue.is_ready())),
            registers::INTERRUPT_STATUS => self.interrupt.status(),
            registers::STATUS => self.visible_status().bits(),
            // There are no shared memory regions, which the driver sees as a length of -1 (4.2.2.1).
            registers::SHM_LEN_LOW | registers::SHM_LEN_HIGH => u32::MAX,
            registers::SHM_BASE_LOW | registers::SHM_BASE_HIGH => u32::MAX,
            registers::CONFIG_GENERATION => self.generation,
            // Write-only registers and those that do not exist.
            _ => 0,
        }
    }

    /// Has the guest read what [`read_register`](Self::read_register) says.
    fn publish_registers(&self) {
        for offset in (0..registers::CONFIG).step_by(4) {
            // The interrupt's own word changes at any time and is always true.
            if offset != registers::INTERRUPT_STATUS {
                self.registers.store(offset, self.read_register(offset));
            }
        }
        // The device may have broken since its status was read.
        if self.interrupt.is_broken() {
            self.registers.add_status(Status::NEEDS_RESET.bits());
        }
    }

    /// Has the guest read the device's configuration space.
    fn publish_config(&self) {
        for offset in (registers::CONFIG..REGISTER_FILE_SIZE).step_by(4) {
            let mut word = [0; 4];
            self.device.read_config(offset - registers::CONFIG, &mut word);
            self.registers.store(offset, u32::from_le_bytes(word));
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            registers::DEVICE_FEATURES_SEL => self.device_features_page = value,
            registers::DRIVER_FEATURES => self.accept_features(value),
            registers::DRIVER_FEATURES_SEL => self.driver_features_page = value,
            registers::QUEUE_SEL => self.selected_queue = value,
            QUEUE_NOTIFY => self.notify(value),
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            registers::STATUS => self.change_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    /// Queues can be set up between `FEATURES_OK` and `DRIVER_OK` only (3.1.1).
    fn write_queue_register(&mut self, offset: u64, value: u32) {
        if !self.status.is_configurable() {
            return;
        }
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let index = usize::try_from(self.selected_queue).unwrap_or(usize::MAX);
        let Some(queue) = self.queues.get_mut(index) else { return };
        match offset {
            registers::QUEUE_READY if value & 1 != 0 => queue.enable(&self.memory, event_idx),
            registers::QUEUE_READY => queue.disable(),
            registers::QUEUE_NUM => queue.set_size(value),
            registers::QUEUE_DESC_LOW => queue.descriptors.set_low(value),
            registers::QUEUE_DESC_HIGH => queue.descriptors.set_high(value),
            registers::QUEUE_DRIVER_LOW => queue.available.set_low(value),
            registers::QUEUE_DRIVER_HIGH => queue.available.set_high(value),
            registers::QUEUE_DEVICE_LOW => queue.used.set_low(value),
            registers::QUEUE_DEVICE_HIGH => queue.used.set_high(value),
            _ => {}
        }
    }

    fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.selected_queue).ok()?)
    }

    /// KVM does this by ioeventfd; a write of another width comes here.
    fn notify(&self, queue: u32) {
        let queue = usize::try_from(queue).ok().and_then(|queue| self.notifications.get(queue));
        if let Some(eventfd) = queue {
            // A counter at its limit is readable, which is all that it is for.
            let _ = eventfd.write(1);
        }
    }

    fn accept_features(&mut self, value: u32) {
        if !self.status.is_negotiating() {
            return;
        }
        let shift = match self.driver_features_page {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let cleared = self.driver_features & !(u64::from(u32::MAX) << shift);
        self.driver_features = cleared | u64::from(value) << shift;
    }

    fn visible_status(&self) -> Status {
        if self.interrupt.is_broken() { self.status | Status::NEEDS_RESET } else { self.status }
    }

    fn change_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let Some(step) = self.status.step_to(value) else { return };
        if step == Status::FEATURES_OK && !self.features_are_acceptable() {
            // The driver reads the status back and finds that the bit is not set (3.1.1, step 6).
            return;
        }
        self.status |= step;
        if step == Status::DRIVER_OK {
            self.activate();
        }
    }

    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.device.features() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn activate(&mut self) {
        let queues = self.queues.iter().zip(&self.notifications).map(|(queue, eventfd)| queue.build(eventfd));
        let activated =
            queues.collect::<io::Result<Vec<_>>>().map_err(|error| error.to_string()).and_then(|queues| {
                let activation = Activation {
                    memory: self.memory.clone(),
                    queues,
                    interrupt: self.interrupt.clone(),
                    features: self.driver_features,
                };
                self.device.activate(activation).map_err(|error| error.to_string())
            });
        self.activated = true;
        if let Err(error) = activated {
            eprintln!("virtio {}: {error}", self.device.name());
            // The interrupt's eventfd is what failed, if this does: the driver still reads the status.
            let _ = self.interrupt.needs_reset();
        }
    }

    fn reset(&mut self) {
        if self.activated {
            self.device.reset();
        }
        self.activated = false;
        self.status = Status::empty();
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.driver_features = 0;
        self.selected_queue = 0;
        self.queues.iter_mut().for_each(QueueSetup::reset);
        self.interrupt.reset();
    }
}

/// The 32 feature bits that a driver has selected.
fn page(features: u64, page: u32) -> u32 {
    let shifted = match page {
        0 => features,
        1 => features >> 32,
        _ => 0,
    };
    u32::try_from(shifted & u64::from(u32::MAX)).unwrap_or_default()
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            self.device.read_config(offset, data);
        } else if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason> {
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            if self.status.contains(Status::DRIVER) {
                self.device.write_config(offset, data);
                self.publish_config();
            }
        } else if let Ok(value) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(value));
            match offset {
                // On the path of every interrupt of a driver that acknowledges this, and the interrupt's own word:
                // nothing else has changed, unless the device has announced a change of its configuration.
                INTERRUPT_ACK if value == USED_BUFFER.to_le_bytes() => {}
                INTERRUPT_ACK => self.publish_config(),
                _ => self.publish_registers(),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
