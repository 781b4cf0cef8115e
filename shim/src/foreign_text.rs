//! Words of the guest and of the VMM, on their way to containerd's clients and its log.

use std::borrow::Cow;

/// The most of a message of the agent's that is passed on, in bytes.
pub(crate) const MESSAGE_MAX: usize = 4096;

/// A text that no terminal takes for anything else and that is not much longer than `limit` bytes: control characters other
/// than line feeds and tabs are question marks, and what is too long lacks its middle.
pub(crate) fn clean(text: &str, limit: usize) -> String {
    let printable = |character: char| match character {
        '\n' | '\t' => character,
        control if control.is_control() => '?',
        other => other,
    };
    shorten(text, limit).chars().map(printable).collect()
}

/// A text as it is, or one that says how much of its middle is left out.
pub(crate) fn shorten(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return text.into();
    }
    let (head, rest) = text.split_at(boundary_before(text, limit / 2));
    let (omitted, tail) = rest.split_at(boundary_before(rest, rest.len().saturating_sub(limit / 2)));
    format!("{head} [{} bytes left out] {tail}", omitted.len()).into()
}

/// The last place at `index` or before where a text can be split.
fn boundary_before(text: &str, index: usize) -> usize {
    (0..=index).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_is_replaced_and_lines_stay() {
        assert_eq!(clean("a\tb\nc\x1b[2Jd\re\u{9b}f\0", 100), "a\tb\nc?[2Jd?e?f?");
    }

    #[test]
    fn what_is_too_long_keeps_its_beginning_and_its_end_and_says_so() {
        let text = format!("begin{}end", "x".repeat(4 << 20));
        let short = clean(&text, MESSAGE_MAX);
        assert!(short.len() < MESSAGE_MAX + 64, "{}", short.len());
        assert!(short.starts_with("beginx") && short.ends_with("xend"));
        assert!(short.contains("[4190216 bytes left out]"), "{short}");
        assert_eq!(shorten("short", 5), "short");
    }

    #[test]
    fn characters_are_not_cut_in_two() {
        for limit in 0..12 {
            let short = shorten("\u{1f980}\u{1f980}\u{1f980}\u{1f980}", limit);
            assert!(
                short.chars().all(|character| character == '\u{1f980}' || character.is_ascii()),
                "{short}"
            );
        }
    }
}
