//! `stdio`: how fast bytes pass through a container's standard streams, interleaved over the runtimes. The clock runs from
//! a word of the container's, when its process is there, to the last byte: neither start nor end of a container counts.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::comparison::Comparison;
use super::runtimes::Runtime;
use crate::report::table::Table;

/// How much passes.
const BYTES: usize = 64 << 20;

/// What the process says when it is there.
const READY: &[u8] = b"ready\n";

/// Where bytes go.
struct Flow {
    name: &'static str,
    script: &'static str,
    /// Bytes to write.
    written: usize,
    /// Bytes to read.
    read: usize,
}

const FLOWS: [Flow; 3] = [
    Flow {
        name: "into dd",
        script: "echo ready; dd of=/dev/null bs=65536 2>/dev/null; echo done",
        written: BYTES,
        read: "done\n".len(),
    },
    Flow {
        name: "out of dd",
        script: "echo ready; read go; exec dd if=/dev/zero bs=65536 count=1024 2>/dev/null",
        written: 1,
        read: BYTES,
    },
    Flow { name: "through cat", script: "echo ready; exec cat", written: BYTES, read: BYTES },
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

/// Measures each kind of transfer `runs` times with each runtime.
///
/// # Errors
/// When a container does not run, or loses bytes.
pub fn measure(runs: usize) -> anyhow::Result<Vec<FlowFigures>> {
    let runtimes = [Runtime::kata(), Runtime::runc()];
    let mut figures = Vec::new();
    for flow in &FLOWS {
        let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for round in 1..=runs {
            for runtime in &runtimes {
                let took = transfer(runtime, flow, &format!("bench-stdio-{}-{round}", runtime.name))?;
                let rate = rate(took);
                eprintln!("stdio: {}, round {round} of {runs}: {} {rate:.1} MiB/s", flow.name, runtime.name);
                samples.entry(runtime.name).or_default().push(rate);
            }
        }
        figures.push(FlowFigures { flow: flow.name.to_owned(), comparison: Comparison::of(&samples) });
    }
    Ok(figures)
}

/// Runs one container and says how long its bytes took.
fn transfer(runtime: &Runtime, flow: &Flow, id: &str) -> anyhow::Result<Duration> {
    let mut ctr = runtime.run(&["--rm"], id, &["sh", "-c", flow.script]);
    let mut ctr = ctr.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start ctr")?;
    let took = pass(&mut ctr, flow).with_context(|| format!("{id}: {}", flow.name));
    let status = ctr.wait()?;
    let took = took?;
    ensure!(status.success(), "{id}: ctr ended with {status}");
    Ok(took)
}

fn pass(ctr: &mut Child, flow: &Flow) -> anyhow::Result<Duration> {
    let mut input = ctr.stdin.take().context("ctr has no standard input")?;
    let mut output = ctr.stdout.take().context("ctr has no standard output")?;
    let mut word = [0; READY.len()];
    output.read_exact(&mut word).context("the process is not there")?;
    ensure!(word == READY, "it says {:?}", String::from_utf8_lossy(&word));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || input.write_all(&vec![b'\n'; flow.written]));
        let mut sink = std::io::sink();
        let wanted = u64::try_from(flow.read)?;
        let count = std::io::copy(&mut (&mut output).take(wanted), &mut sink)?;
        let took = begin.elapsed();
        let count = count + std::io::copy(&mut output, &mut sink)?;
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        ensure!(count == wanted, "{count} bytes came instead of {wanted}");
        Ok(took)
    })
}

#[allow(clippy::cast_precision_loss)]
fn rate(took: Duration) -> f64 {
    (BYTES >> 20) as f64 / took.as_secs_f64()
}

/// The figures as a table.
pub fn table(figures: &[FlowFigures]) -> Table {
    let mut table =
        Table::new(["64 MiB", "runtime", "runs", "min MiB/s", "median MiB/s", "max MiB/s", "× runc"]);
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
        assert!(FLOWS[1].script.contains(&format!("bs=65536 count={}", BYTES / 65536)));
    }
}
