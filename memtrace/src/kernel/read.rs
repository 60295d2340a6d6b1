//! Reading the books: totals by stack, live blocks, counters, stacks. Stops no one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use aya::maps::PerCpuArray;
use memtrace_common::calls::MAX_PROBES;
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::{FIRST_STACK, STACK_COLLISION, STACK_STORE_FULL};
use memtrace_common::unwind::{MAX_FRAMES, WalkEnd};

use super::ring::monotonic_ns;
use super::sys::{MayRepeat, program_counters};
use super::{Kernel, KernelError, cost};
use crate::snapshot::{CohortRow, LiveBlocks, StackDef, StackTotals};

/// [`memtrace_common::rows::CountersRow`] as plain words: losses, tallies, hits.
pub(super) type Counters = [u64; Loss::COUNT + Tally::COUNT + MAX_PROBES];

/// The books at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelSnapshot {
    /// By image, then by stack. Stacks without a single block are left out.
    pub processes: Vec<ProcessTotals>,
    /// By [`Loss`], in its order.
    pub losses: [u64; Loss::COUNT],
    /// By [`Tally`], in its order.
    pub tallies: [u64; Tally::COUNT],
    /// Calls seen per probe, in the order of attaching.
    pub hits: Vec<u64>,
    /// Something happened while it was read: each row is right, their sum is not of one instant.
    pub moving: bool,
    pub read_ns: u64,
    /// `CLOCK_MONOTONIC` at the start of the reading: ages count up to here.
    pub monotonic_ns: u64,
}

/// Without the hits that change nothing in the books.
fn of_calls(mut counters: Counters) -> Counters {
    for passed_by in [Tally::ForeignHits, Tally::UnarmedHits] {
        counters[Loss::COUNT + passed_by as usize] = 0;
    }
    counters
}

impl KernelSnapshot {
    pub fn loss(&self, loss: Loss) -> u64 {
        self.losses[loss as usize]
    }

    pub fn tally(&self, tally: Tally) -> u64 {
        self.tallies[tally as usize]
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ProcessTotals {
    /// [`super::ImageNumber`]
    pub image: u32,
    /// In the order of their ids.
    pub stacks: Vec<StackTotals>,
    /// Live blocks by stack and by interval, in this order; empty where no interval was asked for.
    pub cohorts: Vec<CohortRow>,
}

/// What the walk over the live blocks counts.
struct Counted {
    /// Position in `live` and, times the intervals, in `cohorts`.
    position: HashMap<(u32, u64), usize>,
    live: Vec<LiveBlocks>,
    cohorts: Vec<(u64, u64)>,
}

/// A stack, and whose: its addresses are that image's.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredStack {
    /// [`super::ImageNumber`]
    pub image: u32,
    pub stack: StackDef,
    /// The count of changes, its lower half, when it was walked: see [`super::Noted`].
    pub changes: u16,
}

impl Kernel {
    /// Reads the books. `read_blocks`: also walk the live blocks, for their ages; blocks at least
    /// that old count as aged.
    pub fn snapshot(&mut self, read_blocks: Option<u64>) -> Result<KernelSnapshot, KernelError> {
        self.snapshot_by_birth(read_blocks, &[])
    }

    /// The same, and the live blocks counted by when they were allocated: `births` are the instants
    /// before this one that end an interval, ascending, of `CLOCK_MONOTONIC`. What was allocated
    /// since the last one is interval `births.len()`, what was during the reading the one after it.
    pub fn snapshot_by_birth(
        &mut self,
        read_blocks: Option<u64>,
        births: &[u64],
    ) -> Result<KernelSnapshot, KernelError> {
        let started = Instant::now();
        let now_ns = monotonic_ns();
        let before = self.read_counters()?;
        let mut processes: BTreeMap<u32, BTreeMap<u64, StackTotals>> = BTreeMap::new();
        self.totals
            .for_each(|key, row, _| {
                if row.allocated_blocks == 0 && row.freed_blocks == 0 {
                    return;
                }
                let totals = StackTotals {
                    stack: key.stack,
                    allocated_bytes: row.allocated_bytes,
                    allocated_blocks: row.allocated_blocks,
                    freed_bytes: row.freed_bytes,
                    freed_blocks: row.freed_blocks,
                    live: read_blocks.map(|_| LiveBlocks::default()),
                };
                processes.entry(key.image).or_default().insert(key.stack, totals);
            })
            .map_err(|source| KernelError::map("read", "TOTALS", source))?;
        let mut cohorts: BTreeMap<u32, Vec<CohortRow>> = BTreeMap::new();
        if let Some(min_age_ns) = read_blocks {
            let intervals = births.len() + 2;
            let counted = self.read_live(now_ns, min_age_ns, births)?;
            for ((image, stack), position) in counted.position {
                let stacks = processes.entry(image).or_default();
                let empty = StackTotals { stack, ..StackTotals::default() };
                stacks.entry(stack).or_insert(empty).live = Some(counted.live[position]);
                let of_stack = &counted.cohorts[position * intervals..][..intervals];
                let rows = (0u32..).zip(of_stack).filter(|(_, (_, blocks))| *blocks > 0);
                let row = |(cohort, &(bytes, blocks))| CohortRow { stack, cohort, bytes, blocks };
                cohorts.entry(image).or_default().extend(rows.map(row));
            }
            cohorts
                .values_mut()
                .for_each(|rows| rows.sort_unstable_by_key(|row| (row.stack, row.cohort)));
        }
        for (image, stacks) in &processes {
            for stack in stacks.keys().filter(|stack| !self.delivered_stacks.contains(stack)) {
                self.wanted_stacks.insert(*stack, *image);
            }
        }
        let after = self.read_counters()?;
        let (losses, rest) = split(after.as_slice());
        let (tallies, hits) = split(rest);
        let mut losses: [u64; Loss::COUNT] = losses;
        losses[Loss::ProgramMissed as usize] += self.missed_runs();
        Ok(KernelSnapshot {
            processes: processes
                .into_iter()
                .map(|(image, stacks)| ProcessTotals {
                    image,
                    stacks: stacks.into_values().collect(),
                    cohorts: cohorts.remove(&image).unwrap_or_default(),
                })
                .collect(),
            losses,
            tallies,
            hits: hits[..self.places.count().min(MAX_PROBES)].to_vec(),
            moving: of_calls(*before) != of_calls(*after),
            read_ns: u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            monotonic_ns: now_ns,
        })
    }

