use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::*;

const PAGE: u64 = 4096;
const BASE: u64 = 0x7f00_0000_0000;

/// Words at addresses; a page is present when a word was put into it.
#[derive(Default)]
struct Fake {
    words: BTreeMap<u64, u64>,
    present: BTreeSet<u64>,
    read: RefCell<Vec<u64>>,
}

impl Fake {
    fn put(&mut self, address: u64, words: &[u64]) {
        for (at, word) in words.iter().enumerate() {
            self.words.insert(address + at as u64 * 8, *word);
        }
        self.present.insert(address / PAGE);
    }

    fn touch(&mut self, start: u64, end: u64) {
        self.present.extend(start / PAGE..end / PAGE);
    }
}

impl Memory for Fake {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        if !self.present.contains(&(address / PAGE)) {
            return false;
        }
        self.read.borrow_mut().push(address);
        for (at, bytes) in buffer.chunks_exact_mut(8).enumerate() {
            let word = self.words.get(&(address + at as u64 * 8)).copied().unwrap_or(0);
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        true
    }

    fn resident(&self, start: u64, end: u64) -> Option<u64> {
        Some(self.present.range(start / PAGE..end / PAGE).count() as u64 * PAGE)
    }

    fn page_bytes(&self) -> u64 {
        PAGE
    }
}

fn anonymous(start: u64, end: u64) -> MappingFacts {
    MappingFacts {
        start,
        end,
        readable: true,
        writable: true,
        rss: PAGE,
        ..MappingFacts::default()
    }
}

#[test]
fn heaps_are_known_by_their_headers_and_their_arenas() {
    let mut memory = Fake::default();
    let (first, second) = (BASE, BASE + HEAP_BYTES);
    memory.put(first, &[first + 48, 0, 0x20_0000, 0x20_0000]);
    memory.put(second, &[first + 48, first, 0x1000, 0x2000]);
    let mut mappings =
        vec![anonymous(first, first + 0x20_0000), anonymous(second, second + 0x2000)];
    let heaps = examine(&mut mappings, &[], &memory);
    assert_eq!(heaps.len(), 2);
    assert_eq!(
        (heaps[1].start, heaps[1].end, heaps[1].arena),
        (second, second + 0x2000, first + 48)
    );
    assert!(mappings.iter().all(|mapping| mapping.pieces.is_empty()));
}

#[test]
fn what_only_lies_at_the_right_address_is_no_heap() {
    let mut memory = Fake::default();
    for header in [
        [0, 0, 0x1000, 0x1000],                         // no arena
        [BASE + 48, 0, 0x3000, 0x2000],                 // larger than what is accessible
        [BASE + 48, 0, 0x1000, 2 * HEAP_BYTES],         // larger than a heap can be
        [BASE + 48, BASE - HEAP_BYTES, 0x1000, 0x1000], // the first heap has none before it
        [BASE + 4096, 0, 0x1000, 0x1000],               // the arena is not behind the header
        [BASE + 48, 0, 0, 0x1000],
    ] {
        memory.put(BASE, &header);
        let mut mappings = vec![anonymous(BASE, BASE + 0x10_0000)];
        assert!(examine(&mut mappings, &[], &memory).is_empty(), "{header:x?}");
    }
}

#[test]
fn a_heap_merged_with_what_lies_below_is_cut_out() {
    let mut memory = Fake::default();
    memory.put(BASE, &[BASE + 48, 0, 0x4000, 0x4000]);
    memory.touch(BASE - 0x3000, BASE - 0x1000);
    let mut mappings = vec![anonymous(BASE - 0x8000, BASE + 0x4000)];
    assert_eq!(examine(&mut mappings, &[], &memory).len(), 1);
    let pieces: Vec<(u64, u64, u64)> =
        mappings[0].pieces.iter().map(|it| (it.start, it.end, it.resident)).collect();
    assert_eq!(pieces, [(BASE - 0x8000, BASE, 0x2000), (BASE, BASE + 0x4000, 0x1000)]);
}

#[test]
fn mapped_chunks_lie_end_to_end_and_the_rest_is_somebody_else_s() {
    let mut memory = Fake::default();
    let start = BASE + 0x1000;
    memory.put(start, &[0, 0x2_1000 | IS_MMAPPED]);
    memory.put(start + 0x2_1000, &[0, 0x4_0000 | IS_MMAPPED]);
    let end_of_chunks = start + 0x6_1000;
    memory.put(end_of_chunks, &[0x1234, 0x5678]);
    let mut mappings = vec![anonymous(start, end_of_chunks + 0x8000)];
    examine(&mut mappings, &[], &memory);
    assert_eq!(mappings[0].malloc_chunks, 2);
    assert_eq!(mappings[0].pieces.len(), 2);
    assert_eq!(mappings[0].pieces[0].end, end_of_chunks);
}

#[test]
fn sizes_that_do_not_fit_are_no_chunks() {
    for size in [0, IS_MMAPPED, 0x2_1001 | IS_MMAPPED, 0x2_1000, 0x2_1000 | 7, !5] {
        let mut memory = Fake::default();
        memory.put(BASE, &[0, size]);
        let mut mappings = vec![anonymous(BASE, BASE + 0x10_0000)];
        examine(&mut mappings, &[], &memory);
        assert_eq!(mappings[0].malloc_chunks, 0, "{size:x}");
    }
}

#[test]
fn nothing_is_read_that_is_not_present() {
    let memory = Fake::default();
    let mut mappings = vec![anonymous(BASE, BASE + 4 * HEAP_BYTES)];
    examine(&mut mappings, &[], &memory);
    assert!(memory.read.borrow().is_empty());
    // Nor of files, shared memory, or what cannot be read.
    let mut memory = Fake::default();
    memory.touch(BASE, BASE + PAGE);
    for change in [
        |mapping: &mut MappingFacts| mapping.inode = 7,
        |mapping: &mut MappingFacts| mapping.shared = true,
        |mapping: &mut MappingFacts| mapping.readable = false,
        |mapping: &mut MappingFacts| mapping.name = "[heap]".to_owned(),
    ] {
        let mut mapping = anonymous(BASE, BASE + PAGE);
        change(&mut mapping);
        examine(&mut [mapping], &[], &memory);
    }
    assert!(memory.read.borrow().is_empty());
}
