use std::collections::BTreeMap;

use super::*;

const BASE: u64 = 0x7f31_f3fb_8000;

/// Headers at addresses; nothing else is present.
#[derive(Default)]
struct Fake(BTreeMap<u64, [u8; 48]>);

impl Memory for Fake {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        let Some(header) = self.0.get(&address) else { return false };
        buffer.copy_from_slice(header);
        true
    }

    fn resident(&self, start: u64, end: u64) -> Option<u64> {
        Some(self.0.range(start..end).count() as u64 * 4096)
    }

    fn page_bytes(&self) -> u64 {
        4096
    }
}

fn header(words: &[(usize, u64)], halves: &[(usize, u32)]) -> [u8; 48] {
    let mut header = [0; 48];
    for (at, word) in words {
        header[*at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    for (at, half) in halves {
        header[*at..at + 4].copy_from_slice(&half.to_le_bytes());
    }
    header
}

/// A pool of blocks of 64 bytes, three in use, with a free list.
fn pool(at: u64) -> [u8; 48] {
    let lists = [(8, at + 48 + 2 * 64), (16, at + 0x4000), (24, at + 0x8000)];
    header(&lists, &[(0, 3), (36, 3), (40, 48 + 4 * 64), (44, 16384 - 64)])
}

fn zend(first: u64, next: u64, previous: u64, number: u32) -> [u8; 48] {
    header(&[(0, first + 64), (8, next), (16, previous)], &[(24, 17), (28, 490), (32, number)])
}

fn program(name: &str) -> MappingFacts {
    MappingFacts { executable: true, inode: 7, name: name.to_owned(), ..MappingFacts::default() }
}

fn anonymous(start: u64, end: u64) -> MappingFacts {
    MappingFacts {
        start,
        end,
        readable: true,
        writable: true,
        rss: 4096,
        ..MappingFacts::default()
    }
}

#[test]
fn cpython_s_pools_are_found_between_blocks_of_malloc() {
    let first = BASE.next_multiple_of(POOL);
    let mut memory = Fake::default();
    for pool_at in [first, first + POOL, first + 4 * POOL] {
        memory.0.insert(pool_at, pool(pool_at));
    }
    // malloc's mapped chunk of 1 MiB.
    memory.0.insert(first + 2 * POOL, header(&[(8, 0x10_1002)], &[]));
    let mappings = [program("/usr/bin/python3.11"), anonymous(BASE, first + 8 * POOL)];
    let range = |from: u64, to: u64| RuntimeRange {
        runtime: Runtime::CPython,
        start: first + from * POOL,
        end: first + to * POOL,
    };
    let found = find(&mappings, &memory);
    assert_eq!(found, Found { ranges: vec![range(0, 2), range(4, 5)], places_beyond: 0 });
    // The same memory in a program that is no CPython.
    let other = [program("/usr/bin/redis"), mappings[1].clone()];
    assert_eq!(find(&other, &memory), Found::default());
}

#[test]
fn what_does_not_fit_together_is_no_pool() {
    let at = BASE.next_multiple_of(POOL);
    assert!(is_pool(at, &pool(at)));
    let full = header(&[], &[(0, 255), (36, 3), (40, 48 + 255 * 64), (44, 16384 - 64)]);
    assert!(is_pool(at, &full), "a full pool has no free block");
    assert!(!is_pool(at, &[0; 48]), "untouched");
    assert!(!is_pool(at, &[0xff; 48]));
    for (offset, value) in [(36, 32u32), (40, 48 + 63), (40, 20_000), (44, 16384 - 80), (0, 256)] {
        let mut broken = pool(at);
        broken[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        assert!(!is_pool(at, &broken), "{value} at {offset}");
    }
    for free in [at + 47, at + POOL, at + 48 + 65] {
        let mut broken = pool(at);
        broken[8..16].copy_from_slice(&free.to_le_bytes());
        assert!(!is_pool(at, &broken), "{free:#x}");
    }
}

#[test]
fn php_s_chunks_are_a_ring_around_their_heap() {
    let first = BASE.next_multiple_of(ZEND_CHUNK);
    let second = first + ZEND_CHUNK;
    let mut memory = Fake::default();
    memory.0.insert(first, zend(first, second, second, 0));
    memory.0.insert(second, zend(first, first, first, 1));
    // Aligned alike, and no chunk: a huge block, say.
    memory.0.insert(second + ZEND_CHUNK, header(&[(0, 0x1234)], &[]));
    let mappings = [program("/usr/sbin/php-fpm8.2"), anonymous(BASE, second + 2 * ZEND_CHUNK)];
    let range = RuntimeRange { runtime: Runtime::Php, start: first, end: second + ZEND_CHUNK };
    assert_eq!(find(&mappings, &memory).ranges, [range]);
    for broken in [
        zend(first + 8, second, second, 0),
        zend(first, second + 8, second, 0),
        zend(first, second, 0, 0),
        zend(first, second, second, 5),
        zend(second, second, second, 0),
    ] {
        assert!(!is_zend_chunk(first, &broken));
    }
}

#[test]
fn a_huge_mapping_is_looked_at_to_a_bound_and_the_rest_is_counted() {
    let mappings =
        [program("/usr/bin/python3.11"), anonymous(POOL, POOL + POOL * (MOST_PLACES + 10))];
    assert_eq!(find(&mappings, &Fake::default()).places_beyond, 10);
    // At the end of the address space.
    let last = [program("/usr/bin/php8.2"), anonymous(u64::MAX - 8191, u64::MAX)];
    assert_eq!(find(&last, &Fake::default()), Found::default());
}
