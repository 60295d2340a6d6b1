//! What was not seen, what was lost, and what the seeing cost.

use std::collections::HashMap;

use super::Page;
use super::layout::{pad_left, wrap};
use crate::outstanding::frames::base_name;
use crate::report::numbers::{bytes, count, duration, grouped};
use crate::sanitize::visible;
use crate::snapshot::NotProbed;

/// More than this many lines of what was not probed are summed up; JSON has all.
const MOST_NOT_PROBED: usize = 20;

/// More functions than this of one object and one reason are counted.
const MOST_FUNCTIONS: usize = 8;

/// What is not probed of the same object for the same reason, in the order of first appearance.
fn by_object_and_reason(rows: &[NotProbed]) -> Vec<((&str, &str), Vec<&str>)> {
    let mut places = HashMap::new();
    let mut groups: Vec<((&str, &str), Vec<&str>)> = Vec::new();
    for row in rows {
        let key = (row.object.as_str(), row.reason.as_str());
        let place = *places.entry(key).or_insert_with(|| {
            groups.push((key, Vec::new()));
            groups.len() - 1
        });
        groups[place].1.extend(row.function.as_deref());
    }
    groups
}

/// `, malloc, free and 3 more functions`; nothing where the whole object is meant.
fn listed(functions: &[&str]) -> String {
    if functions.is_empty() {
        return String::new();
    }
    let shown = functions.len().min(MOST_FUNCTIONS);
    let names: Vec<_> = functions[..shown].iter().map(|function| visible(function)).collect();
    let mut text = format!(", {}", names.join(", "));
    if let more @ 1.. = functions.len() - shown {
        text.push_str(&format!(" and {}", count(more as u64, "more function")));
    }
    text
}

impl Page<'_> {
    pub(super) fn not_probed(&mut self) {
        let not_probed = &self.recording.header.probes.not_probed;
        self.section("NOT PROBED");
        if not_probed.is_empty() {
            self.paragraph(2, "Nothing: every allocator found in the process is probed.");
            return;
        }
        let groups = by_object_and_reason(not_probed);
        for ((object, reason), functions) in groups.iter().take(MOST_NOT_PROBED) {
            let text =
                format!("{}{}: {}", visible(base_name(object)), listed(functions), visible(reason));
            self.paragraph(2, &text);
        }
        if let Some(more) = groups.len().checked_sub(MOST_NOT_PROBED).filter(|more| *more > 0) {
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
            None => "time in BPF programs not counted (kernel.bpf_stats_enabled is 0)".to_owned(),
        };
        let text = format!(
            "{}, {bpf}; {} of kernel memory; memtrace itself {} of memory and {} of CPU time; \
             unwind tables: {} rows in {}{}.",
            count(own.probe_hits, "probe hit"),
            bytes(own.kernel_memory_bytes),
            bytes(own.user_memory_bytes),
            duration(own.user_cpu_ns),
            grouped(own.unwind_rows),
            duration(own.unwind_build_ns),
            self.container_cost()
        );
        self.paragraph(2, &text);
    }

    /// What reading the container's memory took for this snapshot.
    fn container_cost(&self) -> String {
        let own = &self.books.snapshot.own;
        match (own.container_read_ns, own.heap_read_ns) {
            (0, _) => String::new(),
            (whole, Some(heap)) => format!(
                "; the container's memory read in {}, {} of it for malloc's books",
                duration(whole),
                duration(heap)
            ),
            (whole, None) => format!(
                "; the container's memory read in {}, malloc's books left out",
                duration(whole)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(object: &str, function: Option<&str>, reason: &str) -> NotProbed {
        NotProbed {
            object: object.to_owned(),
            function: function.map(str::to_owned),
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn functions_of_one_object_and_one_reason_share_a_line() {
        let rows = [
            row("/lib/ld.so", Some("mmap"), "the loader's own"),
            row("/lib/libx.so", None, "no symbols"),
            row("/lib/ld.so", Some("munmap"), "the loader's own"),
            row("/lib/ld.so", Some("free"), "too short"),
        ];
        let expected = vec![
            (("/lib/ld.so", "the loader's own"), vec!["mmap", "munmap"]),
            (("/lib/libx.so", "no symbols"), vec![]),
            (("/lib/ld.so", "too short"), vec!["free"]),
        ];
        assert_eq!(by_object_and_reason(&rows), expected);
    }

    #[test]
    fn a_long_list_of_functions_ends_with_their_number() {
        assert_eq!(listed(&[]), "");
        assert_eq!(listed(&["mmap", "munmap"]), ", mmap, munmap");
        let many: Vec<String> = (0..MOST_FUNCTIONS + 12).map(|i| format!("f{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(listed(&many).ends_with(", f7 and 12 more functions"), "{}", listed(&many));
    }
}
