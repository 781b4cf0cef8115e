//! Lists of CPUs or memory nodes, as cpuset(7) has them under "List format": `0-3,7`.

use std::fmt;
use std::str::FromStr;

/// Numbers of CPUs or memory nodes; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NumberList {
    /// First and last of each range: in their order, with numbers between them that are in none.
    ranges: Vec<(u32, u32)>,
}

/// A text that is no such list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of numbers such as 0-3,7")]
pub(crate) struct NotAList(String);

impl NumberList {
    fn of(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        Self { ranges: joined }
    }

    /// The numbers of both.
    pub(crate) fn union(self, other: Self) -> Self {
        Self::of([self.ranges, other.ranges].concat())
    }

    /// The highest of the numbers.
    pub(crate) fn highest(&self) -> u32 {
        self.ranges.last().map_or(0, |(_, last)| *last)
    }
}

impl FromStr for NumberList {
    type Err = NotAList;

    fn from_str(text: &str) -> Result<Self, NotAList> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some((first, last))
        };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        match parts.map(range).collect::<Option<Vec<_>>>() {
            Some(ranges) if !ranges.is_empty() => Ok(Self::of(ranges)),
            _ => Err(NotAList(text.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for NumberList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match first == last {
                true => write!(formatter, "{comma}{first}")?,
                false => write!(formatter, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> NumberList {
        text.parse().unwrap()
    }

    #[test]
    fn lists_are_read_and_written_in_one_form() {
        for (text, written) in
            [("0", "0"), ("0-3,7", "0-3,7"), ("7, 2-3,1,0", "0-3,7"), ("1-5,2-3,", "1-5"), ("0,1", "0-1")]
        {
            assert_eq!(list(text).to_string(), written);
        }
        assert_eq!(list("0-4294967295").union(list("3")).highest(), u32::MAX);
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_text() {
        for text in ["", ",", "a", "3-1", "-1", "1-", "0-31:2/4", "4294967296"] {
            let error = text.parse::<NumberList>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_union_has_the_numbers_of_both(
            one in prop::collection::vec(0_u32..40, 1..10),
            other in prop::collection::vec(0_u32..40, 1..10),
        ) {
            let text = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            let numbers: BTreeSet<u32> = one.iter().chain(&other).copied().collect();
            let union = list(&text(&one)).union(list(&text(&other)));
            prop_assert_eq!(&union, &list(&text(&numbers.iter().copied().collect::<Vec<_>>())));
            prop_assert_eq!(&union, &list(&union.to_string()));
            prop_assert_eq!(union.highest(), *numbers.last().unwrap());
        }
    }
}
