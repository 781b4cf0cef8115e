//! The control socket: what a VMM that was taken over sends to the shim.

use rustix::net::SendFlags;
use saya_vmm::control::pair;

/// Sends the input as one message and receives it.
pub(crate) fn run(input: &[u8]) {
    let (shim, vmm) = pair().expect("a socket pair");
    // An empty message cannot be told from the end, and one beyond the socket's buffer is not sent.
    if rustix::net::send(&vmm, input, SendFlags::DONTWAIT).is_ok() {
        let _ = shim.receive();
    }
}
