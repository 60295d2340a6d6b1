//! A heap built byte by byte as glibc would have it, in every layout, whole and damaged.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::layout::{BINS, HEAP_HEADS, NEXT, PARAMETERS, ParametersLayout, STATES, StateLayout};
use super::*;
use crate::tracee::heap::census::{SizeClass, ToldBy};

const DATA: u64 = 0x7f00_0000_0000;
const DATA_SIZE: usize = 0x4000;
const MAIN: u64 = DATA + 0x1008;
const MP: u64 = DATA + 0x2040;
const BREAK: u64 = 0x5555_5555_7000;
const HEAP: u64 = 0x7e00_0000_0000;
const MAIN_SIZE: u64 = 0x21000;
const ARENA_SIZE: u64 = 0x22000;

/// Memory in pieces; each may change while it is read.
struct Image {
    pieces: RefCell<Vec<(u64, Vec<u8>)>>,
    reads: Cell<u64>,
    /// Called before each read.
    on_read: fn(&Image),
    swapped: Option<u64>,
}

impl Image {
    fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.copy(address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn copy(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        let pieces = self.pieces.borrow();
        let (start, bytes) = pieces
            .iter()
            .find(|(start, bytes)| *start <= address && address < start + bytes.len() as u64)?;
        let at = usize::try_from(address - start).ok()?;
        buffer.copy_from_slice(bytes.get(at..at + buffer.len())?);
        Some(())
    }

    fn set(&self, address: u64, word: u64) {
        let mut pieces = self.pieces.borrow_mut();
        for (start, bytes) in pieces.iter_mut() {
            if let Some(at) = address.checked_sub(*start)
                && let Some(place) = bytes.get_mut(at as usize..at as usize + 8)
            {
                place.copy_from_slice(&word.to_le_bytes());
                return;
            }
        }
        panic!("{address:#x} is not in the image");
    }

    fn set_half(&self, address: u64, half: u32) {
        let word = self.word(address & !7);
        let shift = (address & 7) * 8;
        self.set(address & !7, word & !(0xffff_ffff << shift) | u64::from(half) << shift);
    }

    fn regions(&self) -> Regions {
        let pieces = self.pieces.borrow();
        Regions::of(pieces.iter().map(|(start, b)| *start..start + b.len() as u64).collect())
    }
}

impl MemoryReader for Image {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let reads = self.reads.get();
        self.reads.set(reads + 1);
        (self.on_read)(self);
        if self.swapped.is_some_and(|page| page == address / 4096) {
            return Err(ReadError::SwappedOut { address });
        }
        self.copy(address, buffer).ok_or(ReadError::NotMapped { address })
    }
}

/// Layouts that belong together.
fn layouts() -> Vec<((u32, u32), &'static StateLayout, &'static ParametersLayout, u64)> {
    vec![
        ((2, 43), &STATES[0], &PARAMETERS[0], HEAP_HEADS[0]),
        ((2, 36), &STATES[1], &PARAMETERS[1], HEAP_HEADS[0]),
        ((2, 31), &STATES[1], &PARAMETERS[2], HEAP_HEADS[1]),
        ((2, 25), &STATES[2], &PARAMETERS[3], HEAP_HEADS[1]),
        ((2, 23), &STATES[2], &PARAMETERS[4], HEAP_HEADS[1]),
        ((2, 17), &STATES[3], &PARAMETERS[4], HEAP_HEADS[1]),
    ]
}

/// A chunk to be built.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Used,
    Free,
    Fast,
}
use Kind::{Fast, Free as Binned, Used};

const CHUNKS: [(u64, Kind); 10] = [
    (0x290, Used),
    (0x40, Fast),
    (0x110, Binned),
    (0x20, Used),
    (0x110, Binned),
    (0x40, Fast),
    (0x6030, Binned),
    (0x1000, Used),
    (0x450, Binned),
    (0x30, Used),
];
const BINNED: u64 = 0x110 * 2 + 0x6030 + 0x450;
const FAST: u64 = 0x80;
const USED: u64 = 0x290 + 0x20 + 0x1000 + 0x30;

