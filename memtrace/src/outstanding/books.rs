//! The view that every report prints: who holds what at one snapshot, in a fixed order.
//!
//! Stacks that read the same (names, files, lines, modules) are one row, whatever their addresses;
//! the ids of all of them stay with the row. Nothing here formats, and no report adds up.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use memtrace_common::counters::{Loss, Tally};
use memtrace_common::unwind::WalkEnd;

use super::callers::{CallerLine, callers};
use super::checks::{Check, checks};
use super::doubts::{Doubt, doubts};
use super::frames::{CodeAddress, Frame, FrameIndex, FrameName};
use super::ranges::RangeAnomalies;
use super::summary::Summary;
use crate::snapshot::{
    ClosedImage, OpenImage, RangeOwner, Recording, Snapshot, StackDef, StackTotals,
};

/// Bytes and blocks together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    pub bytes: u64,
    pub blocks: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64, blocks: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.blocks = self.blocks.saturating_add(blocks);
    }
}

/// Between which instants growth is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowthBase {
    /// The snapshot compared with; `None`: the attach, where the books were empty.
    pub sequence: Option<u32>,
    pub elapsed_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    pub bytes: i128,
    pub bytes_per_second: f64,
}

/// One row: all stacks that read the same.
#[derive(Clone, Debug, PartialEq)]
pub struct StackLine {
    /// Ascending.
    pub ids: Vec<u64>,
    /// Leaf first. Addresses are those of the first id.
    pub frames: Arc<[Arc<Frame>]>,
    /// `None`: the recording does not define the stack.
    pub end: Option<WalkEnd>,
    pub outstanding: Amount,
    pub allocated: Amount,
    pub freed: Amount,
    /// At least as old as the recording's `--min-age`; `None` when ages were not read.
    pub aged: Option<Amount>,
    /// Youngest and oldest live block.
    pub ages_ns: Option<(u64, u64)>,
    /// Of all [`Books::ranked_total`] bytes, 0 to 1.
    pub share: f64,
    pub growth: Option<Growth>,
    /// The most that any snapshot up to this one saw.
    pub peak_bytes: u64,
    /// Outstanding by image.
    pub by_image: BTreeMap<u32, Amount>,
}

impl StackLine {
    /// Its stack is known and whole.
    pub fn is_complete(&self) -> bool {
        self.end == Some(WalkEnd::Complete)
    }
}

/// Mapped ranges of one owner whose stacks read the same.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeLine {
    pub owner: RangeOwner,
    pub reserved: bool,
    pub ids: Vec<u64>,
    pub frames: Arc<[Arc<Frame>]>,
    pub bytes: u64,
    pub ranges: u64,
    pub ages_ns: (u64, u64),
}

/// A counter with its sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterLine {
    pub label: String,
    pub count: u64,
    pub hint: &'static str,
}

/// Everything a report tells of one snapshot.
#[derive(Debug)]
pub struct Books<'a> {
    pub snapshot: &'a Snapshot,
    pub outstanding: Amount,
    pub allocated: Amount,
    pub freed: Amount,
    /// Outstanding at least `min_age_ns` old; `None` when ages were not read.
    pub aged: Option<Amount>,
    /// What `--min-age` of the recording was; 0: none.
    pub min_age_ns: u64,
    /// The most outstanding bytes of all snapshots up to this one, and when.
    pub peak_bytes: u64,
    pub peak_elapsed_ns: u64,
    pub growth_base: GrowthBase,
    pub growth: Option<Growth>,
    /// Every stack that allocated since the attach, the largest outstanding first.
    pub stacks: Vec<StackLine>,
    /// The same stacks, added up by the program's own frame nearest to the allocator.
    pub callers: Vec<CallerLine>,
    /// Outstanding bytes whose stack is not whole.
    pub truncated: Amount,
    pub ranges: Vec<RangeLine>,
    pub summary: Summary,
    /// Every [`Loss`], zeros included.
    pub losses: Vec<CounterLine>,
    /// Every [`Tally`], zeros included.
    pub tallies: Vec<CounterLine>,
    pub checks: Vec<Check>,
    pub doubts: Vec<Doubt>,
    pub images: Vec<OpenImage>,
}

