//! The I/O APIC (Intel 82093AA datasheet): turns a device's interrupt line into a message to a local APIC.
//!
//! KVM has one of its own, of which Linux writes and reads all 24 inputs at boot, and whose interrupts an irqfd hands
//! to a kernel worker. This one has as many inputs as there are devices, and what the guest writes here becomes a
//! message-signalled route of the input, which an irqfd takes in the context of whoever writes to it.
//!
//! Every device of ours raises an edge, so that a line has no state: an edge that comes while its input is masked is
//! lost, as edges are. Inputs that the guest declares to be level-triggered are delivered as edges.

use std::io;

use crate::bus::BusDevice;
use crate::control::StopReason;

/// The room of the registers.
pub const IO_APIC_SIZE: u64 = 0x20;

/// The register that selects another one, and the window to that one.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

// Registers behind the window.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const REDIRECTION_TABLE: u8 = 0x10;

/// The version of an I/O APIC without an EOI register.
const CURRENT_VERSION: u32 = 0x11;
/// The writable bits of the identifier.
const ID_MASK: u32 = 0x0F00_0000;

/// Bits of a redirection entry.
const VECTOR: u64 = 0xFF;
const DELIVERY_MODE: u64 = 0x700;
const LOWEST_PRIORITY: u64 = 0x100;
const LOGICAL_DESTINATION: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const MASKED: u64 = 1 << 16;

/// Message-signalled interrupts (Intel SDM 3A, 11.11): the address's base, its redirection hint and its mode.
const MESSAGE_ADDRESS: u32 = 0xFEE0_0000;
const MESSAGE_REDIRECTION_HINT: u32 = 1 << 3;
const MESSAGE_LOGICAL_DESTINATION: u32 = 1 << 2;

/// The message that an input's interrupt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The input.
    pub input: u32,
    /// The low 32 bits of the message's address; the high ones are zero.
    pub address: u32,
    /// The message's data.
    pub data: u32,
}

/// Takes the routes of all inputs that are not masked.
pub trait Router: Send {
    /// From now on these routes hold, and no others.
    ///
    /// # Errors
    /// The host's refusal, after which the guest's interrupts would be lost.
    fn set(&self, routes: &[Route]) -> io::Result<()>;
}

/// An I/O APIC.
pub struct IoApic {
    id: u32,
    selected: u8,
    entries: Vec<u64>,
    router: Box<dyn Router>,
}

impl IoApic {
    /// An I/O APIC with `inputs` inputs, all of which are masked.
    pub fn new(inputs: u8, router: Box<dyn Router>) -> Self {
        Self { id: 0, selected: 0, entries: vec![MASKED; inputs.into()], router }
    }

    fn read_selected(&self) -> u32 {
        match self.selected {
            ID | ARBITRATION => self.id,
            VERSION => {
                let last = self.entries.len().saturating_sub(1);
                CURRENT_VERSION | u32::try_from(last).unwrap_or_default() << 16
            }
            register => {
                let Some((index, shift)) = position(register) else { return 0 };
                let entry = self.entries.get(index).copied().unwrap_or_default();
                u32::try_from(entry >> shift & u64::from(u32::MAX)).unwrap_or_default()
            }
        }
    }

    fn write_selected(&mut self, value: u32) -> io::Result<()> {
        if self.selected == ID {
            self.id = value & ID_MASK;
            return Ok(());
        }
        let Some((index, shift)) = position(self.selected) else { return Ok(()) };
        let Some(entry) = self.entries.get_mut(index) else { return Ok(()) };
        let before = *entry;
        let kept = before & !(u64::from(u32::MAX) << shift);
        *entry = (kept | u64::from(value) << shift) & !(DELIVERY_STATUS | REMOTE_IRR);
        // Each change of routes is a grace period for KVM: none for what stays masked.
        let matters = before != *entry && before & *entry & MASKED == 0;
        if matters { self.router.set(&self.routes()) } else { Ok(()) }
    }

    fn routes(&self) -> Vec<Route> {
        (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| **entry & MASKED == 0)
            .map(|(n, e)| route(n, *e))
            .collect()
    }
}

/// The entry that a register belongs to, and where in it the register lies.
fn position(register: u8) -> Option<(usize, u32)> {
    let offset = register.checked_sub(REDIRECTION_TABLE)?;
    Some((usize::from(offset / 2), if offset % 2 == 0 { 0 } else { 32 }))
}

