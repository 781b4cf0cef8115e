//! The demonstration: the main job on real input, each step shown as it happens, and a picture of it at the end. Runs
//! inside the lab (or on a host with hardware virtualization) as `saya-demo`.

mod containers;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::bench::memory;
use crate::bench::runtimes::{BUSYBOX, REDIS};
use crate::ctr::{ctr, finish};
use crate::leaks::Holdings;
use crate::report::start_timeline::Timeline;
use containers::{Container, ctr_run};

/// Runs every step.
///
/// # Errors
/// The first step that does not do what it promises.
pub fn run() -> anyhow::Result<()> {
    let before = Holdings::now();
    let begin = Instant::now();
    step("1", "a hello from a microVM");
    hello()?;
    step("2", "redis in a microVM, driven by `ctr task exec`");
    redis()?;
    step("3", "100 MB through virtio-fs, checksummed on both sides");
    file_both_ways()?;
    step("4", "an exit status comes back");
    exit_status()?;
    step("5", "one start, and what it costs while it idles");
    start_and_memory()?;
    step("6", "nothing is left behind");
    nothing_left(&before)?;
    println!("\nAll of it held, in {:.0} s.", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Asks until the server answers, at most 600 times, and fails with the last answer.
const WAIT_FOR_REDIS: &str = "n=0; until redis-cli ping >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 600 ] || exec redis-cli ping; sleep 0.1; done";

fn step(number: &str, title: &str) {
    println!("\n── {number}. {title} {}", "─".repeat(70usize.saturating_sub(title.len())));
}

fn hello() -> anyhow::Result<()> {
    let host =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let output =
        ctr_run(&["--rm"], BUSYBOX, "demo-hello", &["sh", "-c", "echo hello from Linux $(uname -r)"])?;
    print!("   the container says:   {output}");
    println!("   the host's kernel is: {}", host.trim());
    ensure!(output.starts_with("hello from Linux"), "the container printed {output:?}");
    ensure!(!output.contains(host.trim()), "the container runs on the host's kernel");
    Ok(())
}

fn redis() -> anyhow::Result<()> {
    let server = Container::start(REDIS, "demo-redis", &["redis-server", "--save", ""])?;
    let client = |arguments: &[&str]| server.exec(&[&["redis-cli"], arguments].concat());
    server.exec(&["sh", "-c", WAIT_FOR_REDIS])?;
    for arguments in [&["set", "k1", "v1"][..], &["get", "k1"]] {
        println!("   redis-cli {:<12} → {}", arguments.join(" "), client(arguments)?.trim());
    }
    let value = client(&["get", "k1"])?;
    ensure!(value.trim() == "v1", "redis answered {value:?} instead of v1");
    server.remove()
}

fn file_both_ways() -> anyhow::Result<()> {
    let directory = Directory::make("/tmp/saya-demo")?;
    let script = "dd if=/dev/urandom of=/share/file bs=1M count=100 2>/dev/null; sha256sum < /share/file";
    let mount = format!("type=bind,src={},dst=/share,options=rbind:rw", directory.0);
    let begin = Instant::now();
    let inside = ctr_run(&["--rm", "--mount", &mount], BUSYBOX, "demo-file", &["sh", "-c", script])?;
    let outside = finish(Command::new("sh").args(["-c", &format!("sha256sum < {}/file", directory.0)]))?;
    println!("   written and read in the guest: {}", inside.trim());
    println!("   read on the host:              {}", outside.trim());
    println!("   in {:.1} s, the VM's start included", begin.elapsed().as_secs_f64());
    ensure!(inside == outside, "the checksums differ");
    Ok(())
}

/// A directory that goes when this goes.
struct Directory(&'static str);

impl Directory {
    fn make(path: &'static str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {path}"))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(self.0) {
            eprintln!("cannot remove {}: {error}", self.0);
        }
    }
}

fn exit_status() -> anyhow::Result<()> {
    let status =
        containers::run_command(&["--rm"], BUSYBOX, "demo-exit", &["sh", "-c", "exit 7"]).status()?;
    println!("   `exit 7` in the container → ctr ended with {}", status.code().unwrap_or(-1));
    ensure!(status.code() == Some(7), "ctr ended with {status}");
    Ok(())
}

fn start_and_memory() -> anyhow::Result<()> {
    let idle = Container::start(BUSYBOX, "demo-idle", &["sleep", "3600"])?;
    println!("{}", Timeline::read("default", "demo-idle")?.picture());
    println!("{}", memory::table(&[memory::measure_now(1)?]));
    idle.remove()
}

fn nothing_left(before: &Holdings) -> anyhow::Result<()> {
    let containers = ctr(["container", "ls", "-q"])?;
    ensure!(!containers.contains("demo-"), "containers are left: {containers}");
    let left = before.leaked_by(&Holdings::now());
    ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    println!(
        "   no process, mount, socket, network namespace, interface, cgroup or file ({} looked at)",
        before.count()
    );
    Ok(())
}
