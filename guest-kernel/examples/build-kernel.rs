//! Builds the guest kernel, or finds it in the cache, and prints where it is.

use std::process::ExitCode;

use saya_guest_kernel::{cache_directory, kernel};

fn main() -> ExitCode {
    let Some(cache) = cache_directory() else {
        eprintln!("neither SAYA_CACHE nor HOME is set: no place for the kernel");
        return ExitCode::FAILURE;
    };
    match kernel::build(&cache, &mut |line| eprintln!("{line}")) {
        Ok(artifact) => {
            let mebibytes = artifact.size_bytes as f64 / f64::from(1 << 20);
            eprintln!("{mebibytes:.1} MiB, {} options on, key {}", artifact.options, artifact.key);
            println!("{}", artifact.vmlinux.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
