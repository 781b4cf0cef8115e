//! What is built and goes into the lab: the shim, the guest kernel, and the initramfs with the agent.
//!
//! All of it is put in `saya/` below Cargo's target directory, from where the lab takes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::Args;
use saya_guest_kernel::{cache_directory, initramfs, kernel};
use saya_tests::lab::protocol::Install;
use serde_json::Value;

/// The guest's target: static programs.
const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";
const SHIM: &str = "containerd-shim-kata-v2";
const AGENT: &str = "saya-agent";
const KERNEL: &str = "vmlinux";
const INITRAMFS: &str = "initramfs.cpio";

/// The files that are built, the kernel's among them if it is wanted.
pub(crate) fn names(kernel: bool) -> impl Iterator<Item = &'static str> {
    [SHIM, INITRAMFS].into_iter().chain(kernel.then_some(KERNEL))
}

/// Which parts to build, and how.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Build the shim and the agent without optimisation, which is quicker.
    #[arg(long)]
    dev: bool,
    /// Only these parts: shim, agent, kernel.
    #[arg(value_parser = ["shim", "agent", "kernel"])]
    parts: Vec<String>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

/// Builds the parts that are not there. Those that are stay as they are, however old.
pub(crate) fn build_missing() -> Result<()> {
    let directory = directory()?;
    let parts = [("shim", SHIM), ("agent", INITRAMFS), ("kernel", KERNEL)];
    let missing: Vec<String> = parts
        .into_iter()
        .filter(|(_, file)| !directory.join(file).exists())
        .map(|(part, _)| part.to_owned())
        .collect();
    if missing.is_empty() { Ok(()) } else { build(&Options { dev: false, parts: missing }) }
}

/// Builds the wanted parts into [`directory`]. What it has to say goes to standard error, because standard output may be
/// that of a command in the lab.
pub(crate) fn build(options: &Options) -> Result<()> {
    let directory = directory()?;
    fs::create_dir_all(&directory)?;
    if options.wants("kernel") {
        build_kernel(&directory)?;
    }
    if options.wants("agent") {
        let program = cargo_build(AGENT, AGENT, options.dev, Some(GUEST_TARGET))?;
        let size = initramfs::build(&program, &directory.join(INITRAMFS))?;
        eprintln!("initramfs: {} KiB", size >> 10);
    }
    if options.wants("shim") {
        let program = cargo_build("saya-shim", SHIM, options.dev, None)?;
        place(&program, &directory.join(SHIM))?;
    }
    Ok(())
}

fn build_kernel(directory: &Path) -> Result<()> {
    let cache = cache_directory().context("neither SAYA_CACHE nor HOME is set: set one of them")?;
    let built = kernel::build(&cache, &mut |line| eprintln!("{line}"))?;
    eprintln!("guest kernel {}: {} KiB, {} options", built.key, built.size_bytes >> 10, built.options);
    place(&built.vmlinux, &directory.join(KERNEL))
}

/// Builds one program and gives its path.
fn cargo_build(package: &str, program: &str, dev: bool, target: Option<&str>) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--package", package, "--bin", program]);
    let mut path = target_directory()?;
    if let Some(target) = target {
        cargo.args(["--target", target]);
        path.push(target);
    }
    if !dev {
        cargo.arg("--release").env("CARGO_ENCODED_RUSTFLAGS", release_flags()?);
    }
    let status = cargo.status().context("running cargo")?;
    if !status.success() {
        bail!("building {program} failed ({status})");
    }
    Ok(path.join(if dev { "debug" } else { "release" }).join(program))
}

/// The compiler's flags of a release build, as `CARGO_ENCODED_RUSTFLAGS` has them: those that the environment gives, and what
/// keeps the places of checkout, target directory and Cargo's home out of the programs. Code that build scripts generate is named
/// in messages by its path, which would tell two builds apart that differ in nothing else.
fn release_flags() -> Result<String> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set: set one of them")?;
    let given = std::env::var("CARGO_ENCODED_RUSTFLAGS").or_else(|_| {
        std::env::var("RUSTFLAGS").map(|flags| flags.split_whitespace().collect::<Vec<_>>().join(SEPARATOR))
    });
    // The last that fits is taken, and the target directory may lie in the checkout.
    let places = [(home, "/cargo"), (crate::checkout(), "/saya"), (target_directory()?, "/target")];
    Ok(with_places_hidden(given.unwrap_or_default(), &places))
}