/// Two arenas with the same chunks.
fn heap(release: (u32, u32), layout: &StateLayout, par: &ParametersLayout, head: u64) -> Image {
    let piece = |start, size: u64| (start, vec![0; size as usize]);
    let image = Image {
        pieces: RefCell::new(vec![
            (DATA, vec![0; DATA_SIZE]),
            piece(BREAK, MAIN_SIZE),
            piece(HEAP, ARENA_SIZE),
        ]),
        reads: Cell::new(0),
        on_read: |_| {},
        swapped: None,
    };
    let arena = HEAP + head;
    let mangled = release >= (2, 32);
    state(&image, MAIN, layout, arena, MAIN_SIZE, mangled, BREAK, BREAK + MAIN_SIZE);
    let first = (arena + layout.size as u64).next_multiple_of(16);
    state(&image, arena, layout, MAIN, ARENA_SIZE, mangled, first, HEAP + ARENA_SIZE);
    for (at, word) in [arena, 0, ARENA_SIZE, ARENA_SIZE].into_iter().enumerate() {
        image.set(HEAP + at as u64 * 8, word);
    }
    for (at, word) in [128 << 10, 128 << 10, 256 << 10, 8, 0].into_iter().enumerate() {
        image.set(MP + at as u64 * 8, word);
    }
    for (at, half) in [3, 65536, 5, 0].into_iter().enumerate() {
        image.set_half(MP + (par.n_mmaps + at * 4) as u64, half);
    }
    image.set(MP + par.mmapped_mem as u64, 3 << 20);
    image.set(MP + par.mmapped_mem as u64 + 8, 9 << 20);
    image.set(MP + par.sbrk_base as u64, BREAK);
    if let Some(at) = par.cache_count {
        image.set(MP + at as u64, 7);
    }
    image
}

#[expect(clippy::too_many_arguments, reason = "a struct would have each of them once")]
fn state(
    image: &Image,
    address: u64,
    layout: &StateLayout,
    next: u64,
    system: u64,
    mangled: bool,
    first: u64,
    end: u64,
) {
    let bins = address + layout.bins as u64;
    let mut lists: Vec<Vec<u64>> = vec![Vec::new(); BINS + 1];
    let (mut chunk, mut before, mut fast) = (first, Used, 0);
    for (size, kind) in CHUNKS {
        let kind = if kind == Fast && layout.fast.is_none() { Used } else { kind };
        image.set(chunk + 8, size | u64::from(before != Binned));
        match kind {
            Used => {}
            Fast => {
                let at = chunk + 16;
                image.set(at, if mangled { fast ^ (at >> 12) } else { fast });
                fast = chunk;
            }
            Binned => {
                image.set(chunk + size, size);
                let bin = if size < 0x400 { (size / 16) as usize } else { 1 };
                lists[bin].push(chunk);
            }
        }
        (chunk, before) = (chunk + size, kind);
    }
    image.set(chunk + 8, (end - chunk) | 1);
    image.set(bins - 16, chunk);
    if let Some(at) = layout.fast {
        image.set(address + at as u64 + 16, fast);
    }
    for (bin, list) in lists.iter().enumerate().skip(1) {
        let header = bins + (bin as u64 - 1) * 16 - 16;
        let mut previous = header;
        for chunk in list {
            image.set(previous + 16, *chunk);
            image.set(chunk + 24, previous);
            previous = *chunk;
        }
        image.set(previous + 16, header);
        image.set(header + 24, previous);
    }
    image.set(bins + NEXT as u64, next);
    if let Some(at) = layout.attached_threads {
        image.set(address + at as u64, 1);
    }
    image.set(address + layout.system_mem as u64, system);
    image.set(address + layout.system_mem as u64 + 8, system + 4096);
}

fn libc(release: Option<(u32, u32)>) -> Libc {
    let data = std::iter::once(DATA..DATA + DATA_SIZE as u64).collect();
    Libc { release, data, ..Libc::default() }
}

/// The one that most tests damage.
fn usual() -> Image {
    let (release, state, par, head) = layouts()[1];
    heap(release, state, par, head)
}

fn read(image: &Image, depth: Depth) -> Result<HeapCensus, Refusal> {
    census(image, &image.regions(), &libc(Some((2, 36))), depth)
}

fn assert_as_built(census: &HeapCensus, has_fast: bool) {
    let fast = if has_fast { FAST } else { 0 };
    assert_eq!(census.totals.arenas, 2);
    assert_eq!(census.totals.system_bytes, MAIN_SIZE + ARENA_SIZE);
    assert_eq!(census.totals.drift_bytes, 0);
    for arena in &census.arenas {
        assert_eq!((arena.told_by, arena.moving), (ToldBy::Lists, false));
        let free = arena.free.value().unwrap();
        assert_eq!((free.binned_chunks, free.binned_bytes), (4, BINNED));
        assert_eq!(free.fast_bytes, fast);
        assert_eq!(free.bytes, BINNED + fast + free.top_bytes);
        assert_eq!(free.largest_bytes, 0x6030);
        // 0x6030 bytes hold five whole pages, or six where they start well.
        assert!((5 << 12..=6 << 12).contains(&free.whole_page_bytes), "{free:?}");
        assert!(free.whole_page_resident_bytes.reason().is_some());
        let large = SizeClass { from: 16384, chunks: 1, bytes: 0x6030 };
        assert!(free.by_size.contains(&large), "{free:?}");
        assert_eq!(arena.in_use_bytes, Known::Value(arena.system_bytes - free.bytes));
        if let Known::Value(chunks) = &arena.chunks {
            assert_eq!(chunks.in_use_bytes, USED + FAST);
        }
    }
    let mapped = census.mapped.value().unwrap();
    assert_eq!((mapped.chunks, mapped.bytes, mapped.peak_chunks), (3, 3 << 20, 5));
    assert_eq!(census.settings.value().unwrap().mmap_threshold_bytes, 256 << 10);
}

