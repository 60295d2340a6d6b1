//! Where the main arena is: by its symbol, or by its structure in the C library's data.
//!
//! A stripped libc has no symbol for it. But no other data looks like it: 127 bins whose pointers
//! are their own addresses or lead to chunks, a top inside a heap, and a ring of arenas, each at
//! the start of a heap that names it, that comes back to exactly this address.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use super::layout::{BINS, HEAP_HEADS, HEAP_SIZES, MAX_STATE, STATES, StateLayout, order};
use super::state::State;
use super::view::View;
use super::{Libc, Refusal};
use crate::tracee::heap::census::FoundBy;
use crate::tracee::heap::memory::MemoryReader;

/// Most data of the C library, or of a static program, that is searched.
const MAX_DATA: u64 = 64 << 20;
/// Most places looked at closely: hostile data can imitate the first mark.
const MAX_PLACES: usize = 1 << 16;
/// Most arenas of a process; glibc's own limit is 8 for each processor.
pub const MAX_ARENAS: usize = 1 << 16;

/// Data of the C library at one time.
pub struct Data {
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Data {
    pub fn read<M: MemoryReader>(
        view: &View<'_, M>,
        ranges: &[Range<u64>],
    ) -> Result<Self, Refusal> {
        let mut pieces = Vec::new();
        let mut room = MAX_DATA;
        for range in ranges.iter().flat_map(|range| view.regions.within(range)) {
            let start = range.start.next_multiple_of(8);
            let length = range.end.saturating_sub(start).min(room) & !7;
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            view.fresh(start, &mut bytes)?;
            room -= length;
            pieces.push((start, bytes));
        }
        if pieces.iter().all(|(_, bytes)| bytes.is_empty()) {
            return Err(Refusal::NoData);
        }
        Ok(Self { pieces })
    }

    /// All words with their addresses.
    pub fn words(&self) -> impl Iterator<Item = (u64, u64)> {
        self.pieces.iter().flat_map(|(start, bytes)| {
            let words = bytes.as_chunks::<8>().0.iter().enumerate();
            words.map(move |(at, word)| (start + at as u64 * 8, u64::from_le_bytes(*word)))
        })
    }

    /// `length` bytes at an address.
    pub fn at(&self, address: u64, length: usize) -> Option<&[u8]> {
        self.pieces.iter().find_map(|(start, bytes)| {
            let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
            bytes.get(offset..offset.checked_add(length)?)
        })
    }
}

/// The main arena.
pub fn main_arena<M: MemoryReader>(
    view: &View<'_, M>,
    libc: &Libc,
) -> Result<(State, FoundBy), Refusal> {
    let layouts = order(&STATES, |row| row.since, libc.release);
    let mut best = None;
    if let Some(address) = libc.main_arena {
        for &layout in &layouts {
            match State::read(view, address, layout).and_then(|state| prove(view, state)) {
                Ok(state) => return Ok((state, FoundBy::Symbol)),
                // The release's own layout says best what is wrong.
                Err(refusal) => best = best.or(Some(refusal)),
            }
        }
    }
    let data = Data::read(view, &libc.data)?;
    let mut seen = BTreeSet::new();
    let mut previous = None;
    for (address, word) in data.words() {
        // An empty bin: both of its pointers are the address 16 bytes before it.
        let is_empty_bin = previous == Some(word) && word == address.wrapping_sub(24);
        previous = Some(word);
        if !is_empty_bin {
            continue;
        }
        for bin in 0..BINS as u64 {
            let Some(bins) = (address - 8).checked_sub(bin * 16) else { break };
            if !seen.insert(bins) {
                continue;
            }
            if seen.len() > MAX_PLACES {
                return Err(Refusal::NotFound);
            }
            for &layout in &layouts {
                let Some(state) = state_at(&data, bins, layout) else { continue };
                match state.check().and_then(|state| prove(view, state)) {
                    Ok(state) => return Ok((state, FoundBy::Structure)),
                    Err(refusal @ (Refusal::TooLong | Refusal::TooMany { .. })) => {
                        return Err(refusal);
                    }
                    Err(_) => {}
                }
            }
        }
    }
    Err(best.unwrap_or(Refusal::NotFound))
}

fn state_at(data: &Data, bins: u64, layout: &'static StateLayout) -> Option<State> {
    let address = bins.checked_sub(layout.bins as u64)?;
    let mut bytes = [0; MAX_STATE];
    bytes.get_mut(..layout.size)?.copy_from_slice(data.at(address, layout.size)?);
    Some(State::of(address, layout, bytes))
}

/// Its top is one, and the ring of arenas comes back to it.
fn prove<M: MemoryReader>(view: &View<'_, M>, main: State) -> Result<State, Refusal> {
    main.top_size(view)?;
    ring(view, &main)?;
    Ok(main)
}

/// The addresses of all other arenas, in the order of the ring.
pub fn ring<M: MemoryReader>(view: &View<'_, M>, main: &State) -> Result<Vec<u64>, Refusal> {
    let mut others = Vec::new();
    let mut seen = HashSet::new();
    let mut next = main.next();
    while next != main.address {
        view.step()?;
        if others.len() >= MAX_ARENAS || !seen.insert(next) {
            let what = "the ring of arenas does not come back to the main arena";
            return Err(Refusal::Broken { what, address: next });
        }
        if !is_first_of_heap(view, next)? {
            let what = "an arena does not stand at the start of a heap of its own";
            return Err(Refusal::Broken { what, address: next });
        }
        others.push(next);
        next = State::read(view, next, main.layout)?.next();
    }
    Ok(others)
}

fn is_first_of_heap<M: MemoryReader>(view: &View<'_, M>, arena: u64) -> Result<bool, Refusal> {
    for alignment in HEAP_SIZES {
        let heap = arena & !(alignment - 1);
        if HEAP_HEADS.contains(&(arena - heap)) && view.word(heap)? == arena {
            return Ok(true);
        }
    }
    Ok(false)
}
