//! Lines of a given width: wrapping, padding, shortening. Widths are terminal cells.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

pub(in crate::report) fn cells(text: &str) -> usize {
    text.width()
}

pub(in crate::report) fn pad_right(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(cells(text))))
}

pub(in crate::report) fn pad_left(text: &str, width: usize) -> String {
    format!("{}{text}", " ".repeat(width.saturating_sub(cells(text))))
}

/// The beginning, ended by `…` where something was cut.
pub(in crate::report) fn keep_start(text: &str, width: usize) -> String {
    if cells(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        kept.push(c);
    }
    kept.push('…');
    kept
}

/// The end, begun by `…` where something was cut: paths tell most at their end.
pub(in crate::report) fn keep_end(text: &str, width: usize) -> String {
    if cells(text) <= width {
        return text.to_owned();
    }
    let mut kept: Vec<char> = Vec::new();
    let mut used = 1;
    for c in text.chars().rev() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        kept.push(c);
    }
    kept.push('…');
    kept.iter().rev().collect()
}

/// Words in lines of `width` cells, each after the first indented by `indent`, which the first is
/// assumed to have been given already. A word longer than a line is cut; a number keeps its unit.
pub(in crate::report) fn wrap(text: &str, indent: usize, width: usize) -> String {
    let room = width.saturating_sub(indent).max(20);
    let mut out = String::new();
    let mut used = 0;
    for word in unbroken(text) {
        let word = keep_start(&word, room);
        if used > 0 && used + 1 + cells(&word) > room {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = 0;
        }
        if used > 0 {
            out.push(' ');
            used += 1;
        }
        used += cells(&word);
        out.push_str(&word);
    }
    out
}

/// The words of a text, each number joined with its unit.
fn unbroken(text: &str) -> Vec<String> {
    const UNITS: [&str; 14] =
        ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "ns", "µs", "ms", "s", "m", "h", "d", "%"];
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let unit = word.trim_end_matches([',', '.', ';', ':', ')']).trim_end_matches("/s");
        match words.last_mut() {
            Some(last) if last.ends_with(|c: char| c.is_ascii_digit()) && UNITS.contains(&unit) => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
    }
    words
}

/// A proportion as `width` cells of blocks, in eighths.
pub(in crate::report) fn bar(part: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (part.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_says_so_and_fits() {
        assert_eq!(keep_start("abcdef", 6), "abcdef");
        assert_eq!(keep_start("abcdef", 4), "abc…");
        assert_eq!(keep_end("/a/b/store.go:97", 12), "…store.go:97");
        assert_eq!(keep_end("数え上げ", 5), "…上げ");
        assert_eq!(cells(&keep_start("数え上げ", 4)), 3);
    }

    #[test]
    fn no_wrapped_line_is_wider_than_asked() {
        let text = "the quick brown fox ".repeat(20) + &"x".repeat(200);
        for line in wrap(&text, 6, 40).lines() {
            assert!(cells(line) <= 40, "{line}");
        }
    }

    #[test]
    fn a_number_is_not_parted_from_its_unit() {
        let text = "swapped out 0 B, read in 12.5 ms; growing at 3.1 MiB/s since then";
        assert_eq!(unbroken(text)[2..6], ["0 B,", "read", "in", "12.5 ms;"]);
        assert!(unbroken(text).contains(&"3.1 MiB/s".to_owned()));
    }

    #[test]
    fn bars_are_proportional() {
        assert_eq!(bar(0.0, 10), "");
        assert_eq!(bar(0.5, 10), "█████");
        assert_eq!(bar(7.0, 3), "███");
        assert_eq!(bar(f64::NAN, 3), "");
        assert_eq!(bar(1.0 / 16.0, 2), "▏");
    }
}