#[test]
fn every_layout_is_found_by_its_structure_and_read_as_it_was_built() {
    for (release, state, par, head) in layouts() {
        let image = heap(release, state, par, head);
        for told in [Some(release), Some((2, 99)), Some((2, 2))] {
            for depth in [Depth::Books, Depth::Chunks] {
                let mut libc = libc(told);
                // How fast bins are linked is told by the release alone.
                if told != Some(release) && state.fast.is_some() {
                    libc.release = None;
                }
                let found = census(&image, &image.regions(), &libc, depth);
                let found = found.unwrap_or_else(|why| panic!("{release:?} as {told:?}: {why}"));
                assert_eq!(found.layout, state.releases);
                assert_as_built(&found, state.fast.is_some());
                let walked = found.arenas.iter().all(|arena| arena.chunks.value().is_some());
                assert_eq!(walked, depth == Depth::Chunks);
            }
        }
    }
}

#[test]
fn symbols_lead_to_the_same() {
    let image = usual();
    let with_symbols = Libc { main_arena: Some(MAIN), parameters: Some(MP), ..libc(Some((2, 36))) };
    let found = census(&image, &image.regions(), &with_symbols, Depth::Books).unwrap();
    assert_eq!(found.found_by, super::super::census::FoundBy::Symbol);
    assert_as_built(&found, true);
    // A symbol of another build leads astray, and the structure is still there.
    let astray = Libc { main_arena: Some(MAIN + 64), parameters: Some(MP + 8), ..with_symbols };
    assert_as_built(&census(&image, &image.regions(), &astray, Depth::Books).unwrap(), true);
}

#[test]
fn what_was_never_used_is_no_heap_of_zero_bytes() {
    let image = usual();
    image.pieces.borrow_mut()[0].1.fill(0);
    assert_eq!(read(&image, Depth::Books), Err(Refusal::NotFound));
    let with_symbol = Libc { main_arena: Some(MAIN), ..libc(Some((2, 36))) };
    let found = census(&image, &image.regions(), &with_symbol, Depth::Books);
    assert_eq!(found, Err(Refusal::Unused));
    let nowhere = Libc { data: Vec::new(), ..libc(None) };
    assert_eq!(census(&image, &image.regions(), &nowhere, Depth::Books), Err(Refusal::NoData));
}

/// The reason why the main arena is unknown.
fn refused(image: &Image) -> String {
    let found = read(image, Depth::Books).unwrap();
    found.arenas[0].free.reason().unwrap_or_else(|| panic!("{found:?}")).to_owned()
}

/// The main arena's chunk of this number.
fn chunk(number: usize) -> u64 {
    BREAK + CHUNKS[..number].iter().map(|(size, _)| size).sum::<u64>()
}

/// Damage to the lists alone leaves the boundary tags: the heap counts as one that moves.
fn told_by_tags(image: &Image) {
    let found = read(image, Depth::Books).unwrap();
    let main = &found.arenas[0];
    assert_eq!((main.told_by, main.moving), (ToldBy::Tags, true), "{main:?}");
    assert_eq!(main.free.value().unwrap().binned_bytes, BINNED);
    assert_eq!(found.arenas[1].told_by, ToldBy::Lists);
}

#[test]
fn a_list_that_goes_in_a_circle_ends() {
    let image = usual();
    let (first, second) = (chunk(2), chunk(4));
    image.set(second + 16, first);
    image.set(first + 24, second);
    told_by_tags(&image);
    // A fast bin has no links back.
    let image = usual();
    let link = chunk(5) + 16;
    image.set(link, chunk(5) ^ (link >> 12));
    told_by_tags(&image);
}

#[test]
fn a_pointer_out_of_the_heap_is_not_followed() {
    for astray in [0, 8, 0x1000, BREAK + 8, u64::MAX - 15, DATA - 16, BREAK + MAIN_SIZE - 16] {
        let image = usual();
        image.set(chunk(2) + 16, astray);
        told_by_tags(&image);
    }
}

