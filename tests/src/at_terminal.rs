//! Programs that run at a pseudo-terminal of ours.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Starts `command` at a new terminal of so many rows and columns, which controls it, and gives our side of the
/// terminal.
///
/// # Errors
/// No terminal can be had, or the program does not start.
pub fn start(mut command: Command, rows: u16, columns: u16) -> io::Result<(File, Child)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    set_size(&ours, rows, columns)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = File::options().read(true).write(true).open(OsStr::from_bytes(name.to_bytes()))?;
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    let take_terminal = || {
        rustix::process::setsid()?;
        Ok(rustix::process::ioctl_tiocsctty(io::stdin())?)
    };
    // SAFETY: between fork and exec the closure makes two system calls, and touches no lock and no heap.
    unsafe { command.pre_exec(take_terminal) };
    // The other side is held by the program alone once `command` is gone: its end is the terminal's.
    let child = command.spawn()?;
    Ok((File::from(ours), child))
}

/// Gives a terminal another size, of which its program is told by SIGWINCH.
///
/// # Errors
/// It is no terminal.
pub fn set_size(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}
