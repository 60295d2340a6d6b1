//! One arena's `malloc_state`, read in one piece and believed only if it makes sense.

use std::fmt;

use super::Refusal;
use super::layout::{BINS, FAST_BINS, HEAP_HEADS, HEAP_SIZES, MAX_STATE, NEXT, StateLayout};
use super::view::View;
use crate::tracee::heap::memory::MemoryReader;

/// A chunk's smallest size (`MINSIZE`).
pub const MIN_CHUNK: u64 = 32;
/// Bits of a chunk's size field that are no size.
const SIZE_BITS: u64 = 7;
pub const PREV_IN_USE: u64 = 1;
pub const IS_MAPPED: u64 = 2;
/// All of user space.
const MAX_ADDRESS: u64 = 1 << 47;
/// The most threads a kernel can have.
const MAX_THREADS: u64 = 1 << 22;

/// `flags`: the arena's memory is not one piece. The lowest bit and 4 were used by old releases.
const NONCONTIGUOUS: u32 = 2;
const KNOWN_FLAGS: u32 = 7;

/// A size field without its flags.
pub fn chunk_size(field: u64) -> u64 {
    field & !SIZE_BITS
}

#[derive(Clone)]
pub struct State {
    pub address: u64,
    pub layout: &'static StateLayout,
    bytes: [u8; MAX_STATE],
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("address", &self.address).finish_non_exhaustive()
    }
}

impl State {
    /// Reads it anew and checks what can be checked of it alone.
    pub fn read<M: MemoryReader>(
        view: &View<'_, M>,
        address: u64,
        layout: &'static StateLayout,
    ) -> Result<Self, Refusal> {
        let mut bytes = [0; MAX_STATE];
        if !address.is_multiple_of(8) {
            return Err(Refusal::Outside { address });
        }
        view.fresh(address, bytes.get_mut(..layout.size).unwrap_or_default())?;
        Self::of(address, layout, bytes).check()
    }

    /// From bytes that were read already; unchecked.
    pub fn of(address: u64, layout: &'static StateLayout, bytes: [u8; MAX_STATE]) -> Self {
        Self { address, layout, bytes }
    }

    pub fn check(self) -> Result<Self, Refusal> {
        let broken = |what| Refusal::Broken { what, address: self.address };
        // glibc fills the bins in when malloc is called first.
        if self.top() == 0 && self.system() == 0 && self.bin(1) == (0, 0) {
            return Err(Refusal::Unused);
        }
        if self.half(0) > 2 {
            return Err(broken("the lock of an arena is in no state that a lock has"));
        }
        if self.flags() & !KNOWN_FLAGS != 0 {
            return Err(broken("an arena has flags that no release knows"));
        }
        if self.system() > self.peak_system() || self.peak_system() >= MAX_ADDRESS {
            return Err(broken("an arena's memory is larger than it ever was"));
        }
        if self.attached_threads().is_some_and(|threads| threads > MAX_THREADS) {
            return Err(broken("an arena has more threads than a kernel can have"));
        }
        if self.next() == 0 || !self.next().is_multiple_of(8) || self.next() >= MAX_ADDRESS {
            return Err(broken("an arena has no next one"));
        }
        for bin in 1..=BINS {
            let (first, last) = self.bin(bin);
            let header = self.bin_header(bin);
            let is_empty = first == header && last == header;
            let has_chunks = [first, last].iter().all(|chunk| {
                *chunk != header && *chunk != 0 && chunk.is_multiple_of(16) && *chunk < MAX_ADDRESS
            });
            if !is_empty && !has_chunks {
                return Err(broken("a bin of an arena is neither empty nor a list of chunks"));
            }
        }
        Ok(self)
    }

    fn half(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
        bytes.map_or(0, u32::from_le_bytes)
    }

