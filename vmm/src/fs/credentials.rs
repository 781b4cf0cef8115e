//! As whom a request acts.
//!
//! The guest's kernel has decided already whether its user may do what the request asks for: this thread acts with
//! the capabilities to do it. What the host must still know is whom a new file belongs to, which umask applies, and
//! whether a write is to clear set-id bits. The first is the thread's file system uid and gid, the second its umask,
//! the third whether it has `CAP_FSETID` in effect. All three stay as they are until a request needs them otherwise,
//! so that a guest whose processes all run as one user costs no system call.

use std::marker::PhantomData;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet};

/// The credentials of one thread: the one that [`for_this_thread`](Self::for_this_thread) was called on.
#[derive(Debug)]
pub struct Credentials {
    switching: Switching,
    uid: u32,
    gid: u32,
    umask: u32,
    keeps_set_id: bool,
    /// They belong to a thread and must not leave it.
    not_send: PhantomData<*const ()>,
}

/// Whom this thread may act as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switching {
    /// Anybody.
    Anybody,
    /// Only whom it runs as.
    OnlyItself,
}

impl Credentials {
    /// Readies the calling thread: gives it a umask and a working directory of its own (`CLONE_FS`) and, if it may act
    /// as others, makes it keep its capabilities while it does.
    ///
    /// # Errors
    /// What the system calls returned; `EPERM` when the thread has `CAP_SETUID` but not `CAP_SETPCAP`, which it
    /// needs at this moment only.
    pub fn for_this_thread() -> Result<Self, Errno> {
        // SAFETY: CLONE_FS shares no descriptors and no memory: it takes nothing away that other code of this thread
        // relies on.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
        rustix::process::umask(Mode::empty());
        let effective = rustix::thread::capabilities(None)?.effective;
        let switching = match effective.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
            true => Switching::Anybody,
            false => Switching::OnlyItself,
        };
        if switching == Switching::Anybody {
            keep_capabilities()?;
        }
        Ok(Self {
            switching,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: 0,
            keeps_set_id: effective.contains(CapabilitySet::FSETID),
            not_send: PhantomData,
        })
    }

    /// Makes files from now on belong to `uid` and `gid`.
    ///
    /// # Errors
    /// `EPERM` when this process may not act as somebody else, `EINVAL` when no user can have that number.
    pub fn assume(&mut self, uid: u32, gid: u32) -> Result<(), Errno> {
        if (uid, gid) == (self.uid, self.gid) {
            return Ok(());
        }
        if self.switching == Switching::OnlyItself {
            return Err(Errno::PERM);
        }
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        if gid != self.gid {
            // SAFETY: setfsgid has no memory effects and acts on this thread alone.
            unsafe { libc::setfsgid(gid) };
            self.gid = gid;
        }
        if uid != self.uid {
            // SAFETY: setfsuid has no memory effects and acts on this thread alone.
            unsafe { libc::setfsuid(uid) };
            self.uid = uid;
        }
        Ok(())
    }

    /// Acts as `uid` and `gid` where that is possible, for requests that make no file: a network file system of the
    /// host may want to know whom it serves.
    pub fn prefer(&mut self, uid: u32, gid: u32) {
        // Whoever the thread acts as, its capabilities let it do what the guest's kernel has allowed.
        let _ = self.assume(uid, gid);
    }

    /// Applies `umask` to files made from now on.
    pub fn mask(&mut self, umask: u32) {
        let umask = umask & 0o777;
        if umask != self.umask {
            rustix::process::umask(Mode::from_raw_mode(umask));
            self.umask = umask;
        }
    }

    /// Makes writes, truncations and changes of mode from now on keep set-id bits, or clear them as the host clears
    /// them for an ordinary user. A thread that never had `CAP_FSETID` always clears them.
    ///
    /// # Errors
    /// What `capset` returned.
    pub fn keep_set_id(&mut self, keep: bool) -> Result<(), Errno> {
        if keep == self.keeps_set_id {
            return Ok(());
        }
        let mut sets = rustix::thread::capabilities(None)?;
        if !sets.permitted.contains(CapabilitySet::FSETID) {
            return Ok(());
        }
        sets.effective.set(CapabilitySet::FSETID, keep);
        rustix::thread::set_capabilities(None, sets)?;
        self.keeps_set_id = keep;
        Ok(())
    }
}

/// Makes the thread keep its effective capabilities when its file system uid becomes another's
/// (`SECBIT_NO_SETUID_FIXUP`, capabilities(7)).
fn keep_capabilities() -> Result<(), Errno> {
    let bits = rustix::thread::capabilities_secure_bits()?;
    if bits.contains(CapabilitiesSecureBits::NO_SETUID_FIXUP) {
        return Ok(());
    }
    rustix::thread::set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// Runs `test` on a thread of its own, since credentials stay with a thread.
    fn on_a_thread(test: impl FnOnce(&mut Credentials) + Send + 'static) {
        std::thread::spawn(|| test(&mut Credentials::for_this_thread().unwrap())).join().unwrap();
    }

    fn may_switch() -> bool {
        let effective = rustix::thread::capabilities(None).unwrap().effective;
        effective.contains(CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETPCAP)
    }

    #[test]
    fn a_file_belongs_to_whom_the_thread_acts_as() {
        if !may_switch() {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().to_owned();
        on_a_thread(move |credentials| {
            for (name, uid, gid) in [("a", 999, 998), ("b", 0, 0), ("c", 0, 5), ("d", 1000, 5)] {
                credentials.assume(uid, gid).unwrap();
                std::fs::write(path.join(name), b"").unwrap();
                let file = std::fs::metadata(path.join(name)).unwrap();
                assert_eq!((file.uid(), file.gid()), (uid, gid));
            }
        });
    }

    #[test]
    fn nobody_is_the_user_with_the_highest_number() {
        if !may_switch() {
            return;
        }
        on_a_thread(|credentials| {
            assert_eq!(credentials.assume(u32::MAX, 0), Err(Errno::INVAL));
            assert_eq!(credentials.assume(0, u32::MAX), Err(Errno::INVAL));
        });
    }

    #[test]
    fn a_process_without_rights_acts_as_itself_only() {
        let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        on_a_thread(move |credentials| {
            credentials.switching = Switching::OnlyItself;
            assert_eq!(credentials.assume(me.0, me.1), Ok(()));
            assert_eq!(credentials.assume(me.0 + 1, me.1), Err(Errno::PERM));
        });
    }

    #[test]
    fn the_umask_is_the_threads_own() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().to_owned();
        let before = rustix::process::umask(Mode::from_raw_mode(0o022));
        on_a_thread(move |credentials| {
            credentials.mask(0o077);
            std::fs::write(path.join("masked"), b"").unwrap();
            assert_eq!(std::fs::metadata(path.join("masked")).unwrap().permissions().mode() & 0o777, 0o600);
        });
        assert_eq!(rustix::process::umask(before).as_raw_mode(), 0o022);
    }

    #[test]
    fn a_write_clears_set_id_bits_when_it_is_to() {
        let effective = rustix::thread::capabilities(None).unwrap().effective;
        if !effective.contains(CapabilitySet::FSETID) {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        on_a_thread(move |credentials| {
            for (keep, mode) in [(true, 0o4755), (false, 0o755), (true, 0o4755)] {
                std::fs::write(&path, b"").unwrap();
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
                credentials.keep_set_id(keep).unwrap();
                std::fs::write(&path, b"more").unwrap();
                assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
            }
        });
    }
}