impl Books<'_> {
    /// No loss was counted.
    pub fn is_lossless(&self) -> bool {
        self.losses.iter().all(|loss| loss.count == 0)
    }

    /// What profiles and rankings count of a row: what is old enough where the recording asked for
    /// a `--min-age` and ages were read, else what is outstanding.
    pub fn ranked(&self, line: &StackLine) -> Amount {
        ranked(line.outstanding, line.aged, self.min_age_ns)
    }

    /// [`Books::ranked`] of all rows together.
    pub fn ranked_total(&self) -> Amount {
        ranked(self.outstanding, self.aged, self.min_age_ns)
    }

    /// [`Books::ranked`] of one stack before rows that read the same are folded.
    pub fn ranked_row(&self, row: &StackTotals) -> Amount {
        let aged = row.live.map(|live| Amount { bytes: live.aged_bytes, blocks: live.aged_blocks });
        // Ages of some rows only would make two kinds of total.
        ranked(outstanding(row), aged.or(self.aged.map(|_| Amount::default())), self.min_age_ns)
    }
}

fn ranked(outstanding: Amount, aged: Option<Amount>, min_age_ns: u64) -> Amount {
    aged.filter(|_| min_age_ns > 0).unwrap_or(outstanding)
}

/// What is outstanding of one row; a row that freed more than it allocated holds nothing, and
/// [`checks`] says so.
fn outstanding(row: &StackTotals) -> Amount {
    Amount {
        bytes: row.allocated_bytes.saturating_sub(row.freed_bytes),
        blocks: row.allocated_blocks.saturating_sub(row.freed_blocks),
    }
}

/// Which stacks read the same, worked out once per recording.
pub struct Librarian<'a> {
    recording: &'a Recording,
    index: FrameIndex<'a>,
    /// Stack id → position in `groups`.
    group_of: HashMap<u64, usize>,
    groups: Vec<Group>,
    /// Outstanding amount of every group, snapshot by snapshot.
    history: Vec<HashMap<usize, Amount>>,
}

struct Group {
    frames: Arc<[Arc<Frame>]>,
    end: Option<WalkEnd>,
}

impl<'a> Librarian<'a> {
    pub fn new(recording: &'a Recording) -> Self {
        let index = FrameIndex::new(recording);
        let mut ids: Vec<u64> = recording.stacks.iter().map(|stack| stack.id).collect();
        for snapshot in &recording.snapshots {
            ids.extend(snapshot.native.stacks.iter().map(|row| row.stack));
            ids.extend(snapshot.native.ranges.iter().map(|range| range.stack));
        }
        for closed in &recording.closed {
            ids.extend(closed.stacks.iter().map(|row| row.stack));
        }
        ids.sort_unstable();
        ids.dedup();

        let leaders = fold(&index, &ids);
        let mut group_of = HashMap::with_capacity(ids.len());
        let mut groups: Vec<Group> = Vec::new();
        let mut group_led_by: HashMap<usize, usize> = HashMap::new();
        for (position, leader) in leaders.into_iter().enumerate() {
            let group = *group_led_by.entry(leader).or_insert_with(|| {
                let id = ids[leader];
                groups.push(Group { frames: index.frames(id).into(), end: index.end(id) });
                groups.len() - 1
            });
            group_of.insert(ids[position], group);
        }
        let history = recording.snapshots.iter().map(|at| amounts(&group_of, at)).collect();
        Self { recording, index, group_of, groups, history }
    }

