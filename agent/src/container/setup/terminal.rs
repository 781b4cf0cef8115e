//! A pseudo-terminal from the container's own devpts, so that the name of its side is right inside.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::error::{Context, Result};
use super::mounts::attach;
use crate::container::channel::{ChildEnd, Report};
use crate::container::plan::WindowSize;
use crate::paths::Root;
use crate::sys;

const MULTIPLEXER: &str = "/dev/pts/ptmx";

/// Makes a terminal, sends the agent its side and keeps the process's.
pub(super) fn make(root: &Root, size: WindowSize, channel: &ChildEnd) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let agents = root
        .open(Path::new(MULTIPLEXER), flags)
        .context(|| format!("make a terminal: open {MULTIPLEXER} (a terminal needs a devpts mount)"))?;
    unlockpt(&agents).context(|| "unlock the terminal")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let processes = ioctl_tiocgptpeer(&agents, flags).context(|| "open the terminal")?;
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&processes, size).context(|| "set the terminal's size")?;
    channel.report(&Report::Terminal(agents)).context(|| "pass the terminal to the agent")?;
    Ok(processes)
}

/// Binds the terminal on /dev/console, as the OCI runtime spec asks for the first process.
pub(super) fn bind_console(root: &Root, terminal: &OwnedFd) -> Result<()> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(terminal, "", flags).context(|| "bind the terminal on /dev/console")?;
    attach(root, &tree, Path::new("/dev/console"), false).context(|| "bind the terminal on /dev/console")
}

/// Makes it the controlling terminal and the standard streams of this process, which leads a session.
pub(super) fn control(terminal: &OwnedFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(terminal.as_fd()).context(|| "take the terminal")?;
    for place in 0..3 {
        // SAFETY: takes no pointer; both numbers are descriptors of this process.
        let result = unsafe { libc::dup2(terminal.as_raw_fd(), place) };
        sys::checked(result.into()).context(|| "set up the terminal's streams")?;
    }
    Ok(())
}
