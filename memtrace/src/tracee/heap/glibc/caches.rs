//! Thread caches: blocks that were freed and that a thread keeps for itself. To the arena they are
//! in use.
//!
//! A cache is itself a chunk of a known size. It is believed only if every list in it leads
//! through chunks of its bin's size to its end, and its counts agree.

use super::Libc;
use super::bins::follow;
use super::layout::{CACHES, CacheLayout, SMALL_CACHE_BINS};
use super::state::{IS_MAPPED, State, chunk_size};
use super::view::View;
use crate::snapshot::Known;
use crate::tracee::heap::census::{Arena, Depth, ThreadCaches};
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

/// The first chunk of each arena: mostly the cache of the thread that it was made for.
pub fn first_chunks<M: MemoryReader>(
    view: &View<'_, M>,
    main: &State,
    base: Option<u64>,
    arenas: &[Arena],
) -> Vec<u64> {
    let mut places: Vec<u64> = base.map(|base| base.next_multiple_of(16)).into_iter().collect();
    for arena in arenas.iter().filter(|arena| !arena.main) {
        if view.step().is_err() {
            break;
        }
        places.push((arena.address + main.layout.size as u64).next_multiple_of(16));
    }
    places
}

/// Reads the caches at these places. Complete only if there is one for each thread.
pub fn all<M: MemoryReader>(
    view: &View<'_, M>,
    libc: &Libc,
    arenas: &[Arena],
    places: &[u64],
    capacity: Option<u64>,
    depth: Depth,
) -> Known<ThreadCaches> {
    let Some(layout) = layout(libc.release) else {
        return match libc.release {
            Some(_) => Known::Value(ThreadCaches::default()),
            None => Known::unknown("the C library does not say its version"),
        };
    };
    let mangled = libc.release.is_some_and(|release| release >= (2, 32));
    let mut sum = ThreadCaches::default();
    for place in places {
        if let Some(found) = read(view, layout, *place, mangled, capacity) {
            sum.caches += found.caches;
            sum.chunks += found.chunks;
            sum.bytes += found.bytes;
        }
    }
    let threads: u64 =
        arenas.iter().filter_map(|arena| arena.attached_threads.value()).copied().sum();
    let walked = arenas.iter().all(|arena| arena.chunks.value().is_some() && !arena.moving);
    match depth {
        // Since 2.42 a thread has none before its first free.
        _ if sum.caches == threads => Known::Value(sum),
        Depth::Chunks if walked && sum.caches < threads && layout.is_lazy() => Known::Value(sum),
        Depth::Chunks if sum.caches <= threads => Known::unknown(format!(
            "of {threads} threads that allocate, the caches of {} were found; they hold {} bytes",
            sum.caches, sum.bytes
        )),
        Depth::Chunks => Known::unknown(format!(
            "{} chunks look like thread caches, but {threads} threads allocate",
            sum.caches
        )),
        Depth::Books => Known::unknown(format!(
            "of {threads} threads that allocate, the caches of {} are where they mostly are and \
             hold {} bytes; looking at every chunk finds the others",
            sum.caches, sum.bytes
        )),
    }
}