/// Between the flags of `CARGO_ENCODED_RUSTFLAGS` (The Cargo Book, "Environment Variables").
const SEPARATOR: &str = "\x1f";

/// Adds to encoded flags that each path is to be known by another name.
fn with_places_hidden(mut flags: String, places: &[(PathBuf, &str)]) -> String {
    for (place, name) in places {
        if !flags.is_empty() {
            flags += SEPARATOR;
        }
        flags += &format!("--remap-path-prefix={}={name}", place.display());
    }
    flags
}

/// Builds the programs that run in the lab: tests, benchmarks, demonstration.
pub(crate) fn build_tests() -> Result<()> {
    let status = cargo().args(["build", "--package", "saya-tests", "--bins"]).status();
    let status = status.context("running cargo")?;
    if !status.success() {
        bail!("building the programs of the tests failed ({status})");
    }
    Ok(())
}

/// Builds the unit tests of a package and gives the paths of their programs.
pub(crate) fn build_unit_tests(package: &str) -> Result<Vec<PathBuf>> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--quiet", "--message-format", "json", "--package", package]);
    let output = command.stderr(Stdio::inherit()).output().context("running cargo")?;
    if !output.status.success() {
        bail!("building the tests of {package} failed ({})", output.status);
    }
    Ok(test_programs(&String::from_utf8_lossy(&output.stdout)))
}

/// The programs that cargo's messages name as built for testing (The Cargo Book, "External tools").
fn test_programs(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message.pointer("/profile/test").and_then(Value::as_bool) == Some(true))
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .collect()
}

/// The cargo that runs this program, in the checkout.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::checkout());
    cargo
}

/// Copies a file such that its place has the old one or the whole new one.
fn place(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    fs::copy(from, &partial)
        .with_context(|| format!("copying {} to {}", from.display(), partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("renaming {} to {}", partial.display(), to.display()))
}

/// Cargo's target directory: this program lies in `<target>/debug/`.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let directory = program.parent().and_then(Path::parent);
    Ok(directory.with_context(|| format!("{} lies in no target directory", program.display()))?.to_owned())
}

/// Where the built parts are.
pub(crate) fn directory() -> Result<PathBuf> {
    Ok(target_directory()?.join("saya"))
}

/// The parts that are built, and their places on a machine that has Saya installed. Says on standard error how old they
/// are: what is there is not built again for the lab.
pub(crate) fn installs() -> Result<Vec<Install>> {
    let directory = directory()?;
    let mut installs = Vec::new();
    let mut ages = Vec::new();
    for (name, place) in
        [(SHIM, "/usr/local/bin"), (KERNEL, "/usr/local/share/saya"), (INITRAMFS, "/usr/local/share/saya")]
    {
        let from = directory.join(name);
        ages.push(match fs::metadata(&from).and_then(|metadata| metadata.modified()) {
            Ok(built) => {
                installs.push(Install { from, to: Path::new(place).join(name) });
                format!("{name} ({})", age(built))
            }
            Err(_) => format!("{name} (not built)"),
        });
    }
    eprintln!("lab: {}", ages.join(", "));
    Ok(installs)
}

fn age(built: SystemTime) -> String {
    match built.elapsed().map(|elapsed| elapsed.as_secs()) {
        Ok(seconds @ 0..120) => format!("{seconds} s old"),
        Ok(seconds @ 120..7200) => format!("{} min old", seconds / 60),
        Ok(seconds) => format!("{} h old", seconds / 3600),
        Err(_) => "new".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_are_given_stay_and_places_get_other_names() {
        let places = [(PathBuf::from("/a b"), "/saya"), (PathBuf::from("/a b/target"), "/target")];
        let both = ["--remap-path-prefix=/a b=/saya", "--remap-path-prefix=/a b/target=/target"];
        assert_eq!(with_places_hidden(String::new(), &places), both.join(SEPARATOR));
        let given = ["-C", "target-cpu=native"].join(SEPARATOR);
        assert_eq!(with_places_hidden(given.clone(), &places), [&given, both[0], both[1]].join(SEPARATOR));
    }

    #[test]
    fn only_programs_built_for_testing_are_named() {
        let messages = [
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":"/t/vmm-1"}"#,
            r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":"/t/saya"}"#,
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":null}"#,
            "no message",
        ];
        assert_eq!(test_programs(&messages.join("\n")), [Path::new("/t/vmm-1")]);
    }
}
