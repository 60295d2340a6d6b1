//! Where one mapping holds what belongs to several owners. The kernel merges neighbours that are
//! alike; what lies in them tells where one ends: the header of a glibc heap at a multiple of
//! 64 MiB, the headers of malloc's mapped chunks, which lie end to end, and language runtimes' ranges.
//!
//! Only pages that are present are read: reading another would make the kernel map it. Pure over a
//! [`Memory`], so that a test passes an array.

use crate::snapshot::facts::{GlibcHeap, MappingFacts, Piece};
use crate::snapshot::runtimes::RuntimeRange;

/// `HEAP_MAX_SIZE` on 64 bits (`malloc/arena.c`).
const HEAP_BYTES: u64 = 64 << 20;
/// Most heaps looked for in one process.
const MOST_HEAPS: usize = 4096;
/// Most chunks followed in one mapping.
const MOST_CHUNKS: u64 = 65_536;
/// The bit of a chunk's size that says that it was mapped alone (`IS_MMAPPED`).
const IS_MMAPPED: u64 = 2;
const FLAGS: u64 = 7;

/// What is asked of a process's memory.
pub(super) trait Memory {
    /// Reads only where the page is present.
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool;
    /// Bytes of pages present in `[start, end)`.
    fn resident(&self, start: u64, end: u64) -> Option<u64>;
    fn page_bytes(&self) -> u64;
}

/// Finds the heaps, cuts the mappings that hold more than one owner's, and counts mapped chunks.
/// `runtimes` are language runtimes' ranges, ascending.
pub(super) fn examine(
    mappings: &mut [MappingFacts],
    runtimes: &[RuntimeRange],
    memory: &impl Memory,
) -> Vec<GlibcHeap> {
    let mut heaps = Vec::new();
    for mapping in mappings.iter_mut() {
        let anonymous = mapping.inode == 0 && mapping.name.is_empty();
        let heap_like = mapping.readable && mapping.writable && !mapping.executable;
        if !anonymous || !heap_like || mapping.shared || mapping.rss == 0 {
            continue;
        }
        let own = heaps_in(mapping, memory, MOST_HEAPS.saturating_sub(heaps.len()));
        let first_owned = own.first().map_or(mapping.end, |heap| heap.start);
        let mut cuts: Vec<u64> = own.iter().flat_map(|heap| [heap.start, heap.end]).collect();
        if mapping.start < first_owned {
            let (chunks, end) = chunks_in(mapping.start, first_owned, memory);
            mapping.malloc_chunks = chunks;
            if chunks > 0 {
                cuts.push(end);
            }
        }
        let from = runtimes.partition_point(|range| range.end <= mapping.start);
        let inside = runtimes[from..].iter().take_while(|range| range.start < mapping.end);
        cuts.extend(inside.flat_map(|range| [range.start, range.end]));
        cut(mapping, cuts, memory);
        heaps.extend(own);
    }
    heaps
}

fn heaps_in(mapping: &MappingFacts, memory: &impl Memory, most: usize) -> Vec<GlibcHeap> {
    let mut found = Vec::new();
    let mut at = mapping.start.next_multiple_of(HEAP_BYTES);
    while at < mapping.end && found.len() < most {
        if let Some((end, arena)) = heap_at(at, memory)
            && end <= mapping.end
        {
            found.push(GlibcHeap { start: at, end, arena });
        }
        let Some(next) = at.checked_add(HEAP_BYTES) else { break };
        at = next;
    }
    found
}

/// `struct _heap_info`: arena, previous heap, size, size made accessible.
fn heap_at(start: u64, memory: &impl Memory) -> Option<(u64, u64)> {
    let mut header = [0u8; 32];
    if !memory.read(start, &mut header) {
        return None;
    }
    let word = |at: usize| {
        let bytes = header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let (arena, previous, size, accessible) = (word(0), word(8), word(16), word(24));
    let page = memory.page_bytes();
    let is_heap = arena != 0
        && arena.is_multiple_of(16)
        // The arena lies in the first of its heaps, close behind that one's header.
        && (32..256).contains(&(arena % HEAP_BYTES))
        && previous.is_multiple_of(HEAP_BYTES)
        && (arena - arena % HEAP_BYTES == start) == (previous == 0)
        && size > 0
        && size <= accessible
        && accessible <= HEAP_BYTES
        && accessible.is_multiple_of(page);
    is_heap.then(|| (start.saturating_add(accessible), arena))
}

/// Mapped chunks that lie end to end from `start`: how many, and where they end.
fn chunks_in(start: u64, end: u64, memory: &impl Memory) -> (u64, u64) {
    let (mut count, mut at) = (0, start);
    while at < end && count < MOST_CHUNKS {
        let mut header = [0u8; 16];
        if !memory.read(at, &mut header) {
            break;
        }
        let [previous, size] = [0, 8].map(|from: usize| {
            let bytes = header.get(from..from + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        });
        let length = size & !FLAGS;
        let fits = at.checked_add(length).is_some_and(|next| next <= end);
        if previous != 0
            || size & FLAGS != IS_MMAPPED
            || length == 0
            || !length.is_multiple_of(memory.page_bytes())
            || !fits
        {
            break;
        }
        at += length;
        count += 1;
    }
    (count, at)
}

fn cut(mapping: &mut MappingFacts, mut cuts: Vec<u64>, memory: &impl Memory) {
    cuts.retain(|at| mapping.start < *at && *at < mapping.end);
    cuts.push(mapping.end);
    cuts.sort_unstable();
    cuts.dedup();
    if cuts.len() < 2 {
        return;
    }
    let mut pieces = Vec::with_capacity(cuts.len());
    let mut start = mapping.start;
    for end in cuts {
        let Some(resident) = memory.resident(start, end) else {
            // Without a count the mapping stays whole: with its first owner.
            return;
        };
        pieces.push(Piece { start, end, resident });
        start = end;
    }
    mapping.pieces = pieces;
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
