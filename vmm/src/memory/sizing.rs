//! How large guest memory may be and how it is laid out.

use crate::layout::{GAP_END, GAP_START};

/// The least guest memory in MiB: a kernel of some 20 MiB, its initramfs and its tables.
pub const MINIMUM_MIB: u64 = 32;

/// A size of guest memory that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum SizeError {
    /// Nothing, or so little that no kernel would start.
    #[error(
        "guest memory of {mib} MiB is too small: set `memory` to at least {MINIMUM_MIB} (MiB), 128 or more is sensible"
    )]
    TooSmall {
        /// What was asked for.
        mib: u64,
    },
    /// More than the host could ever back.
    #[error(
        "guest memory of {mib} MiB exceeds the {host_mib} MiB of memory and swap that this host has: set `memory` (MiB) lower"
    )]
    ExceedsHost {
        /// What was asked for.
        mib: u64,
        /// What the host has.
        host_mib: u64,
    },
}

/// A stretch of guest memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Where the guest sees it.
    pub(super) address: u64,
    /// Its length in bytes.
    pub(super) length: usize,
}

/// The size in bytes, if it is one that can be.
pub(super) fn checked_bytes(mib: u64) -> Result<u64, SizeError> {
    checked_bytes_on_host(mib, host_mib())
}

fn checked_bytes_on_host(mib: u64, host_mib: u64) -> Result<u64, SizeError> {
    if mib < MINIMUM_MIB {
        return Err(SizeError::TooSmall { mib });
    }
    if mib > host_mib {
        return Err(SizeError::ExceedsHost { mib, host_mib });
    }
    Ok(mib << 20)
}

/// Memory and swap of the host.
fn host_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let units = info.totalram.saturating_add(info.totalswap);
    units.saturating_mul(u64::from(info.mem_unit)) >> 20
}

/// Low memory up to the gap, the rest beyond it.
pub(super) fn parts(bytes: u64) -> Vec<Part> {
    let low = bytes.min(GAP_START);
    [(0, low), (GAP_END, bytes - low)]
        .into_iter()
        .filter_map(|(address, length)| {
            let length = usize::try_from(length).ok().filter(|&length| length > 0)?;
            Some(Part { address, length })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_memory_is_refused_with_the_key_to_change() {
        let error = checked_bytes(0).unwrap_err().to_string();
        assert!(error.contains("0 MiB") && error.contains("`memory`"), "{error}");
    }

    #[test]
    fn more_than_the_host_has_is_refused_with_what_it_has() {
        let error = checked_bytes_on_host(1 << 20, 24_000).unwrap_err().to_string();
        assert!(error.contains("1048576 MiB") && error.contains("24000 MiB"), "{error}");
    }

    #[test]
    fn an_absurd_size_does_not_overflow() {
        assert!(matches!(checked_bytes(u64::MAX), Err(SizeError::ExceedsHost { .. })));
    }

    #[test]
    fn the_gap_splits_memory() {
        let bytes = GAP_START + 4096;
        let low = Part { address: 0, length: GAP_START as usize };
        let high = Part { address: GAP_END, length: 4096 };
        assert_eq!(parts(bytes), [low, high]);
        assert_eq!(parts(GAP_START).len(), 1);
    }
}
