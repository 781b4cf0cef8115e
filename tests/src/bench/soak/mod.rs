//! `soak`: pods by the hundred, one after the other and in waves, each with files written meanwhile and things done to it at
//! random; and what the host holds before, during and after.

mod pod;
mod random;
mod sample;
mod svg;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use self::random::Random;
use self::sample::{METRICS, Sample};
use crate::leaks::Holdings;
use crate::report::table::Table;

/// How many pods a wave has.
const WAVE: usize = 10;
/// How many pods come one after the other between two waves.
const BETWEEN_WAVES: usize = 30;
/// How long what has ended may take to be gone.
const SETTLE: Duration = Duration::from_secs(30);
/// How wide a curve is in the terminal.
const WIDTH: usize = 48;

/// The environment variable with the seed of what is done.
const SEED: &str = "SAYA_SOAK_SEED";

/// What was found.
#[derive(Debug, Serialize)]
pub struct Soak {
    /// What is done to which pod follows from it.
    pub seed: u64,
    /// How many pods there were, the waves' among them.
    pub pods: usize,
    /// How long all of it took.
    pub seconds: f64,
    /// How often each thing was done.
    pub deeds: pod::Deeds,
    /// What the host held, each by its name, at each sample.
    pub curves: Vec<Curve>,
    /// What is there after the end that was not there before the beginning.
    pub left: Vec<String>,
}

/// One thing that the host holds.
#[derive(Debug, Serialize)]
pub struct Curve {
    /// What.
    pub name: &'static str,
    /// By how much more at the end is no leak.
    pub noise: f64,
    /// When, in seconds since the beginning, and how much. The first and the last are of a host without pods.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// How much at the beginning and at the end.
    fn ends(&self) -> (f64, f64) {
        let of = |point: Option<&(f64, f64)>| point.map_or(0.0, |point| point.1);
        (of(self.points.first()), of(self.points.last()))
    }

    /// Whether the end is the beginning, but for noise.
    fn holds(&self) -> bool {
        let (begin, end) = self.ends();
        end <= begin + self.noise
    }

    fn range(&self) -> (f64, f64) {
        let values = || self.points.iter().map(|point| point.1);
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    }
}

impl Soak {
    /// Whether the host holds at the end what it held at the beginning.
    pub fn holds(&self) -> bool {
        self.left.is_empty() && self.curves.iter().all(Curve::holds)
    }
}

/// Runs so many pods one after the other, and a wave after each [`BETWEEN_WAVES`] of them and at the end. One more wave comes
/// before the first sample.
///
/// # Errors
/// A pod that does not do what it should.
pub fn measure(pods: usize) -> anyhow::Result<Soak> {
    let seed = std::env::var(SEED)
        .map_or(Ok(1), |seed| seed.parse())
        .with_context(|| format!("{SEED} is no number"))?;
    let mut random = Random::new(seed);
    // What the kernel makes once and keeps, and what containerd grows to and does not give back.
    wave(&mut random, Instant::now(), &mut Vec::new())?;
    let holdings = Holdings::now();
    let begin = Instant::now();
    let mut samples = vec![Sample::at_rest(begin)?];
    let mut deeds = pod::Deeds::default();
    let mut lived = 0;
    while lived < pods {
        let row = BETWEEN_WAVES.min(pods - lived);
        for number in 0..row {
            deeds += pod::live(0, random.fork())?;
            samples.push(Sample::now(begin)?);
            eprintln!("soak: {} of {pods} pods, {:.0} s", lived + number + 1, begin.elapsed().as_secs_f64());
        }
        lived += row;
        deeds += wave(&mut random, begin, &mut samples)?;
    }
    let left = settle(&holdings);
    samples.push(Sample::at_rest(begin)?);
    Ok(Soak {
        seed,
        pods: pods + WAVE * pods.div_ceil(BETWEEN_WAVES),
        seconds: begin.elapsed().as_secs_f64(),
        deeds,
        curves: curves(&samples),
        left,
    })
}

