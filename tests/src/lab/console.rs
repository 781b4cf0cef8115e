//! The end of what a machine wrote to its console, for when it failed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

const KEPT: usize = 16 << 10;

/// The last 16 KiB of a stream.
#[derive(Default)]
pub(super) struct Tail(Mutex<VecDeque<u8>>);

impl Tail {
    /// Adds bytes, and forgets the oldest ones beyond 16 KiB.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }

    /// The last `lines` lines.
    pub(super) fn last_lines(&self, lines: usize) -> String {
        let bytes: Vec<u8> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().map(str::trim_end).collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept() {
        let tail = Tail::default();
        for number in 0..10_000 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        assert_eq!(tail.last_lines(2), "line 9998\nline 9999");
        assert!(tail.last_lines(usize::MAX).len() <= KEPT);
    }
}
