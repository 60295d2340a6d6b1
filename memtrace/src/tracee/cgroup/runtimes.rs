//! Where language runtimes have their heaps, by the headers that they write into the memory.
//!
//! | runtime | header | where |
//! |---|---|---|
//! | CPython 3.10 and later | `struct pool_header` (`Objects/obmalloc.c`) | every 16 KiB |
//! | PHP 7 and later | `struct _zend_mm_chunk` (`Zend/zend_alloc.c`) | every 2 MiB |
//!
//! Only pages that are present are read. What is found is hostile: each field must fit the others.
//! Limits: 64 bits; other runtimes, and older ones of these, have no header that is known here;
//! [`MOST_PLACES`] places in one process are looked at.

use super::layout::Memory;
use crate::snapshot::facts::MappingFacts;
use crate::snapshot::runtimes::{Runtime, RuntimeRange};

/// 2 GiB of CPython's pools.
const MOST_PLACES: u64 = 131_072;
/// `POOL_SIZE` and `POOL_OVERHEAD`.
const POOL: u64 = 16 << 10;
const POOL_HEADER: u64 = 48;
/// Size classes are multiples of this, up to `SMALL_REQUEST_THRESHOLD`.
const POOL_ALIGNMENT: u64 = 16;
const POOL_CLASSES: u64 = 32;
/// `ZEND_MM_CHUNK_SIZE`, and how far `heap_slot` lies behind the start of the first of them.
const ZEND_CHUNK: u64 = 2 << 20;
const ZEND_HEAP_SLOT: u64 = 64;
const ZEND_PAGES: u64 = ZEND_CHUNK / 4096;

/// Whether what is at this address is a header.
type HeaderCheck = fn(u64, &[u8; 48]) -> bool;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Ascending, disjoint; neighbours are joined.
    pub ranges: Vec<RuntimeRange>,
    pub places_beyond: u64,
}

/// Looks where the runtimes that the process shows can have their heaps.
pub(super) fn find(mappings: &[MappingFacts], memory: &impl Memory) -> Found {
    let runtimes = Runtime::of_process(mappings);
    let mut found = Found::default();
    let mut left = MOST_PLACES;
    for mapping in mappings {
        let heap_like = mapping.readable && mapping.writable && !mapping.executable;
        let anonymous = mapping.inode == 0 && mapping.name.is_empty() && !mapping.shared;
        if !heap_like || !anonymous || mapping.rss == 0 {
            continue;
        }
        for runtime in &runtimes {
            let (step, is_header): (u64, HeaderCheck) = match runtime {
                Runtime::CPython => (POOL, is_pool),
                Runtime::Php => (ZEND_CHUNK, is_zend_chunk),
                Runtime::V8 | Runtime::Ruby | Runtime::Jvm => continue,
            };
            let Some(mut at) = mapping.start.checked_next_multiple_of(step) else { continue };
            while let Some(end) = at.checked_add(step).filter(|end| *end <= mapping.end) {
                if left == 0 {
                    found.places_beyond += (mapping.end - at) / step;
                    break;
                }
                left -= 1;
                let mut header = [0u8; 48];
                if memory.read(at, &mut header) && is_header(at, &header) {
                    add(&mut found.ranges, RuntimeRange { runtime: *runtime, start: at, end });
                }
                at = end;
            }
        }
    }
    found.ranges.sort_by_key(|range| range.start);
    found
}

fn add(ranges: &mut Vec<RuntimeRange>, range: RuntimeRange) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start && last.runtime == range.runtime => {
            last.end = range.end;
        }
        _ => ranges.push(range),
    }
}

fn word(header: &[u8; 48], at: usize) -> u64 {
    let bytes = header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

fn half(header: &[u8; 48], at: usize) -> u64 {
    let bytes = header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes).into()
}

/// `count, freeblock, nextpool, prevpool, arenaindex, szidx, nextoffset, maxnextoffset`: the last
/// ones follow from the size class, and the list of free blocks stays in the pool.
fn is_pool(at: u64, header: &[u8; 48]) -> bool {
    let (count, free) = (half(header, 0), word(header, 8));
    let (class, next, last) = (half(header, 36), half(header, 40), half(header, 44));
    let size = (class + 1) * POOL_ALIGNMENT;
    class < POOL_CLASSES
        && last == POOL - size
        && (POOL_HEADER + size..=POOL).contains(&next)
        && (next - POOL_HEADER).is_multiple_of(size)
        && count <= (POOL - POOL_HEADER) / size
        && (free == 0
            || (at + POOL_HEADER..at + POOL).contains(&free)
                && (free - at - POOL_HEADER).is_multiple_of(size))
}

/// `heap, next, prev, free_pages, free_tail, num`: the heap lies in the first chunk of a ring.
fn is_zend_chunk(at: u64, header: &[u8; 48]) -> bool {
    let (heap, next, previous) = (word(header, 0), word(header, 8), word(header, 16));
    let (free_pages, free_tail, number) = (half(header, 24), half(header, 28), half(header, 32));
    let first = heap.wrapping_sub(ZEND_HEAP_SLOT);
    let in_ring = |chunk: u64| chunk != 0 && chunk.is_multiple_of(ZEND_CHUNK);
    in_ring(first)
        && in_ring(next)
        && in_ring(previous)
        && (first == at) == (number == 0)
        && free_pages < ZEND_PAGES
        && free_tail <= ZEND_PAGES
}

#[cfg(test)]
#[path = "runtimes_tests.rs"]
mod tests;
