//! `mp_`: what glibc has set for all arenas, and the count of blocks mapped on their own.
//!
//! Without its symbol it is found by one word: the address where the main arena's `brk` memory
//! starts, which is known from the arena itself, at its place among figures that hang together.
//! Where that memory was never used, or is not in one piece, glibc's defaults must tell the place.

use super::layout::{PARAMETERS, ParametersLayout, order};
use super::locate::Data;
use super::view::View;
use super::{Libc, Refusal};
use crate::tracee::heap::census::{MappedChunks, Settings};
use crate::tracee::heap::memory::{MemoryReader, PAGE};

/// Larger than any size that can be allocated.
const MAX_BYTES: u64 = 1 << 47;
/// More than any machine's processors times eight, and less than the usual thresholds, which stand
/// in these places if a layout is one word off.
const MAX_ARENA_COUNT: u64 = 1 << 16;

pub struct Parameters {
    pub settings: Settings,
    pub mapped: MappedChunks,
    /// Blocks of one size that a thread cache keeps; `None`: the release has none, or is unknown.
    pub cache_count: Option<u64>,
}

/// Finds and reads it. `base` is the start of the main arena's memory: 0 where it has none, `None`
/// where that is not in one piece.
pub fn read<M: MemoryReader>(
    view: &View<'_, M>,
    libc: &Libc,
    base: Option<u64>,
) -> Result<Parameters, Refusal> {
    let layouts = order(&PARAMETERS, |row| row.since, libc.release);
    if let Some(address) = libc.parameters {
        for layout in &layouts {
            let mut bytes = vec![0; layout.size];
            if view.fresh(address, &mut bytes).is_ok()
                && let Some(parameters) = parse(&bytes, layout, base)
            {
                return Ok(parameters);
            }
        }
    }
    let data = Data::read(view, &libc.data)?;
    for layout in layouts {
        let mut found = None;
        for (at, word) in data.words() {
            // Not in one piece: any address in a mapping, beside what is mostly not changed.
            let is_marked = base.is_some_and(|base| base > 0);
            let is_candidate = match base {
                Some(base) => word == base,
                None => word.is_multiple_of(16) && view.regions.hold(word, 16),
            };
            let start = at.wrapping_sub(layout.sbrk_base as u64);
            let bytes = if is_candidate { data.at(start, layout.size) } else { None };
            let parameters = bytes.and_then(|bytes| parse(bytes, layout, Some(word)));
            let Some(parameters) = parameters.filter(|p| is_marked || has_defaults(p)) else {
                continue;
            };
            if found.is_some() {
                let why = "more than one place in the C library's data looks like it";
                return Err(Refusal::NoParameters { why });
            }
            found = Some(parameters);
        }
        if let Some(parameters) = found {
            return Ok(parameters);
        }
    }
    Err(Refusal::NoParameters { why: "no place in the C library's data looks like it" })
}

/// What is mostly not changed, and what nothing else looks like.
fn has_defaults(parameters: &Parameters) -> bool {
    let settings = &parameters.settings;
    settings.mapped_chunks_max == 65536
        && settings.top_pad_bytes == 128 << 10
        && settings.mmap_threshold_bytes >= 128 << 10
        && settings.mmap_threshold_bytes.is_multiple_of(PAGE)
        && settings.trim_threshold_bytes >= 128 << 10
}

/// The figures, if they hang together.
fn parse(bytes: &[u8], layout: &ParametersLayout, base: Option<u64>) -> Option<Parameters> {
    let word =
        |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    // Counts are ints that are never negative.
    let count = |at: usize| {
        let half = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)?;
        (half <= i32::MAX as u32).then_some(u64::from(half))
    };
    let settings = Settings {
        trim_threshold_bytes: word(0)?,
        top_pad_bytes: word(8)?,
        mmap_threshold_bytes: word(16)?,
        arena_max: word(32)?,
        mapped_chunks_max: count(layout.n_mmaps + 4)?,
        thresholds_adapt: match count(layout.n_mmaps + 12)? {
            0 => true,
            1 => false,
            _ => return None,
        },
    };
    let mapped = MappedChunks {
        chunks: count(layout.n_mmaps)?,
        peak_chunks: count(layout.n_mmaps + 8)?,
        bytes: word(layout.mmapped_mem)?,
        peak_bytes: word(layout.mmapped_mem + 8)?,
    };
    let cache_count = match layout.cache_count {
        Some(at) => Some(word(at)?),
        None => None,
    };
    let holds = base.is_none_or(|base| word(layout.sbrk_base) == Some(base))
        && mapped.chunks <= mapped.peak_chunks
        && mapped.bytes <= mapped.peak_bytes
        && mapped.peak_bytes < MAX_BYTES
        && mapped.bytes.is_multiple_of(PAGE)
        && mapped.bytes >= mapped.chunks * PAGE
        && (mapped.chunks == 0) == (mapped.bytes == 0)
        && (mapped.peak_chunks == 0) == (mapped.peak_bytes == 0)
        && word(24)? <= MAX_ARENA_COUNT
        && settings.arena_max <= MAX_ARENA_COUNT
        && layout.huge_page.is_none_or(|at| {
            word(at).is_some_and(|size| size == 0 || (size.is_power_of_two() && size >= PAGE))
        })
        && cache_count.is_none_or(|count| count <= u64::from(u16::MAX));
    holds.then_some(Parameters { settings, mapped, cache_count })
}
