//! Where the memory is: resident memory, its parts, and the residual with its sign.

use super::Page;
use super::layout::{bar, keep_start, pad_left, pad_right, wrap};
use crate::outstanding::summary::GoCounted;
use crate::report::numbers::{bytes, mib};
use crate::sanitize::visible;
use crate::snapshot::Known;

const LABEL_CELLS: usize = 42;
const FIGURE_CELLS: usize = 10;
const KNOWN_CELLS: usize = 26;

/// How a figure stands to the sum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Minus,
    /// Contained in the part above it.
    Within,
    Residual,
}

impl Page<'_> {
    pub(super) fn summary(&mut self) {
        let known = if self.fits_known() { "  how it is known" } else { "" };
        let title = format!(
            "{}{}{known}",
            pad_right("WHERE THE MEMORY IS", self.label_cells()),
            pad_left("MiB", FIGURE_CELLS),
        );
        self.section(&title);
        let summary = &self.books.summary;
        let rss = wide(&summary.rss);
        self.row(Part::Whole, "resident memory of the process (RSS)", &rss, "measured");
        match summary.go_counted {
            GoCounted::Retained => {
                let retained = wide(&summary.go_retained);
                self.row(Part::Minus, "Go, from the system less released", &retained, "derived");
                let inuse = wide(&summary.go_inuse);
                self.row(Part::Within, "of it Go heap in use (pprof)", &inuse, self.go_quality());
            }
            GoCounted::InUse => {
                let inuse = wide(&summary.go_inuse);
                self.row(Part::Minus, "Go heap in use (pprof)", &inuse, self.go_quality());
            }
            GoCounted::Nothing => {
                let unknown = wide(&summary.go_inuse);
                self.row(Part::Minus, "Go heap in use (pprof)", &unknown, "");
            }
        }
        let blocks = Known::Value(summary.native_blocks.into());
        self.row(Part::Minus, "native blocks not freed, see below", &blocks, "measured, requested");
        let ranges = Known::Value(summary.native_ranges.into());
        self.row(Part::Minus, "native mappings, see below", &ranges, "measured, mapped");
        let files = wide(&summary.files);
        self.row(Part::Minus, "mapped files and shared memory", &files, "measured");
        self.row(Part::Residual, "left unexplained", &summary.unexplained, "derived");
        self.explain_residual();
    }

    fn label_cells(&self) -> usize {
        LABEL_CELLS.min(self.width - FIGURE_CELLS)
    }

    /// Whether how a figure is known stands beside it; in a narrow terminal it stands below.
    fn fits_known(&self) -> bool {
        self.width >= LABEL_CELLS + FIGURE_CELLS + 2 + KNOWN_CELLS
    }

    fn go_quality(&self) -> &'static str {
        match self.books.snapshot.go.value().map(|go| go.sample_rate_bytes) {
            Some(1) => "measured, at the last GC",
            _ => "sampled, at the last GC",
        }
    }

    fn row(&mut self, part: Part, label: &str, bytes: &Known<i128>, known: &str) {
        let (indent, sign) = match part {
            Part::Whole => (2, ""),
            Part::Minus => (4, "− "),
            Part::Within => (8, ""),
            Part::Residual => (2, "= "),
        };
        let label = keep_start(&format!("{}{sign}{label}", " ".repeat(indent)), self.label_cells());
        let label = pad_right(&label, self.label_cells());
        let Known::Value(value) = bytes else {
            let reason = bytes.reason().unwrap_or("");
            let indent = LABEL_CELLS + FIGURE_CELLS + 2;
            // In a narrow terminal the reason gets lines of its own.
            let head = format!("{label}{}", pad_left("?", FIGURE_CELLS));
            if self.width >= indent + 28 {
                let text = wrap(&format!("unknown: {}", visible(reason)), indent, self.width);
                self.line(&format!("{head}  {text}"));
            } else {
                self.line(&head);
                self.paragraph(8, &format!("unknown: {}", visible(reason)));
            }
            return;
        };
        let figure = match part {
            Part::Residual if *value > 0 => format!("+{}", mib(*value)),
            _ => mib(*value).replace('-', "−"),
        };
        let figure = pad_left(&figure, FIGURE_CELLS);
        let figure = match part {
            Part::Within => self.paint.faint(&figure),
            _ => self.paint.figure(&figure),
        };
        let bar = self.proportion(*value);
        let beside = if bar.is_empty() { known.to_owned() } else { pad_right(known, KNOWN_CELLS) };
        let beside = self.paint.faint(&beside);
        if self.fits_known() {
            self.line(&format!("{label}{figure}  {beside}{bar}"));
        } else {
            self.line(&format!("{label}{figure}"));
            self.line(&format!("{}{beside}", " ".repeat(indent + 4)));
        }
    }

    /// A bar against the resident memory, where the terminal has room for one.
    fn proportion(&self, value: i128) -> String {
        const OTHER_CELLS: usize = LABEL_CELLS + FIGURE_CELLS + 2 + KNOWN_CELLS;
        let room = self.width.saturating_sub(OTHER_CELLS).min(50);
        match self.books.summary.rss {
            Known::Value(rss) if room >= 10 && rss > 0 => bar(value as f64 / rss as f64, room),
            _ => String::new(),
        }
    }

    fn explain_residual(&mut self) {
        let summary = &self.books.summary;
        let mut text = String::new();
        match summary.unexplained.value() {
            Some(0..) => text.push_str(
                "Unexplained: what was allocated before the attach, what the allocator keeps \
                 (free blocks, rounding, its own tables), resident thread stacks, and data \
                 sections.",
            ),
            Some(_) => text.push_str(
                "Unexplained is negative: some of what was asked for is not resident (untouched \
                 pages of blocks and mappings, or swapped out).",
            ),
            None => {}
        }
        if matches!(summary.go_counted, GoCounted::InUse) {
            text.push_str(" It holds the Go runtime's idle heap, stacks and tables too: ");
            text.push_str(summary.go_retained.reason().unwrap_or("unknown"));
            text.push('.');
        }
        if summary.thread_stacks > 0 || summary.reserved > 0 {
            text.push_str(&format!(
                " Not in the sum: {} of thread stacks (mapped; resident as far as touched) and \
                 {} reserved (PROT_NONE).",
                bytes(summary.thread_stacks),
                bytes(summary.reserved)
            ));
        }
        if let Some(process) = self.books.snapshot.process.value() {
            text.push_str(&format!(
                " Peak RSS {}, swapped out {}.",
                bytes(process.rss_peak),
                bytes(process.swap)
            ));
        }
        if !text.is_empty() {
            self.paragraph(4, &visible(&text));
        }
    }
}

fn wide(known: &Known<u64>) -> Known<i128> {
    known.map(|value| (*value).into())
}
