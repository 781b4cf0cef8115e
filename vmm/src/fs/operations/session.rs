//! INIT and DESTROY.

use rustix::io::Errno;

use crate::fs::file_system::{FileSystem, Session};
use crate::fs::limits::{TRANSFER_BYTES, TRANSFER_PAGES};
use crate::fs::wire::{InitFlags, InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION};

/// The oldest protocol that is spoken: that of the first kernel with virtio-fs (Linux 5.4).
const OLDEST_MINOR_VERSION: u32 = 31;
/// How many requests the client may have under way in the background: the default of 12 leaves the queue empty while
/// readahead and write-back wait.
const MAX_BACKGROUND: u16 = 64;

impl FileSystem {
    /// Begins a session: whatever an earlier one left behind is forgotten.
    ///
    /// # Errors
    /// `EPROTO` when the client is too old.
    pub(in crate::fs) fn init(&mut self, request: &InitIn) -> Result<InitOut, Errno> {
        self.begin_session();
        let version = InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..InitOut::default() };
        if request.major > KERNEL_VERSION {
            // The client sends another INIT with this major version.
            return Ok(version);
        }
        if request.major < KERNEL_VERSION || request.minor < OLDEST_MINOR_VERSION {
            return Err(Errno::PROTO);
        }
        let offered = InitFlags::from_bits_truncate(u64::from(request.flags));
        let agreed = offered & self.wanted();
        self.session = Session {
            submounts: agreed.contains(InitFlags::SUBMOUNTS),
            writeback: agreed.contains(InitFlags::WRITEBACK_CACHE),
            long_setxattr: agreed.contains(InitFlags::SETXATTR_EXT),
        };
        Ok(InitOut {
            minor: KERNEL_MINOR_VERSION.min(request.minor),
            max_readahead: request.max_readahead.min(TRANSFER_BYTES),
            // All flags that are wanted lie in the lower half.
            flags: agreed.bits() as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND / 4 * 3,
            max_write: TRANSFER_BYTES,
            time_granularity: 1,
            max_pages: TRANSFER_PAGES,
            ..version
        })
    }

    /// Ends a session.
    pub(in crate::fs) fn destroy(&mut self) {
        self.begin_session();
    }

    /// Not `ATOMIC_O_TRUNC`: with it Linux has the file truncated before it looks whether the file is being executed, and refuses
    /// the open (`ETXTBSY`) when the program is gone already.
    fn wanted(&self) -> InitFlags {
        let mut wanted = InitFlags::ASYNC_READ
            | InitFlags::BIG_WRITES
            | InitFlags::DONT_MASK
            | InitFlags::AUTO_INVAL_DATA
            | InitFlags::DO_READDIRPLUS
            | InitFlags::READDIRPLUS_AUTO
            | InitFlags::ASYNC_DIO
            | InitFlags::PARALLEL_DIROPS
            | InitFlags::POSIX_ACL
            | InitFlags::MAX_PAGES
            | InitFlags::CACHE_SYMLINKS
            | InitFlags::SUBMOUNTS
            | InitFlags::HANDLE_KILLPRIV_V2
            | InitFlags::SETXATTR_EXT
            | InitFlags::INIT_EXT;
        wanted.set(InitFlags::WRITEBACK_CACHE, self.writeback_allowed);
        wanted
    }
}
