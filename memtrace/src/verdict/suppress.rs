//! Suppressions in LeakSanitizer's format: what is known and accepted.
//!
//! ```text
//! # a comment
//! leak:sqlite3_initialize
//! leak:libcrypto.so
//! leak:^init_*_table$
//! ```
//!
//! A pattern stands for a leak when it is found in a function, a source file or a module of any of
//! its frames; `*` stands for any characters, `^` and `$` for the ends. Lines of other kinds
//! (`race:` and the like) are other sanitizers', and passed over.

use thiserror::Error;

use crate::outstanding::frames::Frame;

#[derive(Debug, Error, PartialEq, Eq)]
#[error("line {line}: expected `leak:PATTERN`, found `{found}`")]
pub struct BadLine {
    pub line: usize,
    pub found: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    at_start: bool,
    at_end: bool,
    /// Between the stars.
    parts: Vec<String>,
}

impl Suppressions {
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let mut patterns = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.split_once(':') {
                Some(("leak", pattern)) if !pattern.trim().is_empty() => {
                    patterns.push(Pattern::of(pattern.trim()));
                }
                Some((kind, _))
                    if kind != "leak"
                        && kind.chars().all(|c| c.is_ascii_lowercase() || c == '_') => {}
                _ => return Err(BadLine { line: at + 1, found: line.chars().take(80).collect() }),
            }
        }
        Ok(Self { patterns })
    }

    /// The pattern that stands for this stack, as it was written.
    pub fn of<'a>(&self, frames: impl IntoIterator<Item = &'a Frame>) -> Option<&str> {
        let frames: Vec<&Frame> = frames.into_iter().collect();
        let matches = |pattern: &&Pattern| {
            frames.iter().any(|frame| {
                let names = [&frame.function, &frame.file, &frame.module];
                names.into_iter().flatten().any(|name| pattern.is_in(name))
            })
        };
        self.patterns.iter().find(matches).map(|pattern| pattern.text.as_str())
    }
}

impl Pattern {
    fn of(text: &str) -> Self {
        let (at_start, rest) = match text.strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (at_end, rest) = match rest.strip_suffix('$') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let parts = rest.split('*').map(str::to_owned).collect();
        Self { text: text.to_owned(), at_start, at_end, parts }
    }

    fn is_in(&self, name: &str) -> bool {
        let Some((last, before)) = self.parts.split_last() else { return false };
        let mut rest = name;
        for (at, part) in before.iter().enumerate() {
            let found = if at == 0 && self.at_start {
                rest.starts_with(part.as_str()).then_some(0)
            } else {
                rest.find(part.as_str())
            };
            let Some(found) = found else { return false };
            rest = &rest[found + part.len()..];
        }
        match (before.is_empty() && self.at_start, self.at_end) {
            (true, true) => rest == last,
            (true, false) => rest.starts_with(last.as_str()),
            (false, true) => rest.ends_with(last.as_str()),
            (false, false) => rest.contains(last.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::of(pattern).is_in(name)
    }

    #[test]
    fn a_pattern_is_a_part_of_a_name() {
        assert!(matches("sqlite3", "/usr/lib/libsqlite3.so.0"));
        assert!(!matches("sqlite3", "sqlite"));
    }

    #[test]
    fn stars_and_anchors_are_lsans() {
        for (pattern, name, expected) in [
            ("^init", "init_tables", true),
            ("^init", "do_init", false),
            ("init$", "do_init", true),
            ("init$", "init_tables", false),
            ("^init$", "init", true),
            ("^init$", "init2", false),
            ("^init_*_table$", "init_big_table", true),
            ("^init_*_table$", "init_table", false),
            ("a*b*c", "xxaxxbxxcxx", true),
            ("a*b*c", "xxaxxcxxbxx", false),
            ("*", "anything", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} in {name}");
        }
    }

    #[test]
    fn comments_and_other_sanitizers_lines_are_passed_over() {
        let parsed = Suppressions::parse("# known\n\n  leak:foo  \nrace:bar\n").unwrap();
        assert_eq!(parsed.patterns.len(), 1);
        assert_eq!(parsed.patterns[0].text, "foo");
    }

    #[test]
    fn a_line_that_is_none_is_told_by_its_number() {
        let error = Suppressions::parse("leak:foo\nnonsense\n").unwrap_err();
        assert_eq!((error.line, error.found.as_str()), (2, "nonsense"));
        assert!(Suppressions::parse("leak:").is_err());
    }
}
