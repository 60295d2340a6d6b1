//! What is written for one snapshot: only the rows that changed since the one before it. Pure.
//!
//! Instants of birth stand in place of ages, so that a block that merely grew older is no change;
//! the frames of Go's stacks are written once. The rows of native stacks come back in the order of
//! their ids, ranges in the order of their addresses. State is kept for the last snapshot only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    CohortRow, Cohorts, GoStack, Known, LiveBlocks, Name, Native, Range, RangeOwner, Snapshot,
    StackTotals,
};

/// `(bytes, blocks, youngest birth, oldest birth, aged bytes, aged blocks)`
type LiveRow = (u64, u64, u64, u64, u64, u64);
/// `(allocated bytes, blocks, freed bytes, blocks, live)`
type TotalsRow = (u64, u64, u64, u64, Option<LiveRow>);
/// `(image, start)`
type RangeKey = (u32, u64);
/// `(length, stack, birth, owner, reserved)`
type RangeRow = (u64, u64, u64, RangeOwner, bool);
/// `(frames, inuse bytes, objects, alloc bytes, objects)`
type GoRow = (u32, u64, u64, u64, u64);

/// One snapshot as it is written, against the one before it.
#[derive(Serialize, Deserialize)]
pub(super) struct Delta {
    /// Against nothing: what came before does not count.
    whole: bool,
    /// Without the lists that follow.
    snapshot: Snapshot,
    stacks: Vec<(u64, TotalsRow)>,
    stacks_gone: Vec<u64>,
    /// `((stack, interval), (bytes, blocks))`
    cohorts: Vec<((u64, u32), (u64, u64))>,
    cohorts_gone: Vec<(u64, u32)>,
    ranges: Vec<(RangeKey, RangeRow)>,
    ranges_gone: Vec<RangeKey>,
    /// Numbered on from the frames of the snapshots before.
    go_frames: Vec<Arc<[Arc<Name>]>>,
    /// All of them, in their order.
    go_stacks: Vec<GoRow>,
}

/// What both sides know of the snapshot before.
#[derive(Default)]
struct Books {
    stacks: BTreeMap<u64, TotalsRow>,
    cohorts: BTreeMap<(u64, u32), (u64, u64)>,
    ranges: BTreeMap<RangeKey, RangeRow>,
}

/// Turns snapshots into deltas, one after the other.
#[derive(Default)]
pub(super) struct Encoder {
    started: bool,
    before: Books,
    go_frames: HashMap<Arc<[Arc<Name>]>, u32>,
}

impl Encoder {
    pub(super) fn encode(&mut self, snapshot: &Snapshot) -> Delta {
        let native = &snapshot.native;
        let at = native.ages_at_ns;
        let now = Books {
            stacks: native.stacks.iter().map(|row| (row.stack, totals_row(row, at))).collect(),
            cohorts: native
                .cohorts
                .rows
                .iter()
                .map(|row| ((row.stack, row.cohort), (row.bytes, row.blocks)))
                .collect(),
            ranges: native
                .ranges
                .iter()
                .map(|range| ((range.image, range.start), range_row(range, at)))
                .collect(),
        };
        let (stacks, stacks_gone) = changes(&self.before.stacks, &now.stacks);
        let (cohorts, cohorts_gone) = changes(&self.before.cohorts, &now.cohorts);
        let (ranges, ranges_gone) = changes(&self.before.ranges, &now.ranges);
        self.before = now;

        let mut go_frames = Vec::new();
        let mut go_stacks = Vec::new();
        let mut go = snapshot.go.clone();
        if let Known::Value(books) = &mut go {
            for stack in std::mem::take(&mut books.stacks) {
                let next = u32::try_from(self.go_frames.len()).unwrap_or(u32::MAX);
                let frames = *self.go_frames.entry(stack.frames.clone()).or_insert_with(|| {
                    go_frames.push(stack.frames);
                    next
                });
                go_stacks.push((
                    frames,
                    stack.inuse_bytes,
                    stack.inuse_objects,
                    stack.alloc_bytes,
                    stack.alloc_objects,
                ));
            }
        }
        Delta {
            whole: !std::mem::replace(&mut self.started, true),
            snapshot: Snapshot {
                native: Native {
                    stacks: Vec::new(),
                    ranges: Vec::new(),
                    losses: native.losses.clone(),
                    tallies: native.tallies.clone(),
                    hits: native.hits.clone(),
                    ages_at_ns: at,
                    cohorts: Cohorts { ends_ns: native.cohorts.ends_ns.clone(), rows: Vec::new() },
                },
                go,
                process: snapshot.process.clone(),
                own: snapshot.own.clone(),
                ended: snapshot.ended.clone(),
                new_probes: snapshot.new_probes.clone(),
                memory: snapshot.memory.clone(),
                mark: snapshot.mark.clone(),
                new_images: snapshot.new_images.clone(),
                images: snapshot.images.clone(),
                closed: snapshot.closed.clone(),
                untraced: snapshot.untraced.clone(),
                ..*snapshot
            },
            stacks,
            stacks_gone,
            cohorts,
            cohorts_gone,
            ranges,
            ranges_gone,
            go_frames,
            go_stacks,
        }
    }
}

