//! Mounts a directory through Saya's FUSE server by the host's own FUSE, so that any program and any file system
//! test suite can exercise the server without a virtual machine:
//!
//! ```sh
//! cargo run -p saya-vmm --example mount_fs -- SHARE MOUNTPOINT [--exclusive] [--writeback] [--implicit-opens] [--descriptors N]
//! umount MOUNTPOINT
//! ```
//!
//! `--exclusive` caches as for files that nobody else changes, `--writeback` lets the kernel delay writes,
//! `--implicit-opens` lets it open files without telling, `--descriptors` limits how many descriptors are held for
//! inodes. It needs root and `/dev/fuse`, serves in the foreground and ends when the file system is unmounted.

use std::error::Error;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use saya_vmm::fs::buffers::Buffers;
use saya_vmm::fs::{CachePolicy, Caching, DescriptorBudget, FsConfig, Served, Server};
use vm_memory::VolatileSlice;

/// The largest WRITE and what comes before its data, generously.
const REQUEST_BYTES: usize = (1 << 20) + (1 << 16);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [share, mountpoint, options @ ..] = arguments.as_slice() else {
        return Err("usage: mount_fs SHARE MOUNTPOINT [OPTIONS]".into());
    };
    let mut caching = Caching::SHARED;
    let mut writeback = false;
    let mut implicit_opens = false;
    let mut budget = DescriptorBudget::of_this_process(1);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "--exclusive" => caching = Caching::EXCLUSIVE,
            "--writeback" => writeback = true,
            "--implicit-opens" => implicit_opens = true,
            "--descriptors" => {
                budget.inodes = options.next().ok_or("--descriptors wants a number")?.parse()?;
            }
            other => {
                return Err(format!("unknown option {other}: see the head of this file").into());
            }
        }
    }
    let config = FsConfig {
        root: rustix::fs::open(share, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?,
        descriptor_directory: FsConfig::open_descriptor_directory()?,
        tag: "share".into(),
        cache_policy: CachePolicy::uniform(caching),
        writeback,
        implicit_opens,
        most_inodes: 1 << 20,
    };
    let mut server = Server::new(config, budget)?;
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let data = std::ffi::CString::new(data)?;
    // Without nosuid and nodev: the suites make set-id files and device nodes.
    mount("saya", mountpoint.as_str(), "fuse", MountFlags::empty(), Some(data.as_c_str()))?;
    serve(&mut server, &device)
}

/// Serves until the file system is unmounted.
fn serve(server: &mut Server, device: &OwnedFd) -> Result<(), Box<dyn Error>> {
    let (mut request, mut reply) = (vec![0; REQUEST_BYTES], vec![0; REQUEST_BYTES]);
    loop {
        let length = match rustix::io::read(device, &mut request) {
            Ok(length) => length,
            // ENOENT: the request was interrupted before it could be read.
            Err(Errno::INTR | Errno::NOENT) => continue,
            Err(Errno::NODEV) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut buffers = Buffers::new();
        buffers.readable.push(VolatileSlice::from(request.get_mut(..length).unwrap_or_default()));
        buffers.writable.push(VolatileSlice::from(reply.as_mut_slice()));
        let served = server.serve(&buffers);
        drop(buffers);
        send(device, served, &reply);
    }
}

fn send(device: &OwnedFd, served: Served, reply: &[u8]) {
    let Served::Reply(length) = served else { return };
    match rustix::io::write(device, reply.get(..length as usize).unwrap_or_default()) {
        // ENOENT: the request was interrupted meanwhile.
        Ok(_) | Err(Errno::NOENT) => {}
        Err(error) => eprintln!("a reply of {length} bytes was refused: {error}"),
    }
}
