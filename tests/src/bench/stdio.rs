//! `stdio`: how fast bytes pass through a container's standard streams, interleaved over the runtimes. The clock runs from
//! a word of the container's, when its process is there, to the last byte: neither start nor end of a container counts.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::comparison::Comparison;
use super::runtimes::Runtime;
use crate::report::table::Table;

/// How many bytes are written at a time.
const BLOCK: usize = 64 << 10;

/// What the process says when it is there.
const READY: &[u8] = b"ready\n";

/// Where bytes go.
struct Flow {
    name: &'static str,
    /// `$1` is how many blocks pass.
    script: &'static str,
    written: Amount,
    read: Amount,
}

/// How much goes one way.
#[derive(Clone, Copy)]
enum Amount {
    /// All that passes.
    All,
    /// This many bytes, whatever passes the other way.
    Bytes(u64),
}

impl Amount {
    fn of(self, blocks: u64) -> u64 {
        match self {
            Self::All => blocks * BLOCK as u64,
            Self::Bytes(bytes) => bytes,
        }
    }
}

const FLOWS: [Flow; 3] = [
    Flow {
        name: "into dd",
        script: "echo ready; dd of=/dev/null bs=65536 2>/dev/null; echo done",
        written: Amount::All,
        read: Amount::Bytes("done\n".len() as u64),
    },
    Flow {
        name: "out of dd",
        script: "echo ready; read go; exec dd if=/dev/zero bs=65536 count=$1 2>/dev/null",
        written: Amount::Bytes(1),
        read: Amount::All,
    },
    Flow { name: "through cat", script: "echo ready; exec cat", written: Amount::All, read: Amount::All },
];

/// One kind of transfer, MiB per second.
#[derive(Debug, Serialize)]
pub struct FlowFigures {
    /// Where the bytes went.
    pub flow: String,
    /// By runtime.
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// Measures each kind of transfer of `mebibytes` MiB `runs` times with each runtime.
///
/// # Errors
/// When a container does not run, or loses bytes.
pub fn measure(runs: usize, mebibytes: u32) -> anyhow::Result<Vec<FlowFigures>> {
    let blocks = (u64::from(mebibytes) << 20) / BLOCK as u64;
    let runtimes = [Runtime::kata(), Runtime::runc()];
    let mut figures = Vec::new();
    for flow in &FLOWS {
        let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for round in 1..=runs {
            for runtime in &runtimes {
                let id = format!("bench-stdio-{}-{round}", runtime.name);
                let took = transfer(runtime, flow, blocks, &id)?;
                let rate = f64::from(mebibytes) / took.as_secs_f64();
                eprintln!("stdio: {}, round {round} of {runs}: {} {rate:.1} MiB/s", flow.name, runtime.name);
                samples.entry(runtime.name).or_default().push(rate);
            }
        }
        figures.push(FlowFigures { flow: flow.name.to_owned(), comparison: Comparison::of(&samples) });
    }
    Ok(figures)
}

/// Runs one container and says how long its bytes took.
fn transfer(runtime: &Runtime, flow: &Flow, blocks: u64, id: &str) -> anyhow::Result<Duration> {
    let mut ctr = runtime.run(&["--rm"], id, &["sh", "-c", flow.script, "sh", &blocks.to_string()]);
    let mut ctr = ctr.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start ctr")?;
    let took = pass(&mut ctr, flow, blocks).with_context(|| format!("{id}: {}", flow.name));
    let status = ctr.wait()?;
    let took = took?;
    ensure!(status.success(), "{id}: ctr ended with {status}");
    Ok(took)
}

fn pass(ctr: &mut Child, flow: &Flow, blocks: u64) -> anyhow::Result<Duration> {
    let input = ctr.stdin.take().context("ctr has no standard input")?;
    let mut output = ctr.stdout.take().context("ctr has no standard output")?;
    let mut word = [0; READY.len()];
    output.read_exact(&mut word).context("the process is not there")?;
    ensure!(word == READY, "it says {:?}", String::from_utf8_lossy(&word));
    let (to_write, wanted) = (flow.written.of(blocks), flow.read.of(blocks));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || write_lines(input, to_write));
        let mut sink = std::io::sink();
        let count = std::io::copy(&mut (&mut output).take(wanted), &mut sink)?;
        let took = begin.elapsed();
        let count = count + std::io::copy(&mut output, &mut sink)?;
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        ensure!(count == wanted, "{count} bytes came instead of {wanted}");
        Ok(took)
    })
}

/// Writes this many empty lines, a block at a time.
fn write_lines(output: impl Write, count: u64) -> std::io::Result<()> {
    let mut output = BufWriter::with_capacity(BLOCK, output);
    std::io::copy(&mut std::io::repeat(b'\n').take(count), &mut output)?;
    output.flush()
}

/// The figures as a table.
pub fn table(figures: &[FlowFigures]) -> Table {
    let mut table =
        Table::new(["flow", "runtime", "runs", "min MiB/s", "median MiB/s", "max MiB/s", "× runc"]);
    for FlowFigures { flow, comparison } in figures {
        for (name, summary) in &comparison.runtimes {
            table.row([
                flow.clone(),
                name.clone(),
                summary.count.to_string(),
                format!("{:.1}", summary.min),
                format!("{:.1}", summary.median),
                format!("{:.1}", summary.max),
                comparison.ratio(name),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_what_is_written() {
        assert!(FLOWS[1].script.contains(&format!("bs={BLOCK} count=$1")));
        let mut written = Vec::new();
        write_lines(&mut written, Amount::All.of(2) + 7).unwrap();
        assert_eq!(written, vec![b'\n'; 2 * BLOCK + 7]);
    }
}
