//! The free lists of an arena: bins (doubly linked, boundary tags) and fast bins.
//!
//! Every chunk must satisfy what glibc itself asserts when it takes one from a list: aligned,
//! inside the heap, its size repeated at its end, linked back. Lists end because their chunks
//! cannot add up to more than the arena.

use super::Refusal;
use super::layout::{BINS, FAST_BINS};
use super::state::{IS_MAPPED, MIN_CHUNK, PREV_IN_USE, State, chunk_size};
use super::view::View;
use crate::snapshot::Known;
use crate::tracee::heap::census::{Free, SizeClass};
use crate::tracee::heap::memory::{MemoryReader, PAGE};

/// `sizeof (struct malloc_chunk)`: what `malloc_trim` leaves alone at the start of a chunk.
const CHUNK_HEAD: u64 = 48;
/// Bins below this hold one size each, 16 bytes apart (`NSMALLBINS`).
const SMALL_BINS: usize = 64;

/// Chunks counted by powers of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes([(u64, u64); 64]);

impl Default for Sizes {
    fn default() -> Self {
        Self([(0, 0); 64])
    }
}

impl Sizes {
    pub fn add(&mut self, size: u64) {
        if let Some((chunks, bytes)) = self.0.get_mut(size.max(1).ilog2() as usize) {
            *chunks += 1;
            *bytes += size;
        }
    }

    pub fn classes(&self) -> Vec<SizeClass> {
        let filled = self.0.iter().enumerate().filter(|(_, (chunks, _))| *chunks > 0);
        let class = |(power, (chunks, bytes)): (usize, &(u64, u64))| SizeClass {
            from: 1 << power,
            chunks: *chunks,
            bytes: *bytes,
        };
        filled.map(class).collect()
    }
}

/// Free chunks on their way to becoming [`Free`].
#[derive(Default)]
pub struct Tally {
    free: Free,
    sizes: Sizes,
    resident: Resident,
}

impl Tally {
    /// A chunk that lies in a bin.
    pub fn binned<M: MemoryReader>(&mut self, view: &View<'_, M>, chunk: u64, size: u64) {
        self.free.bytes += size;
        self.sizes.add(size);
        self.free.binned_chunks += 1;
        self.free.binned_bytes += size;
        self.free.largest_bytes = self.free.largest_bytes.max(size);
        // As malloc_trim does it: the unsorted list, and bins of a page and more.
        if size >= PAGE {
            let (start, end) = (chunk + CHUNK_HEAD, chunk + size);
            self.free.whole_page_bytes += whole_pages(start, end);
            self.resident.add(view, start, end);
        }
    }

    fn fast(&mut self, size: u64) {
        self.free.bytes += size;
        self.sizes.add(size);
        self.free.fast_chunks += 1;
        self.free.fast_bytes += size;
    }

    /// Adds the top, and is done.
    pub fn with_top<M: MemoryReader>(
        self,
        view: &View<'_, M>,
        state: &State,
        top: u64,
        main: bool,
    ) -> Free {
        let Self { mut free, sizes, resident } = self;
        free.by_size = sizes.classes();
        free.whole_page_resident_bytes = resident.known();
        free.top_bytes = top;
        free.bytes += top;
        let mut of_top = Resident::default();
        if top > 0 {
            // Cutting the main arena's top leaves at least a chunk and a byte.
            let start = state.top() + if main { MIN_CHUNK + 1 } else { CHUNK_HEAD };
            let end = state.top() + top;
            free.top_page_bytes = whole_pages(start, end);
            of_top.add(view, start, end);
        }
        free.top_page_resident_bytes = of_top.known();
        free
    }
}

/// Reads the whole of what is free in an arena. `mangled` says how fast bins are linked, where it
/// is known.
pub fn read<M: MemoryReader>(
    view: &View<'_, M>,
    state: &State,
    main: bool,
    mangled: Option<bool>,
) -> Result<Free, Refusal> {
    let top = state.top_size(view)?;
    let mut walk = Walk { view, state, tally: Tally::default(), room: state.system() - top };
    for bin in 1..=BINS {
        walk.bin(bin)?;
    }
    walk.fast_bins(mangled)?;
    Ok(walk.tally.with_top(view, state, top, main))
}

fn whole_pages(start: u64, end: u64) -> u64 {
    (end / PAGE).saturating_sub(start.div_ceil(PAGE)) * PAGE
}

/// Resident bytes of whole pages, as far as the reader can tell.
#[derive(Default)]
struct Resident {
    bytes: u64,
    unknown: Option<&'static str>,
    looked_at: u64,
}

/// Most free bytes of an arena whose pages are looked at one by one: 64 GiB.
const MAX_LOOKED_AT: u64 = 64 << 30;

impl Resident {
    fn add<M: MemoryReader>(&mut self, view: &View<'_, M>, start: u64, end: u64) {
        if whole_pages(start, end) == 0 || self.unknown.is_some() {
            return;
        }
        self.looked_at = self.looked_at.saturating_add(end - start);
        if self.looked_at > MAX_LOOKED_AT {
            self.unknown = Some("more than 64 GiB of an arena are free");
            return;
        }
        match view.memory.resident(start, end) {
            Some(ranges) => self.bytes += ranges.iter().map(|r| r.end - r.start).sum::<u64>(),
            None => self.unknown = Some("`/proc/PID/pagemap` could not be read"),
        }
    }