/// [`WAVE`] pods at once.
fn wave(random: &mut Random, begin: Instant, samples: &mut Vec<Sample>) -> anyhow::Result<pod::Deeds> {
    eprintln!("soak: {WAVE} pods at once");
    let mut deeds = pod::Deeds::default();
    thread::scope(|scope| {
        let pods: Vec<_> = (1..=WAVE)
            .map(|number| {
                let random = random.fork();
                scope.spawn(move || pod::live(number, random))
            })
            .collect();
        for pod in pods {
            let Ok(lived) = pod.join() else { bail!("a pod's thread panicked") };
            deeds += lived?;
            samples.push(Sample::now(begin)?);
        }
        Ok(deeds)
    })
}

/// What is left, once it no longer becomes less or [`SETTLE`] is over.
fn settle(before: &Holdings) -> Vec<String> {
    let begin = Instant::now();
    loop {
        let left = before.leaked_by(&Holdings::now());
        if left.is_empty() || begin.elapsed() > SETTLE {
            return left;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn curves(samples: &[Sample]) -> Vec<Curve> {
    let curve = |(index, metric): (usize, &sample::Metric)| Curve {
        name: metric.name,
        noise: metric.noise,
        points: samples
            .iter()
            .filter_map(|sample| Some((sample.seconds, *sample.values.get(index)?)))
            .collect(),
    };
    METRICS.iter().enumerate().map(curve).collect()
}

/// The figures as a table, each with its curve.
pub fn table(figures: &Soak) -> Table {
    let mut table = Table::new(["on the host", "begin", "end", "noise", "most", "", "over time"]);
    for curve in &figures.curves {
        let ((begin, end), (_, most)) = (curve.ends(), curve.range());
        table.row([
            curve.name.to_owned(),
            format!("{begin:.0}"),
            format!("{end:.0}"),
            format!("+{:.0}", curve.noise),
            format!("{most:.0}"),
            if curve.holds() { "holds" } else { "GROWS" }.to_owned(),
            drawn(curve),
        ]);
    }
    table
}

/// The same in words, with what is left.
pub fn verdict(figures: &Soak) -> String {
    let Soak { pods, seconds, seed, deeds, left, .. } = figures;
    let verdict =
        if figures.holds() { "the end is the beginning" } else { "the host holds more than before" };
    let left: String = left.iter().map(|thing| format!("\n  left: {thing}")).collect();
    format!("{pods} pods in {seconds:.0} s (seed {seed}: {deeds}): {verdict}{left}")
}

/// A curve as a line of bars, from the least to the most.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn drawn(curve: &Curve) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let (least, most) = curve.range();
    let width = WIDTH.min(curve.points.len());
    (0..width)
        .filter_map(|column| {
            // The most of those that share a column.
            let (from, to) = (column * curve.points.len() / width, (column + 1) * curve.points.len() / width);
            let value = curve.points.get(from..to)?.iter().map(|point| point.1).fold(least, f64::max);
            let share = if most > least { (value - least) / (most - least) } else { 0.0 };
            BARS.get((share * 7.0).round() as usize)
        })
        .collect()
}

/// Writes the curves as `<directory>/soak.svg`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_svg(directory: &Path, figures: &Soak) -> anyhow::Result<()> {
    let path = directory.join("soak.svg");
    std::fs::write(&path, svg::draw(figures)).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn curve(values: &[f64]) -> Curve {
        Curve { name: "things", noise: 2.0, points: values.iter().map(|value| (*value, *value)).collect() }
    }

    #[test]
    fn more_than_noise_at_the_end_is_a_leak_and_more_in_between_is_none() {
        assert!(curve(&[5.0, 90.0, 7.0]).holds());
        assert!(!curve(&[5.0, 6.0, 7.5]).holds());
        assert!(curve(&[5.0, 1.0]).holds());
    }

    #[test]
    fn a_curve_is_drawn_from_its_least_to_its_most_and_no_wider_than_there_is_room() {
        assert_eq!(drawn(&curve(&[1.0, 8.0, 1.0])), "▁█▁");
        assert_eq!(drawn(&curve(&[3.0, 3.0])), "▁▁");
        assert_eq!(drawn(&curve(&vec![1.0; 1000])).chars().count(), WIDTH);
        assert_eq!(drawn(&curve(&[])), "");
    }
}
