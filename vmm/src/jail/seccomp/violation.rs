//! What happens when a thread makes a system call that its filter forbids.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use syscalls::Sysno;
use vmm_sys_util::signal::register_signal_handler;

use super::FilterError;
use crate::jail::Role;

/// The process's exit status then: 128 and SIGSYS, as a shell would tell it.
const STATUS: libc::c_int = 128 + libc::SIGSYS;
/// Room for the report.
const REPORT_BYTES: usize = 256;

/// Where reports go.
static REPORTS: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);

thread_local! {
    static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
}

/// Notes the calling thread's role for its report.
pub(in crate::jail) fn note_role(role: Role) {
    ROLE.set(Some(role));
}

/// Has violations reported on `control`, a control socket that stays open until the process ends, as the end of the
/// virtual machine.
///
/// # Errors
/// The kernel's refusal of a signal handler.
pub fn report_violations_to(control: BorrowedFd<'_>) -> Result<(), FilterError> {
    REPORTS.store(control.as_raw_fd(), Ordering::SeqCst);
    register_signal_handler(libc::SIGSYS, handle)
        .map_err(|error| FilterError::Handler(io::Error::from(error)))
}

/// The beginning of the kernel's `siginfo_t` for SIGSYS (include/uapi/asm-generic/siginfo.h, `_sigsys`).
#[repr(C)]
struct SystemCallInfo {
    signal: libc::c_int,
    error: libc::c_int,
    code: libc::c_int,
    _padding: libc::c_int,
    address: *const libc::c_void,
    number: libc::c_int,
    architecture: libc::c_uint,
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t of SIGSYS, whose beginning this is.
    let number = unsafe { (*info.cast::<SystemCallInfo>()).number };
    // A thread without a role has no filter of its own, but may have inherited one.
    let role = ROLE.get().map_or("other", Role::name);
    report(REPORTS.load(Ordering::SeqCst), role, number);
    // SAFETY: _exit touches no memory. Nothing is written back or unlocked: the thread may hold any lock.
    unsafe { libc::_exit(STATUS) };
}

/// Writes the report to `descriptor`, without locks and without the heap: any of them may be in use.
fn report(descriptor: RawFd, role: &str, number: libc::c_int) {
    let mut text = Text { bytes: [0; REPORT_BYTES], length: 0 };
    // What does not fit is cut off, and the shim has a message of the wrong shape to tell of.
    let _ = write_report(&mut text, role, number);
    let bytes = text.bytes.get(..text.length).unwrap_or_default();
    // SAFETY: the buffer has that many bytes.
    unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
}

/// The control protocol's `Event::Stopped`, put together by hand.
fn write_report(text: &mut Text, role: &str, number: libc::c_int) -> fmt::Result {
    let name = usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
    write!(
        text,
        "{{\"Stopped\":{{\"reason\":{{\"Failed\":{{\"message\":\"the VMM's {role} thread made the system call \
         {name} ({number}), which its seccomp filter forbids\"}}}},\"console\":\"\"}}}}"
    )
}

/// Text in a buffer of fixed size.
struct Text {
    bytes: [u8; REPORT_BYTES],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::control::{Event, StopReason, pair};

    #[test]
    fn a_report_is_the_end_of_the_machine_and_names_role_and_call() {
        let (shim, vmm) = pair().unwrap();
        for (number, name) in
            [(libc::SYS_socket, "socket (41)"), (libc::SYS_process_madvise, "process_madvise (440)")]
        {
            report(vmm.as_raw_fd(), "vsock", number.try_into().unwrap());
            let (event, _) = shim.receive().unwrap().unwrap();
            let Event::Stopped { reason: StopReason::Failed { message }, .. } = event else {
                panic!("{event:?}")
            };
            assert!(message.contains("vsock thread") && message.contains(name), "{message}");
        }
    }

    #[test]
    fn a_call_that_nobody_knows_is_reported_by_its_number() {
        let (shim, vmm) = pair().unwrap();
        report(vmm.as_raw_fd(), "other", libc::c_int::MIN);
        let (event, _) = shim.receive().unwrap().unwrap();
        assert!(format!("{event:?}").contains("unknown (-2147483648)"), "{event:?}");
    }
}
