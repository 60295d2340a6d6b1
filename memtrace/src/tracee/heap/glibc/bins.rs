//! The free lists of an arena: bins (doubly linked, boundary tags) and fast bins.
//!
//! Every chunk must satisfy what glibc itself asserts when it takes one from a list: aligned,
//! inside the heap, its size repeated at its end, linked back. Lists end because their chunks
//! cannot add up to more than the arena.

use super::Refusal;
use super::layout::BINS;
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
    unknown: bool,
}

impl Resident {
    fn add<M: MemoryReader>(&mut self, view: &View<'_, M>, start: u64, end: u64) {
        if whole_pages(start, end) > 0 && !self.unknown {
            match view.memory.resident(start, end) {
                Some(ranges) => self.bytes += ranges.iter().map(|r| r.end - r.start).sum::<u64>(),
                None => self.unknown = true,
            }
        }
    }

    fn known(&self) -> Known<u64> {
        if self.unknown {
            Known::unknown("`/proc/PID/pagemap` could not be read")
        } else {
            Known::Value(self.bytes)
        }
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
            self.take(size, chunk)?;
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

    fn fast_bins(&mut self, mangled: Option<bool>) -> Result<(), Refusal> {
        let mut mangled = mangled;
        for (bin, first) in self.state.fast_bins().into_iter().enumerate() {
            let size = (bin as u64 + 2) * 16;
            let mut chunk = first;
            while chunk != 0 {
                self.view.step()?;
                let [_, field, link] = self.chunk_words(chunk)?;
                if chunk_size(field) != size || field & IS_MAPPED != 0 {
                    let what = "a chunk in a fast bin has another size";
                    return Err(Refusal::Broken { what, address: chunk });
                }
                self.take(size, chunk)?;
                self.tally.fast(size);
                chunk = follow(link, chunk + 16, &mut mangled);
            }
        }
        Ok(())
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
    fn take(&mut self, size: u64, chunk: u64) -> Result<(), Refusal> {
        let Some(room) = self.room.checked_sub(size) else {
            let what = "the free chunks of an arena are larger than the arena";
            return Err(Refusal::Broken { what, address: self.state.address });
        };
        if !size.is_multiple_of(16) || !self.view.regions.hold(chunk, size.saturating_add(16)) {
            return Err(Refusal::Outside { address: chunk });
        }
        self.room = room;
        Ok(())
    }
}

/// The next of a singly linked list. Since 2.32 the link is xored with its own address ("safe
/// linking"): <https://github.com/bminor/glibc/blob/3de512be7ea6053255afed6154db9ee31d4e557a/malloc/malloc.c#L328>.
/// Where the release is not known, the first link that is not the end of its list tells.
pub fn follow(link: u64, at: u64, mangled: &mut Option<bool>) -> u64 {
    let revealed = link ^ (at >> 12);
    match mangled {
        Some(true) => revealed,
        Some(false) => link,
        // A plain link is a multiple of 16 or 0; a mangled end of a list is its address >> 12.
        None if link == 0 => {
            *mangled = Some(false);
            0
        }
        None if revealed == 0 => {
            *mangled = Some(true);
            0
        }
        None => {
            // Both lie in the same heap: a mangled link differs from a plain one by far more.
            let near = |pointer: u64| pointer.is_multiple_of(16) && pointer.abs_diff(at) < 1 << 36;
            *mangled = Some(near(revealed) && !near(link));
            if *mangled == Some(true) { revealed } else { link }
        }
    }
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
