//! How the tests ended, summed over all of them.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;

use saya_tests::e2e::runner;

/// Numbers of tests. Displayed as the last line of a test run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Verdict {
    /// One check that has no tests within it.
    pub(crate) fn of_one(passed: bool) -> Self {
        Self { passed: usize::from(passed), failed: usize::from(!passed), skipped: 0 }
    }

    /// Sums the lines `test result: ok. 3 passed; 0 failed; 1 ignored; …` that `cargo test` printed. Those that say
    /// `skipped: TEST: WHY` are of tests that have passed without testing, as the harness knows no other way.
    pub(crate) fn of_cargo_test(output: &str) -> Self {
        let mut verdict = Self::default();
        for line in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            verdict += Self {
                passed: number_before(line, "passed"),
                failed: number_before(line, "failed"),
                skipped: number_before(line, "ignored"),
            };
        }
        let skipped: BTreeSet<&str> =
            output.lines().filter_map(|line| Some(line.split_once("skipped: ")?.1)).collect();
        verdict.passed = verdict.passed.saturating_sub(skipped.len());
        verdict.skipped += skipped.len();
        verdict
    }
}

impl From<&runner::Verdict> for Verdict {
    fn from(verdict: &runner::Verdict) -> Self {
        Self { passed: verdict.passed.len(), failed: verdict.failed.len(), skipped: verdict.skipped.len() }
    }
}

impl AddAssign for Verdict {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

fn number_before(line: &str, word: &str) -> usize {
    let mut words = line.split([' ', ';']).filter(|piece| !piece.is_empty()).peekable();
    while let Some(piece) = words.next() {
        if words.peek() == Some(&word) {
            return piece.parse().unwrap_or(0);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_test_programs_are_summed() {
        let output = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\nnoise\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let verdict = Verdict::of_cargo_test(output);
        assert_eq!(verdict, Verdict { passed: 4, failed: 2, skipped: 1 });
        assert_eq!(verdict.to_string(), "4 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_test_that_says_that_it_was_skipped_has_not_passed_however_often_it_says_so() {
        let output = "skipped: a: no usable /dev/kvm\ntest b ... skipped: b: no usable /dev/kvm\n\
                      skipped: a: no usable /dev/kvm\ntest result: ok. 3 passed; 0 failed; 0 ignored\n";
        let verdict = Verdict::of_cargo_test(output);
        assert_eq!(verdict, Verdict { passed: 1, failed: 0, skipped: 2 });
    }
}
