//! A runtime made by hand, and what becomes of its figures when anything in it is wrong.

use proptest::prelude::*;

use super::*;
use crate::go::memory::access::tests::Image;
use crate::go::memory::fuzz_cases;
use crate::go::memory::layout_data::LAYOUTS;

const AT: StatisticsAt =
    StatisticsAt { statistics: 0x60_0000, controller: 0x70_0000, heap: 0x80_0000 };
const ARENA_LIST: u64 = 0x90_0000;

/// 100 MiB of heap in two arenas side by side and one apart; nothing has been released but 8 MiB.
fn runtime(layout: &Layout) -> Image {
    let mut image = Image::default();
    for (base, bytes) in
        [(AT.statistics, 1 << 16), (AT.controller, 4096), (AT.heap, 1 << 18), (ARENA_LIST, 4096)]
    {
        image.regions.insert(base, vec![0; bytes]);
    }
    let (s, c, h) = (&layout.statistics, &layout.controller, &layout.heap);
    let at = |base: u64, offset: usize| base + offset as u64;
    // Deltas may be negative in one slot, their sum counts.
    let slot = |index: usize| at(AT.statistics, s.deltas + index * s.delta_bytes);
    for (field, value) in [
        (s.committed, 92 << 20),
        (s.released, 8 << 20),
        (s.in_heap, 80 << 20),
        (s.in_stacks, 1 << 20),
        (s.in_work_bufs, 1 << 20),
    ] {
        image.put(slot(0) + field as u64, value + 77);
        image.put(slot(2) + field as u64, 77u64.wrapping_neg());
    }
    for (index, value) in
        [70_000u64, 500_000, 15_600, 1_400_000, 3_000_000, 900_000].iter().enumerate()
    {
        image.put(at(AT.statistics, s.stacks_sys + 8 * index), *value);
    }
    image.put(at(AT.statistics, s.last_gc_unix), 1_795_000_000_000_000_000);
    image.put_half(at(AT.statistics, s.numgc), 42);
    image.put_half(at(AT.statistics, s.numforcedgc), 2);
    let sys: u64 =
        (98 << 20) + (2 << 20) + 70_000 + 500_000 + 15_600 + 1_400_000 + 3_000_000 + 900_000;
    image.put_half(at(AT.controller, c.gc_percent), 100);
    for (field, value) in [
        (c.memory_limit, i64::MAX.cast_unsigned()),
        (c.gc_percent_heap_goal, 120 << 20),
        (c.sweep_dist_min_trigger, 0),
        (c.triggered, u64::MAX),
        (c.heap_marked, 60 << 20),
        (c.heap_in_use, 80 << 20),
        (c.heap_released, 8 << 20),
        (c.heap_free, 10 << 20),
        (c.total_alloc, 1 << 40),
        (c.total_free, (1 << 40) - (70 << 20)),
        (c.mapped_ready, sys - (8 << 20)),
    ] {
        image.put(at(AT.controller, field), value);
    }
    for (field, value) in [
        (h.pages_in_use, (80 << 20) / 8192),
        (h.arenas, ARENA_LIST),
        (h.arenas + 8, 3),
        (h.arenas + 16, 512),
        (h.span_alloc_in_use, 480_000),
        (h.cache_alloc_in_use, 9_600),
        (h.span_alloc_stat, at(AT.statistics, s.mspan_sys)),
        (h.cache_alloc_stat, at(AT.statistics, s.mcache_sys)),
    ] {
        image.put(at(AT.heap, field), value);
    }
    let index = |start: u64| start.wrapping_sub(ARENA_BASE) / ARENA_BYTES;
    for (place, start) in [0xc0_0400_0000u64, 0xc0_0000_0000, 0x7f00_0000_0000].iter().enumerate() {
        image.put(ARENA_LIST + 8 * place as u64, index(*start));
    }
    image
}

fn read_of(image: &Image, layout: &Layout) -> Result<Statistics, StatisticsError> {
    read_with(image, AT, layout, 1)
}

#[test]
fn figures_are_those_of_read_mem_stats_with_every_layout() {
    for layout in LAYOUTS {
        let Statistics { figures, arenas, .. } = read_of(&runtime(layout), layout).unwrap();
        assert_eq!(figures.heap_sys, 98 << 20);
        assert_eq!(figures.heap_idle, 18 << 20);
        assert_eq!((figures.heap_inuse, figures.heap_released), (80 << 20, 8 << 20));
        assert_eq!(figures.heap_alloc, 70 << 20);
        assert_eq!((figures.stack_inuse, figures.stack_sys), (1 << 20, (1 << 20) + 70_000));
        assert_eq!((figures.mspan_inuse, figures.mspan_sys), (Some(480_000), 500_000));
        assert_eq!((figures.mcache_inuse, figures.mcache_sys), (Some(9_600), 15_600));
        assert_eq!((figures.buck_hash_sys, figures.other_sys), (1_400_000, 900_000));
        assert_eq!(figures.gc_sys, 3_000_000 + (1 << 20));
        assert_eq!(figures.sys, (100 << 20) + 70_000 + 500_000 + 15_600 + 1_400_000 + 3_900_000);
        assert_eq!((figures.num_gc, figures.num_forced_gc), (42, Some(2)));
        assert_eq!(figures.last_gc_unix_ns, Some(1_795_000_000_000_000_000));
        assert_eq!(figures.next_gc, 120 << 20);
        assert_eq!(
            (figures.gogc_percent, figures.memory_limit),
            (Some(100), Some(i64::MAX as u64))
        );
        let arena = |start, count| GoArena { start, length_bytes: count * ARENA_BYTES };
        assert_eq!(arenas, [arena(0xc0_0000_0000, 2), arena(0x7f00_0000_0000, 1)]);
    }
}

