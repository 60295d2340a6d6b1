//! A ledger's rows as a tree in a terminal: figure, bar against the whole, and where it was read.

use super::numbers::{bytes, grouped};
use super::style::Paint;
use super::text::layout::{bar, keep_end, keep_start, pad_left, pad_right};
use crate::account::row::{How, Kind, Row};
use crate::sanitize::visible;
use crate::snapshot::Known;

/// Columns of one tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    label: usize,
    figure: usize,
    bar: usize,
    source: usize,
    exact: bool,
}

impl Columns {
    pub(super) fn of(width: usize, exact: bool) -> Self {
        let figure = if exact { 17 } else { 11 };
        // In a narrow terminal bars go first, then sources.
        let (bar, source) = match width {
            0..64 => (0, 0),
            64..96 => (10, 0),
            96..120 => (10, 26),
            _ => (16, 26 + (width - 120) / 2),
        };
        let taken =
            figure + if bar > 0 { bar + 2 } else { 0 } + if source > 0 { source + 2 } else { 0 };
        Self { label: width.saturating_sub(taken).max(12), figure, bar, source, exact }
    }

    pub(super) fn shows_sources(self) -> bool {
        self.source > 0
    }

    pub(super) fn heading(self, title: &str) -> String {
        let unit = if self.exact { "bytes" } else { "" };
        let mut line = format!("{}{}", pad_right(title, self.label), pad_left(unit, self.figure));
        if self.source > 0 {
            line.push_str("  ");
            line.push_str(&pad_right("", self.bar));
            line.push_str("  read in, or made by");
        }
        line
    }

    pub(super) fn amount(self, value: i128) -> String {
        amount(value, self.exact)
    }
}

/// `812.4 MiB`, `−37 B`, or every digit.
pub(super) fn amount(value: i128, exact: bool) -> String {
    if exact {
        return grouped(value).replace('-', "−");
    }
    let size = bytes(u64::try_from(value.unsigned_abs()).unwrap_or(u64::MAX));
    if value < 0 { format!("−{size}") } else { size }
}

/// The lines of a tree. Bars are against the root's own figure.
pub(super) fn lines(row: &Row, columns: Columns, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    let whole = row.value().unwrap_or(0);
    write(row, columns, paint, whole, "", "", &mut lines);
    lines
}

/// The same for rows that have no common whole.
pub(super) fn list(rows: &[Row], columns: Columns, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    for row in rows {
        write(row, columns, paint, 0, "", "", &mut lines);
    }
    lines
}

fn write(
    row: &Row,
    columns: Columns,
    paint: Paint,
    whole: i128,
    branch: &str,
    below: &str,
    lines: &mut Vec<String>,
) {
    let label = keep_start(&format!("  {branch}{}", visible(&row.label)), columns.label);
    let label = pad_right(&label, columns.label);
    let text = match &row.bytes {
        Known::Value(value) => {
            let text = columns.amount(*value);
            match row.kind {
                Kind::Residual if *value > 0 => format!("+{text}"),
                _ => text,
            }
        }
        Known::Unknown { .. } => "unknown".to_owned(),
    };
    let text = pad_left(&text, columns.figure);
    let figure = match row.kind {
        Kind::Within => paint.faint(&text),
        _ => paint.figure(&text),
    };
    let mut line = format!("{label}{figure}");
    if columns.bar > 0 {
        let part = row.value().filter(|value| whole > 0 && *value > 0).unwrap_or(0);
        let drawn = bar(part as f64 / whole.max(1) as f64, columns.bar);
        let drawn = pad_right(&drawn, columns.bar);
        let is_go = row.key.starts_with("go_");
        let drawn = match row.kind {
            Kind::Within => paint.faint(&drawn),
            _ if is_go => paint.go(&drawn),
            _ => drawn,
        };
        line.push_str("  ");
        line.push_str(&drawn);
    }
    if columns.source > 0 {
        // The title or a row above says whose files they are.
        let short = match row.source.strip_prefix("/proc/").and_then(|rest| rest.split_once('/')) {
            Some((pid, file)) if pid.bytes().all(|byte| byte.is_ascii_digit()) => file,
            _ => &row.source,
        };
        let source = match row.how {
            How::Sampled => format!("sampled: {short}"),
            How::Measured | How::Derived => short.to_owned(),
        };
        let source = match &row.bytes {
            Known::Value(_) => keep_start(&visible(&source), columns.source),
            Known::Unknown { reason } => keep_end(&visible(reason), columns.source),
        };
        line.push_str("  ");
        line.push_str(&paint.faint(&source));
    }
    lines.push(line);
    let last = row.rows.len().saturating_sub(1);
    for (at, child) in row.rows.iter().enumerate() {
        let (arm, stem) = match (child.kind, at == last) {
            (Kind::Within, true) => ("╰╌ ", "   "),
            (Kind::Within, false) => ("├╌ ", "│  "),
            (_, true) => ("╰─ ", "   "),
            (_, false) => ("├─ ", "│  "),
        };
        let (branch, below_child) = (format!("{below}{arm}"), format!("{below}{stem}"));
        write(child, columns, paint, whole, &branch, &below_child, lines);
    }
}
