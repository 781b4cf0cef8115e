use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_queue::QueueT;

use super::registers::*;
use super::*;
use crate::devices::virtio::ActivationError;
use crate::memory::plain;

/// What the transport has done with the device.
#[derive(Debug, Default)]
struct Record {
    active: Option<Activation>,
    activations: u32,
    resets: u32,
    config: [u8; 8],
}

struct Probe {
    record: Arc<Mutex<Record>>,
    needs_queue: bool,
}

const FEATURES: u64 = VERSION_1 | EVENT_IDX | 0b101;

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }

    fn name(&self) -> &'static str {
        "probe"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.record.lock().unwrap().config;
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset as usize + index).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut record = self.record.lock().unwrap();
        for (index, byte) in data.iter().enumerate() {
            if let Some(place) = record.config.get_mut((offset as usize).saturating_add(index)) {
                *place = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivationError> {
        let mut record = self.record.lock().unwrap();
        assert!(record.active.is_none(), "activated twice");
        record.activations += 1;
        if self.needs_queue && activation.queues[0].is_none() {
            return Err(ActivationError::QueueDisabled(0));
        }
        record.active = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        let mut record = self.record.lock().unwrap();
        record.active = None;
        record.resets += 1;
    }
}

struct Driver {
    transport: MmioTransport,
    record: Arc<Mutex<Record>>,
}

impl Driver {
    fn new() -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let probe = Probe { record: record.clone(), needs_queue: true };
        Self {
            transport: MmioTransport::new(Box::new(probe), plain(32), RegisterFile::default()).unwrap(),
            record,
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xFF; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        assert!(self.transport.write(offset, &value.to_le_bytes()).is_none());
    }

    fn add_status(&mut self, bit: Status) {
        let status = self.read(STATUS) | bit.bits();
        self.write(STATUS, status);
    }

    fn has(&mut self, bit: Status) -> bool {
        self.read(STATUS) & bit.bits() != 0
    }

    /// Up to `FEATURES_OK`.
    fn negotiate(&mut self, features: u64) {
        self.add_status(Status::ACKNOWLEDGE);
        self.add_status(Status::DRIVER);
        for (index, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(DRIVER_FEATURES_SEL, index);
            self.write(DRIVER_FEATURES, half);
        }
        self.add_status(Status::FEATURES_OK);
    }

    fn set_up_queue(&mut self, index: u32, size: u32, descriptors: u64) {
        self.write(QUEUE_SEL, index);
        self.write(QUEUE_NUM, size);
        let rings = [
            (QUEUE_DESC_LOW, QUEUE_DESC_HIGH, descriptors),
            (QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH, descriptors + 0x2000),
            (QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH, descriptors + 0x4000),
        ];
        for (low, high, address) in rings {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
    }
}

#[test]
fn a_driver_that_follows_the_specification_gets_its_device() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!((driver.read(VERSION), driver.read(DEVICE_ID)), (2, 42));
    driver.write(DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.read(DEVICE_FEATURES), 1);
    driver.write(DEVICE_FEATURES_SEL, 0);
    assert_eq!(driver.read(DEVICE_FEATURES), FEATURES as u32);
    driver.write(DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(DEVICE_FEATURES), 0);

    driver.negotiate(VERSION_1 | EVENT_IDX | 1);
    assert!(driver.has(Status::FEATURES_OK));
    driver.write(QUEUE_SEL, 1);
    assert_eq!((driver.read(QUEUE_NUM_MAX), driver.read(QUEUE_READY)), (64, 0));
    driver.set_up_queue(0, 128, 0x1_0000);
    assert_eq!(driver.read(QUEUE_READY), 1);
    driver.add_status(Status::DRIVER_OK);

    assert!(driver.has(Status::DRIVER_OK) && !driver.has(Status::NEEDS_RESET));
    let record = driver.record.lock().unwrap();
    let activation = record.active.as_ref().unwrap();
    assert_eq!(activation.features, VERSION_1 | EVENT_IDX | 1);
    let queue = &activation.queues[0].as_ref().unwrap().queue;
    assert_eq!((queue.size(), queue.desc_table(), queue.avail_ring()), (128, 0x1_0000, 0x1_2000));
    assert!(queue.ready() && queue.event_idx_enabled());
    assert!(activation.queues[1].is_none(), "the driver has left it disabled");
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    for features in [VERSION_1 | 0b10, VERSION_1 | 1 << 63, EVENT_IDX] {
        let mut driver = Driver::new();
        driver.negotiate(features);
        assert!(!driver.has(Status::FEATURES_OK), "{features:#x}");
        driver.set_up_queue(0, 128, 0x1_0000);
        driver.add_status(Status::DRIVER_OK);
        assert_eq!(driver.record.lock().unwrap().activations, 0);
    }
}

#[test]
fn a_queue_that_cannot_be_stays_disabled() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    let end = 32 << 20;
    let bad = [
        (0, 0x1_0000),
        (3, 0x1_0000),
        (512, 0x1_0000),
        (1 << 16, 0x1_0000),
        (128, 0x1_0008),
        (128, end),
        (128, u64::MAX - 0xFFFF),
    ];
    for (size, address) in bad {
        driver.set_up_queue(0, size, address);
        assert_eq!(driver.read(QUEUE_READY), 0, "{size} at {address:#x}");
    }
    driver.set_up_queue(0, 128, 0x1_0000);
    assert_eq!(driver.read(QUEUE_READY), 1);
}

