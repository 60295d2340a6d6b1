//! What grew and what shrank between two snapshots, of one recording or of two. Pure.
//!
//! Stacks are the same when they read the same: function, module's file name, file and line of every
//! frame. Addresses do not count, so that two processes can be compared; nor do lines where asked.
//!
//! Rates: within one recording, the change by the time between; between two recordings, what each
//! left per second since its attach (or per request), the one subtracted from the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::books::{Amount, Librarian};
use super::frames::{Frame, base_name};
use crate::snapshot::Snapshot;

/// One of the two.
#[derive(Clone, Copy)]
pub struct Side<'a, 'r> {
    pub librarian: &'a Librarian<'r>,
    /// Of the snapshot.
    pub position: usize,
    /// Requests served since the attach, where the user counted them.
    pub requests: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub ignore_lines: bool,
    /// Both sides are of one recording: what lies between counts, not what was before.
    pub same_recording: bool,
    /// Requests between the two, where the user counted them.
    pub requests_between: Option<u64>,
}

/// What stacks that read the same held before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffLine {
    pub frames: Arc<[Arc<Frame>]>,
    pub before: Amount,
    pub after: Amount,
    pub allocated_before: Amount,
    pub allocated_after: Amount,
    pub rates: Rates,
}

impl DiffLine {
    pub fn bytes(&self) -> i128 {
        i128::from(self.after.bytes) - i128::from(self.before.bytes)
    }

    pub fn blocks(&self) -> i128 {
        i128::from(self.after.blocks) - i128::from(self.before.blocks)
    }
}

/// Bytes; `None` where there is nothing to divide by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub per_second: Option<f64>,
    pub per_request: Option<f64>,
}

/// Lines by how much they changed, growth first, then shrinkage, then what stayed.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    pub total: DiffLine,
    pub lines: Vec<DiffLine>,
    /// Of one recording: the time between.
    pub seconds: Option<f64>,
}

#[derive(Default)]
struct Sum {
    frames: Option<Arc<[Arc<Frame>]>>,
    before: [Amount; 2],
    after: [Amount; 2],
}

pub fn diff(before: Side<'_, '_>, after: Side<'_, '_>, options: Options) -> Option<Diff> {
    let at = |side: &Side<'_, '_>| -> Option<usize> {
        (side.position < side.librarian.recording().snapshots.len()).then_some(side.position)
    };
    let (old_at, new_at) = (at(&before)?, at(&after)?);
    let old = &before.librarian.recording().snapshots[old_at];
    let new = &after.librarian.recording().snapshots[new_at];
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    add(&mut sums, before.librarian, old, options.ignore_lines, |sum| &mut sum.before);
    add(&mut sums, after.librarian, new, options.ignore_lines, |sum| &mut sum.after);

    let seconds = |at: &Snapshot| at.elapsed_ns as f64 / 1e9;
    let between = options.same_recording.then(|| seconds(new) - seconds(old));
    let rates = |old_bytes: u64, new_bytes: u64| {
        let change = new_bytes as f64 - old_bytes as f64;
        let by = |bytes: u64, divisor: f64| (divisor > 0.0).then(|| bytes as f64 / divisor);
        let per = |old_count: Option<f64>, new_count: Option<f64>| {
            Some(by(new_bytes, new_count?)? - by(old_bytes, old_count?)?)
        };
        Rates {
            per_second: match between {
                Some(seconds) => (seconds > 0.0).then(|| change / seconds),
                None => per(Some(seconds(old)), Some(seconds(new))),
            },
            per_request: match options.requests_between {
                Some(requests) => (requests > 0).then(|| change / requests as f64),
                None => {
                    let count = |side: &Side<'_, '_>| side.requests.map(|count| count as f64);
                    per(count(&before), count(&after))
                }
            },
        }
    };
    let mut total = [Amount::default(); 4];
    let mut lines: Vec<DiffLine> = Vec::with_capacity(sums.len());
    for sum in sums.into_values() {
        let parts = [sum.before[0], sum.after[0], sum.before[1], sum.after[1]];
        for (total, part) in total.iter_mut().zip(parts) {
            total.bytes = total.bytes.saturating_add(part.bytes);
            total.blocks = total.blocks.saturating_add(part.blocks);
        }
        lines.push(DiffLine {
            frames: sum.frames.unwrap_or_default(),
            before: parts[0],
            after: parts[1],
            allocated_before: parts[2],
            allocated_after: parts[3],
            rates: rates(parts[0].bytes, parts[1].bytes),
        });
    }
    // Equal ones stay in the order of their names.
    lines.sort_by_key(|line| std::cmp::Reverse((line.bytes(), line.blocks())));
    let (grown, mut rest): (Vec<_>, Vec<_>) = lines.into_iter().partition(|it| it.bytes() > 0);
    rest.sort_by_key(|line| (line.bytes(), line.blocks()));
    Some(Diff {
        total: DiffLine {
            frames: Arc::from([]),
            before: total[0],
            after: total[1],
            allocated_before: total[2],
            allocated_after: total[3],
            rates: rates(total[0].bytes, total[1].bytes),
        },
        lines: grown.into_iter().chain(rest).collect(),
        seconds: between,
    })
}

