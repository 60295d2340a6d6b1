//! The text report: what is read at three in the morning.
//!
//! What is wrong comes first, then where the memory is, then who holds it, then what was not seen
//! and what it cost. Nothing of the tracee's reaches the terminal unescaped; colour only where asked
//! for; no line is wider than asked, names longer than a line excepted by a cut that shows.

mod head;
pub(super) mod layout;
mod processes;
mod seen;
mod stacks;
mod summary;
mod verdict;

use super::ReportOptions;
use super::ledger::{LedgerOptions, render_charge};
use super::numbers::duration;
use super::style::Paint;
use crate::account::probed::Seen;
use crate::outstanding::books::{Books, Librarian};
use crate::sanitize::visible;
use crate::snapshot::{Known, Recording};

/// Narrower than this nothing useful fits.
const NARROWEST: usize = 40;

/// Lines of prose longer than this are hard to read.
const WIDEST_PROSE: usize = 110;

/// What every section is told from.
struct Page<'a> {
    recording: &'a Recording,
    books: &'a Books<'a>,
    options: &'a ReportOptions,
    paint: Paint,
    width: usize,
    out: String,
}

pub(super) fn render(
    librarian: &Librarian<'_>,
    books: &Books<'_>,
    options: &ReportOptions,
) -> String {
    let mut page = Page {
        recording: librarian.recording(),
        books,
        options,
        paint: Paint::new(options.colour),
        width: options.width.max(NARROWEST),
        out: String::new(),
    };
    page.head();
    page.warnings();
    page.verdict(&crate::verdict::judge(librarian));
    page.marks();
    page.summary();
    page.processes(librarian);
    page.container_memory();
    page.native_stacks();
    page.native_ranges();
    page.go_heap();
    page.not_probed();
    page.losses();
    page.own_cost();
    page.named_again();
    page.out
}

impl Page<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(text.trim_end());
        self.out.push('\n');
    }

    /// Where the container's memory is, where the snapshot carries it.
    fn container_memory(&mut self) {
        let Known::Value(facts) = &self.books.snapshot.memory else { return };
        let options =
            LedgerOptions { width: self.width, colour: self.options.colour, exact: false };
        if let Some(text) = render_charge(facts, &Seen::of(self.books, facts), options) {
            self.out.push_str(&text);
        }
    }

    /// Where phases begin, by name.
    fn marks(&mut self) {
        let marked: Vec<String> = self
            .recording
            .snapshots
            .iter()
            .filter_map(|at| {
                let name = visible(at.mark.as_deref()?).into_owned();
                Some(format!("{name} at {} (@{})", duration(at.elapsed_ns), at.sequence))
            })
            .collect();
        if !marked.is_empty() {
            self.paragraph(2, &format!("Marks: {}.", marked.join(", ")));
        }
    }

    /// What became of names that were looked up again.
    fn named_again(&mut self) {
        let Some(again) = &self.options.named_again else { return };
        self.section("Names looked up again");
        for line in super::named_again::lines(again) {
            self.paragraph(2, &line);
        }
    }

    fn blank(&mut self) {
        self.out.push('\n');
    }

    fn section(&mut self, title: &str) {
        self.blank();
        let title = self.paint.heading(title);
        self.line(&title);
    }

    /// `text` wrapped and indented.
    fn paragraph(&mut self, indent: usize, text: &str) {
        let wrapped = layout::wrap(text, indent, self.width.min(WIDEST_PROSE));
        self.line(&format!("{}{wrapped}", " ".repeat(indent)));
    }

    /// `  label       text`, the text wrapped beside the label.
    fn field(&mut self, label: &str, text: &str) {
        const TEXT_AT: usize = 13;
        let wrapped = layout::wrap(text, TEXT_AT, self.width);
        let label = self.paint.faint(&layout::pad_right(label, TEXT_AT - 2));
        self.line(&format!("  {label}{wrapped}"));
    }
}
