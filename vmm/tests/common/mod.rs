//! The VMM as a process that is driven over its control socket, and what tiny hand-written guests are made of.
//!
//! A test program re-executes itself as the VMM: it has a test `vmm_process` that calls [`be_the_vmm`], which is that
//! process where the environment says so, and nothing otherwise.

#[allow(dead_code, reason = "not every test program has a tap")]
pub(crate) mod tap;

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::{Child, Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use saya_vmm::control::{self, Boot, Event, FileRole, Request, ShimEnd};
use saya_vmm::jail::in_new_pid_namespace;

/// Names the control descriptor to the re-executed test program.
const CONTROL_FD: &str = "SAYA_TEST_CONTROL_FD";

/// Becomes the VMM where the environment says so.
pub(crate) fn be_the_vmm() {
    if let Ok(number) = std::env::var(CONTROL_FD) {
        std::process::exit(saya_vmm::process::run(number.parse().unwrap()));
    }
}

/// The shim's part.
pub(crate) struct Vmm {
    pub(crate) control: ShimEnd,
    pub(crate) process: Child,
}

impl Vmm {
    pub(crate) fn spawn() -> Self {
        let (control, theirs) = control::pair().unwrap();
        fcntl_setfd(theirs.as_fd(), FdFlags::empty()).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        // On the main thread, since the VMM wants to be its process's only one.
        command
            .args(["--exact", "vmm_process", "--nocapture", "--test-threads", "1"])
            .env(CONTROL_FD, theirs.as_raw_fd().to_string())
            .stdout(Stdio::null());
        let process = in_new_pid_namespace(|| command.spawn()).unwrap();
        Self { control, process }
    }

    /// Sends a message to boot with its files, the share among them.
    pub(crate) fn boot(&self, boot: Boot, files: &[BorrowedFd<'_>]) {
        self.control.send(&Request::Boot(boot), files).unwrap();
    }

    pub(crate) fn event(&self) -> Event {
        self.control.receive().unwrap().expect("the VMM ended without a word").0
    }
}

pub(crate) fn boot(files: &[FileRole]) -> Boot {
    Boot {
        vcpus: 1,
        memory_mib: 32,
        guest_cid: 3,
        kernel_parameters: String::new(),
        console_verbose: false,
        shares: Vec::new(),
        interfaces: Vec::new(),
        later_queue_pairs: 1,
        files: files.to_vec(),
    }
}

pub(crate) fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

/// An ELF file with one segment at 1 MiB and a PVH note.
pub(crate) fn kernel(code: &[u8]) -> File {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[16] = 2;
    bytes[18] = 62;
    bytes[32] = 64; // program headers follow
    bytes[54] = 56;
    bytes[56] = 2;
    let mut program = |kind: u32, offset: u64, address: u64, length: u64| {
        bytes.extend([kind.to_le_bytes(), [0; 4]].concat());
        for field in [offset, 0, address, length, length, 4] {
            bytes.extend(field.to_le_bytes());
        }
    };
    program(4, 176, 0, 20);
    program(1, 196, 0x10_0000, code.len() as u64);
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(code);
    file(&bytes)
}

/// mov dx, 0x604; mov al, value; out dx, al
pub(crate) fn power(value: u8) -> [u8; 7] {
    [0x66, 0xBA, 0x04, 0x06, 0xB0, value, 0xEE]
}

/// Whether guests can run. `cargo xtask test` counts a test as skipped that says it is, which the harness would not pass on
/// of one that passes.
pub(crate) fn kvm_is_there() -> bool {
    let there = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        let thread = std::thread::current();
        let line = format!("skipped: {}: no usable /dev/kvm\n", thread.name().unwrap_or_default());
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
    there
}