#[test]
fn a_device_that_cannot_be_activated_asks_for_a_reset() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.add_status(Status::DRIVER_OK);
    assert!(driver.has(Status::NEEDS_RESET));
    assert_eq!(driver.read(INTERRUPT_STATUS), 2, "a configuration change announces it");

    driver.write(STATUS, 0);
    assert_eq!((driver.read(STATUS), driver.read(INTERRUPT_STATUS)), (0, 0));
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, 128, 0x1_0000);
    driver.add_status(Status::DRIVER_OK);
    assert!(!driver.has(Status::NEEDS_RESET));
}

#[test]
fn a_device_that_breaks_while_it_runs_asks_for_a_reset() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, 128, 0x1_0000);
    driver.add_status(Status::DRIVER_OK);
    driver.record.lock().unwrap().active.as_ref().unwrap().interrupt.needs_reset().unwrap();
    assert!(driver.has(Status::NEEDS_RESET));
    assert_eq!(driver.transport.registers.load(STATUS), driver.read(STATUS));
}

#[test]
fn a_reset_makes_the_device_as_new() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, 128, 0x1_0000);
    driver.add_status(Status::DRIVER_OK);
    driver.write(STATUS, 0);
    assert_eq!(driver.record.lock().unwrap().resets, 1);
    driver.negotiate(VERSION_1);
    driver.write(QUEUE_SEL, 0);
    assert_eq!(driver.read(QUEUE_READY), 0);
    driver.add_status(Status::DRIVER_OK);
    assert!(driver.has(Status::NEEDS_RESET), "the queue of the life before is gone");
}

#[test]
fn interrupts_are_acknowledged_by_reason() {
    let mut driver = Driver::new();
    let interrupt = driver.transport.interrupt().clone();
    interrupt.used_buffer().unwrap();
    interrupt.configuration_change().unwrap();
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
}

#[test]
fn a_notification_reaches_its_queue_and_no_other() {
    let mut driver = Driver::new();
    driver.write(QUEUE_NOTIFY, 1);
    driver.write(QUEUE_NOTIFY, 2);
    driver.write(QUEUE_NOTIFY, u32::MAX);
    assert!(driver.transport.notifications()[0].read().is_err());
    assert_eq!(driver.transport.notifications()[1].read().unwrap(), 1);
}

#[test]
fn the_configuration_space_is_written_by_a_driver_only() {
    let mut driver = Driver::new();
    driver.write(CONFIG, 7);
    assert_eq!(driver.read(CONFIG), 0);
    driver.negotiate(VERSION_1);
    driver.write(CONFIG + 4, 7);
    assert_eq!((driver.read(CONFIG + 4), driver.read(CONFIG + 0x400)), (7, 0));
}

#[derive(Debug, Clone)]
enum Access {
    Read { offset: u64, width: usize },
    Write { offset: u64, data: Vec<u8> },
    Status(u32),
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![0u64..0x120, (0u64..0x48).prop_map(|word| word * 4), 0u64..0x1000];
    let status = prop::sample::select(vec![0, 1, 3, 11, 15, 15, 128, 64, 79, 143]);
    prop_oneof![
        (offset.clone(), 0usize..9).prop_map(|(offset, width)| Access::Read { offset, width }),
        (offset.clone(), any::<[u8; 4]>())
            .prop_map(|(offset, data)| Access::Write { offset, data: data.into() }),
        (offset, 0u32..8)
            .prop_map(|(offset, value)| Access::Write { offset, data: value.to_le_bytes().into() }),
        prop::collection::vec(any::<u8>(), 0..9).prop_map(|data| Access::Write { offset: 0x70, data }),
        status.prop_map(Access::Status),
    ]
}

proptest! {
    #[test]
    fn every_register_in_every_state_answers_and_the_device_lives_between_driver_ok_and_reset(
        accesses in prop::collection::vec(access(), 0..crate::steps(200)), negotiated in any::<bool>(),
    ) {
        let mut driver = Driver::new();
        if negotiated {
            driver.negotiate(VERSION_1);
            driver.set_up_queue(0, 16, 0x1_0000);
        }
        for access in accesses {
            match access {
                Access::Read { offset, width } => driver.transport.read(offset, &mut vec![0; width]),
                Access::Write { offset, data } => {
                    prop_assert!(driver.transport.write(offset, &data).is_none());
                }
                Access::Status(value) => driver.write(STATUS, value),
            }
            for offset in (0..REGISTER_FILE_SIZE).step_by(4) {
                prop_assert_eq!(driver.transport.registers.load(offset), driver.read(offset), "{:#x}", offset);
            }
            let status = Status::from_bits(driver.read(STATUS)).unwrap();
            let record = driver.record.lock().unwrap();
            let alive = status.contains(Status::DRIVER_OK) && !status.contains(Status::NEEDS_RESET);
            prop_assert_eq!(record.active.is_some(), alive, "{:?}", status);
            prop_assert_eq!(record.activations, record.resets + u32::from(status.contains(Status::DRIVER_OK)));
        }
    }
}
