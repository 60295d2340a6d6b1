//! What was not seen, what was lost, and what the seeing cost.

use super::Page;
use super::layout::{pad_left, wrap};
use crate::outstanding::frames::base_name;
use crate::report::numbers::{bytes, count, duration, grouped};
use crate::report::sanitize::visible;

/// More than this many lines of what was not probed are summed up; JSON has all.
const MOST_NOT_PROBED: usize = 20;

impl Page<'_> {
    pub(super) fn not_probed(&mut self) {
        let not_probed = &self.recording.header.probes.not_probed;
        self.section("NOT PROBED");
        if not_probed.is_empty() {
            self.paragraph(2, "Nothing: every allocator found in the process is probed.");
            return;
        }
        for row in not_probed.iter().take(MOST_NOT_PROBED) {
            let function = row.function.as_deref().map(|name| format!(", {name}"));
            let text = format!(
                "{}{}: {}",
                visible(base_name(&row.object)),
                visible(&function.unwrap_or_default()),
                visible(&row.reason)
            );
            self.paragraph(2, &text);
        }
        if let Some(more) = not_probed.len().checked_sub(MOST_NOT_PROBED).filter(|more| *more > 0) {
            self.paragraph(2, &format!("and {} more: see --json", grouped(more as u64)));
        }
    }

    pub(super) fn losses(&mut self) {
        let books = self.books;
        self.section("LOSSES");
        if books.is_lossless() {
            let counters = grouped(books.losses.len() as u64);
            let text = format!(
                "None: all {counters} counters of what could be lost are zero, so every call seen \
                 is in the books."
            );
            self.paragraph(2, &text);
        }
        for loss in books.losses.iter().filter(|loss| loss.count > 0) {
            let figure = pad_left(&grouped(loss.count), 12);
            let figure = self.paint.warning(&figure);
            let text = format!("{}: {}", visible(&loss.label), loss.hint);
            let text = wrap(&text, 14, self.width);
            self.line(&format!("{figure}  {text}"));
        }
        let tally = |label: &str| {
            books.tallies.iter().find(|line| line.label == label).map_or(0, |line| line.count)
        };
        let holding = books.checks.iter().filter(|check| check.holds).count();
        let text = format!(
            "Frees of blocks older than the attach: {}. Stacks walked: {} to their end, {} cut \
             short. Laws checked: {holding} of {} hold.",
            grouped(tally("free_unknown")),
            grouped(tally("walk_complete")),
            grouped(tally("walk_truncated")),
            books.checks.len()
        );
        self.paragraph(2, &text);
    }

    pub(super) fn own_cost(&mut self) {
        let own = &self.books.snapshot.own;
        self.section("WHAT MEMTRACE COST");
        let bpf = match own.bpf_time_ns {
            Some(ns) if own.probe_hits > 0 => {
                format!("{} in BPF programs ({} each)", duration(ns), duration(ns / own.probe_hits))
            }
            Some(ns) => format!("{} in BPF programs", duration(ns)),
            None => "time in BPF programs unknown (kernel.bpf_stats_enabled is 0)".to_owned(),
        };
        let text = format!(
            "{}, {bpf}; {} of kernel memory; memtrace itself {} of memory and {} of CPU time; \
             unwind tables: {} rows in {}.",
            count(own.probe_hits, "probe hit"),
            bytes(own.kernel_memory_bytes),
            bytes(own.user_memory_bytes),
            duration(own.user_cpu_ns),
            grouped(own.unwind_rows),
            duration(own.unwind_build_ns)
        );
        self.paragraph(2, &text);
    }
}
