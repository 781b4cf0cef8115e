//! A timeline as a picture of bars: one line per phase, each bar where its phase lies in the whole.

use std::fmt::Write as _;

/// Something that took place between two moments.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// What took place.
    pub name: String,
    /// When it began, in milliseconds since the timeline's beginning.
    pub start: f64,
    /// When it ended, on the same clock.
    pub end: f64,
}

/// Draws `phases` as bars of at most `width` characters for the whole.
pub fn draw(phases: &[Phase], width: usize) -> String {
    let total = phases.iter().map(|phase| phase.end).fold(0.0, f64::max);
    let label_width = phases.iter().map(|phase| phase.name.chars().count()).max().unwrap_or(0);
    let mut picture = String::new();
    for phase in phases {
        let (from, to) = (column(phase.start, total, width), column(phase.end, total, width));
        let bar = format!("{}{}", " ".repeat(from), "█".repeat((to - from).max(1)));
        let took = phase.end - phase.start;
        let _ = writeln!(picture, "  {:<label_width$}  {took:>8.1} ms  │{bar}", phase.name);
    }
    let _ = writeln!(picture, "  {:<label_width$}  {total:>8.1} ms  │", "total");
    picture
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn column(moment: f64, total: f64, width: usize) -> usize {
    if total <= 0.0 { 0 } else { ((moment / total).clamp(0.0, 1.0) * width as f64).round() as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, start: f64, end: f64) -> Phase {
        Phase { name: name.to_owned(), start, end }
    }

    #[test]
    fn each_bar_lies_where_its_phase_lies() {
        let picture = draw(&[phase("boot", 0.0, 50.0), phase("run", 50.0, 100.0)], 10);
        let lines: Vec<&str> = picture.lines().collect();
        assert!(lines[0].ends_with("│█████"), "{picture}");
        assert!(lines[1].ends_with("│     █████"), "{picture}");
        assert!(lines[2].contains("100.0 ms"), "{picture}");
    }

    #[test]
    fn a_phase_too_short_for_the_scale_is_still_seen() {
        let picture = draw(&[phase("blink", 0.0, 0.001), phase("rest", 0.001, 100.0)], 10);
        assert!(picture.lines().next().unwrap().ends_with("│█"), "{picture}");
    }
}
