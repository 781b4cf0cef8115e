//! The VMM as a process: driven by the shim over a control socket, or by an engineer from the command line.

mod devices;
mod driven;
mod foreground;
mod panic_report;
mod tuning;

pub use driven::run;
pub use foreground::{ForegroundOptions, foreground};
pub use panic_report::report_panics_to;

use std::io;
use std::sync::Arc;

use crate::control::StopReason;
use crate::event_loop::{EventFlags, EventLoop, Handler, Registration};
use crate::outcome::Outcome;

/// The process's exit status where a virtual machine did what it was asked for.
const SUCCESS: i32 = 0;
/// The exit status where it could not be built or did not end well.
const FAILURE: i32 = 1;

/// Wakes the event loop when the virtual machine has stopped.
struct Wake;

impl Handler for Wake {
    fn ready(&self, _ready: EventFlags) {}
}

/// Has `event_loop` notice the outcome.
fn wake_on(event_loop: &EventLoop, outcome: &Outcome) -> io::Result<Registration> {
    event_loop.add(outcome.event(), EventFlags::IN, Arc::new(Wake))
}

/// The exit status that tells a reason.
fn exit_status(reason: &StopReason) -> i32 {
    match reason {
        StopReason::PoweredOff | StopReason::Rebooted | StopReason::Stopped => SUCCESS,
        StopReason::Panicked { .. } | StopReason::Failed { .. } => FAILURE,
    }
}
