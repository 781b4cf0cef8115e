//! What an interface offers its driver, and the configuration space that says the rest.

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::tap::{HEADER_SIZE, Offloads};

/// The largest frame with its header: 64 KiB of IP packet, an Ethernet header and the header before it
/// (virtio 1.2, 5.1.6.3.1).
const LARGEST_FRAME: usize = 65_562;
/// Ethernet's own bytes around the MTU: a header, and a VLAN tag.
const ETHERNET_OVERHEAD: usize = 18;

/// Offered by every interface.
const ALWAYS: &[u32] = &[
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
];
/// Offered where the kernel segments UDP for taps (since Linux 6.2).
const WITH_UDP_SEGMENTS: &[u32] = &[VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6];
/// Offered with several queue pairs only: a control queue costs every boot a dozen exits.
const WITH_QUEUE_PAIRS: &[u32] = &[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS];

/// The bits to offer.
pub(super) fn offered(udp_segments: bool, queue_pairs: u16) -> u64 {
    let mut features = bits(ALWAYS);
    if udp_segments {
        features |= bits(WITH_UDP_SEGMENTS);
    }
    if queue_pairs > 1 {
        features |= bits(WITH_QUEUE_PAIRS);
    }
    features
}

fn bits(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |bits, number| bits | 1 << number)
}

/// Whether the bit of this number is among the features.
pub(super) fn has(features: u64, number: u32) -> bool {
    features & 1 << number != 0
}

/// What frames for a guest with these features may leave undone. The feature bits of `VIRTIO_NET_CTRL_GUEST_OFFLOADS`
/// are the same, so that this serves both.
pub(super) fn guest_offloads(features: u64) -> Offloads {
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        // Everything else depends on it (virtio 1.2, 5.1.3.1), for the kernel as well.
        return Offloads::empty();
    }
    let udp_segments = has(features, VIRTIO_NET_F_GUEST_USO4) && has(features, VIRTIO_NET_F_GUEST_USO6);
    let mut offloads = Offloads::CHECKSUM;
    offloads.set(Offloads::TCP4, has(features, VIRTIO_NET_F_GUEST_TSO4));
    offloads.set(Offloads::TCP6, has(features, VIRTIO_NET_F_GUEST_TSO6));
    let tcp = offloads.intersects(Offloads::TCP4 | Offloads::TCP6);
    offloads.set(Offloads::TCP_ECN, tcp && has(features, VIRTIO_NET_F_GUEST_ECN));
    offloads.set(Offloads::UDP_FRAGMENTS, has(features, VIRTIO_NET_F_GUEST_UFO));
    offloads.set(Offloads::UDP_SEGMENTS, udp_segments);
    offloads
}

/// The most bytes that a frame for the guest has, its header included.
pub(super) fn largest_frame(offloads: Offloads, mtu: u16) -> usize {
    if (offloads - Offloads::CHECKSUM).is_empty() {
        HEADER_SIZE + ETHERNET_OVERHEAD + usize::from(mtu)
    } else {
        LARGEST_FRAME
    }
}

/// `struct virtio_net_config` up to the MTU (virtio 1.2, 5.1.4).
pub(super) fn configuration(mac: [u8; 6], mtu: u16, queue_pairs: u16) -> [u8; 12] {
    let [m0, m1, m2, m3, m4, m5] = mac;
    // The link is up as long as the device is there.
    let [s0, s1] = u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or_default().to_le_bytes();
    let [p0, p1] = queue_pairs.to_le_bytes();
    let [t0, t1] = mtu.to_le_bytes();
    [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, t0, t1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_undone_for_a_guest_that_does_no_checksums() {
        let features = offered(true, 1) & !(1 << VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(guest_offloads(features), Offloads::empty());
        assert_eq!(guest_offloads(offered(true, 1)), Offloads::all());
    }

    #[test]
    fn udp_segmentation_is_all_or_nothing() {
        let features = offered(true, 1) & !(1 << VIRTIO_NET_F_GUEST_USO6);
        assert_eq!(guest_offloads(features), Offloads::all() - Offloads::UDP_SEGMENTS);
        assert_eq!(guest_offloads(offered(false, 1)), Offloads::all() - Offloads::UDP_SEGMENTS);
    }

    #[test]
    fn explicit_congestion_notification_needs_tcp_segmentation() {
        let features = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_ECN;
        assert_eq!(guest_offloads(features), Offloads::CHECKSUM);
    }

    #[test]
    fn frames_are_as_large_as_the_mtu_unless_something_segments_them() {
        assert_eq!(largest_frame(Offloads::CHECKSUM, 1500), 1530);
        assert_eq!(largest_frame(Offloads::CHECKSUM, 9000), 9030);
        assert_eq!(largest_frame(Offloads::CHECKSUM | Offloads::TCP6, 1500), 65_562);
    }

    #[test]
    fn the_configuration_lies_as_the_specification_has_it() {
        let expected = [2, 0, 0, 0, 0, 7, 1, 0, 4, 0, 0x28, 0x23];
        assert_eq!(configuration([2, 0, 0, 0, 0, 7], 9000, 4), expected);
    }
}
