//! Who else may hold the memory: the Go runtime, threads, the page cache, tmpfs, the kernel, other
//! processes; each over time. Pure.

use std::collections::BTreeMap;

use super::series::Window;
use super::trend::{Trend, median, trend};
use crate::account::Ledger;
use crate::account::classes::Class;
use crate::account::process::ProcessLedger;
use crate::snapshot::{Known, ProcessId, Recording, Snapshot};

/// Of a trend that counts.
const SURE: f64 = 0.05;
/// Growth over the second half of the load below this part of the level is none.
const STEADY_PART: f64 = 0.02;
const SMALLEST_BYTES: f64 = (1 << 20) as f64;
/// Fewer threads come and go in healthy programs.
const SMALLEST_THREADS: f64 = 4.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Resident memory of the C allocator.
    CHeap,
    /// What native code mapped itself.
    NativeMappings,
    /// The Go heap in use: live objects, garbage, slack.
    GoHeap,
    /// What the Go runtime could give back.
    GoIdle,
    /// Stacks of goroutines.
    GoStacks,
    /// How many, not bytes.
    Threads,
    PageCache,
    Tmpfs,
    Kernel,
    OtherProcesses,
}

impl Owner {
    pub const ALL: [Self; 10] = [
        Self::CHeap,
        Self::NativeMappings,
        Self::GoHeap,
        Self::GoIdle,
        Self::GoStacks,
        Self::Threads,
        Self::PageCache,
        Self::Tmpfs,
        Self::Kernel,
        Self::OtherProcesses,
    ];

    pub fn key(self) -> &'static str {
        match self {
            Self::CHeap => "c_heap",
            Self::NativeMappings => "native_mappings",
            Self::GoHeap => "go_heap",
            Self::GoIdle => "go_idle",
            Self::GoStacks => "go_stacks",
            Self::Threads => "threads",
            Self::PageCache => "page_cache",
            Self::Tmpfs => "tmpfs",
            Self::Kernel => "kernel",
            Self::OtherProcesses => "other_processes",
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::CHeap => "C heap, resident",
            Self::NativeMappings => "mapped by native code",
            Self::GoHeap => "Go heap in use",
            Self::GoIdle => "Go heap, idle and kept",
            Self::GoStacks => "goroutine stacks",
            Self::Threads => "threads",
            Self::PageCache => "page cache",
            Self::Tmpfs => "shared memory and tmpfs",
            Self::Kernel => "kernel memory",
            Self::OtherProcesses => "other processes",
        }
    }

    /// Where the figure is read.
    pub fn source(self) -> &'static str {
        match self {
            Self::CHeap => "smaps Rss of the C heap's mappings",
            Self::NativeMappings => "mappings seen since the attach",
            Self::GoHeap => "runtime.MemStats HeapInuse",
            Self::GoIdle => "runtime.MemStats HeapIdle − HeapReleased",
            Self::GoStacks => "runtime.MemStats StackInuse",
            Self::Threads => "/proc/PID/status Threads",
            Self::PageCache => "memory.stat: cache without shared memory",
            Self::Tmpfs => "memory.stat: shared memory",
            Self::Kernel => "memory.stat or memory.kmem: kernel",
            Self::OtherProcesses => "memory.stat: anonymous, less this process's share",
        }
    }

    pub fn counts_bytes(self) -> bool {
        self != Self::Threads
    }
}

/// One owner over time.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnerVerdict {
    pub owner: Owner,
    /// By snapshot; `None` where it is not known there.
    pub values: Vec<Option<u64>>,
    /// At the beginning of the load, at its end, and the most.
    pub first: u64,
    pub last: u64,
    pub peak: u64,
    /// Over the load, per second.
    pub trend: Option<Trend>,
    /// Over its second half.
    pub late: Option<Trend>,
    pub grows: bool,
}

/// What one snapshot's ledger tells; it is made up once.
pub(super) struct Reading {
    /// In the order of [`Owner::ALL`].
    owners: [Option<u64>; Owner::ALL.len()],
    /// Resident bytes of the C heap of each process whose mappings were read.
    pub(super) c_heaps: BTreeMap<ProcessId, u64>,
}