/// `heapGoalInternal` and `memoryLimitHeapGoal`, case by case.
#[test]
fn the_next_collection_follows_percent_trigger_and_limit() {
    let layout = &LAYOUTS[0];
    let c = &layout.controller;
    let goal = |changes: &[(usize, u64)]| {
        let mut image = runtime(layout);
        for (field, value) in changes {
            image.put(AT.controller + *field as u64, *value);
        }
        read_of(&image, layout).unwrap().figures.next_gc
    };
    assert_eq!(goal(&[(c.sweep_dist_min_trigger, 125 << 20)]), 125 << 20);
    assert_eq!(goal(&[(c.triggered, 130 << 20)]), (130 << 20) + (64 << 10));
    // What is mapped and neither free nor allocated, 10 MiB of spans in use among it, and 3 %.
    let other: u64 = 12 << 20;
    let other = other + 70_000 + 500_000 + 15_600 + 1_400_000 + 3_900_000;
    let limit = 110 << 20;
    let rest = limit - other;
    assert_eq!(goal(&[(c.memory_limit, limit)]), rest - rest / 100 * 3);
    assert_eq!(goal(&[(c.memory_limit, 1 << 20)]), 60 << 20, "no room: what is marked");
}

#[test]
fn every_single_wrong_counter_is_noticed() {
    for layout in LAYOUTS {
        let (s, c, h) = (&layout.statistics, &layout.controller, &layout.heap);
        let places = [
            AT.statistics + (s.deltas + s.committed) as u64,
            AT.statistics + (s.deltas + s.released) as u64,
            AT.statistics + (s.deltas + s.in_heap) as u64,
            AT.statistics + (s.deltas + s.in_stacks) as u64,
            AT.statistics + (s.deltas + s.in_work_bufs) as u64,
            AT.statistics + s.stacks_sys as u64,
            AT.statistics + s.mspan_sys as u64,
            AT.statistics + s.mcache_sys as u64,
            AT.statistics + s.buckhash_sys as u64,
            AT.statistics + s.gc_misc_sys as u64,
            AT.statistics + s.other_sys as u64,
            AT.controller + c.heap_in_use as u64,
            AT.controller + c.heap_released as u64,
            AT.controller + c.heap_free as u64,
            AT.controller + c.mapped_ready as u64,
            AT.heap + h.pages_in_use as u64,
            AT.heap + h.span_alloc_stat as u64,
            AT.heap + h.cache_alloc_stat as u64,
        ];
        for place in places {
            for by in [8192, 1 << 30, 1 << 60, 8192u64.wrapping_neg()] {
                let mut image = runtime(layout);
                image.add(place, by);
                read_of(&image, layout).expect_err(&format!("{place:#x} + {by:#x}"));
            }
        }
    }
}

/// Of the pacer and the collector nothing is cross-checked by the runtime; a field that moved shows
/// its neighbour, which is told by what it can be.
#[test]
fn a_pace_or_a_count_from_another_place_is_noticed() {
    for layout in LAYOUTS {
        let (s, c) = (&layout.statistics, &layout.controller);
        let statistics = |offset: usize| AT.statistics + offset as u64;
        let controller = |offset: usize| AT.controller + offset as u64;
        let wrong = [
            // A duration, a size and a pointer in the place of a time.
            (statistics(s.last_gc_unix), 83_000_000),
            (statistics(s.last_gc_unix), 0),
            (statistics(s.last_gc_unix), 0xc000_0012_3000),
            (statistics(s.numgc), 42 | 43 << 32),
            (statistics(s.numgc), 0),
            (controller(c.memory_limit), u64::MAX),
            (controller(c.gc_percent_heap_goal), 0),
            (controller(c.gc_percent_heap_goal), 60 << 20),
            (controller(c.gc_percent_heap_goal), 1 << 40),
            (controller(c.gc_percent_heap_goal), u64::MAX),
            (controller(c.triggered), 1 << 50),
            (controller(c.sweep_dist_min_trigger), u64::MAX),
            (controller(c.heap_marked), 161 << 20),
            // GOGC 300, 0 and off do not make that goal.
            (controller(c.gc_percent), 300),
            (controller(c.gc_percent), u64::from(u32::MAX)),
            (controller(c.gc_percent), u64::from(u32::MAX - 1)),
        ];
        for (place, value) in wrong {
            let mut image = runtime(layout);
            image.put(place, value);
            let error = read_of(&image, layout).expect_err(&format!("{place:#x} = {value:#x}"));
            assert!(matches!(error, StatisticsError::Nonsense(_)), "{error}");
        }
    }
}

