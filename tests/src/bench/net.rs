//! `net`: what passes between a container and its neighbour on a bridge, a container of runc's, interleaved over the
//! runtimes: TCP and UDP by iperf3, and the time of one question and answer by redis-benchmark.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use super::comparison::Comparison;
use super::runtimes::{IPERF3, REDIS, Runtime, timed};
use crate::cni::{Attachment, Netns};
use crate::ctr::{ctr, finish, remove};
use crate::report::table::Table;

const BRIDGE: &str = "sayabench";
/// How long one transfer lasts, in seconds.
const SECONDS: &str = "3";
/// How many questions redis is asked.
const QUESTIONS: &str = "500";

/// What is measured.
struct Flow {
    name: &'static str,
    unit: &'static str,
    arguments: &'static [&'static str],
    figure: fn(&Value) -> Option<f64>,
}

/// Arguments of iperf3's client, which is the neighbour: without `-R` it sends. UDP is sent as fast as it goes, in packets
/// of 64 bytes.
const FLOWS: [Flow; 6] = [
    Flow { name: "TCP in, 1 stream", unit: "Mbit/s", arguments: &[], figure: megabits },
    Flow { name: "TCP in, 4 streams", unit: "Mbit/s", arguments: &["-P", "4"], figure: megabits },
    Flow { name: "TCP out, 1 stream", unit: "Mbit/s", arguments: &["-R"], figure: megabits },
    Flow { name: "TCP out, 4 streams", unit: "Mbit/s", arguments: &["-R", "-P", "4"], figure: megabits },
    Flow { name: "UDP in", unit: "packets/s", arguments: &["-u", "-b", "0", "-l", "64"], figure: packets },
    Flow {
        name: "UDP out",
        unit: "packets/s",
        arguments: &["-R", "-u", "-b", "0", "-l", "64"],
        figure: packets,
    },
];

/// What came, in millions of bits a second.
fn megabits(report: &Value) -> Option<f64> {
    Some(report.pointer("/end/sum_received/bits_per_second")?.as_f64()? / 1e6)
}

/// The packets that came, a second.
fn packets(report: &Value) -> Option<f64> {
    let sum = report.pointer("/end/sum")?;
    let number = |key: &str| sum.get(key).and_then(Value::as_f64);
    Some((number("packets")? - number("lost_packets")?) / number("seconds")?)
}

