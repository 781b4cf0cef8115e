//! How the guest ends its machine without ACPI.

use crate::bus::BusDevice;
use crate::control::StopReason;

/// The I/O port of [`Power`]. QEMU's machines have their ACPI power register there, so nothing else is.
pub const POWER_PORT: u64 = 0x604;

/// A byte written to it ends the machine: 0 powers off, 1 reboots.
#[derive(Debug)]
pub struct Power;

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<StopReason> {
        match data {
            [0] => Some(StopReason::PoweredOff),
            [1] => Some(StopReason::Rebooted),
            _ => None,
        }
    }
}

/// The I/O port of [`KeyboardController`]'s commands.
pub const KEYBOARD_COMMAND_PORT: u64 = 0x64;

/// The one command of a PC's keyboard controller that kernels use where nothing else resets the machine.
#[derive(Debug)]
pub struct KeyboardController;

/// Pulse the reset line.
const RESET: u8 = 0xFE;

impl BusDevice for KeyboardController {
    /// The status: nothing to read, ready for a command.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<StopReason> {
        (data == [RESET]).then_some(StopReason::Rebooted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_bytes_end_the_machine() {
        for byte in 0..=u8::MAX {
            let expected = match byte {
                0 => Some(StopReason::PoweredOff),
                1 => Some(StopReason::Rebooted),
                _ => None,
            };
            assert_eq!(Power.write(0, &[byte]), expected);
        }
        assert_eq!(Power.write(0, &[0, 0]), None);
        assert_eq!(KeyboardController.write(0, &[0xFE]), Some(StopReason::Rebooted));
        assert_eq!(KeyboardController.write(0, &[0xD1]), None);
    }
}