/// Turns deltas back into snapshots, in the order in which they were written.
#[derive(Default)]
pub(super) struct Decoder {
    before: Books,
    go_frames: Vec<Arc<[Arc<Name>]>>,
}

impl Decoder {
    /// The reason where the rows refer to what was not written.
    pub(super) fn decode(&mut self, delta: Delta) -> Result<Snapshot, String> {
        let mut snapshot = delta.snapshot;
        if delta.whole {
            *self = Self::default();
        }
        apply(&mut self.before.stacks, delta.stacks, &delta.stacks_gone);
        apply(&mut self.before.cohorts, delta.cohorts, &delta.cohorts_gone);
        apply(&mut self.before.ranges, delta.ranges, &delta.ranges_gone);
        let native = &mut snapshot.native;
        let at = native.ages_at_ns;
        native.stacks =
            self.before.stacks.iter().map(|(stack, row)| totals(*stack, row, at)).collect();
        native.cohorts.rows = self
            .before
            .cohorts
            .iter()
            .map(|(&(stack, cohort), &(bytes, blocks))| CohortRow { stack, cohort, bytes, blocks })
            .collect();
        native.ranges = self.before.ranges.iter().map(|(key, row)| range(*key, row, at)).collect();

        self.go_frames.extend(delta.go_frames);
        match &mut snapshot.go {
            Known::Value(books) => {
                books.stacks = delta
                    .go_stacks
                    .iter()
                    .map(|row| self.go_stack(row))
                    .collect::<Option<_>>()
                    .ok_or("names frames of a Go stack that were not written")?;
            }
            Known::Unknown { .. } if !delta.go_stacks.is_empty() => {
                return Err("holds Go stacks without Go's books".to_owned());
            }
            Known::Unknown { .. } => {}
        }
        Ok(snapshot)
    }

    fn go_stack(&self, row: &GoRow) -> Option<GoStack> {
        let (frames, inuse_bytes, inuse_objects, alloc_bytes, alloc_objects) = *row;
        let frames = self.go_frames.get(usize::try_from(frames).ok()?)?.clone();
        Some(GoStack { frames, inuse_bytes, inuse_objects, alloc_bytes, alloc_objects })
    }
}

/// Rows that are new or differ, and the keys of those that are gone.
fn changes<K: Ord + Copy, V: PartialEq + Copy>(
    before: &BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
) -> (Vec<(K, V)>, Vec<K>) {
    let changed = now.iter().filter(|(key, value)| before.get(key) != Some(value));
    let gone = before.keys().filter(|key| !now.contains_key(key));
    (changed.map(|(key, value)| (*key, *value)).collect(), gone.copied().collect())
}

fn apply<K: Ord, V>(before: &mut BTreeMap<K, V>, changed: Vec<(K, V)>, gone: &[K]) {
    for key in gone {
        before.remove(key);
    }
    before.extend(changed);
}

// Ages and births turn into each other without loss whatever the figures: the difference wraps.

fn totals_row(row: &StackTotals, at: u64) -> TotalsRow {
    let live = row.live.map(|live| {
        // Without a block there is no birth, and the ages are what they are.
        let birth = |age: u64| if live.blocks == 0 { age } else { at.wrapping_sub(age) };
        (
            live.bytes,
            live.blocks,
            birth(live.youngest_age_ns),
            birth(live.oldest_age_ns),
            live.aged_bytes,
            live.aged_blocks,
        )
    });
    (row.allocated_bytes, row.allocated_blocks, row.freed_bytes, row.freed_blocks, live)
}

