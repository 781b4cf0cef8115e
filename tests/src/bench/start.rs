//! `start`: how long `ctr run --rm busybox true` takes, interleaved over the runtimes so that a slow moment of the
//! machine falls on all of them.

use std::collections::BTreeMap;
use std::path::Path;

use super::comparison::Comparison;
use super::runtimes::{Runtime, timed};
use crate::report::table::Table;

/// Measures `runs` starts of each runtime, after one of each that does not count, in milliseconds.
///
/// # Errors
/// When a container does not run.
pub fn measure(runs: usize, scratch: &Path) -> anyhow::Result<Comparison> {
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
    Ok(Comparison::of(&samples))
}

/// The figures as a table.
pub fn table(figures: &Comparison) -> Table {
    let mut table =
        Table::new(["ctr run --rm busybox true", "runs", "min ms", "median ms", "max ms", "× runc"]);
    for (name, summary) in &figures.runtimes {
        table.row([
            name.clone(),
            summary.count.to_string(),
            format!("{:.0}", summary.min),
            format!("{:.0}", summary.median),
            format!("{:.0}", summary.max),
            figures.ratio(name),
        ]);
    }
    table
}
