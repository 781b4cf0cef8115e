//! The same with a tap of the kernel's, in a network namespace of the test's own. Where making one is not permitted
//! the test says so and ends.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4};

use super::{EVENT_IDX, MERGE, Machine, merged};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::net::{KernelTap, Net, NetConfig, Offloads, Tap};
use crate::devices::virtio::task_threads::TaskThreads;
use crate::jail::{Confinement, Role};

// Tests of the whole machine have the same tap.
#[path = "../../../../../tests/common/tap.rs"]
mod host_tap;

use host_tap::{NAME, bring_up, open_queue, socket};

/// A socket for the frames on the host's side of the tap.
fn packet_socket() -> OwnedFd {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, libc::c_int::from(all));
    // SAFETY: sockaddr_ll is a plain C structure for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    // SAFETY: the name ends with a zero.
    address.sll_ifindex = unsafe { libc::if_nametoindex(NAME.as_ptr().cast()) } as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to an address of that length.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    socket
}

/// A frame without its header: to everybody, of a type that no protocol of the kernel's takes.
fn ethernet(length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
    frame[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    frame
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; 12][..], frame].concat()
}

/// Frames of the test's own type that arrive at the socket.
fn next_frame(socket: &OwnedFd) -> Vec<u8> {
    loop {
        let mut frame = vec![0; 70_000];
        let (length, _) = rustix::net::recv(socket, &mut frame[..], rustix::net::RecvFlags::empty()).unwrap();
        frame.truncate(length);
        if frame[12..14] == [0x88, 0xb5] {
            return frame;
        }
    }
}

#[test]
fn frames_pass_through_a_tap_of_the_kernels() {
    // SAFETY: the thread of this test alone moves to a network namespace of its own, which ends with it.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        eprintln!("skipped: a network namespace cannot be made: {}", io::Error::last_os_error());
        return;
    }
    let queues: Vec<OwnedFd> = match (0..2).map(|_| open_queue()).collect() {
        Ok(queues) => queues,
        Err(error) => return eprintln!("skipped: /dev/net/tun cannot be used: {error}"),
    };
    bring_up();
    let host = packet_socket();
    let taps =
        queues.into_iter().map(|queue| Box::new(KernelTap::new(queue).unwrap()) as Box<dyn Tap>).collect();
    let config = NetConfig {
        mac: [2, 0, 0, 0, 0, 9],
        mtu: 1500,
        taps,
        threads: TaskThreads::start(Role::Net, 1, &Confinement::none()).unwrap(),
    };
    let mut machine = Machine::new();
    machine.net = Net::new(config).unwrap();
    machine.offer(64);
    // The second queue, which the driver does not use, gets no frames.
    machine.activate(EVENT_IDX | MERGE | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4);

    machine.send(&with_header(&ethernet(1514)));
    assert_eq!(next_frame(&host), ethernet(1514));

    for length in [60, 600, 1514, 61] {
        rustix::net::send(&host, &ethernet(length), rustix::net::SendFlags::empty()).unwrap();
        // What the kernel itself sends, such as router solicitations, comes between.
        let received = loop {
            let received = machine.receive();
            if received[24..26] == [0x88, 0xb5] {
                break received;
            }
        };
        assert_eq!(received, merged(with_header(&ethernet(length)), 1));
    }

    // A header that asks for the impossible loses its frame and nothing else.
    let mut nonsense = with_header(&ethernet(100));
    nonsense[..8].copy_from_slice(&[1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    machine.send(&nonsense);
    machine.send(&with_header(&ethernet(99)));
    assert_eq!(next_frame(&host), ethernet(99));
    machine.net.reset();
}

#[test]
fn what_is_no_tap_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(KernelTap::new(file.into()).is_err());
    assert!(!Offloads::all().is_empty());
}
