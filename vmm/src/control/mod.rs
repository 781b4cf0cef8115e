//! The control protocol between the shim and the VMM that it re-executed: typed messages with file descriptors over
//! one `AF_UNIX` `SOCK_SEQPACKET` pair.
//!
//! ```text
//! shim                                     VMM
//!  ├── Boot + kernel, initramfs, … fds ───▶ │
//!  │ ◀─────────────── Started{timeline} ────┤   once, when the first vCPU is about to run
//!  │ ◀── GuestConnected{port} + stream fd ──┤   each time the guest connects to CID 2
//!  ├── Counters ──────────────────────────▶ │
//!  │ ◀───────────────── Counters{exits} ────┤   one answer to each question, in order
//!  ├── Attach{device} + its fds ────────▶ │
//!  │ ◀─── Attached{slot, …} or Refused{…} ──┤   one answer to each, in order
//!  ├── Detach{slot} ────────────────────▶ │
//!  │ ◀──────────── Detached or Refused{…} ──┤   one answer to each, in order
//!  ├── Stop ──────────────────────────────▶ │
//!  │ ◀─────── Stopped{reason, console} ─────┤   once, the last message; then the VMM exits
//! ```
//!
//! The VMM trusts the shim. The shim treats what the VMM sends as hostile, since a guest may have taken the VMM
//! over: sizes are bounded, unknown fields refused, and more descriptors than a message may carry are closed unseen.
//! When the shim closes its end, or dies, the VMM ends.

mod endpoint;
mod message;

pub use endpoint::{ControlError, Endpoint, ShimEnd, VmmEnd, pair};
pub use message::{
    BlockDevice, Boot, CONSOLE_TAIL, Counters, Device, Event, FileRole, Interface, LONGEST_PATIENCE,
    PANIC_PATIENCE, PluggedDevice, Request, Share, StopReason, Timeline, Writers,
};
