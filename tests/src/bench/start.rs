//! `start`: how long `ctr run --rm busybox true` takes, interleaved over the runtimes so that a slow moment of the
//! machine falls on all of them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::runtimes::{Runtime, timed};
use crate::report::statistics::Summary;
use crate::report::table::Table;

/// What was measured, milliseconds.
#[derive(Debug, Serialize)]
pub struct StartFigures {
    /// By runtime.
    pub runtimes: BTreeMap<String, Summary>,
    /// Each runtime's median over runc's.
    pub ratio_to_runc: BTreeMap<String, f64>,
}

/// Measures `runs` starts of each runtime, after one of each that does not count.
///
/// # Errors
/// When a container does not run.
pub fn measure(runs: usize, scratch: &Path) -> anyhow::Result<StartFigures> {
    let mut runtimes = vec![Runtime::kata(), Runtime::runc()];
    runtimes.extend(Runtime::runsc(scratch)?);
    let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..=runs {
        eprintln!("start: round {round} of {runs}{}", if round == 0 { " (warm-up)" } else { "" });
        for runtime in &runtimes {
            let id = format!("bench-start-{}-{round}", runtime.name);
            let took = timed(&mut runtime.run(&["--rm"], &id, &["true"]))?;
            if round > 0 {
                samples.entry(runtime.name).or_default().push(took.as_secs_f64() * 1000.0);
            }
        }
    }
    Ok(summarize(&samples))
}

fn summarize(samples: &BTreeMap<&str, Vec<f64>>) -> StartFigures {
    let runtimes: BTreeMap<String, Summary> = samples
        .iter()
        .filter_map(|(name, values)| Some(((*name).to_owned(), Summary::of(values)?)))
        .collect();
    let ratio_to_runc = match runtimes.get("runc") {
        Some(runc) => {
            runtimes.iter().map(|(name, figures)| (name.clone(), figures.median / runc.median)).collect()
        }
        None => BTreeMap::new(),
    };
    StartFigures { runtimes, ratio_to_runc }
}

/// The figures as a table.
pub fn table(figures: &StartFigures) -> Table {
    let mut table =
        Table::new(["ctr run --rm busybox true", "runs", "min ms", "median ms", "max ms", "× runc"]);
    for (name, summary) in &figures.runtimes {
        table.row([
            name.clone(),
            summary.count.to_string(),
            format!("{:.0}", summary.min),
            format!("{:.0}", summary.median),
            format!("{:.0}", summary.max),
            figures.ratio_to_runc.get(name).map_or_else(String::new, |ratio| format!("{ratio:.2}")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians() {
        let samples = BTreeMap::from([("kata", vec![2.0, 6.0, 4.0]), ("runc", vec![1.0, 2.0, 9.0])]);
        let figures = summarize(&samples);
        assert_eq!(figures.ratio_to_runc["kata"], 2.0);
        assert_eq!(figures.ratio_to_runc["runc"], 1.0);
    }
}