/// One kind of transfer.
#[derive(Debug, Serialize)]
pub struct FlowFigures {
    /// What passed.
    pub flow: String,
    /// The unit of the figures.
    pub unit: String,
    /// By runtime.
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// Measures each kind of transfer `runs` times with each runtime.
///
/// # Errors
/// When a container does not run, or a program in it fails.
pub fn measure(runs: usize, scratch: &Path) -> anyhow::Result<Vec<FlowFigures>> {
    let names = ["kata", "runc", "peer"];
    let namespaces: Vec<Netns> =
        names.iter().map(|name| Netns::new(&format!("saya-bench-{name}"))).collect::<anyhow::Result<_>>()?;
    let attach = |namespace| {
        let ranges = json!([[{"subnet": "10.81.0.0/24"}]]);
        let ipam = json!({"type": "host-local", "dataDir": scratch.join("bench-ipam"), "ranges": ranges});
        Attachment::add(namespace, "eth0", [json!({"type": "bridge", "bridge": BRIDGE, "ipam": ipam})])
    };
    let attachments: Vec<Attachment<'_>> = namespaces.iter().map(attach).collect::<anyhow::Result<_>>()?;
    let mut places = Vec::new();
    for ((name, namespace), attachment) in names.iter().zip(&namespaces).zip(&attachments) {
        let address = attachment.addresses()?.first().context("no address")?.to_string();
        places.push(Place { runtime: name, flag: namespace.flag(), address });
    }
    let figures = match places.as_slice() {
        [kata, runc, peer] => measure_between(runs, &[kata, runc], peer),
        _ => anyhow::bail!("three namespaces were made"),
    };
    attachments.into_iter().try_for_each(Attachment::delete)?;
    finish(Command::new("ip").args(["link", "delete", BRIDGE]))?;
    std::fs::remove_dir_all(scratch.join("bench-ipam"))?;
    figures
}

/// A network namespace in which a container is.
struct Place {
    runtime: &'static str,
    flag: String,
    address: String,
}

impl Place {
    /// Runs a container in the background, and gives its name.
    fn start(&self, image: &str, command: &[&str]) -> anyhow::Result<String> {
        let runtime = if self.runtime == "kata" { Runtime::kata() } else { Runtime::runc() };
        let id = format!("bench-net-{}", self.runtime);
        timed(&mut runtime.run_image(&["--detach", &self.flag], image, &id, command))?;
        Ok(id)
    }
}

fn measure_between(runs: usize, servers: &[&Place], peer: &Place) -> anyhow::Result<Vec<FlowFigures>> {
    let started = with_servers(servers, peer, IPERF3, &["iperf3", "--server"], |peer| {
        FLOWS
            .iter()
            .map(|flow| compare(flow.name, flow.unit, runs, servers, |place| transfer(peer, place, flow)))
            .collect()
    });
    let mut figures: Vec<FlowFigures> = started?;
    let serve = ["redis-server", "--save", "", "--protected-mode", "no"];
    figures.push(with_servers(servers, peer, REDIS, &serve, |peer| {
        compare("redis, one client", "µs an answer", runs, servers, |place| question(peer, place))
    })?);
    Ok(figures)
}

/// Runs servers and their neighbour while `work` is done, whose argument is the neighbour's name.
fn with_servers<T>(
    servers: &[&Place],
    peer: &Place,
    image: &str,
    command: &[&str],
    work: impl FnOnce(&str) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut running = Vec::new();
    let mut start = |place: &Place, command: &[&str]| -> anyhow::Result<String> {
        let id = place.start(image, command)?;
        running.push(id.clone());
        Ok(id)
    };
    let done = servers
        .iter()
        .try_for_each(|place| start(place, command).map(drop))
        .and_then(|()| start(peer, &["sleep", "3600"]))
        .and_then(|peer| work(&peer));
    let removed = running.iter().try_for_each(|id| remove(id));
    let done = done?;
    removed?;
    Ok(done)
}

fn compare(
    name: &str,
    unit: &str,
    runs: usize,
    servers: &[&Place],
    measure: impl Fn(&Place) -> anyhow::Result<f64>,
) -> anyhow::Result<FlowFigures> {
    let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 1..=runs {
        for place in servers {
            let figure = measure(place).with_context(|| format!("{name}, {}", place.runtime))?;
            eprintln!("net: {name}, round {round} of {runs}: {} {figure:.0} {unit}", place.runtime);
            samples.entry(place.runtime).or_default().push(figure);
        }
    }
    Ok(FlowFigures { flow: name.to_owned(), unit: unit.to_owned(), comparison: Comparison::of(&samples) })
}

fn transfer(peer: &str, server: &Place, flow: &Flow) -> anyhow::Result<f64> {
    let mut arguments = vec!["iperf3", "--json", "--time", SECONDS, "--client", &server.address];
    arguments.extend(flow.arguments);
    let output = exec(peer, &arguments)?;
    let report: Value = serde_json::from_str(&output).with_context(|| format!("iperf3 said {output:?}"))?;
    let figure = (flow.figure)(&report).with_context(|| format!("no figure in {output}"))?;
    ensure!(figure > 0.0, "nothing came: {output}");
    Ok(figure)
}

/// The mean time of an answer in microseconds, of one client that asks one thing at a time.
fn question(peer: &str, server: &Place) -> anyhow::Result<f64> {
    let output = exec(
        peer,
        &[
            "redis-benchmark",
            "-h",
            &server.address,
            "-c",
            "1",
            "-P",
            "1",
            "-n",
            QUESTIONS,
            "-t",
            "get",
            "--csv",
        ],
    )?;
    // "test","rps","avg_latency_ms",…
    let line = output.lines().find(|line| line.starts_with("\"GET\"")).context("no line for GET")?;
    let latency = line.split(',').nth(2).context("no latency")?;
    Ok(latency.trim_matches('"').parse::<f64>()? * 1000.0)
}

fn exec(container: &str, command: &[&str]) -> anyhow::Result<String> {
    let arguments = [&["task", "exec", "--exec-id", "bench", container], command].concat();
    ctr(arguments)
}

/// The figures as a table.
pub fn table(figures: &[FlowFigures]) -> Table {
    let mut table =
        Table::new(["with a neighbour on the bridge", "unit", "kata median", "runc median", "× runc"]);
    for flow in figures {
        let median = |name: &str| {
            flow.comparison
                .runtimes
                .get(name)
                .map_or_else(String::new, |summary| format!("{:.0}", summary.median))
        };
        table.row([
            flow.flow.clone(),
            flow.unit.clone(),
            median("kata"),
            median("runc"),
            flow.comparison.ratio("kata"),
        ]);
    }
    table
}
