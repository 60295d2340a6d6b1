//! Strings of the tracee on their way to a terminal or a line-based format.
//!
//! Symbol names, paths and command lines are the tracee's to choose. Nothing that a terminal acts
//! on gets through: control characters, bidirectional overrides and invisible characters come out
//! as escapes that show what was there.

use std::borrow::Cow;
use std::fmt::Write;

/// Longest string shown, in characters: C++ names reach kilobytes.
pub const LONGEST: usize = 1024;

/// The string with every character that is not plainly visible escaped.
pub fn visible(text: &str) -> Cow<'_, str> {
    visible_up_to(text, LONGEST)
}

/// As [`visible`], cut at `longest` characters of the text.
pub fn visible_up_to(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest && !text.chars().any(must_escape) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().min(longest));
    for (i, c) in text.chars().enumerate() {
        if i == longest {
            out.push('…');
            break;
        }
        if must_escape(c) {
            // Writing to a String does not fail.
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// The same for a message of several lines: its line ends stay, nothing is cut.
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    let escaped = |c: char| c != '\n' && must_escape(c);
    if !text.chars().any(escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if escaped(c) {
            // Writing to a String does not fail.
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Whether a terminal acts on the character, or shows nothing for it.
pub fn must_escape(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            // Soft hyphen, Arabic letter mark, Mongolian vowel separator, zero-width and
            // bidirectional marks, line and paragraph separators, invisible operators, variation
            // selectors, byte order mark, interlinear marks, tags, private use.
            0xad | 0x61c | 0x180e | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f
            | 0xe000..=0xf8ff | 0xfe00..=0xfe0f | 0xfeff | 0xfff9..=0xfffb
            | 0xe0000..=0xe0fff | 0xf0000..=0x10ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_in_any_script_is_left_alone() {
        for text in ["std::vector<int>::push_back(int&&)", "Größe", "数え上げ", "Σ alloc − Σ free"]
        {
            assert_eq!(visible(text), text);
        }
    }

    #[test]
    fn nothing_a_terminal_acts_on_gets_through() {
        let hostile = "a\u{1b}[31m\u{9b}2J\r\n\t\u{7}\u{7f}\u{202e}\u{200b}\u{feff}b";
        let shown = visible(hostile);
        assert!(!shown.chars().any(must_escape), "{shown}");
        assert!(shown.starts_with("a\\u{1b}[31m\\u{9b}2J\\u{d}\\u{a}") && shown.ends_with('b'));
    }

    #[test]
    fn a_message_keeps_its_lines_and_nothing_else() {
        assert_eq!(visible_lines("failed\n  why"), "failed\n  why");
        assert_eq!(visible_lines("a\u{1b}[2J\r\n\u{202e}b"), "a\\u{1b}[2J\\u{d}\n\\u{202e}b");
    }

    #[test]
    fn endless_names_end() {
        assert_eq!(visible(&"x".repeat(1 << 20)).chars().count(), LONGEST + 1);
    }
}
