//! How the guest learns the time of day. A message with the time is late by as long as it takes; a register is not.

use crate::bus::BusDevice;
use crate::clock::wall_ns;
use crate::control::StopReason;

/// The first I/O port of [`Clock`]; nothing of a PC is there.
pub const CLOCK_PORT: u64 = 0x610;

/// How many ports it has.
pub const CLOCK_PORTS: u64 = 8;

/// The host's time of day in nanoseconds since 1970: four bytes read from the first port are the low half of what the time
/// then is, four read from the fifth port the high half of the same. What else is read is as if nothing were there.
#[derive(Debug, Default)]
pub struct Clock {
    high: u32,
}

impl BusDevice for Clock {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        match offset {
            0 => {
                let [low, high] = halves(wall_ns());
                self.high = high;
                *data = low.to_le_bytes();
            }
            4 => *data = self.high.to_le_bytes(),
            _ => {}
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) -> Option<StopReason> {
        None
    }
}

/// The low and the high half.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(clock: &mut Clock, offset: u64) -> u32 {
        let mut data = [0; 4];
        clock.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn both_halves_are_of_the_time_of_the_first() {
        let mut clock = Clock::default();
        let before = wall_ns();
        let low = read(&mut clock, 0);
        let after = wall_ns();
        let time = u64::from(read(&mut clock, 4)) << 32 | u64::from(low);
        assert!((before..=after).contains(&time), "{before}, {time}, {after}");
        assert_eq!(read(&mut clock, 4), halves(time)[1]);
    }

    #[test]
    fn reads_of_other_sizes_and_places_find_nothing() {
        for (offset, length) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (3, 4), (7, 1)] {
            let mut data = vec![0xFF; length];
            Clock::default().read(offset, &mut data);
            assert_eq!(data, vec![0xFF; length], "{length} bytes at {offset}");
        }
        assert_eq!(Clock::default().write(0, &[0; 4]), None);
    }
}