    fn word(&self, at: usize) -> u64 {
        let bytes = self.bytes.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    fn flags(&self) -> u32 {
        self.half(4)
    }

    pub fn is_contiguous(&self) -> bool {
        self.flags() & NONCONTIGUOUS == 0
    }

    pub fn top(&self) -> u64 {
        self.word(self.layout.bins - 16)
    }

    /// Nothing was ever allocated: the top is what glibc uses before there is one.
    pub fn is_unused(&self) -> bool {
        self.top() == self.bin_header(1)
    }

    /// The first and the last chunk of a bin.
    pub fn bin(&self, bin: usize) -> (u64, u64) {
        let at = self.layout.bins + (bin - 1) * 16;
        (self.word(at), self.word(at + 8))
    }

    /// What an empty bin's two pointers point to: the bin seen as a chunk.
    pub fn bin_header(&self, bin: usize) -> u64 {
        (self.address + (self.layout.bins + (bin - 1) * 16) as u64).wrapping_sub(16)
    }

    pub fn fast_bins(&self) -> [u64; FAST_BINS] {
        let first = self.layout.fast;
        std::array::from_fn(|bin| first.map_or(0, |first| self.word(first + bin * 8)))
    }

    pub fn next(&self) -> u64 {
        self.word(self.layout.bins + NEXT)
    }

    pub fn attached_threads(&self) -> Option<u64> {
        self.layout.attached_threads.map(|at| self.word(at))
    }

    pub fn system(&self) -> u64 {
        self.word(self.layout.system_mem)
    }

    pub fn peak_system(&self) -> u64 {
        self.word(self.layout.system_mem + 8)
    }

    /// The same free lists, top and size. The lock, the ring and the threads do not count.
    pub fn is_same(&self, other: &Self) -> bool {
        let lists = 4..self.layout.bins + NEXT;
        self.bytes.get(lists.clone()) == other.bytes.get(lists) && self.system() == other.system()
    }

    /// The top's size.
    pub fn top_size<M: MemoryReader>(&self, view: &View<'_, M>) -> Result<u64, Refusal> {
        if self.is_unused() {
            return Ok(0);
        }
        let top = self.top();
        let broken = |what| Refusal::Broken { what, address: top };
        if !top.is_multiple_of(16) {
            return Err(Refusal::Outside { address: top });
        }
        let [_, field] = view.words(top)?;
        let size = chunk_size(field);
        if field & PREV_IN_USE == 0 || field & IS_MAPPED != 0 || !size.is_multiple_of(8) {
            return Err(broken("the top of an arena does not look like one"));
        }
        if size < 16 || size > self.system() || !view.regions.hold(top, size) {
            return Err(broken("the top of an arena reaches beyond the arena's memory"));
        }
        Ok(size)
    }
}

/// The heaps of an arena other than the main one, the newest first: (start, size).
pub struct Heaps {
    pub heaps: Vec<(u64, u64)>,
    /// `sizeof (heap_info)`
    pub head: u64,
}

impl Heaps {
    /// Follows `prev` from the heap that the top lies in to the one that the arena lies in.
    pub fn of<M: MemoryReader>(view: &View<'_, M>, state: &State) -> Result<Self, Refusal> {
        let mut last = Refusal::Broken {
            what: "an arena does not stand at the start of a heap",
            address: state.address,
        };
        for alignment in HEAP_SIZES {
            let first = state.address & !(alignment - 1);
            let head = state.address - first;
            if !HEAP_HEADS.contains(&head) {
                continue;
            }
            match Self::chain(view, state, first, alignment) {
                Ok(heaps) => return Ok(Self { heaps, head }),
                Err(refusal) => last = refusal,
            }
        }
        Err(last)
    }

    fn chain<M: MemoryReader>(
        view: &View<'_, M>,
        state: &State,
        first: u64,
        alignment: u64,
    ) -> Result<Vec<(u64, u64)>, Refusal> {
        let mut heap = state.top() & !(alignment - 1);
        let mut heaps = Vec::new();
        let mut sum: u64 = 0;
        loop {
            view.step()?;
            let broken = move |what| Refusal::Broken { what, address: heap };
            let [arena, previous, size, writable] = view.words(heap)?;
            if arena != state.address {
                return Err(broken("a heap belongs to another arena"));
            }
            if size == 0 || !size.is_multiple_of(4096) || size > writable || writable > alignment {
                return Err(broken("a heap has an impossible size"));
            }
            if !view.regions.hold(heap, size) {
                return Err(broken("a heap reaches beyond its mapping"));
            }
            heaps.push((heap, size));
            // Each heap adds to the sum: a cycle ends here.
            sum += size;
            if sum > state.system() {
                return Err(broken("the heaps of an arena are larger than the arena"));
            }
            if heap == first {
                break;
            }
            heap = previous;
            if !heap.is_multiple_of(alignment) {
                return Err(broken("a heap's predecessor is no heap"));
            }
        }
        if sum != state.system() {
            let what = "the heaps of an arena do not add up to the arena";
            return Err(Refusal::Broken { what, address: state.address });
        }
        Ok(heaps)
    }
}
