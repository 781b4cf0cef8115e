//! One measurement of several runtimes side by side.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::statistics::Summary;

/// What was measured, in the unit of the measurement.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// By runtime.
    pub runtimes: BTreeMap<String, Summary>,
    /// Each runtime's median over runc's.
    pub ratio_to_runc: BTreeMap<String, f64>,
}

impl Comparison {
    /// Compares the measurements of each runtime.
    pub fn of(samples: &BTreeMap<&str, Vec<f64>>) -> Self {
        let summaries = samples.iter().filter_map(|(name, values)| Some((*name, Summary::of(values)?)));
        let runtimes: BTreeMap<String, Summary> =
            summaries.map(|(name, summary)| (name.to_owned(), summary)).collect();
        let ratio_to_runc = match runtimes.get("runc") {
            Some(runc) => {
                runtimes.iter().map(|(name, figures)| (name.clone(), figures.median / runc.median)).collect()
            }
            None => BTreeMap::new(),
        };
        Self { runtimes, ratio_to_runc }
    }

    /// A runtime's median over runc's, as a table shows it.
    pub fn ratio(&self, runtime: &str) -> String {
        self.ratio_to_runc.get(runtime).map_or_else(String::new, |ratio| format!("{ratio:.2}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians() {
        let samples = BTreeMap::from([("kata", vec![2.0, 6.0, 4.0]), ("runc", vec![1.0, 2.0, 9.0])]);
        let comparison = Comparison::of(&samples);
        assert_eq!(comparison.ratio_to_runc, BTreeMap::from([("kata".into(), 2.0), ("runc".into(), 1.0)]));
        assert_eq!(comparison.ratio("kata"), "2.00");
    }

    #[test]
    fn without_runc_there_is_no_ratio() {
        assert_eq!(Comparison::of(&BTreeMap::from([("kata", vec![2.0])])).ratio("kata"), "");
    }
}