/// Owners that are known at both ends of the load.
pub(super) fn judge(
    recording: &Recording,
    readings: &[Reading],
    window: &Window,
) -> Vec<OwnerVerdict> {
    let times: Vec<f64> = recording.snapshots.iter().map(|at| at.elapsed_ns as f64 / 1e9).collect();
    let judged = Owner::ALL.iter().enumerate().filter_map(|(column, owner)| {
        let values: Vec<Option<u64>> =
            readings.iter().map(|reading| reading.owners[column]).collect();
        judge_one(*owner, values, &times, window)
    });
    judged.collect()
}

fn judge_one(
    owner: Owner,
    values: Vec<Option<u64>>,
    times: &[f64],
    window: &Window,
) -> Option<OwnerVerdict> {
    let known = |from: usize| -> Vec<(f64, f64)> {
        let at = |at: usize| values[at].map(|value| (times[at], value as f64));
        (from..=window.last).filter_map(at).collect()
    };
    let (all, late_points) = (known(window.first), known(window.half));
    let within = &values[window.first..=window.last];
    let first = within.iter().flatten().next().copied()?;
    let last = within.iter().flatten().next_back().copied()?;
    // The idle end counts, too: what was freed there was not kept.
    let peak = values.iter().flatten().max().copied()?;
    let (all, late) = (trend(&all), trend(&late_points));
    let level = median(late_points.iter().map(|(_, value)| *value));
    let seconds = times[window.last] - times[window.half];
    let smallest = if owner.counts_bytes() { SMALLEST_BYTES } else { SMALLEST_THREADS };
    let grown = last as f64 - first as f64;
    let grows = late.is_some_and(|late| {
        let late_growth = late.slope * seconds;
        late.p < SURE
            && late.low > 0.0
            && late_growth >= (level * STEADY_PART).max(smallest / 4.0)
            && grown >= smallest
    });
    Some(OwnerVerdict { owner, values, first, last, peak, trend: all, late, grows })
}

/// One for each snapshot.
pub(super) fn read(recording: &Recording) -> Vec<Reading> {
    recording.snapshots.iter().map(|at| read_one(recording, at)).collect()
}

fn read_one(recording: &Recording, at: &Snapshot) -> Reading {
    let pid = recording.header.tracee.id.pid;
    let ledger = at.memory.value().map(Ledger::of);
    let ledger = ledger.as_ref();
    let main = ledger.and_then(|it| it.processes.iter().find(|process| process.pid == pid));
    let charge = ledger.and_then(|it| it.figures.value());
    let known = |bytes: &Known<u64>| bytes.value().copied();
    let go = at.go.value().and_then(|books| books.memory.as_ref());
    let ranges = at.native.ranges.iter();
    let native = ranges
        .filter(|range| range.owner == crate::snapshot::RangeOwner::Native && !range.reserved);
    let c_heap = |process: &ProcessLedger| {
        let is_read = process.classes.iter().any(|class| class.rss > 0);
        is_read.then(|| process.resident_of(Class::is_c_heap))
    };
    let facts = at.memory.value().into_iter().flat_map(|facts| &facts.processes);
    let ledgers = ledger.into_iter().flat_map(|ledger| &ledger.processes);
    let c_heaps = facts.zip(ledgers).filter_map(|(facts, it)| Some((facts.id, c_heap(it)?)));
    let owners = [
        main.and_then(c_heap),
        Some(native.fold(0u64, |sum, range| sum.saturating_add(range.length_bytes))),
        go.map(|memory| memory.heap_inuse),
        go.map(|memory| memory.heap_idle.saturating_sub(memory.heap_released)),
        go.map(|memory| memory.stack_inuse),
        at.process.value().map(|process| u64::from(process.threads)),
        charge.and_then(|it| Some(known(&it.file.bytes)?.saturating_sub(known(&it.shmem.bytes)?))),
        charge.and_then(|it| known(&it.shmem.bytes)),
        charge.and_then(|it| known(&it.kernel.bytes)),
        charge.and_then(|it| {
            let own = main.and_then(|process| known(&process.pss_anon))?;
            Some(known(&it.anon.bytes)?.saturating_sub(own))
        }),
    ];
    Reading { owners, c_heaps: c_heaps.collect() }
}
