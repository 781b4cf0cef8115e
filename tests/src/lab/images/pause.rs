//! registry.k8s.io/pause:3.9: one static program that does nothing but hold a pod's namespaces.
//! In a pod of ours its place is taken by a program of the guest's; runc runs it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::super::cache::{self, Key};
use super::super::debian::output_of;
use super::layout::{self, Defaults, Layer};

const NAME: &str = "registry.k8s.io/pause:3.9";
const SOURCE: &str = include_str!("pause/pause.rs");

pub(super) fn archive() -> Result<PathBuf> {
    let key = Key::default().with("1").with(SOURCE).finish();
    let entry = cache::entry("image-pause", &key, |directory| {
        let (source, program) = (directory.join("pause.rs"), directory.join("pause"));
        fs::write(&source, SOURCE)?;
        let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        compiler.args(["--edition", "2024", "--target", "x86_64-unknown-linux-musl", "-O"]);
        compiler.args(["-C", "panic=abort", "-C", "strip=symbols", "-o"]).arg(&program).arg(&source);
        output_of(&mut compiler).context("run `rustup target add x86_64-unknown-linux-musl` first")?;
        let mut layer = Layer::new();
        layer.file("pause", 0o755, &fs::read(&program)?)?;
        let defaults = Defaults {
            entrypoint: &["/pause"],
            command: &[],
            environment: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            directory: "/",
            stop_signal: "",
        };
        layout::write(&directory.join("image.tar"), NAME, layer, &defaults)
    })?;
    Ok(entry.join("image.tar"))
}
