//! `fs`: a container's root file system, runtimes side by side. fio and tar are this machine's own, bound into each
//! container. A measurement's clock runs inside its container, so that neither start nor end counts.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::Value;

use super::comparison::Comparison;
use super::runtimes::Runtime;
use crate::report::table::Table;

/// This machine's programs in a container.
const PROGRAMS: [&str; 6] = [
    "--mount",
    "type=bind,src=/usr,dst=/usr,options=rbind:ro",
    "--mount",
    "type=bind,src=/usr/lib,dst=/lib,options=rbind:ro",
    "--mount",
    "type=bind,src=/usr/lib64,dst=/lib64,options=rbind:ro",
];

/// One kind of load.
struct Load {
    name: &'static str,
    /// Prints the figure last: fio's JSON, or nanoseconds.
    script: &'static str,
    figure: Figure,
}

/// What a script prints.
#[derive(Clone, Copy)]
enum Figure {
    /// fio's report of one job that reads or writes; its rate in MiB/s counts.
    Fio(&'static str),
    /// The nanoseconds that this many operations took; operations per second count.
    Nanoseconds(u32),
}

impl Figure {
    /// Of what there is more where it is better.
    fn unit(self) -> &'static str {
        match self {
            Self::Fio(_) => "MiB/s",
            Self::Nanoseconds(_) => "files/s",
        }
    }
}

/// fio's load of this name, mode and size of blocks, of which what it reads or writes counts.
macro_rules! fio {
    ($name:literal, $mode:literal, $size:literal, $counts:literal) => {
        Load {
            name: $name,
            script: concat!(
                "fio --name=j --filename=/tmp/f --size=16m --ioengine=psync --invalidate=0 --end_fsync=1 --output-format=json --rw=",
                $mode,
                " --bs=",
                $size
            ),
            figure: Figure::Fio($counts),
        }
    };
}

const LOADS: [Load; 10] = [
    fio!("sequential write, 1 MiB", "write", "1m", "write"),
    fio!("sequential write, 4 KiB", "write", "4k", "write"),
    fio!("random write, 4 KiB", "randwrite", "4k", "write"),
    fio!("random write, 1 MiB", "randwrite", "1m", "write"),
    fio!("sequential read, 1 MiB", "read", "1m", "read"),
    fio!("sequential read, 4 KiB", "read", "4k", "read"),
    fio!("random read, 4 KiB", "randread", "4k", "read"),
    Load {
        name: "make a file",
        script: "mkdir /tmp/m; cd /tmp/m; a=$(date +%s%N); for i in $(seq 200); do echo x > $i; done; echo $(($(date +%s%N) - a))",
        figure: Figure::Nanoseconds(200),
    },
    Load {
        name: "remove a file",
        script: "cd /tmp/m; a=$(date +%s%N); rm -r /tmp/m; echo $(($(date +%s%N) - a))",
        figure: Figure::Nanoseconds(200),
    },
    Load {
        name: "unpack small files",
        script: "mkdir /tmp/t; cd /tmp/t; for i in $(seq 200); do echo $i > $i; done; tar cf ../t.tar .; mkdir ../u; a=$(date +%s%N); tar xf ../t.tar -C ../u; echo $(($(date +%s%N) - a))",
        figure: Figure::Nanoseconds(200),
    },
];

/// One load's figures.
#[derive(Debug, Serialize)]
pub struct LoadFigures {
    /// What was done.
    pub load: String,
    /// The figures' unit; more is better.
    pub unit: String,
    /// By runtime.
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// Puts every load on one container of each runtime, `runs` times over.
///
/// # Errors
/// When a container does not run, or prints no figure.
pub fn measure(runs: usize, scratch: &Path) -> anyhow::Result<Vec<LoadFigures>> {
    let mut runtimes = vec![Runtime::kata(), Runtime::runc()];
    runtimes.extend(Runtime::runsc(scratch)?);
    let mut samples: BTreeMap<&str, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    let script: String =
        LOADS.iter().map(|load| format!("({}) | tr -d '\\n'; echo\n", load.script)).collect();
    for round in 1..=runs {
        for runtime in &runtimes {
            eprintln!("fs: round {round} of {runs}: {}", runtime.name);
            let flags = [&["--rm"], &PROGRAMS[..]].concat();
            let id = format!("bench-fs-{}-{round}", runtime.name);
            let output =
                runtime.run(&flags, &id, &["sh", "-c", &script]).output().context("cannot start ctr")?;
            let printed = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{id}: {}: {errors}", output.status);
            ensure!(printed.lines().count() == LOADS.len(), "{id}: {printed}{errors}");
            for (load, line) in LOADS.iter().zip(printed.lines()) {
                let figure =
                    load.figure.read(line).with_context(|| format!("{id}, {}: {line}", load.name))?;
                samples.entry(load.name).or_default().entry(runtime.name).or_default().push(figure);
            }
        }
    }
    let none = BTreeMap::new();
    let figures = LOADS.iter().map(|load| LoadFigures {
        load: load.name.to_owned(),
        unit: load.figure.unit().to_owned(),
        comparison: Comparison::of(samples.get(load.name).unwrap_or(&none)),
    });
    Ok(figures.collect())
}

impl Figure {
    fn read(self, line: &str) -> anyhow::Result<f64> {
        match self {
            Self::Fio(direction) => {
                let report: Value = serde_json::from_str(line)?;
                let rate = report.pointer(&format!("/jobs/0/{direction}/bw_bytes")).and_then(Value::as_f64);
                Ok(rate.context("no bw_bytes")? / f64::from(1 << 20))
            }
            Self::Nanoseconds(operations) => Ok(f64::from(operations) * 1e9 / line.trim().parse::<f64>()?),
        }
    }
}

/// The figures as a table.
pub fn table(figures: &[LoadFigures]) -> Table {
    let mut table = Table::new(["load", "runtime", "runs", "min", "median", "max", "unit", "× runc"]);
    for LoadFigures { load, unit, comparison } in figures {
        for (name, summary) in &comparison.runtimes {
            table.row([
                load.clone(),
                name.clone(),
                summary.count.to_string(),
                format!("{:.1}", summary.min),
                format!("{:.1}", summary.median),
                format!("{:.1}", summary.max),
                unit.clone(),
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
    fn a_rate_comes_from_fios_report_and_from_nanoseconds() {
        let report = r#"{"jobs":[{"read":{"bw_bytes":0},"write":{"bw_bytes":3145728}}]}"#;
        assert!((Figure::Fio("write").read(report).unwrap() - 3.0).abs() < 1e-9);
        assert!((Figure::Nanoseconds(200).read("100000000").unwrap() - 2000.0).abs() < 1e-9);
        assert!(Figure::Fio("read").read("fio: no such file").is_err());
        assert!(Figure::Nanoseconds(1).read("").is_err());
    }
}
