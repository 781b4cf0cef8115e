//! Builds what a microVM boots: the guest kernel and the initramfs that holds the agent.
//!
//! [`kernel::build`] compiles the kernel from Debian's `linux-source-6.12` package with the fragments in
//! `guest-kernel/config`, and caches it by the hash of all its inputs. [`initramfs::build`] packs the agent into an
//! uncompressed cpio archive. Both results are the same bytes for the same inputs.

pub mod initramfs;
pub mod kernel;

use std::path::PathBuf;

/// The directory in which slow builds are kept: `$SAYA_CACHE`, or else `~/.cache/saya`.
///
/// `None` when neither `SAYA_CACHE` nor `HOME` is set.
#[must_use]
pub fn cache_directory() -> Option<PathBuf> {
    match std::env::var_os("SAYA_CACHE") {
        Some(directory) => Some(directory.into()),
        None => std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/saya")),
    }
}
