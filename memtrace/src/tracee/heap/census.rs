//! What a reading of a C heap found, as data: for the ledger, for JSON, for a recording.
//!
//! All sizes are bytes of chunks as the allocator counts them: a chunk's header is part of it.
//! Nothing is computed here.

use serde::{Deserialize, Serialize};

use crate::snapshot::Known;

/// How much of a heap is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// The allocator's own books: arenas, lists of free chunks. Work is bounded by the number of
    /// free chunks, not by the size of the heap.
    Books,
    /// Every chunk, from the first to the top of each heap, too.
    Chunks,
}

/// The malloc state of one process, read from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeapCensus {
    /// `glibc`.
    pub allocator: String,
    /// As the C library says (`2.36`); where it says nothing, only the layout is known.
    pub version: Known<String>,
    /// The layout of the books that held, by the releases that have it, e.g. `2.27 to 2.42`.
    pub layout: String,
    pub found_by: FoundBy,
    pub depth: Depth,
    /// Other allocators in the process, whose memory is not counted here.
    pub beside: Vec<String>,
    /// In the order of the ring; the main arena (`brk`) is first.
    pub arenas: Vec<Arena>,
    pub totals: Totals,
    /// Blocks above the mmap threshold, each mapped on its own. In no arena.
    pub mapped: Known<MappedChunks>,
    pub settings: Known<Settings>,
    /// Freed blocks kept by threads for themselves. Counted as in use by glibc and in the figures
    /// above.
    pub thread_caches: Known<ThreadCaches>,
    pub reading: Reading,
}

/// How the main arena was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// The symbol `main_arena`.
    Symbol,
    /// Its structure, in the C library's data.
    Structure,
}

/// Sums over arenas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    pub arenas: u64,
    /// Got from the system by the arenas, measured. `mallinfo2().arena`.
    pub system_bytes: u64,
    /// Free in the arenas, tops included, measured. `mallinfo2().fordblks`.
    pub free_bytes: Known<u64>,
    /// Derived: system − free; thread caches and the arenas' own books included.
    /// `mallinfo2().uordblks`.
    pub in_use_bytes: Known<u64>,
    /// The tops alone: never in a list, part of `free_bytes`.
    pub top_bytes: Known<u64>,
    /// Derived: whole pages inside free chunks, and what the main arena's top can be cut by: what
    /// `malloc_trim(0)` gives back of it if it is still resident.
    pub trimmable_bytes: Known<u64>,
    /// The part of `trimmable_bytes` that is resident, measured page by page.
    pub trimmable_resident_bytes: Known<u64>,
    /// Whole pages in the tops of the other arenas that are resident: kept until the top is freed
    /// further; `malloc_trim` does not give them back.
    pub other_tops_resident_bytes: Known<u64>,
    /// The sum of [`Arena::drift_bytes`]: 0 if the heap stood still while it was read.
    pub drift_bytes: u64,
}

/// One arena.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arena {
    /// Address of its `malloc_state`.
    pub address: u64,
    /// The main arena, which grows by `brk`.
    pub main: bool,
    /// Threads that allocate from it; 0: none at present, its memory is kept for the next one.
    /// Releases before 2.23 do not count them.
    pub attached_threads: Known<u64>,
    /// Heaps of up to 64 MiB that it has mapped; for the main arena 1, whatever its shape.
    pub heaps: u64,
    pub system_bytes: u64,
    pub peak_system_bytes: u64,
    /// What is free, or why that could not be read.
    pub free: Known<Free>,
    /// Derived: system − free.
    pub in_use_bytes: Known<u64>,
    /// Every chunk ([`Depth::Chunks`]).
    pub chunks: Known<Chunks>,
    pub told_by: ToldBy,
    /// No two readings in a row agreed: the process kept allocating from it.
    pub moving: bool,
    /// How far the figures of the readings of a moving arena lay apart; 0 for one that stood still.
    pub drift_bytes: u64,
}

/// How the free part of an arena was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToldBy {
    /// By its lists of free chunks.
    Lists,
    /// By the tags at the boundaries of all its chunks, where the lists never held still. Chunks
    /// in fast bins then count as in use.
    Tags,
}

/// The free part of an arena.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Free {
    /// Top, bins and fast bins.
    pub bytes: u64,
    pub top_bytes: u64,
    /// Chunks in bins, without the top and fast bins.
    pub binned_chunks: u64,
    pub binned_bytes: u64,
    /// `mallinfo2().smblks` and `.fsmblks`.
    pub fast_chunks: u64,
    pub fast_bytes: u64,
    /// The largest binned chunk.
    pub largest_bytes: u64,
    /// Whole pages inside binned chunks that `malloc_trim` would look at.
    pub whole_page_bytes: u64,
    /// Whole pages of the top.
    pub top_page_bytes: u64,
    /// The parts of both that are resident.
    pub whole_page_resident_bytes: Known<u64>,
    pub top_page_resident_bytes: Known<u64>,
    /// Binned and fast chunks by size.
    pub by_size: Vec<SizeClass>,
}

impl Default for Free {
    /// Nothing is free.
    fn default() -> Self {
        Self {
            bytes: 0,
            top_bytes: 0,
            binned_chunks: 0,
            binned_bytes: 0,
            fast_chunks: 0,
            fast_bytes: 0,
            largest_bytes: 0,
            whole_page_bytes: 0,
            top_page_bytes: 0,
            whole_page_resident_bytes: Known::Value(0),
            top_page_resident_bytes: Known::Value(0),
            by_size: Vec::new(),
        }
    }
}

/// Chunks of at least `from` bytes and less than twice that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeClass {
    pub from: u64,
    pub chunks: u64,
    pub bytes: u64,
}

/// Every chunk of an arena, told by the boundary tags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunks {
    /// Neither free nor fenceposts; fast bins and thread caches included.
    pub in_use: u64,
    pub in_use_bytes: u64,
    pub in_use_by_size: Vec<SizeClass>,
    /// Heads of heaps, the arena's state and fenceposts.
    pub book_bytes: u64,
}

/// Blocks mapped on their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedChunks {
    /// `mallinfo2().hblks`
    pub chunks: u64,
    /// Whole mappings. `mallinfo2().hblkhd`
    pub bytes: u64,
    pub peak_chunks: u64,
    pub peak_bytes: u64,
}

/// What `mallopt`, tunables and glibc's own adaptation have set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `M_TRIM_THRESHOLD`: a top larger than this is given back.
    pub trim_threshold_bytes: u64,
    /// `M_TOP_PAD`
    pub top_pad_bytes: u64,
    /// `M_MMAP_THRESHOLD`, as it is now.
    pub mmap_threshold_bytes: u64,
    /// glibc raises both thresholds when mapped blocks are freed.
    pub thresholds_adapt: bool,
    /// `M_ARENA_MAX`; 0: none set, 8 for each processor.
    pub arena_max: u64,
    /// `M_MMAP_MAX`
    pub mapped_chunks_max: u64,
}

/// Freed blocks in thread caches (tcache).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadCaches {
    pub caches: u64,
    pub chunks: u64,
    pub bytes: u64,
}

/// How the reading went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// Times that some arena was read.
    pub attempts: u64,
    /// Arenas that never stood still between two readings.
    pub moving_arenas: u64,
    /// Bytes and pieces read out of the process.
    pub read_bytes: u64,
    pub reads: u64,
    pub elapsed_us: u64,
}
