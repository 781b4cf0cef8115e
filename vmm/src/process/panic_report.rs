//! Panics, told to the shim.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::FAILURE;
use crate::control::{Event, StopReason, VmmEnd};

/// Has a panic of any thread reported on the control socket as the end of the virtual machine, and end the process.
/// Aborting, which is what happens otherwise, takes system calls that filters forbid, and a signal that the first process
/// of a pid namespace does not take.
pub fn report_panics_to(control: Arc<VmmEnd>) {
    std::panic::set_hook(Box::new(move |panic| {
        let message = format!("the VMM {panic}");
        // What the standard library would print takes a system call that filters forbid.
        eprintln!("vmm: {message}");
        let reason = StopReason::Failed { message };
        let stopped = Event::Stopped { reason, console: String::new() };
        // One write is one message, and every role may write; few may send.
        if let Ok(message) = serde_json::to_vec(&stopped) {
            let _ = rustix::io::write(control.as_fd(), &message);
        }
        // SAFETY: _exit touches no memory; what other threads are at ends with them.
        unsafe { libc::_exit(FAILURE) };
    }));
}