fn route(input: u32, entry: u64) -> Route {
    let destination = u32::try_from(entry >> 56).unwrap_or_default();
    let mut address = MESSAGE_ADDRESS | destination << 12;
    if entry & LOGICAL_DESTINATION != 0 {
        address |= MESSAGE_LOGICAL_DESTINATION;
    }
    if entry & DELIVERY_MODE == LOWEST_PRIORITY {
        address |= MESSAGE_REDIRECTION_HINT;
    }
    let data = u32::try_from(entry & (VECTOR | DELIVERY_MODE)).unwrap_or_default();
    Route { input, address, data }
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(register) = <&mut [u8; 4]>::try_from(data) else { return };
        match offset {
            SELECT => *register = u32::from(self.selected).to_le_bytes(),
            WINDOW => *register = self.read_selected().to_le_bytes(),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason> {
        let [low, ..] = *<&[u8; 4]>::try_from(data).ok()?;
        match offset {
            SELECT => self.selected = low,
            WINDOW => {
                let value = u32::from_le_bytes(data.try_into().ok()?);
                if let Err(error) = self.write_selected(value) {
                    return Some(StopReason::Failed { message: format!("interrupt routes: {error}") });
                }
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    type Sets = Arc<Mutex<Vec<Vec<Route>>>>;

    struct Record(Sets);

    impl Router for Record {
        fn set(&self, routes: &[Route]) -> io::Result<()> {
            self.0.lock().unwrap().push(routes.to_vec());
            Ok(())
        }
    }

    fn io_apic(inputs: u8) -> (IoApic, Sets) {
        let sets = Sets::default();
        (IoApic::new(inputs, Box::new(Record(sets.clone()))), sets)
    }

    fn read(io_apic: &mut IoApic, register: u8) -> u32 {
        io_apic.write(SELECT, &u32::from(register).to_le_bytes());
        let mut data = [0; 4];
        io_apic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(io_apic: &mut IoApic, register: u8, value: u32) {
        io_apic.write(SELECT, &u32::from(register).to_le_bytes());
        assert!(io_apic.write(WINDOW, &value.to_le_bytes()).is_none());
    }

    #[test]
    fn the_guest_learns_the_number_of_inputs() {
        let (mut io_apic, _) = io_apic(6);
        assert_eq!(read(&mut io_apic, VERSION), 5 << 16 | 0x11);
        write(&mut io_apic, ID, 0xFFFF_FFFF);
        assert_eq!(read(&mut io_apic, ID), ID_MASK);
        assert_eq!(read(&mut io_apic, 0x10 + 2 * 5), 1 << 16, "the last input is masked");
        assert_eq!(read(&mut io_apic, 0x10 + 2 * 6), 0, "there is no further one");
    }

    #[test]
    fn an_input_that_is_not_masked_has_a_route() {
        let (mut io_apic, sets) = io_apic(4);
        write(&mut io_apic, 0x13, 3 << 24);
        write(&mut io_apic, 0x12, 0x0001_0031);
        assert!(sets.lock().unwrap().is_empty(), "what is masked is nobody's business");
        write(&mut io_apic, 0x12, 0x31);
        let physical = Route { input: 1, address: 0xFEE0_3000, data: 0x31 };
        assert_eq!(sets.lock().unwrap().last().unwrap(), &[physical]);
        write(&mut io_apic, 0x15, 0x0F00_0000);
        write(&mut io_apic, 0x14, 0x0000_0941);
        let logical = Route { input: 2, address: 0xFEE0_F00C, data: 0x141 };
        assert_eq!(sets.lock().unwrap().last().unwrap(), &[physical, logical]);
        write(&mut io_apic, 0x12, 0x0001_0031);
        assert_eq!(sets.lock().unwrap().last().unwrap(), &[logical]);
    }

    #[test]
    fn writing_the_same_again_changes_no_route() {
        let (mut io_apic, sets) = io_apic(2);
        write(&mut io_apic, 0x12, 0x31);
        write(&mut io_apic, 0x12, 0x31);
        write(&mut io_apic, 0x12, 0x1031);
        assert_eq!(sets.lock().unwrap().len(), 1, "the delivery status is not the guest's to write");
    }

    proptest! {
        #[test]
        fn whatever_is_written_routes_are_of_inputs_that_exist(
            writes in prop::collection::vec((any::<u8>(), any::<u32>()), 0..64),
            strange in prop::collection::vec((0u64..0x20, prop::collection::vec(any::<u8>(), 0..9)), 0..16),
        ) {
            let (mut io_apic, sets) = io_apic(5);
            for (register, value) in writes {
                write(&mut io_apic, register, value);
                read(&mut io_apic, register);
            }
            for (offset, data) in strange {
                io_apic.write(offset, &data);
                io_apic.read(offset, &mut data.clone());
            }
            for routes in sets.lock().unwrap().iter() {
                prop_assert!(routes.iter().all(|route| route.input < 5 && route.address >> 20 == 0xFEE));
            }
        }
    }
}
