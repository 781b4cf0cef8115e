//! FUSE requests of any kind, served on a tree of their own.
//!
//! An input's first byte says how the tree is shared (see [`configuration`]). A sequence of requests follows: opcode (1 byte),
//! node (1), user and group (1 each), what is added to the header's length (1, signed), length of the body (1), body. The
//! room for the reply is 8 KiB.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use saya_vmm::fs::buffers::Buffers;
use saya_vmm::fs::wire::{InHeader, Wire};
use saya_vmm::fs::{CachePolicy, Caching, DescriptorBudget, FsConfig, Server};
use vm_memory::VolatileSlice;

use crate::input::Input;

/// The most requests of one input.
const REQUESTS: usize = 64;
/// No file grows beyond this: a guest may fill what it is given, and here that is the tester's disk.
const FILE_BYTES: u64 = 1 << 20;
const REPLY_BYTES: usize = 8192;

pub(crate) fn run(input: &[u8]) {
    limit_files(Some(FILE_BYTES));
    let directory = tempfile::tempdir().expect("a directory");
    let (share, outside) = (directory.path().join("share"), directory.path().join("outside"));
    fill(&share);
    std::fs::write(&outside, b"the host's").expect("a file");
    // The server takes over the thread that it is made on.
    std::thread::scope(|scope| {
        let served = scope.spawn(|| serve(&share, input)).join();
        limit_files(getrlimit(Resource::Fsize).maximum);
        if let Err(panic) = served {
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(std::fs::read(&outside).ok().as_deref(), Some(&b"the host's"[..]), "a file beside the share");
    let beside = std::fs::read_dir(directory.path()).expect("a directory").count();
    assert_eq!(beside, 2, "something is new beside the share, or gone");
}

/// Makes a share with a file, a directory, and a link that leads outside.
pub(crate) fn fill(share: &Path) {
    std::fs::create_dir(share).expect("a directory");
    std::fs::write(share.join("f"), b"content").expect("a file");
    std::fs::create_dir(share.join("d")).expect("a directory");
    std::os::unix::fs::symlink("../outside", share.join("l")).expect("a link");
}

/// Sets how large this process may make files. What exceeds it fails, and no signal is sent.
fn limit_files(bytes: Option<u64>) {
    // SAFETY: to ignore a signal is no handler that could do harm.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).expect("a limit");
}

/// A server's configuration for `share`. Of `kind`, the lowest bit has the guest delay writes, the next lets it open files
/// without telling, and the third says that it alone changes files; a container's root file system has all of them.
pub(crate) fn configuration(share: &Path, kind: u8) -> FsConfig {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    FsConfig {
        root: rustix::fs::open(share, flags, Mode::empty()).expect("the share"),
        descriptor_directory: FsConfig::open_descriptor_directory().expect("/proc"),
        tag: "share".into(),
        cache_policy: CachePolicy::uniform(if kind & 4 == 0 { Caching::NONE } else { Caching::EXCLUSIVE }),
        writeback: kind & 1 != 0,
        implicit_opens: kind & 2 != 0,
        most_inodes: 32,
    }
}

fn serve(share: &Path, input: &[u8]) {
    let mut input = Input::new(input);
    let Some(kind) = input.byte() else { return };
    let budget = DescriptorBudget { inodes: 64, handles: 64 };
    let mut server = Server::new(configuration(share, kind), budget).expect("a server");
    for unique in 0..REQUESTS {
        let Some(mut request) = request(&mut input, unique as u64) else { break };
        let mut reply = vec![0; REPLY_BYTES];
        let mut buffers = Buffers::new();
        buffers.readable.push(VolatileSlice::from(request.as_mut_slice()));
        buffers.writable.push(VolatileSlice::from(reply.as_mut_slice()));
        server.serve(&buffers);
        assert!(server.inodes() <= 32 && server.handles() <= 64, "beyond its bounds");
    }
}

fn request(input: &mut Input<'_>, unique: u64) -> Option<Vec<u8>> {
    let (opcode, node) = (input.byte()?.into(), input.byte()?.into());
    let (uid, gid) = (input.byte()?.into(), input.byte()?.into());
    let lie = i32::from(input.byte()?.cast_signed());
    let body = input.block()?;
    let length = u32::try_from(InHeader::SIZE + body.len()).ok()?.wrapping_add_signed(lie);
    let mut request = Vec::new();
    InHeader { length, opcode, unique, node, uid, gid, ..InHeader::default() }.put(&mut request);
    request.extend_from_slice(body);
    Some(request)
}
