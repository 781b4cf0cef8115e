//! The device status (virtio 1.2, section 2.1) and the order in which a driver may set its bits.

bitflags::bitflags! {
    /// The device status.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Status: u32 {
        const ACKNOWLEDGE = 1;
        const DRIVER = 2;
        const DRIVER_OK = 4;
        const FEATURES_OK = 8;
        const NEEDS_RESET = 64;
        const FAILED = 128;
    }
}

impl Status {
    /// The one bit that a driver adds when it writes `value` next: the bits come one by one in the order of section
    /// 3.1.1, none is ever cleared, and nothing follows `FAILED`. `None` for a write that has no effect.
    pub(super) fn step_to(self, value: u32) -> Option<Self> {
        let added = Self::from_bits(value)? - Self::NEEDS_RESET;
        if !added.contains(self) || self.contains(Self::FAILED) {
            return None;
        }
        let step = added - self;
        let in_order = match step {
            Self::ACKNOWLEDGE => self.is_empty(),
            Self::DRIVER => self == Self::ACKNOWLEDGE,
            Self::FEATURES_OK => self == Self::ACKNOWLEDGE | Self::DRIVER,
            Self::DRIVER_OK => self == Self::ACKNOWLEDGE | Self::DRIVER | Self::FEATURES_OK,
            Self::FAILED => true,
            _ => false,
        };
        in_order.then_some(step)
    }

    /// Whether features may still be chosen.
    pub(super) fn is_negotiating(self) -> bool {
        self == Self::ACKNOWLEDGE | Self::DRIVER
    }

    /// Whether queues may be set up.
    pub(super) fn is_configurable(self) -> bool {
        self == Self::ACKNOWLEDGE | Self::DRIVER | Self::FEATURES_OK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_come_in_order_and_one_by_one() {
        let order = [Status::ACKNOWLEDGE, Status::DRIVER, Status::FEATURES_OK, Status::DRIVER_OK];
        let mut status = Status::empty();
        for step in order {
            for other in Status::all().iter().filter(|bit| *bit != step && *bit != Status::FAILED) {
                assert_eq!(status.step_to((status | other).bits()), None, "{status:?} + {other:?}");
            }
            assert_eq!(status.step_to((status | step).bits()), Some(step));
            status |= step;
        }
        assert_eq!(status.step_to((status - Status::DRIVER).bits()), None, "no bit is cleared");
    }

    #[test]
    fn a_driver_may_give_up_at_any_time_and_then_only_reset() {
        let failed = Status::ACKNOWLEDGE | Status::FAILED;
        assert_eq!(Status::ACKNOWLEDGE.step_to(failed.bits()), Some(Status::FAILED));
        assert_eq!(failed.step_to((failed | Status::DRIVER).bits()), None);
    }
}
