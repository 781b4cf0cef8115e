//! Holds a pod's namespaces: reaps what is orphaned to it, and ends on SIGINT and SIGTERM.

use std::ffi::c_int;

/// musl's sigset_t: 128 bytes.
#[repr(C)]
struct SignalSet([u64; 16]);

const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIGCHLD: c_int = 17;
const SIG_BLOCK: c_int = 0;
const WNOHANG: c_int = 1;

unsafe extern "C" {
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn sigwait(set: *const SignalSet, signal: *mut c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
}

fn main() {
    // The bit of signal n is n - 1.
    let mut set = SignalSet([0; 16]);
    set.0[0] = [SIGINT, SIGTERM, SIGCHLD].iter().fold(0, |bits, signal| bits | 1 << (signal - 1));
    // SAFETY: `set` is a whole signal set; the old one is not asked for.
    unsafe { sigprocmask(SIG_BLOCK, &set, std::ptr::null_mut()) };
    loop {
        let mut signal = 0;
        // SAFETY: both pointers are to live variables of the types that sigwait(3) names.
        unsafe { sigwait(&set, &mut signal) };
        if signal == SIGCHLD {
            // SAFETY: the status is not asked for.
            while unsafe { waitpid(-1, std::ptr::null_mut(), WNOHANG) } > 0 {}
        } else {
            return;
        }
    }
}
