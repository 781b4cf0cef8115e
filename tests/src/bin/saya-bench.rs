//! The benchmarks, run where microVMs can boot. `cargo xtask bench` starts this in the lab.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use saya_tests::bench::boot::BootFigures;
use saya_tests::bench::{boot, fs, memory, monitors, net, pod, soak, start, stdio, write_json};

const USAGE: &str =
    "usage: saya-bench start|memory|stdio|fs|net|pod|boot|boot-icount|soak OUTPUT-DIRECTORY [RUNS [MIB]]";

/// How much passes through standard streams if nothing else is said.
const STDIO_MEBIBYTES: u32 = 64;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().context(USAGE)?;
    let output = PathBuf::from(arguments.next().context(USAGE)?);
    let runs = arguments.next().map_or(Ok(10), |runs| runs.parse()).context(USAGE)?;
    let mebibytes = arguments.next().map_or(Ok(STDIO_MEBIBYTES), |size| size.parse()).context(USAGE)?;
    match name.as_str() {
        "start" => {
            let figures = start::measure(runs, &output)?;
            write_json(&output, "start", &figures)?;
            println!("{}", start::table(&figures));
        }
        "memory" => {
            let figures = memory::measure(&[1, 5, 10])?;
            write_json(&output, "memory", &figures)?;
            println!("{}", memory::table(&figures));
        }
        "stdio" => {
            let figures = stdio::measure(runs, mebibytes)?;
            write_json(&output, "stdio", &figures)?;
            println!("{}", stdio::table(&figures));
        }
        "fs" => {
            let figures = fs::measure(runs, &output)?;
            write_json(&output, "fs", &figures)?;
            println!("{}", fs::table(&figures));
        }
        "net" => {
            let figures = net::measure(runs, &output)?;
            write_json(&output, "net", &figures)?;
            println!("{}", net::table(&figures));
        }
        "pod" => {
            let figures = pod::measure(runs, &output)?;
            write_json(&output, "pod", &figures)?;
            println!("{}", pod::table(&figures));
        }
        "soak" => {
            let figures = soak::measure(runs)?;
            write_json(&output, "soak", &figures)?;
            soak::write_svg(&output, &figures)?;
            println!("{}", soak::table(&figures));
            println!("{}", soak::verdict(&figures));
            ensure!(figures.holds(), "something has leaked");
        }
        "boot" | "boot-icount" => {
            let deterministic = name == "boot-icount";
            let figures = BootFigures {
                pod: boot::measure(deterministic)?,
                monitors: monitors::measure(deterministic, &output)?,
            };
            write_json(&output, &name, &figures)?;
            println!("{}", boot::table(&figures.pod));
            println!("{}", monitors::table(&figures.monitors));
        }
        other => bail!("no benchmark is named {other:?}; {USAGE}"),
    }
    Ok(())
}
