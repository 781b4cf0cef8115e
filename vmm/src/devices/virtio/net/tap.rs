//! The host's end of an interface: a tap device, or one queue of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bitflags::bitflags;

/// Bytes of the header that precedes every frame, `struct virtio_net_hdr_v1` (virtio 1.2, 5.1.6).
pub(super) const HEADER_SIZE: usize = 12;

bitflags! {
    /// What the reader of a tap can do itself: what the host may leave undone in frames for it (`TUN_F_*`,
    /// <linux/if_tun.h>).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Checksums.
        const CHECKSUM = libc::TUN_F_CSUM;
        /// Segmentation of TCP over IPv4.
        const TCP4 = libc::TUN_F_TSO4;
        /// Segmentation of TCP over IPv6.
        const TCP6 = libc::TUN_F_TSO6;
        /// The same with explicit congestion notification.
        const TCP_ECN = libc::TUN_F_TSO_ECN;
        /// Fragmentation of UDP.
        const UDP_FRAGMENTS = libc::TUN_F_UFO;
        /// Segmentation of UDP, over IPv4 and IPv6: the kernel takes both or none.
        const UDP_SEGMENTS = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
}

/// One queue of a tap device. Reading and writing takes or gives a whole frame with its header.
pub trait Tap: AsFd + Send + Sync {
    /// Says what frames for the guest may leave undone. It holds for all queues of the device.
    ///
    /// # Errors
    /// The kernel does not know one of them.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Says whether the kernel puts frames for the guest into this queue.
    ///
    /// # Errors
    /// The device has a single queue.
    fn set_attached(&self, attached: bool) -> io::Result<()>;
}

/// A tap device of the kernel's.
#[derive(Debug)]
pub struct KernelTap(OwnedFd);

impl KernelTap {
    /// Takes over a queue that was opened by `TUNSETIFF` with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
    ///
    /// # Errors
    /// It is no such queue, or it cannot be made non-blocking.
    pub fn new(queue: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&queue, true)?;
        let size = libc::c_int::try_from(HEADER_SIZE).unwrap_or(libc::c_int::MAX);
        // SAFETY: TUNSETVNETHDRSZ reads an int from the pointer, and `size` is one.
        let result = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        check(result)?;
        Ok(Self(queue))
    }
}

impl AsFd for KernelTap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Tap for KernelTap {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let argument = libc::c_ulong::from(offloads.bits());
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, argument) })
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        // SAFETY: ifreq is a plain C structure for which all zeroes is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flag).unwrap_or_default();
        // SAFETY: TUNSETQUEUE reads an ifreq from the pointer, and `request` is one.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads one frame into `into`, which is guest memory that the caller keeps mapped. What does not fit is lost.
pub(super) fn read_frame(tap: BorrowedFd<'_>, into: &[libc::iovec]) -> io::Result<usize> {
    // SAFETY: `into` is a valid vector of so many pieces, and the caller keeps what they point to mapped.
    let count = unsafe { libc::readv(tap.as_raw_fd(), into.as_ptr(), vector_length(into)) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes one frame from `from`, which is guest memory that the caller keeps mapped.
pub(super) fn write_frame(tap: BorrowedFd<'_>, from: &[libc::iovec]) -> io::Result<()> {
    // SAFETY: `from` is a valid vector of so many pieces, which the kernel only reads, and the caller keeps what they
    // point to mapped.
    let count = unsafe { libc::writev(tap.as_raw_fd(), from.as_ptr(), vector_length(from)) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn vector_length(vector: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(vector.len()).unwrap_or(libc::c_int::MAX)
}
