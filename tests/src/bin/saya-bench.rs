//! The benchmarks, run where microVMs can boot. `cargo xtask bench` starts this in the lab.

use std::path::PathBuf;

use anyhow::{Context, bail};
use saya_tests::bench::{boot, memory, start, write_json};

const USAGE: &str = "usage: saya-bench start|memory|boot|boot-icount OUTPUT-DIRECTORY [RUNS]";

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().context(USAGE)?;
    let output = PathBuf::from(arguments.next().context(USAGE)?);
    let runs = arguments.next().map_or(Ok(10), |runs| runs.parse()).context(USAGE)?;
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
        "boot" | "boot-icount" => {
            let phases = boot::measure(name == "boot-icount")?;
            write_json(&output, &name, &phases)?;
            println!("{}", boot::table(&phases));
        }
        other => bail!("no benchmark is named {other:?}; {USAGE}"),
    }
    Ok(())
}
