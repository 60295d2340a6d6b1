//! `runtime.MemStats` as `runtime.readmemstats_m` computes it, from the runtime's own variables.
//!
//! Promise: a figure is given only when the runtime's own cross-checks hold among everything that
//! was read in one batch. They fail for an instant while the process allocates, which is why a
//! reading is repeated; they fail for good with a wrong address or a wrong layout.
//! Limit: `HeapAlloc` lacks what sits in the caches of the processors and is not counted by the
//! runtime yet (`ReadMemStats` stops the world to collect it): some KiB per size class.
//!
//! Pure over [`Memory`].

use std::time::Duration;

use super::access::{Memory, Unreadable};
use super::layout::{DELTAS, Layout};
use crate::snapshot::{GoArena, GoMemory};

/// Bytes of a page of the Go heap.
const PAGE_BYTES: u64 = 8192;
/// `heapArenaBytes` of linux/amd64, and the address of the arena with index 0.
const ARENA_BYTES: u64 = 64 << 20;
const ARENA_BASE: u64 = 0xffff_8000_0000_0000;
/// Most arenas listed: 4 TiB of heap.
const MAX_ARENAS: u64 = 1 << 16;
/// More than any process can map.
const ADDRESS_SPACE: u64 = 1 << 47;

/// 10 November 2009, in Unix nanoseconds.
const GOS_BIRTHDAY_NS: u64 = 1_257_811_200_000_000_000;

/// How often a reading is repeated while the runtime's counters move.
pub const ATTEMPTS: u32 = 40;
const FIRST_PAUSE: Duration = Duration::from_micros(50);

/// Where the runtime's variables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatisticsAt {
    /// `runtime.memstats`
    pub statistics: u64,
    /// `runtime.gcController`
    pub controller: u64,
    /// `runtime.mheap_`
    pub heap: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    pub figures: GoMemory,
    /// Disjoint, sorted.
    pub arenas: Vec<GoArena>,
    /// The runtime's `TotalAlloc`.
    pub total_alloc: u64,
}