    fn known(&self) -> Known<u64> {
        self.unknown.map_or(Known::Value(self.bytes), Known::unknown)
    }
}

struct Walk<'w, 'a, M> {
    view: &'w View<'a, M>,
    state: &'w State,
    tally: Tally,
    /// Bytes that the chunks to come can have at most.
    room: u64,
}

impl<M: MemoryReader> Walk<'_, '_, M> {
    fn bin(&mut self, bin: usize) -> Result<(), Refusal> {
        let header = self.state.bin_header(bin);
        let (mut chunk, last) = self.state.bin(bin);
        let mut previous = header;
        while chunk != header {
            let broken = |what| Refusal::Broken { what, address: chunk };
            self.view.step()?;
            let [_, field, forward, back] = self.chunk_words(chunk)?;
            let size = chunk_size(field);
            if back != previous {
                return Err(broken("a free chunk is not linked back to the one before it"));
            }
            if size < MIN_CHUNK || field & PREV_IN_USE == 0 || field & IS_MAPPED != 0 {
                return Err(broken("a chunk in a bin is not free"));
            }
            if bin > 1 && !belongs(bin, size) {
                return Err(broken("a free chunk lies in a bin of another size"));
            }
            self.room = self.room_after(self.room, size, chunk)?;
            let [repeated, next_field] = self.view.words(chunk + size)?;
            if repeated != size || next_field & PREV_IN_USE != 0 {
                return Err(broken("a free chunk's end says another size than its start"));
            }
            self.tally.binned(self.view, chunk, size);
            (previous, chunk) = (chunk, forward);
        }
        if previous != last && !(previous == header && last == header) {
            let what = "a bin ends at another chunk than it says";
            return Err(Refusal::Broken { what, address: header });
        }
        Ok(())
    }

    /// Where the release does not tell how they are linked, the links do: read the wrong way they
    /// lead out of the heap, or to chunks of other sizes.
    fn fast_bins(&mut self, mangled: Option<bool>) -> Result<(), Refusal> {
        let counts = match mangled {
            Some(mangled) => self.fast_counts(mangled)?,
            None => self.fast_counts(true).or_else(|_| self.fast_counts(false))?,
        };
        for (bin, count) in counts.into_iter().enumerate() {
            (0..count).for_each(|_| self.tally.fast(fast_size(bin)));
        }
        Ok(())
    }

    fn fast_counts(&self, mangled: bool) -> Result<[u64; FAST_BINS], Refusal> {
        let mut counts = [0; FAST_BINS];
        let mut room = self.room;
        let bins = self.state.fast_bins().into_iter().enumerate();
        for ((bin, first), count) in bins.zip(&mut counts) {
            let size = fast_size(bin);
            let mut chunk = first;
            while chunk != 0 {
                self.view.step()?;
                let [_, field, link] = self.chunk_words(chunk)?;
                if chunk_size(field) != size || field & IS_MAPPED != 0 {
                    let what = "a chunk in a fast bin has another size";
                    return Err(Refusal::Broken { what, address: chunk });
                }
                room = self.room_after(room, size, chunk)?;
                *count += 1;
                chunk = follow(link, chunk + 16, mangled);
            }
        }
        Ok(counts)
    }

    fn chunk_words<const N: usize>(&self, chunk: u64) -> Result<[u64; N], Refusal> {
        if chunk.is_multiple_of(16) {
            self.view.words(chunk)
        } else {
            Err(Refusal::Outside { address: chunk })
        }
    }

    /// A free chunk must lie in one mapping with the head of the next, and find room in the arena:
    /// a list that goes in a circle ends here.
    fn room_after(&self, room: u64, size: u64, chunk: u64) -> Result<u64, Refusal> {
        if !size.is_multiple_of(16) || !self.view.regions.hold(chunk, size.saturating_add(16)) {
            return Err(Refusal::Outside { address: chunk });
        }
        let what = "the free chunks of an arena are larger than the arena";
        room.checked_sub(size).ok_or(Refusal::Broken { what, address: self.state.address })
    }
}

/// The size of the chunks in a fast bin.
fn fast_size(bin: usize) -> u64 {
    (bin as u64 + 2) * 16
}

/// The next of a singly linked list. Since 2.32 the link is xored with its own address ("safe
/// linking"): <https://github.com/bminor/glibc/blob/3de512be7ea6053255afed6154db9ee31d4e557a/malloc/malloc.c#L339>.
pub fn follow(link: u64, at: u64, mangled: bool) -> u64 {
    if mangled { link ^ (at >> 12) } else { link }
}

/// Whether a bin of glibc's holds chunks of this size.
fn belongs(bin: usize, size: u64) -> bool {
    if size < (SMALL_BINS * 16) as u64 {
        return size == bin as u64 * 16;
    }
    let bin = bin as u64;
    let index = match size {
        _ if size >> 6 <= 48 => 48 + (size >> 6),
        _ if size >> 9 <= 20 => 91 + (size >> 9),
        _ if size >> 12 <= 10 => 110 + (size >> 12),
        _ if size >> 15 <= 4 => 119 + (size >> 15),
        _ if size >> 18 <= 2 => 124 + (size >> 18),
        _ => 126,
    };
    index == bin
}
