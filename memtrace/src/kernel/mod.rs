//! The kernel edge: the only module that names aya. Load, attach, feed, read; decide nothing.
//!
//! Promise: what was attached equals the plan or the difference is reported; nothing is pinned, so
//! nothing remains after a drop, nor after SIGKILL; reading never stops the tracee.
//!
//! Order of use: [`Kernel::load`], [`Kernel::append_unwind_rows`], [`Kernel::set_process`],
//! [`Kernel::attach`], [`Kernel::arm`]; then [`Kernel::drain_ring`], [`Kernel::snapshot`],
//! [`Kernel::new_stacks`] as often as wished; [`Kernel::disarm`], [`Kernel::detach`].

mod attach;
mod changes;
mod cost;
mod error;
mod family;
pub mod features;
mod load;
mod read;
mod ring;
mod selftest;
mod sys;
mod tables;
mod verified;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;

use aya::Ebpf;
use aya::maps::{MapData, ProgramArray, RingBuf};
use aya::programs::raw_trace_point::RawTracePointLink;
use memtrace_common::rows::{
    ARMED, BlockKey, BlockRow, ChangesRow, ConfigRow, DRAINING, NoticedKey, ProcessRow, StackRow,
    TotalsKey, TotalsRow,
};

pub use attach::{AttachOutcome, AttachReport, Detaching};
pub use changes::Noted;
pub use cost::KernelCost;
pub use error::KernelError;
pub use load::LogReader;
pub use read::{KernelSnapshot, ProcessTotals, StoredStack};
pub use ring::{Drained, Notice, RangeEvent, monotonic_ns};
pub use selftest::{Sample, SelftestCounters};
pub use tables::ImageNumber;

/// The limits of the kernel side, and what each costs in bytes of kernel memory.
///
/// Nothing but the hash maps' buckets (16 bytes for each entry of the limit, rounded up to a power
/// of two), the unwind rows and the ring is allocated before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// Live blocks of all traced processes: 16 bytes each at once, 96 more while a block lives.
    pub max_blocks: u32,
    /// Distinct stacks: 32 bytes each at once, about 2.2 KiB more for each stack seen.
    pub max_stacks: u32,
    /// Threads with a call behind them: 16 bytes each at once, 2.5 KiB more for each living thread.
    pub max_threads: u32,
    /// The ring of mmap events and notices; a power of two of at least a page. All at once.
    pub ring_bytes: u32,
    /// Unwind rows: 8 bytes each, at once.
    pub max_unwind_rows: u32,
    /// Diagnostics of the kernel side, read by [`Kernel::take_log_reader`].
    pub verbose: bool,
    /// Have the kernel count the time in BPF programs (of the whole host) while memtrace runs.
    pub count_bpf_time: bool,
    /// Load the program of a self-check in place of those of a recording: at least this long, on
    /// the mean, between two samples of one thread. See [`Kernel::attach_selftest`].
    pub selftest_interval_ns: Option<u32>,
}

impl Default for KernelConfig {
    /// About 32 MiB for blocks, 8 MiB for unwind rows, 3 MiB for the rest, before use.
    fn default() -> Self {
        Self {
            max_blocks: 1 << 21,
            max_stacks: 1 << 16,
            max_threads: 1 << 15,
            ring_bytes: 1 << 20,
            max_unwind_rows: 1 << 20,
            verbose: false,
            count_bpf_time: true,
            selftest_interval_ns: None,
        }
    }
}

/// The loaded kernel side. Dropping it detaches everything.
pub struct Kernel {
    walkers: load::Entries,
    _chain: ProgramArray<MapData>,
    entries: Vec<attach::ProbeLink>,
    returns: Vec<attach::ProbeLink>,
    /// Of the probes of all processes: a function of one file is one probe.
    places: attach::Places,
    tracepoints: Vec<RawTracePointLink>,
    ring: RingBuf<MapData>,
    held: ring::Held,
    config: RawMap<u32, ConfigRow>,
    config_row: ConfigRow,
    processes: RawMap<u32, ProcessRow>,
    /// Processes that were handed over; those without a row now were taken out by `exec`.
    set_before: HashSet<u32>,
    changes: RawMap<u32, ChangesRow>,
    /// By process.
    followed: BTreeMap<u32, changes::Followed>,
    family: RawMap<u32, u32>,
    knows_forks: bool,
    follows_forks: bool,
    blocks: RawMap<BlockKey, BlockRow>,
    stacks: RawMap<u64, StackRow>,
    totals: RawMap<TotalsKey, TotalsRow>,
    noticed: RawMap<NoticedKey, u32>,
    rows: tables::RowsMapping,
    generation: u32,
    /// Stack ids met and not delivered yet, delivered before, by the image they belong to.
    wanted_stacks: BTreeMap<u64, u32>,
    delivered_stacks: HashSet<u64>,
    stats: Option<OwnedFd>,
    /// Keeps programs and maps.
    ebpf: Ebpf,
}

use sys::RawMap;

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("links", &(self.entries.len() + self.returns.len()))
            .field("probes", &self.places.count())
            .field("armed", &self.config_row.armed)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// From now on the probes act: each program looks at this first.
    pub fn arm(&mut self) -> Result<(), KernelError> {
        self.set_armed(ARMED)
    }

    /// From now on no call counts but those that are in progress. Once these have returned, within
    /// microseconds where their threads run, the books stand still.
    pub fn disarm(&mut self) -> Result<(), KernelError> {
        self.set_armed(DRAINING)
    }

    fn set_armed(&mut self, armed: u32) -> Result<(), KernelError> {
        self.config_row.armed = armed;
        self.config
            .insert(&0, &self.config_row)
            .map_err(|source| KernelError::map("write", "CONFIG", source))
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // A failure leaves the programs armed for the moment that detaching takes.
        let _ = self.disarm();
        self.detach();
    }
}