#[test]
fn a_chunk_with_two_sizes_is_refused() {
    let image = usual();
    image.set(chunk(6) + 8, 0x7001);
    let reason = refused(&image);
    assert!(reason.contains("size"), "{reason}");
}

#[test]
fn a_top_beyond_the_heap_is_refused() {
    let image = usual();
    let top = chunk(CHUNKS.len());
    // Neither is the arena then found, nor is anything else like it.
    image.set(top + 8, MAIN_SIZE | 1);
    assert!(read(&image, Depth::Books).is_err());
}

#[test]
fn a_ring_that_does_not_come_back_is_refused() {
    for next in [0, 8, HEAP + HEAP_HEADS[0], BREAK, DATA] {
        let image = usual();
        let arena = HEAP + HEAP_HEADS[0];
        image.set(arena + (STATES[1].bins + NEXT) as u64, next);
        assert!(read(&image, Depth::Books).is_err(), "{next:#x}");
    }
}

#[test]
fn heaps_that_do_not_add_up_make_their_arena_unknown_and_no_other() {
    let image = usual();
    image.set(HEAP + 16, ARENA_SIZE - 4096);
    let found = read(&image, Depth::Books).unwrap();
    assert!(found.arenas[0].free.value().is_some());
    let reason = found.arenas[1].free.reason().unwrap();
    assert!(reason.contains("add up"), "{reason}");
    assert!(found.totals.free_bytes.reason().is_some());
    assert_eq!(found.totals.system_bytes, MAIN_SIZE + ARENA_SIZE);
}

#[test]
fn a_page_that_is_swapped_out_is_a_reason() {
    let mut image = usual();
    image.swapped = Some(BREAK / 4096);
    let reason = refused(&image);
    assert!(reason.contains("swapped out"), "{reason}");
}

#[test]
fn a_heap_that_grows_while_it_is_read_says_how_far() {
    let mut image = usual();
    // At each look at the arena, sixteen bytes more of the top are in use.
    image.on_read = |image| {
        let top_at = MAIN + STATES[1].bins as u64 - 16;
        let (top, last) = (image.word(top_at), chunk(CHUNKS.len() - 1));
        let size = image.word(top + 8) & !7;
        if size > 0x1000 {
            image.set(last + 8, image.word(last + 8) + 16);
            image.set(top + 24, (size - 16) | 1);
            image.set(top_at, top + 16);
        }
    };
    let found = read(&image, Depth::Books).unwrap();
    let main = &found.arenas[0];
    assert!(main.moving && main.drift_bytes > 0 && found.reading.moving_arenas == 1, "{main:?}");
    assert_eq!(found.totals.drift_bytes, main.drift_bytes);
    assert!(!found.arenas[1].moving);
}

#[test]
fn too_many_chunks_and_too_long_a_time_are_reasons() {
    let image = usual();
    let regions = image.regions();
    for (steps, until, reason) in [
        (3, Instant::now() + Duration::from_secs(60), Refusal::TooMany { limit: 3 }),
        (1 << 20, Instant::now(), Refusal::TooLong),
    ] {
        let view = View::of(&image, &regions, Budget { steps, until });
        let stopped = (0..1000).find_map(|_| view.step().err());
        assert_eq!(stopped, Some(reason));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_damage_makes_it_panic_or_go_on_for_ever(
        damage in prop::collection::vec((0u64..3, any::<u64>(), prop_oneof![
            any::<u64>(),
            0u64..0x100,
            (0u64..MAIN_SIZE / 16).prop_map(|at| BREAK + at * 16),
            (0u64..ARENA_SIZE / 16).prop_map(|at| HEAP + at * 16),
            (0u64..DATA_SIZE as u64 / 8).prop_map(|at| DATA + at * 8),
        ]), 1..6),
        chunks in any::<bool>(),
    ) {
        let image = usual();
        for (piece, at, word) in damage {
            // Where the books are: states, chunks up to the top, settings.
            let (start, size) = match piece {
                0 => (MAIN & !7, 0x1100),
                1 => (BREAK, 0x8800),
                _ => (HEAP, 0x9000),
            };
            image.set(start + at % (size / 8) * 8, word);
        }
        let start = Instant::now();
        let depth = if chunks { Depth::Chunks } else { Depth::Books };
        if let Ok(found) = read(&image, depth) {
            for arena in &found.arenas {
                if let Known::Value(free) = &arena.free {
                    prop_assert!(free.bytes <= arena.system_bytes);
                }
            }
        }
        prop_assert!(start.elapsed() < Duration::from_secs(20));
        prop_assert!(image.reads.get() < 10_000);
    }
}
