//! `containerd-shim-kata-v2`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    saya_shim::main()
}