    pub fn recording(&self) -> &'a Recording {
        self.recording
    }

    pub fn index(&self) -> &FrameIndex<'a> {
        &self.index
    }

    /// Which of the stacks that read the same this one is of.
    pub(crate) fn group_of(&self, stack: u64) -> Option<usize> {
        self.group_of.get(&stack).copied()
    }

    /// Leaf first.
    pub(crate) fn frames_of(&self, group: usize) -> Arc<[Arc<Frame>]> {
        self.groups[group].frames.clone()
    }

    /// Stacks that read the same are one line, by a position that holds for the whole recording.
    pub fn lines(&self) -> impl ExactSizeIterator<Item = &[Arc<Frame>]> {
        self.groups.iter().map(|group| &*group.frames)
    }

    /// What each line holds at the snapshot at `position`, by the line's position; lines without a
    /// row there are left out.
    pub fn held_at(&self, position: usize) -> impl Iterator<Item = (usize, Amount)> {
        self.history.get(position).into_iter().flatten().map(|(line, amount)| (*line, *amount))
    }

    /// The books at the snapshot at `position`, growth told since the one at `since`, where given,
    /// else since the first one (since the attach for the first one itself). `None` where there is
    /// no such snapshot.
    pub fn books(&self, position: usize, since: Option<usize>) -> Option<Books<'a>> {
        let snapshots = &self.recording.snapshots;
        let snapshot = snapshots.get(position)?;
        let history = &self.history[..=position];
        let base = since.unwrap_or(0);
        let base = (base < position).then(|| (&snapshots[base], &history[base]));
        let growth_base = GrowthBase {
            sequence: base.map(|(snapshot, _)| snapshot.sequence),
            elapsed_ns: base.map_or(0, |(snapshot, _)| snapshot.elapsed_ns),
        };
        let seconds =
            snapshot.elapsed_ns.saturating_sub(growth_base.elapsed_ns) as f64 / 1_000_000_000.0;
        let growth = |now: u64, before: u64| {
            let bytes = i128::from(now) - i128::from(before);
            (seconds > 0.0).then(|| Growth { bytes, bytes_per_second: bytes as f64 / seconds })
        };
        let sum = |amounts: &HashMap<usize, Amount>| {
            amounts.values().fold(0u64, |sum, amount| sum.saturating_add(amount.bytes))
        };

        let mut lines: BTreeMap<usize, StackLine> = BTreeMap::new();
        for row in &snapshot.native.stacks {
            if let Some(group) = self.group_of.get(&row.stack).copied() {
                let line = lines.entry(group).or_insert_with(|| self.empty_line(group));
                take_row(line, row);
                let image = self.index.stack(row.stack).map_or(0, |stack| stack.image);
                let Amount { bytes, blocks } = outstanding(row);
                line.by_image.entry(image).or_default().add(bytes, blocks);
            }
        }
        let mut total = Totals::default();
        for line in lines.values() {
            total.take(line);
        }
        if total.aged.is_some() {
            // A row without a live block has no old one either.
            lines.values_mut().for_each(|line| {
                line.aged.get_or_insert_default();
            });
        }
        let min_age_ns = self.recording.header.min_age_ns;
        let whole = ranked(total.outstanding, total.aged, min_age_ns);
        let mut stacks: Vec<StackLine> = lines
            .into_iter()
            .map(|(group, mut line)| {
                let bytes_at = |amounts: &HashMap<usize, Amount>| {
                    amounts.get(&group).map_or(0, |amount| amount.bytes)
                };
                line.ids.sort_unstable();
                let held = ranked(line.outstanding, line.aged, min_age_ns);
                line.share = share(held.bytes, whole.bytes);
                line.growth = growth(
                    line.outstanding.bytes,
                    base.map_or(0, |(_, amounts)| bytes_at(amounts)),
                );
                line.peak_bytes = history.iter().map(bytes_at).max().unwrap_or(0);
                line
            })
            .collect();
        stacks.sort_by(|a, b| {
            let amounts = |line: &StackLine| {
                let ranked = ranked(line.outstanding, line.aged, min_age_ns);
                Reverse((ranked, line.outstanding, line.allocated))
            };
            let names = || by_names((&a.frames, &a.ids), (&b.frames, &b.ids));
            amounts(a).cmp(&amounts(b)).then_with(names)
        });

        let held = |line: &StackLine| ranked(line.outstanding, line.aged, min_age_ns);
        let callers = callers(&stacks, held, &self.recording.header.tracee.executable);

        // The earliest of equal peaks.
        let (peak_bytes, peak_elapsed_ns) = history
            .iter()
            .zip(snapshots)
            .map(|(amounts, at)| (sum(amounts), Reverse(at.elapsed_ns)))
            .max()
            .map_or((0, 0), |(bytes, Reverse(elapsed_ns))| (bytes, elapsed_ns));
        Some(Books {
            snapshot,
            outstanding: total.outstanding,
            allocated: total.allocated,
            freed: total.freed,
            aged: total.aged,
            min_age_ns,
            peak_bytes,
            peak_elapsed_ns,
            growth_base,
            growth: growth(total.outstanding.bytes, base.map_or(0, |(_, amounts)| sum(amounts))),
            stacks,
            callers,
            truncated: total.truncated,
            ranges: self.range_lines(snapshot),
            summary: Summary::new(snapshot, total.outstanding.bytes),
            losses: counters(
                &snapshot.native.losses,
                Loss::ALL.iter().map(|loss| (loss.label(), loss.hint())).chain(
                    RangeAnomalies::default().counters().map(|(label, _, hint)| (label, hint)),
                ),
            ),
            tallies: counters(
                &snapshot.native.tallies,
                Tally::ALL.iter().map(|tally| (tally.label(), tally.hint())),
            ),
            checks: checks(snapshot),
            doubts: doubts(self.recording, position),
            images: self.recording.open_at(snapshot),
        })
    }

    /// What an image held when its books were closed, by stack, the largest first.
    pub fn closed_lines(&self, closed: &ClosedImage) -> Vec<StackLine> {
        let mut lines: BTreeMap<usize, StackLine> = BTreeMap::new();
        for row in &closed.stacks {
            if let Some(group) = self.group_of.get(&row.stack).copied() {
                take_row(lines.entry(group).or_insert_with(|| self.empty_line(group)), row);
            }
        }
        let mut lines: Vec<StackLine> = lines.into_values().collect();
        let whole = lines.iter().fold(0u64, |sum, line| sum.saturating_add(line.outstanding.bytes));
        for line in &mut lines {
            line.ids.sort_unstable();
            line.share = share(line.outstanding.bytes, whole);
            line.peak_bytes = line.outstanding.bytes;
        }
        lines.sort_by(|a, b| {
            let amounts = |line: &StackLine| Reverse((line.outstanding, line.allocated));
            let names = || by_names((&a.frames, &a.ids), (&b.frames, &b.ids));
            amounts(a).cmp(&amounts(b)).then_with(names)
        });
        lines
    }

    fn empty_line(&self, group: usize) -> StackLine {
        StackLine {
            ids: Vec::new(),
            frames: self.groups[group].frames.clone(),
            end: self.groups[group].end,
            outstanding: Amount::default(),
            allocated: Amount::default(),
            freed: Amount::default(),
            aged: None,
            ages_ns: None,
            share: 0.0,
            growth: None,
            peak_bytes: 0,
            by_image: BTreeMap::new(),
        }
    }

    fn range_lines(&self, snapshot: &Snapshot) -> Vec<RangeLine> {
        let mut lines: BTreeMap<(RangeOwner, bool, usize), RangeLine> = BTreeMap::new();
        for range in &snapshot.native.ranges {
            let Some(group) = self.group_of.get(&range.stack).copied() else { continue };
            let line =
                lines.entry((range.owner, range.reserved, group)).or_insert_with(|| RangeLine {
                    owner: range.owner,
                    reserved: range.reserved,
                    ids: Vec::new(),
                    frames: self.groups[group].frames.clone(),
                    bytes: 0,
                    ranges: 0,
                    ages_ns: (range.age_ns, range.age_ns),
                });
            line.ids.push(range.stack);
            line.bytes = line.bytes.saturating_add(range.length_bytes);
            line.ranges += 1;
            let (youngest, oldest) = line.ages_ns;
            line.ages_ns = (youngest.min(range.age_ns), oldest.max(range.age_ns));
        }
        let mut lines: Vec<RangeLine> = lines.into_values().collect();
        for line in &mut lines {
            line.ids.sort_unstable();
            line.ids.dedup();
        }
        lines.sort_by(|a, b| {
            let amounts = |line: &RangeLine| (line.owner, line.reserved, Reverse(line.bytes));
            let names = || by_names((&a.frames, &a.ids), (&b.frames, &b.ids));
            amounts(a).cmp(&amounts(b)).then_with(names)
        });
        lines
    }
}