fn add(
    sums: &mut BTreeMap<String, Sum>,
    librarian: &Librarian<'_>,
    snapshot: &Snapshot,
    ignore_lines: bool,
    of: impl Fn(&mut Sum) -> &mut [Amount; 2],
) {
    let mut keys: BTreeMap<usize, String> = BTreeMap::new();
    for row in &snapshot.native.stacks {
        let Some(group) = librarian.group_of(row.stack) else { continue };
        let key = keys
            .entry(group)
            .or_insert_with(|| key(&librarian.frames_of(group), ignore_lines))
            .clone();
        let sum = sums.entry(key).or_default();
        sum.frames.get_or_insert_with(|| librarian.frames_of(group));
        let [outstanding, allocated] = of(sum);
        let add = |amount: &mut Amount, bytes: u64, blocks: u64| {
            amount.bytes = amount.bytes.saturating_add(bytes);
            amount.blocks = amount.blocks.saturating_add(blocks);
        };
        add(
            outstanding,
            row.allocated_bytes.saturating_sub(row.freed_bytes),
            row.allocated_blocks.saturating_sub(row.freed_blocks),
        );
        add(allocated, row.allocated_bytes, row.allocated_blocks);
    }
}

/// How a stack reads: what makes two of them the same.
pub fn key(frames: &[Arc<Frame>], ignore_lines: bool) -> String {
    let mut key = String::new();
    for frame in frames {
        match (&frame.function, &frame.module) {
            (None, None) => key.push_str("[unknown]"),
            _ => key.push_str(&frame.label()),
        }
        key.push('\u{1f}');
        key.push_str(frame.module.as_deref().map_or("", base_name));
        key.push('\u{1f}');
        key.push_str(frame.file.as_deref().unwrap_or(""));
        if let (false, Some(line)) = (ignore_lines, frame.line) {
            key.push_str(&format!("\u{1f}{line}"));
        }
        key.push('\u{1e}');
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Recording;
    use crate::snapshot::synthetic::{self, recording};

    fn between(old: &Recording, new: &Recording, at: (usize, usize), options: Options) -> Diff {
        let (a, b) = (Librarian::new(old), Librarian::new(new));
        let side = |librarian, position, requests| Side { librarian, position, requests };
        diff(side(&a, at.0, None), side(&b, at.1, None), options).unwrap()
    }

    fn line<'a>(diff: &'a Diff, function: &str) -> &'a DiffLine {
        let has = |line: &&DiffLine| {
            line.frames
                .iter()
                .any(|it| it.function.as_deref().is_some_and(|n| n.contains(function)))
        };
        diff.lines.iter().find(has).unwrap()
    }

    /// The same program at other addresses, as another process has it.
    fn moved(recording: &Recording, by: u64) -> Recording {
        let mut moved = recording.clone();
        for object in moved.header.tracee.objects.iter_mut().chain(&mut moved.new_objects) {
            for mapping in &mut object.mappings {
                mapping.start += by;
                mapping.end += by;
            }
        }
        for stack in &mut moved.stacks {
            stack.id += 0x1000;
            stack.frames.iter_mut().for_each(|frame| *frame += by);
        }
        moved.names.iter_mut().for_each(|names| names.address += by);
        for snapshot in &mut moved.snapshots {
            snapshot.native.stacks.iter_mut().for_each(|row| row.stack += 0x1000);
            snapshot.native.ranges.iter_mut().for_each(|range| range.stack += 0x1000);
        }
        moved
    }

    const SAME: Options =
        Options { ignore_lines: false, same_recording: true, requests_between: None };
    const TWO: Options = Options { same_recording: false, ..SAME };

    #[test]
    fn growth_is_told_by_stack_per_second_and_per_request() {
        let recording = recording();
        let options = Options { requests_between: Some(1_010), ..SAME };
        let diff = between(&recording, &recording, (1, 2), options);
        let leak = line(&diff, "sqlite3MemMalloc");
        assert_eq!((leak.bytes(), leak.blocks()), (1_010 * 4099, 1_010));
        assert_eq!(leak.rates.per_second, Some(101.0 * 4099.0));
        assert_eq!(leak.rates.per_request, Some(4099.0));
        let churn = line(&diff, "xmlStrndup");
        assert_eq!(churn.blocks(), -9_990);
        assert!(diff.lines[0].bytes() > 0);
        let sum: i128 = diff.lines.iter().map(DiffLine::bytes).sum();
        assert_eq!(sum, diff.total.bytes());
    }

    #[test]
    fn two_processes_with_other_addresses_have_the_same_stacks() {
        let old = recording();
        let new = moved(&old, 0x1_0000_0000);
        let diff = between(&old, &new, (2, 2), TWO);
        let changed: Vec<_> = diff.lines.iter().filter(|line| line.bytes() != 0).collect();
        assert!(changed.is_empty(), "{changed:#?}");
        assert_eq!(diff.total.after, diff.total.before);
        assert_eq!(diff.total.rates.per_second, Some(0.0));
    }

    #[test]
    fn a_diff_with_itself_is_empty_and_turned_around_is_negative() {
        let recording = recording();
        let same = between(&recording, &recording, (2, 2), SAME);
        assert!(same.lines.iter().all(|line| line.bytes() == 0));
        assert_eq!(same.total.rates.per_second, None);
        let forth = between(&recording, &recording, (0, 2), SAME).total.bytes();
        let back = between(&recording, &recording, (2, 0), SAME).total.bytes();
        assert_eq!(forth, -back);
    }

    #[test]
    fn lines_count_unless_they_are_not_to() {
        let old = recording();
        let mut new = recording();
        for name in new.names.iter_mut().flat_map(|names| &mut names.names) {
            name.line = name.line.map(|line| line + 1);
        }
        let leak =
            |options| line(&between(&old, &new, (2, 2), options), "sqlite3MemMalloc").bytes() == 0;
        assert!(!leak(TWO));
        assert!(leak(Options { ignore_lines: true, ..TWO }));
    }

    #[test]
    fn hostile_figures_saturate() {
        let mut new = recording();
        for row in &mut new.snapshots[2].native.stacks {
            (row.allocated_bytes, row.freed_bytes) = (u64::MAX, 0);
        }
        let diff = between(&synthetic::recording(), &new, (2, 2), TWO);
        assert_eq!(diff.total.after.bytes, u64::MAX);
    }
}