    fn read_live(
        &self,
        now_ns: u64,
        min_age_ns: u64,
        births: &[u64],
    ) -> Result<Counted, KernelError> {
        let intervals = births.len() + 2;
        let mut counted =
            Counted { position: HashMap::new(), live: Vec::new(), cohorts: Vec::new() };
        let mut seen = HashSet::new();
        self.blocks
            .for_each(|key, block, may_repeat| {
                if may_repeat == MayRepeat::Yes && !seen.insert(*key) {
                    return;
                }
                let age_ns = now_ns.saturating_sub(block.time_ns);
                let next = counted.live.len();
                let position = *counted.position.entry((key.image, block.stack)).or_insert(next);
                if position == next {
                    let fresh = LiveBlocks { youngest_age_ns: u64::MAX, ..LiveBlocks::default() };
                    counted.live.push(fresh);
                    counted.cohorts.resize((next + 1) * intervals, (0, 0));
                }
                let sum = &mut counted.live[position];
                sum.bytes = sum.bytes.saturating_add(block.size);
                sum.blocks += 1;
                sum.youngest_age_ns = sum.youngest_age_ns.min(age_ns);
                sum.oldest_age_ns = sum.oldest_age_ns.max(age_ns);
                if age_ns >= min_age_ns {
                    sum.aged_bytes = sum.aged_bytes.saturating_add(block.size);
                    sum.aged_blocks += 1;
                }
                let interval = match block.time_ns > now_ns {
                    true => births.len() + 1,
                    false => births.partition_point(|end| *end < block.time_ns),
                };
                let (bytes, blocks) = &mut counted.cohorts[position * intervals + interval];
                *bytes = bytes.saturating_add(block.size);
                *blocks += 1;
            })
            .map_err(|source| KernelError::map("read", "BLOCKS", source))?;
        Ok(counted)
    }

    /// The counters of all CPUs together.
    pub(super) fn read_counters(&self) -> Result<Box<Counters>, KernelError> {
        const MAP: &str = "COUNTERS";
        let map = self.ebpf.map(MAP).ok_or(KernelError::Incomplete { kind: "map", name: MAP })?;
        let values = PerCpuArray::<_, Counters>::try_from(map)
            .and_then(|counters| counters.get(&0, 0))
            .map_err(KernelError::open_map(MAP))?;
        let mut sum = Box::new([0_u64; Loss::COUNT + Tally::COUNT + MAX_PROBES]);
        for cpu in values.iter() {
            for (sum, value) in sum.iter_mut().zip(cpu) {
                *sum = sum.wrapping_add(*value);
            }
        }
        Ok(sum)
    }

    fn missed_runs(&self) -> u64 {
        cost::program_fds(&self.ebpf)
            .filter_map(|fd| program_counters(fd).ok())
            .map(|counters| counters.missed)
            .sum()
    }

    /// The stacks that a snapshot or a range event named and that were not delivered before.
    pub fn new_stacks(&mut self) -> Result<Vec<StoredStack>, KernelError> {
        let mut stacks = Vec::with_capacity(self.wanted_stacks.len());
        for (id, image) in std::mem::take(&mut self.wanted_stacks) {
            if id < FIRST_STACK {
                // Reserved ids are of all images.
                let end = match id {
                    STACK_STORE_FULL => WalkEnd::StoreFull,
                    STACK_COLLISION => WalkEnd::HashCollision,
                    _ => continue,
                };
                let stack = StackDef { id, image: 0, frames: Vec::new(), end: end as u8 };
                stacks.push(StoredStack { image, stack, changes: 0 });
            } else if let Some(row) =
                self.stacks.get(&id).map_err(|source| KernelError::map("read", "STACKS", source))?
            {
                let count = usize::from(row.count).min(MAX_FRAMES);
                let frames = row.frames[..count].to_vec();
                stacks.push(StoredStack {
                    image: row.image,
                    stack: StackDef { id, image: row.image, frames, end: row.end },
                    changes: row.changes,
                });
            }
            self.delivered_stacks.insert(id);
        }
        Ok(stacks)
    }
}

fn split<const N: usize>(words: &[u64]) -> ([u64; N], &[u64]) {
    // The array's length is the sum of the parts.
    match words.split_first_chunk::<N>() {
        Some((first, rest)) => (*first, rest),
        None => ([0; N], &[]),
    }
}
