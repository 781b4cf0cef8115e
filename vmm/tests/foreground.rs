//! The VMM on a terminal: what it says, and how it exits, when it is started with parameters that cannot be.
//!
//! This test program re-executes itself as the VMM, as its neighbour `driven.rs` does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test program"
)]

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use saya_vmm::process::{ForegroundOptions, foreground};

/// The options of the re-executed test program, separated by newlines.
const OPTIONS: &str = "SAYA_TEST_FOREGROUND";

#[test]
fn vmm_process() {
    let Ok(text) = std::env::var(OPTIONS) else { return };
    let values: Vec<_> = text.split('\n').collect();
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    std::process::exit(foreground(&ForegroundOptions {
        kernel: values[0].into(),
        initramfs: path(values[1]),
        memory_mib: values[2].parse().unwrap(),
        vcpus: values[3].parse().unwrap(),
        share: path(values[4]),
        vsock: path(values[5]),
        kernel_parameters: values[6].to_owned(),
        verbose: false,
    }));
}

struct Options {
    kernel: PathBuf,
    initramfs: String,
    memory_mib: u64,
    vcpus: u32,
    share: String,
    vsock: String,
    kernel_parameters: String,
}

/// Runs the VMM and returns its exit status and what it has written to standard error.
fn run(options: &Options) -> (Option<i32>, String) {
    run_as(Command::new(std::env::current_exe().unwrap()), options)
}

fn run_as(mut program: Command, options: &Options) -> (Option<i32>, String) {
    let text = [
        options.kernel.to_str().unwrap(),
        &options.initramfs,
        &options.memory_mib.to_string(),
        &options.vcpus.to_string(),
        &options.share,
        &options.vsock,
        &options.kernel_parameters,
    ]
    .join("\n");
    let output = program
        .args(["--exact", "vmm_process", "--nocapture"])
        .env(OPTIONS, text)
        .stdout(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// An ELF file with one segment and one note of `kind`, and nothing to execute.
fn write_kernel(path: &Path, kind: u32) {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (bytes[16], bytes[18], bytes[32], bytes[54], bytes[56]) = (2, 62, 64, 56, 2);
    for (segment, offset, address, length) in [(4u32, 176u64, 0u64, 20u64), (1, 176, 0x10_0000, 20)] {
        bytes.extend([segment.to_le_bytes(), [0; 4]].concat());
        for field in [offset, 0, address, length, length, 4] {
            bytes.extend(field.to_le_bytes());
        }
    }
    for word in [4, 4, kind, u32::from_le_bytes(*b"Xen\0"), 0x10_0000] {
        bytes.extend(word.to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}

/// A good kernel, and options that name it.
fn good(directory: &Path) -> Options {
    let kernel = directory.join("vmlinux");
    write_kernel(&kernel, 18);
    Options {
        kernel,
        initramfs: String::new(),
        memory_mib: 64,
        vcpus: 1,
        share: String::new(),
        vsock: String::new(),
        kernel_parameters: String::new(),
    }
}

fn assert_refused(options: &Options, parts: &[&str]) {
    let (status, message) = run(options);
    assert_eq!(status, Some(1), "{message}");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("absent");
    let name = kernel.to_str().unwrap().to_owned();
    assert_refused(&Options { kernel, ..good(directory.path()) }, &[&name, "No such file"]);
}

#[test]
fn a_kernel_that_is_none_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("bzImage");
    std::fs::write(&kernel, [0u8; 4096]).unwrap();
    assert_refused(&Options { kernel, ..good(directory.path()) }, &["not an ELF file", "vmlinux"]);
    let kernel = directory.path().join("without-note");
    write_kernel(&kernel, 1);
    assert_refused(&Options { kernel, ..good(directory.path()) }, &["no PVH entry", "CONFIG_PVH=y"]);
}

#[test]
fn memory_that_cannot_be_is_refused_with_the_value() {
    let directory = tempfile::tempdir().unwrap();
    assert_refused(&Options { memory_mib: 0, ..good(directory.path()) }, &["0 MiB", "`memory`"]);
    let tebibytes = Options { memory_mib: 1 << 30, ..good(directory.path()) };
    assert_refused(&tebibytes, &["1073741824 MiB", "this host has", "`memory`"]);
}

#[test]
fn parameters_that_linux_would_cut_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { kernel_parameters: "x".repeat(4000), ..good(directory.path()) };
    assert_refused(&options, &["`kernel_parameters`", "2047"]);
}

#[test]
fn files_that_are_not_there_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent").to_str().unwrap().to_owned();
    let initramfs = Options { initramfs: absent.clone(), ..good(directory.path()) };
    assert_refused(&initramfs, &["initramfs", &absent]);
    assert_refused(
        &Options { share: absent.clone(), ..good(directory.path()) },
        &["shared directory", &absent],
    );
    let file = good(directory.path()).kernel.to_str().unwrap().to_owned();
    assert_refused(&Options { share: file.clone(), ..good(directory.path()) }, &["shared directory", &file]);
}

#[test]
fn a_socket_that_is_in_use_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vsock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let vsock = socket.to_str().unwrap().to_owned();
    assert_refused(&Options { vsock: vsock.clone(), ..good(directory.path()) }, &[&vsock, "exists"]);
    assert!(socket.exists());
}

#[test]
fn a_host_without_kvm_is_told_what_would_give_it_one() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can hide /dev/kvm from a process");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut hidden = Command::new("unshare");
    hidden.args(["--mount", "sh", "-c", "mount -t tmpfs none /dev && exec \"$0\" \"$@\""]);
    hidden.arg(std::env::current_exe().unwrap());
    let (status, message) = run_as(hidden, &good(directory.path()));
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("/dev/kvm does not exist") && message.contains("kvm_intel"), "{message}");
}
