//! FUSE requests of any kind, served on a tree of their own.
//!
//! An input is a sequence of requests: opcode (1 byte), node (1), user and group (1 each), what is added to the header's
//! length (1, signed), length of the body (1), body. The room for the reply is 8 KiB.

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
    let share = tempfile::tempdir().expect("a directory");
    std::fs::write(share.path().join("f"), b"content").expect("a file");
    std::fs::create_dir(share.path().join("d")).expect("a directory");
    // The server takes over the thread that it is made on.
    std::thread::scope(|scope| {
        let served = scope.spawn(|| serve(share.path(), input)).join();
        limit_files(getrlimit(Resource::Fsize).maximum);
        if let Err(panic) = served {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Sets how large this process may make files. What exceeds it fails, and no signal is sent.
fn limit_files(bytes: Option<u64>) {
    // SAFETY: to ignore a signal is no handler that could do harm.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).expect("a limit");
}

/// A server's configuration for `share`.
pub(crate) fn configuration(share: &std::path::Path) -> FsConfig {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    FsConfig {
        root: rustix::fs::open(share, flags, Mode::empty()).expect("the share"),
        descriptor_directory: FsConfig::open_descriptor_directory().expect("/proc"),
        tag: "share".into(),
        cache_policy: CachePolicy::uniform(Caching::NONE),
        writeback: false,
        implicit_opens: false,
        most_inodes: 32,
    }
}

fn serve(share: &std::path::Path, input: &[u8]) {
    let mut server =
        Server::new(configuration(share), DescriptorBudget { inodes: 64, handles: 64 }).expect("a server");
    let mut input = Input::new(input);
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
