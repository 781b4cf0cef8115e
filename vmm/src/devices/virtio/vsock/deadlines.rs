//! When to lose patience with whom.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Deadlines of numbered things, soonest first.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BTreeSet<(Instant, u64)>);

impl Deadlines {
    /// Adds a deadline for `id`, `after` from now, and returns it for [`cancel`](Self::cancel).
    pub(super) fn set(&mut self, id: u64, now: Instant, after: Duration) -> Instant {
        let deadline = now + after;
        self.0.insert((deadline, id));
        deadline
    }

    /// Forgets a deadline.
    pub(super) fn cancel(&mut self, id: u64, deadline: Instant) {
        self.0.remove(&(deadline, id));
    }

    /// How long from `now` until the next deadline.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.0.first().map(|(deadline, _)| deadline.saturating_duration_since(now))
    }

    /// Whether nothing is waited for.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out one that has passed.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<u64> {
        let (deadline, _) = self.0.first()?;
        if *deadline > now {
            return None;
        }
        self.0.pop_first().map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_passed_and_was_not_cancelled_expires_soonest_first() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut deadlines = Deadlines::default();
        deadlines.set(1, start, 3 * second);
        let cancelled = deadlines.set(2, start, second);
        deadlines.set(3, start, 2 * second);
        deadlines.cancel(2, cancelled);
        assert_eq!(deadlines.wait(start), Some(2 * second));
        assert_eq!(deadlines.pop_expired(start + second), None);
        assert_eq!(deadlines.pop_expired(start + 3 * second), Some(3));
        assert_eq!(deadlines.pop_expired(start + 3 * second), Some(1));
        assert_eq!(deadlines.wait(start), None);
    }
}
