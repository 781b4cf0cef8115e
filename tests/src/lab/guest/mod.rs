//! What runs inside the lab: its first process, which reaps and powers off, and its server, which sets the lab up and
//! runs the command.

pub mod configuration;
pub mod containerd;
mod ports;
mod process;
mod server;

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::wait::wait;
use nix::unistd::Pid;
use rustix::system::{RebootCommand, reboot};

/// The argument with which this program is started as the lab's first process.
pub const INIT: &str = "lab-init";
/// The argument with which it is started as the lab's server.
pub const SERVER: &str = "lab-server";

/// The lab's first process: starts the server, reaps whatever is orphaned, and powers off when the server ends.
///
/// Returns only if that could not be done, which the kernel answers with a panic.
pub fn init() {
    let server = Command::new("/proc/self/exe").arg0("saya-lab").arg(SERVER).spawn();
    match server {
        Ok(child) => reap_until_the_end_of(Pid::from_raw(child.id().cast_signed())),
        Err(error) => eprintln!("lab: cannot start the server: {error}"),
    }
    nix::unistd::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        eprintln!("lab: cannot power off: {error}");
    }
}

fn reap_until_the_end_of(server: Pid) {
    loop {
        match wait() {
            Ok(ended) if ended.pid() == Some(server) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// The lab's server: serves one job, and reports whatever goes wrong on the console.
pub fn serve() {
    if let Err(error) = server::serve() {
        eprintln!("lab: the server failed: {error:#}");
    }
}
