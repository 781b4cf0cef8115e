//! The demonstration, run where microVMs can boot. `cargo xtask demo` starts this in the lab.

fn main() -> anyhow::Result<()> {
    saya_tests::demo::run()
}