#[test]
fn before_the_first_collection_and_without_gogc_the_figures_hold() {
    let layout = &LAYOUTS[0];
    let (s, c) = (&layout.statistics, &layout.controller);
    let mut image = runtime(layout);
    image.put(AT.statistics + s.last_gc_unix as u64, 0);
    image.put(AT.statistics + s.numgc as u64, 0);
    assert_eq!(read_of(&image, layout).unwrap().figures.last_gc_unix_ns, Some(0));
    let mut image = runtime(layout);
    image.put_half(AT.controller + c.gc_percent as u64, u32::MAX);
    image.put(AT.controller + c.gc_percent_heap_goal as u64, u64::MAX);
    let figures = read_of(&image, layout).unwrap().figures;
    assert_eq!((figures.gogc_percent, figures.next_gc > 1 << 60), (Some(-1), true));
}

#[test]
fn a_layout_that_is_off_by_one_word_gives_a_reason() {
    let right = &LAYOUTS[0];
    let image = runtime(right);
    let wrong = |change: &dyn Fn(&mut Layout)| {
        let mut layout = *right;
        change(&mut layout);
        read_of(&image, &layout).expect_err("another layout")
    };
    wrong(&|layout| layout.statistics.deltas += 8);
    wrong(&|layout| layout.statistics.delta_bytes += 8);
    wrong(&|layout| layout.statistics.in_heap += 8);
    wrong(&|layout| layout.statistics.stacks_sys += 8);
    wrong(&|layout| layout.controller.heap_in_use += 8);
    wrong(&|layout| layout.controller.mapped_ready -= 8);
    wrong(&|layout| layout.heap.pages_in_use += 8);
    wrong(&|layout| layout.heap.arenas += 8);
    wrong(&|layout| layout.heap.cache_alloc_stat += 8);
    wrong(&|layout| layout.statistics.last_gc_unix += 8);
    wrong(&|layout| layout.statistics.numgc += 8);
    wrong(&|layout| layout.controller.gc_percent_heap_goal += 8);
    wrong(&|layout| layout.controller.gc_percent += 4);
}

#[test]
fn pointers_to_nowhere_are_reasons() {
    let layout = &LAYOUTS[0];
    let nowhere = StatisticsAt { controller: 0xdead_0000, ..AT };
    let error = read_with(&runtime(layout), nowhere, layout, 1).unwrap_err();
    assert!(matches!(error, StatisticsError::Unreadable(_)), "{error}");

    let mut image = runtime(layout);
    image.put(AT.heap + layout.heap.arenas as u64, 0xdead_0000);
    assert!(matches!(read_of(&image, layout), Err(StatisticsError::Unreadable(_))));

    // More arenas than there can be, and the same one twice.
    let mut image = runtime(layout);
    image.put(AT.heap + layout.heap.arenas as u64 + 8, u64::MAX);
    assert!(matches!(read_of(&image, layout), Err(StatisticsError::Nonsense(_))));
    let mut image = runtime(layout);
    let first = image.word(ARENA_LIST).unwrap();
    image.put(ARENA_LIST + 8, first);
    assert!(matches!(read_of(&image, layout), Err(StatisticsError::Nonsense(_))));
}

#[test]
fn a_heap_that_does_not_fit_into_its_arenas_is_nonsense() {
    let layout = &LAYOUTS[0];
    let mut image = runtime(layout);
    image.put(AT.heap + layout.heap.arenas as u64 + 8, 1);
    assert!(matches!(read_of(&image, layout), Err(StatisticsError::Nonsense(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(fuzz_cases(256)))]

    /// Whatever is overwritten: no panic, and figures that are given satisfy the sums.
    #[test]
    fn a_damaged_runtime_gives_figures_that_add_up_or_none(
        row in 0..LAYOUTS.len(),
        damage in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), any::<u64>()), 1..6),
    ) {
        let layout = &LAYOUTS[row];
        let mut image = runtime(layout);
        for (region, index, value) in damage {
            let (base, words) =
                [(AT.statistics, 1100), (AT.controller, 50), (AT.heap, 12_000)][region];
            image.put(base + 8 * index.index(words) as u64, value);
        }
        if let Ok(Statistics { figures: f, .. }) = read_of(&image, layout) {
            prop_assert_eq!(f.heap_sys, f.heap_idle + f.heap_inuse);
            prop_assert!(f.heap_alloc <= f.heap_inuse && f.heap_released <= f.heap_idle);
            let parts = f.heap_sys + f.stack_sys + f.mspan_sys + f.mcache_sys + f.buck_hash_sys
                + f.gc_sys + f.other_sys;
            prop_assert_eq!(f.sys, parts);
        }
    }
}
