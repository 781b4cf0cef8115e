//! What one check found.

use std::fmt;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it should be.
    Good,
    /// Some pods may fail for it, or it could not be found out.
    Doubtful,
    /// No pod can run.
    Missing,
}

/// A line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    /// What was looked at.
    subject: &'static str,
    /// What is there.
    pub(super) found: String,
    /// What to do about it.
    pub(super) remedy: Option<String>,
}

impl Finding {
    pub(super) fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, subject, found: found.into(), remedy: None }
    }

    /// As it should be, and what would be better still.
    pub(super) fn improvable(
        subject: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::good(subject, found) }
    }

    pub(super) fn doubtful(
        subject: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Doubtful, subject, found: found.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn missing(
        subject: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Missing, ..Self::doubtful(subject, found, remedy) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Good => "ok  ",
            Verdict::Doubtful => "look",
            Verdict::Missing => "FAIL",
        };
        write!(formatter, "{mark}  {:<16}  {}", self.subject, self.found)?;
        match &self.remedy {
            Some(remedy) => write!(formatter, "\n{:<24}→ {remedy}", ""),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_stands_below_what_was_found() {
        let text = Finding::missing("guest kernel", "/x: not there", "build it").to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines, ["FAIL  guest kernel      /x: not there", "                        → build it"]);
    }
}
