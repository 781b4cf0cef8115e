//! libFuzzer's program, built by `cargo xtask fuzz`. The environment's `SAYA_FUZZ_TARGET` names the target.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use saya_fuzz::{TARGETS, Target, target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("SAYA_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("SAYA_FUZZ_TARGET={name:?} is none of {names:?}");
        std::process::exit(1);
    })
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