fn totals(stack: u64, row: &TotalsRow, at: u64) -> StackTotals {
    let (allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, live) = *row;
    let live = live.map(|(bytes, blocks, youngest, oldest, aged_bytes, aged_blocks)| {
        let age = |birth: u64| if blocks == 0 { birth } else { at.wrapping_sub(birth) };
        LiveBlocks {
            bytes,
            blocks,
            youngest_age_ns: age(youngest),
            oldest_age_ns: age(oldest),
            aged_bytes,
            aged_blocks,
        }
    });
    StackTotals { stack, allocated_bytes, allocated_blocks, freed_bytes, freed_blocks, live }
}

fn range_row(range: &Range, at: u64) -> RangeRow {
    let birth = at.wrapping_sub(range.age_ns);
    (range.length_bytes, range.stack, birth, range.owner, range.reserved)
}

fn range((image, start): RangeKey, row: &RangeRow, at: u64) -> Range {
    let (length_bytes, stack, birth, owner, reserved) = *row;
    Range { start, length_bytes, stack, age_ns: at.wrapping_sub(birth), owner, reserved, image }
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{self, recording};
    use super::*;

    fn there_and_back(snapshots: &[Snapshot]) -> Vec<Snapshot> {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let decoded = snapshots.iter().map(|snapshot| decoder.decode(encoder.encode(snapshot)));
        decoded.map(Result::unwrap).collect()
    }

    #[test]
    fn every_snapshot_comes_back_as_it_was() {
        let mut snapshots = recording().snapshots;
        // Rows that go, come back and are of no block.
        snapshots[1].native.stacks.remove(0);
        snapshots[1].native.ranges.remove(1);
        snapshots[2].native.stacks[0].live = Some(LiveBlocks::default());
        snapshots[2].native.stacks[1].live = None;
        snapshots[0].native.cohorts = Cohorts {
            ends_ns: vec![1, 2],
            rows: vec![CohortRow { stack: 7, cohort: 0, bytes: 10, blocks: 1 }],
        };
        snapshots[2].go = Known::unknown("gone");
        assert_eq!(there_and_back(&snapshots), snapshots);
    }

    #[test]
    fn ages_beyond_any_clock_come_back_as_they_were() {
        let mut snapshots = recording().snapshots;
        snapshots[0].native.ages_at_ns = 3;
        snapshots[0].native.stacks[0].live.as_mut().unwrap().oldest_age_ns = u64::MAX;
        snapshots[0].native.ranges[0].age_ns = u64::MAX;
        assert_eq!(there_and_back(&snapshots), snapshots);
    }

    #[test]
    fn a_block_that_merely_grew_older_is_no_change() {
        let first = recording().snapshots.swap_remove(0);
        let mut later = first.clone();
        later.native.ages_at_ns += synthetic::SECOND_NS;
        for live in later.native.stacks.iter_mut().filter_map(|row| row.live.as_mut()) {
            live.youngest_age_ns += synthetic::SECOND_NS;
            live.oldest_age_ns += synthetic::SECOND_NS;
        }
        later.native.ranges.iter_mut().for_each(|range| range.age_ns += synthetic::SECOND_NS);
        let mut encoder = Encoder::default();
        let whole = encoder.encode(&first);
        assert_eq!(whole.stacks.len(), first.native.stacks.len());
        assert!(!whole.go_frames.is_empty());
        let delta = encoder.encode(&later);
        assert_eq!((delta.stacks.len(), delta.ranges.len(), delta.go_frames.len()), (0, 0, 0));
    }

    #[test]
    fn a_delta_against_nothing_forgets_what_came_before() {
        let snapshots = recording().snapshots;
        let mut decoder = Decoder::default();
        decoder.decode(Encoder::default().encode(&snapshots[2])).unwrap();
        let again = decoder.decode(Encoder::default().encode(&snapshots[0])).unwrap();
        assert_eq!(again, snapshots[0]);
    }

    #[test]
    fn frames_that_were_never_written_are_an_answer() {
        let mut delta = Encoder::default().encode(&recording().snapshots[0]);
        delta.go_stacks[0].0 = u32::MAX;
        let refused = Decoder::default().decode(delta).unwrap_err();
        assert!(refused.contains("not written"), "{refused}");
    }
}
