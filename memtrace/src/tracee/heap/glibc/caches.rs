//! Thread caches: blocks that were freed and that a thread keeps for itself. To the arena they are
//! in use.
//!
//! A cache is itself a chunk of a known size. It is believed only if every list in it leads
//! through chunks of its bin's size to its end, and its counts agree.

use super::bins::follow;
use super::layout::{CACHES, CacheLayout, SMALL_CACHE_BINS};
use super::state::{IS_MAPPED, chunk_size};
use super::view::View;
use crate::tracee::heap::census::ThreadCaches;
use crate::tracee::heap::memory::MemoryReader;

/// Counts are of 16 bits.
const MAX_LIST: u64 = u16::MAX as u64;

/// The layout of a release's caches; `None`: it has none.
pub fn layout(release: Option<(u32, u32)>) -> Option<&'static CacheLayout> {
    let release = release?;
    CACHES.iter().find(|row| row.since <= release && release <= row.until)
}

/// What the cache in this chunk holds; `None`: it is no cache.
pub fn read<M: MemoryReader>(
    view: &View<'_, M>,
    layout: &CacheLayout,
    chunk: u64,
    mangled: bool,
    capacity: Option<u64>,
) -> Option<ThreadCaches> {
    let [_, field] = view.words(chunk).ok()?;
    let [_, next] = view.words(chunk + layout.chunk).ok()?;
    if chunk_size(field) != layout.chunk || field & IS_MAPPED != 0 || next & 1 == 0 {
        return None;
    }
    let counts = chunk + 16;
    let entries = counts + (layout.bins * layout.count) as u64;
    let mut found = ThreadCaches { caches: 1, ..ThreadCaches::default() };
    let mut room = capacity;
    for bin in 0..layout.bins {
        let count = count(view, counts, layout.count, bin)?;
        let length = list(view, entries + bin as u64 * 8, bin, mangled, &mut found)?;
        if layout.counts_room {
            // All bins have the same room at first.
            let all = *room.get_or_insert(count + length);
            if count + length != all {
                return None;
            }
        } else if count != length {
            return None;
        }
    }
    Some(found)
}

fn count<M: MemoryReader>(
    view: &View<'_, M>,
    counts: u64,
    bytes: usize,
    bin: usize,
) -> Option<u64> {
    let at = counts + (bin * bytes) as u64;
    let word = view.word(at & !7).ok()?.to_le_bytes();
    let offset = (at & 7) as usize;
    match bytes {
        1 => word.get(offset).map(|byte| u64::from(*byte)),
        _ => {
            let half = word.get(offset..offset + 2)?.try_into().ok()?;
            Some(u64::from(u16::from_le_bytes(half)))
        }
    }
}

fn list<M: MemoryReader>(
    view: &View<'_, M>,
    entry: u64,
    bin: usize,
    mangled: bool,
    found: &mut ThreadCaches,
) -> Option<u64> {
    let mut block = view.word(entry).ok()?;
    let mut length = 0;
    while block != 0 {
        view.step().ok()?;
        length += 1;
        if length > MAX_LIST || !block.is_multiple_of(16) {
            return None;
        }
        let [_, field, link] = view.words(block.checked_sub(16)?).ok()?;
        let size = chunk_size(field);
        let fits = if bin < SMALL_CACHE_BINS {
            size == (bin as u64 + 2) * 16
        } else {
            size >= (SMALL_CACHE_BINS as u64 + 2) * 16
        };
        if !fits || field & IS_MAPPED != 0 || !view.regions.hold(block - 16, size) {
            return None;
        }
        found.chunks += 1;
        found.bytes += size;
        block = follow(link, block, mangled);
    }
    Some(length)
}