/// For each stack the position of the first one that reads the same.
fn fold(index: &FrameIndex<'_>, ids: &[u64]) -> Vec<usize> {
    let notes: Vec<Option<Frame>> = ids.iter().map(|id| index.note(*id)).collect();
    // Names as numbers: a stack is compared by forty of them, not by forty strings.
    let mut numbers: HashMap<FrameName<'_>, u32> = HashMap::new();
    let mut number = |frame| {
        let next = numbers.len() as u32;
        *numbers.entry(Frame::name(frame)).or_insert(next)
    };
    let mut at_address: HashMap<CodeAddress, Vec<u32>> = HashMap::new();
    let mut first: HashMap<Vec<u32>, usize> = HashMap::with_capacity(ids.len());
    let mut leaders = Vec::with_capacity(ids.len());
    for (position, (id, note)) in ids.iter().zip(&notes).enumerate() {
        let mut key = Vec::new();
        for at in index.stack(*id).into_iter().flat_map(StackDef::addresses) {
            let numbers = at_address
                .entry(at)
                .or_insert_with(|| index.frames_at(at).iter().map(|frame| number(frame)).collect());
            key.extend_from_slice(numbers);
        }
        key.extend(note.as_ref().map(&mut number));
        leaders.push(*first.entry(key).or_insert(position));
    }
    leaders
}