/// Why there are no figures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatisticsError {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("the runtime's counters contradict each other ({law}: {left} ≠ {right})")]
    Contradiction { law: &'static str, left: u64, right: u64 },
    #[error("the runtime's counters make no sense: {0}")]
    Nonsense(&'static str),
}

/// Reads until the cross-checks hold, [`ATTEMPTS`] times.
pub fn read(
    memory: &dyn Memory,
    at: StatisticsAt,
    layout: &Layout,
) -> Result<Statistics, StatisticsError> {
    read_with(memory, at, layout, ATTEMPTS)
}

pub fn read_with(
    memory: &dyn Memory,
    at: StatisticsAt,
    layout: &Layout,
    attempts: u32,
) -> Result<Statistics, StatisticsError> {
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        match read_once(memory, at, layout) {
            Err(StatisticsError::Unreadable(error)) => return Err(error.into()),
            Err(_) if attempt < attempts => {
                std::thread::sleep(pause);
                pause = (pause * 3 / 2).min(Duration::from_millis(2));
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// The variables of one batch, with the runtime's names.
struct Counters {
    committed: u64,
    released: u64,
    in_heap: u64,
    in_stacks: u64,
    in_work_bufs: u64,
    in_ptr_scalar_bits: u64,
    stacks_sys: u64,
    mspan_sys: u64,
    mcache_sys: u64,
    buckhash_sys: u64,
    gc_misc_sys: u64,
    other_sys: u64,
    last_gc_unix: u64,
    numgc: u64,
    numforcedgc: u64,
    gc_percent: i32,
    memory_limit: u64,
    gc_percent_heap_goal: u64,
    sweep_dist_min_trigger: u64,
    triggered: u64,
    heap_marked: u64,
    heap_in_use: u64,
    heap_released: u64,
    heap_free: u64,
    total_alloc: u64,
    total_free: u64,
    mapped_ready: u64,
    pages_in_use: u64,
    span_alloc_in_use: u64,
    cache_alloc_in_use: u64,
    /// Where the two tables say that they are accounted, and where that is.
    accounts: [(u64, u64); 2],
    arenas: (u64, u64, u64),
}

fn u64_in(bytes: &[u8], at: usize) -> u64 {
    crate::stacks::elf::u64_at(bytes, at)
}

fn u32_in(bytes: &[u8], at: usize) -> u32 {
    crate::stacks::elf::u32_at(bytes, at)
}

impl Counters {
    fn read(memory: &dyn Memory, at: StatisticsAt, layout: &Layout) -> Result<Self, Unreadable> {
        let (s, c, h) = (&layout.statistics, &layout.controller, &layout.heap);
        // Everything that the checks compare is read by one call, in one go.
        let mut deltas = vec![0; DELTAS * s.delta_bytes];
        let mut sys = [0; 48];
        let (mut last_gc, mut collections, mut forced) = ([0; 8], [0; 4], [0; 4]);
        let mut controller = vec![0; c.mapped_ready.max(c.total_free) + 8];
        let mut pages = [0; 8];
        let mut arenas = [0; 24];
        let (mut spans, mut caches) = ([0; 8], [0; 8]);
        let (mut span_stat, mut cache_stat) = ([0; 8], [0; 8]);
        let place = |base: u64, offset: usize| base.wrapping_add(offset as u64);
        memory.read_many(&mut [
            (place(at.statistics, s.deltas), &mut deltas),
            (at.controller, &mut controller),
            (place(at.statistics, s.stacks_sys), &mut sys),
            (place(at.heap, h.pages_in_use), &mut pages),
            (place(at.statistics, s.last_gc_unix), &mut last_gc),
            (place(at.statistics, s.numgc), &mut collections),
            (place(at.statistics, s.numforcedgc), &mut forced),
            (place(at.heap, h.arenas), &mut arenas),
            (place(at.heap, h.span_alloc_in_use), &mut spans),
            (place(at.heap, h.cache_alloc_in_use), &mut caches),
            (place(at.heap, h.span_alloc_stat), &mut span_stat),
            (place(at.heap, h.cache_alloc_stat), &mut cache_stat),
        ])?;
        let delta = |offset: usize| {
            (0..DELTAS)
                .map(|index| u64_in(&deltas, index * s.delta_bytes + offset))
                .fold(0u64, u64::wrapping_add)
        };
        let sys = |offset: usize| u64_in(&sys, offset.wrapping_sub(s.stacks_sys));
        let controlled = |offset: usize| u64_in(&controller, offset);
        Ok(Self {
            committed: delta(s.committed),
            released: delta(s.released),
            in_heap: delta(s.in_heap),
            in_stacks: delta(s.in_stacks),
            in_work_bufs: delta(s.in_work_bufs),
            in_ptr_scalar_bits: s.in_ptr_scalar_bits.map_or(0, delta),
            stacks_sys: sys(s.stacks_sys),
            mspan_sys: sys(s.mspan_sys),
            mcache_sys: sys(s.mcache_sys),
            buckhash_sys: sys(s.buckhash_sys),
            gc_misc_sys: sys(s.gc_misc_sys),
            other_sys: sys(s.other_sys),
            last_gc_unix: u64::from_le_bytes(last_gc),
            numgc: u32::from_le_bytes(collections).into(),
            numforcedgc: u32::from_le_bytes(forced).into(),
            gc_percent: u32_in(&controller, c.gc_percent).cast_signed(),
            memory_limit: controlled(c.memory_limit),
            gc_percent_heap_goal: controlled(c.gc_percent_heap_goal),
            sweep_dist_min_trigger: controlled(c.sweep_dist_min_trigger),
            triggered: controlled(c.triggered),
            heap_marked: controlled(c.heap_marked),
            heap_in_use: controlled(c.heap_in_use),
            heap_released: controlled(c.heap_released),
            heap_free: controlled(c.heap_free),
            total_alloc: controlled(c.total_alloc),
            total_free: controlled(c.total_free),
            mapped_ready: controlled(c.mapped_ready),
            pages_in_use: u64::from_le_bytes(pages),
            span_alloc_in_use: u64::from_le_bytes(spans),
            cache_alloc_in_use: u64::from_le_bytes(caches),
            accounts: [
                (u64::from_le_bytes(span_stat), place(at.statistics, s.mspan_sys)),
                (u64::from_le_bytes(cache_stat), place(at.statistics, s.mcache_sys)),
            ],
            arenas: (u64_in(&arenas, 0), u64_in(&arenas, 8), u64_in(&arenas, 16)),
        })
    }

    fn heap_sys(&self) -> u64 {
        self.heap_in_use.wrapping_add(self.heap_free).wrapping_add(self.heap_released)
    }

    fn sys(&self) -> u64 {
        let parts = [
            self.stacks_sys,
            self.mspan_sys,
            self.mcache_sys,
            self.buckhash_sys,
            self.gc_misc_sys,
            self.other_sys,
            self.in_stacks,
            self.in_work_bufs,
            self.in_ptr_scalar_bits,
        ];
        parts.into_iter().fold(self.heap_sys(), u64::wrapping_add)
    }

    /// The checks of `readmemstats_m` (`doubleCheckReadMemStats`), and what else must hold.
    fn check(&self) -> Result<(), StatisticsError> {
        let parts = [
            self.heap_in_use,
            self.heap_free,
            self.heap_released,
            self.in_stacks,
            self.in_work_bufs,
            self.in_ptr_scalar_bits,
            self.stacks_sys,
            self.mspan_sys,
            self.mcache_sys,
            self.buckhash_sys,
            self.gc_misc_sys,
            self.other_sys,
            self.mapped_ready,
        ];
        if parts.iter().any(|part| *part >= ADDRESS_SPACE) {
            return Err(StatisticsError::Nonsense("a figure is larger than the address space"));
        }
        if self.heap_in_use == 0 || !self.heap_in_use.is_multiple_of(PAGE_BYTES) {
            return Err(StatisticsError::Nonsense("the heap in use is no number of pages"));
        }
        if self.mspan_sys == 0 || self.mcache_sys == 0 || self.gc_misc_sys == 0 {
            return Err(StatisticsError::Nonsense("the runtime has no tables of its own"));
        }
        if self.total_alloc < self.total_free
            || self.total_alloc - self.total_free > self.heap_in_use
        {
            return Err(StatisticsError::Nonsense("more is allocated than is in use"));
        }
        self.check_pace()?;
        if self.span_alloc_in_use > self.mspan_sys || self.cache_alloc_in_use > self.mcache_sys {
            return Err(StatisticsError::Nonsense("a table holds more than it has"));
        }
        let retained = self
            .committed
            .wrapping_sub(self.in_stacks)
            .wrapping_sub(self.in_work_bufs)
            .wrapping_sub(self.in_ptr_scalar_bits);
        let laws = [
            ("heapInUse = inHeap", self.heap_in_use, self.in_heap),
            ("heapReleased = released", self.heap_released, self.released),
            (
                "heapInUse + heapFree = committed − stacks − work",
                self.heap_in_use.wrapping_add(self.heap_free),
                retained,
            ),
            (
                "mappedReady = Sys − HeapReleased",
                self.mapped_ready,
                self.sys().wrapping_sub(self.heap_released),
            ),
            ("pagesInUse = heapInUse / 8192", self.pages_in_use, self.heap_in_use / PAGE_BYTES),
        ];
        let [spans, caches] = self.accounts;
        let mut laws = laws.into_iter().chain([
            ("spanalloc.stat = &mspan_sys", spans.0, spans.1),
            ("cachealloc.stat = &mcache_sys", caches.0, caches.1),
        ]);
        match laws.find(|(_, left, right)| left != right) {
            Some((law, left, right)) => Err(StatisticsError::Contradiction { law, left, right }),
            None => Ok(()),
        }
    }

    /// What the pacer and the collector leave behind them: no cross-check of the runtime's, but what
    /// follows from how it computes it (`gcControllerState.commit`, `gcMarkTermination`).
    fn check_pace(&self) -> Result<(), StatisticsError> {
        let nonsense = |what| Err(StatisticsError::Nonsense(what));
        if self.gc_percent < -1 || self.memory_limit > i64::MAX.cast_unsigned() {
            return nonsense("GOGC or GOMEMLIMIT is negative");
        }
        if self.numforcedgc > self.numgc {
            return nonsense("more collections were forced than made");
        }
        // Go is younger, and no other counter of nanoseconds is as large.
        let is_time = (GOS_BIRTHDAY_NS..i64::MAX.cast_unsigned()).contains(&self.last_gc_unix);
        if (self.numgc == 0 && self.last_gc_unix != 0) || (self.numgc > 0 && !is_time) {
            return nonsense("the time of the last collection does not fit their number");
        }
        if self.sweep_dist_min_trigger >= ADDRESS_SPACE
            || (self.triggered >= ADDRESS_SPACE && self.triggered != u64::MAX)
            // What is marked stays in use until the next collection; some of it was counted twice.
            || (self.numgc > 0 && self.heap_marked / 2 > self.heap_in_use)
        {
            return nonsense("the collector's marks are larger than the heap");
        }
        match u64::try_from(self.gc_percent) {
            Err(_) if self.gc_percent_heap_goal != u64::MAX => {
                nonsense("there is a goal for the heap although GOGC is off")
            }
            Ok(percent) if !self.fits(self.gc_percent_heap_goal, percent) => {
                nonsense("the goal for the heap does not follow from GOGC and what is marked")
            }
            _ => Ok(()),
        }
    }

    /// The goal is what is marked, and GOGC's share of that, of the stacks then (below `Sys`, which
    /// never shrinks) and of the globals; 4 MiB times GOGC at least.
    fn fits(&self, goal: u64, percent: u64) -> bool {
        /// Globals that the collector scans, at most.
        const GLOBALS: u64 = 1 << 30;
        const LEAST: u64 = 4 << 20;
        let with_share = |scanned: u64| {
            let share = u128::from(scanned) * u128::from(percent) / 100;
            u128::from(self.heap_marked) + share
        };
        let least = u128::from(LEAST) * u128::from(percent) / 100;
        let scanned = self.heap_marked.saturating_add(self.sys()).saturating_add(GLOBALS);
        let most = with_share(scanned).max(least);
        (with_share(self.heap_marked).max(least)..=most).contains(&u128::from(goal))
    }

    /// `gcControllerState.heapGoalInternal`
    fn heap_goal(&self) -> u64 {
        const MIN_RUNWAY: u64 = 64 << 10;
        let by_limit = self.heap_goal_by_limit();
        if by_limit < self.gc_percent_heap_goal {
            return by_limit;
        }
        let goal = self.gc_percent_heap_goal.max(self.sweep_dist_min_trigger);
        match self.triggered {
            u64::MAX => goal,
            triggered => goal.max(triggered.saturating_add(MIN_RUNWAY)),
        }
    }

    /// `gcControllerState.memoryLimitHeapGoal`
    fn heap_goal_by_limit(&self) -> u64 {
        const HEADROOM_PERCENT: u64 = 3;
        const LEAST_HEADROOM: u64 = 1 << 20;
        let allocated = self.total_alloc.saturating_sub(self.total_free);
        let other = self.mapped_ready.saturating_sub(self.heap_free).saturating_sub(allocated);
        let overage = self.mapped_ready.saturating_sub(self.memory_limit);
        let taken = other.saturating_add(overage);
        if taken >= self.memory_limit {
            return self.heap_marked;
        }
        let goal = self.memory_limit - taken;
        let headroom = (goal / 100 * HEADROOM_PERCENT).max(LEAST_HEADROOM);
        let goal =
            if goal < headroom || goal - headroom < headroom { headroom } else { goal - headroom };
        goal.max(self.heap_marked)
    }
}

fn read_once(
    memory: &dyn Memory,
    at: StatisticsAt,
    layout: &Layout,
) -> Result<Statistics, StatisticsError> {
    let counters = Counters::read(memory, at, layout)?;
    counters.check()?;
    let arenas = arenas(memory, &counters)?;
    let heap_sys = counters.heap_sys();
    let figures = GoMemory {
        sys: counters.sys(),
        heap_alloc: counters.total_alloc - counters.total_free,
        heap_sys,
        heap_idle: heap_sys - counters.heap_in_use,
        heap_inuse: counters.heap_in_use,
        heap_released: counters.heap_released,
        stack_inuse: counters.in_stacks,
        stack_sys: counters.in_stacks + counters.stacks_sys,
        mspan_sys: counters.mspan_sys,
        mcache_sys: counters.mcache_sys,
        buck_hash_sys: counters.buckhash_sys,
        gc_sys: counters.gc_misc_sys + counters.in_work_bufs + counters.in_ptr_scalar_bits,
        other_sys: counters.other_sys,
        next_gc: counters.heap_goal(),
        num_gc: counters.numgc,
        mspan_inuse: Some(counters.span_alloc_in_use),
        mcache_inuse: Some(counters.cache_alloc_in_use),
        num_forced_gc: Some(counters.numforcedgc),
        last_gc_unix_ns: Some(counters.last_gc_unix),
        gogc_percent: Some(counters.gc_percent),
        memory_limit: Some(counters.memory_limit),
    };
    Ok(Statistics { figures, arenas, total_alloc: counters.total_alloc })
}

/// The arenas' addresses; they must hold all of the heap and of the stacks.
fn arenas(memory: &dyn Memory, counters: &Counters) -> Result<Vec<GoArena>, StatisticsError> {
    let (list, length, capacity) = counters.arenas;
    if length == 0 || length > capacity || length > MAX_ARENAS || !list.is_multiple_of(8) {
        return Err(StatisticsError::Nonsense("the list of arenas is no list"));
    }
    let mut bytes = vec![0; length as usize * 8];
    memory.read(list, &mut bytes)?;
    let mut starts: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|index| u64_in(index, 0).wrapping_mul(ARENA_BYTES).wrapping_add(ARENA_BASE))
        .collect();
    starts.sort_unstable();
    starts.dedup();
    if starts.len() as u64 != length || starts.iter().any(|start| *start >= ADDRESS_SPACE) {
        return Err(StatisticsError::Nonsense("an arena lies outside of the address space"));
    }
    let held = [counters.heap_sys(), counters.in_stacks, counters.in_work_bufs];
    let held = held.into_iter().fold(counters.in_ptr_scalar_bits, u64::wrapping_add);
    if held > length * ARENA_BYTES {
        return Err(StatisticsError::Nonsense("the heap is larger than its arenas"));
    }
    let mut arenas: Vec<GoArena> = Vec::new();
    for start in starts {
        match arenas.last_mut() {
            Some(last) if last.start + last.length_bytes == start => {
                last.length_bytes += ARENA_BYTES
            }
            _ => arenas.push(GoArena { start, length_bytes: ARENA_BYTES }),
        }
    }
    Ok(arenas)
}

#[cfg(test)]
#[path = "statistics_tests.rs"]
mod tests;
