//! What was not seen, what was lost, and what the seeing cost.

use super::Page;
use super::layout::{pad_left, wrap};
use crate::outstanding::frames::base_name;
use crate::report::numbers::{bytes, count, duration, grouped};
use crate::report::sanitize::visible;
use crate::snapshot::NotProbed;

/// More than this many lines of what was not probed are summed up; JSON has all.
const MOST_NOT_PROBED: usize = 20;

/// Functions of one object that are not probed for one reason.
#[derive(Debug, PartialEq, Eq)]
struct NotProbedRow<'a> {
    object: &'a str,
    functions: Vec<&'a str>,
    reason: &'a str,
}

/// One row for all functions that share an object and a reason: libstdc++ alone has dozens of
/// operators that go through malloc.
fn by_reason(not_probed: &[NotProbed]) -> Vec<NotProbedRow<'_>> {
    let mut rows: Vec<NotProbedRow> = Vec::new();
    for found in not_probed {
        let function = found.function.as_deref();
        let same = rows.iter_mut().find(|row| {
            row.object == found.object && row.reason == found.reason && function.is_some()
        });
        match same {
            Some(row) => row.functions.extend(function),
            None => rows.push(NotProbedRow {
                object: &found.object,
                functions: function.into_iter().collect(),
                reason: &found.reason,
            }),
        }
    }
    rows
}

impl Page<'_> {
    pub(super) fn not_probed(&mut self) {
        let not_probed = &self.recording.header.probes.not_probed;
        self.section("NOT PROBED");
        if not_probed.is_empty() {
            self.paragraph(2, "Nothing: every allocator found in the process is probed.");
            return;
        }
        let rows = by_reason(not_probed);
        for row in rows.iter().take(MOST_NOT_PROBED) {
            let functions = match row.functions.as_slice() {
                [] => String::new(),
                [one] => format!(", {one}"),
                [first, ..] => {
                    format!(", {} such as {first}", count(row.functions.len() as u64, "function"))
                }
            };
            let text = format!(
                "{}{}: {}",
                visible(base_name(row.object)),
                visible(&functions),
                visible(row.reason)
            );
            self.paragraph(2, &text);
        }
        if let Some(more) = rows.len().checked_sub(MOST_NOT_PROBED).filter(|more| *more > 0) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_not_probed_for_one_reason_share_a_line() {
        let not_probed = |object: &str, function: Option<&str>, reason: &str| NotProbed {
            object: object.to_owned(),
            function: function.map(str::to_owned),
            reason: reason.to_owned(),
        };
        let found = [
            not_probed("/a.so", Some("_Znwm"), "forwards"),
            not_probed("/a.so", Some("_ZdlPv"), "forwards"),
            not_probed("/b.so", Some("_ZdlPv"), "forwards"),
            not_probed("/a.so", Some("_Znam"), "too short"),
            not_probed("/a.so", None, "no symbols"),
        ];
        let rows = by_reason(&found);
        let of = |row: &NotProbedRow<'_>| (row.object.to_owned(), row.functions.len());
        let expected = [("/a.so", 2), ("/b.so", 1), ("/a.so", 1), ("/a.so", 0)];
        let expected = expected.map(|(object, functions)| (object.to_owned(), functions));
        assert_eq!(rows.iter().map(of).collect::<Vec<_>>(), expected);
    }
}