/// The order of rows that hold the same: by what they read as, then by their first stack.
fn by_names(a: (&[Arc<Frame>], &[u64]), b: (&[Arc<Frame>], &[u64])) -> Ordering {
    // Lazily: most rows differ in their first frames.
    let (left, right) =
        (a.0.iter().map(|frame| frame.label()), b.0.iter().map(|frame| frame.label()));
    left.cmp(right).then_with(|| a.1.cmp(b.1))
}

/// Outstanding amount of every group at one snapshot.
fn amounts(group_of: &HashMap<u64, usize>, snapshot: &Snapshot) -> HashMap<usize, Amount> {
    let mut amounts = HashMap::new();
    for row in &snapshot.native.stacks {
        if let Some(group) = group_of.get(&row.stack) {
            let Amount { bytes, blocks } = outstanding(row);
            amounts.entry(*group).or_insert(Amount::default()).add(bytes, blocks);
        }
    }
    amounts
}

#[derive(Default)]
struct Totals {
    outstanding: Amount,
    allocated: Amount,
    freed: Amount,
    truncated: Amount,
    aged: Option<Amount>,
}

impl Totals {
    fn take(&mut self, line: &StackLine) {
        let Amount { bytes, blocks } = line.outstanding;
        self.outstanding.add(bytes, blocks);
        self.allocated.add(line.allocated.bytes, line.allocated.blocks);
        self.freed.add(line.freed.bytes, line.freed.blocks);
        if !line.is_complete() {
            self.truncated.add(bytes, blocks);
        }
        if let Some(aged) = line.aged {
            self.aged.get_or_insert_default().add(aged.bytes, aged.blocks);
        }
    }
}

fn take_row(line: &mut StackLine, row: &StackTotals) {
    let Amount { bytes, blocks } = outstanding(row);
    line.ids.push(row.stack);
    line.outstanding.add(bytes, blocks);
    line.allocated.add(row.allocated_bytes, row.allocated_blocks);
    line.freed.add(row.freed_bytes, row.freed_blocks);
    if let Some(live) = row.live {
        line.aged.get_or_insert_default().add(live.aged_bytes, live.aged_blocks);
        if live.blocks > 0 {
            let (youngest, oldest) =
                line.ages_ns.unwrap_or((live.youngest_age_ns, live.oldest_age_ns));
            line.ages_ns =
                Some((youngest.min(live.youngest_age_ns), oldest.max(live.oldest_age_ns)));
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Known counters in their order, zeros included, then those of a newer memtrace by label.
fn counters(
    rows: &[(String, u64)],
    known: impl Iterator<Item = (&'static str, &'static str)>,
) -> Vec<CounterLine> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (label, count) in rows {
        let sum = counts.entry(label).or_default();
        *sum = sum.saturating_add(*count);
    }
    let line = |label: &str, count, hint| CounterLine { label: label.to_owned(), count, hint };
    let mut lines: Vec<CounterLine> =
        known.map(|(label, hint)| line(label, counts.remove(label).unwrap_or(0), hint)).collect();
    let newer = "not known to this version of memtrace";
    lines.extend(counts.into_iter().map(|(label, count)| line(label, count, newer)));
    lines
}

#[cfg(test)]
#[path = "books_tests.rs"]
mod tests;
