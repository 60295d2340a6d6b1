use std::collections::BTreeMap as Pages;

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;
const RW: u32 = 3;

fn event(op: RangeOp, stack: u64, time_ns: u64) -> RangeEvent {
    RangeEvent { time_ns, op, stack, allocator_internal: false }
}

fn mapped(address: u64, length: u64) -> RangeOp {
    RangeOp::Map { address, length, prot: RW, flags: 0x22, is_file: false }
}

/// Applies the operations; the stack of each is its position, the time ten times that.
fn after(operations: &[RangeOp]) -> RangeMap {
    let mut map = RangeMap::new(PAGE);
    for (i, op) in operations.iter().enumerate() {
        map.apply(&event(*op, i as u64, i as u64 * 10));
    }
    map
}

/// `(start, length, stack)` in pages.
fn shape(map: &RangeMap) -> Vec<(u64, u64, u64)> {
    map.ranges(0, &|_| None)
        .iter()
        .map(|range| (range.start / PAGE, range.length_bytes / PAGE, range.stack))
        .collect()
}

#[test]
fn no_event_covers_nothing() {
    assert_eq!(RangeMap::new(PAGE).ranges(1, &|_| None), []);
    assert_eq!(after(&[RangeOp::Unmap { address: 0, length: 1 << 40 }]).covered_bytes(), 0);
}

#[test]
fn a_mapping_is_rounded_to_pages() {
    assert_eq!(shape(&after(&[mapped(16 * PAGE, 4097)])), [(16, 2, 0)]);
}

#[test]
fn partial_munmap_leaves_both_ends() {
    let map = after(&[
        mapped(16 * PAGE, 10 * PAGE),
        RangeOp::Unmap { address: 20 * PAGE, length: 2 * PAGE - 5 },
    ]);
    assert_eq!(shape(&map), [(16, 4, 0), (22, 4, 0)]);
}

#[test]
fn munmap_may_span_several_mappings_and_holes() {
    let map = after(&[
        mapped(10 * PAGE, 4 * PAGE),
        mapped(16 * PAGE, 4 * PAGE),
        mapped(24 * PAGE, 4 * PAGE),
        RangeOp::Unmap { address: 12 * PAGE, length: 14 * PAGE },
    ]);
    assert_eq!(shape(&map), [(10, 2, 0), (26, 2, 2)]);
}

#[test]
fn map_fixed_takes_over_what_it_covers() {
    let map = after(&[mapped(10 * PAGE, 10 * PAGE), mapped(12 * PAGE, 2 * PAGE)]);
    assert_eq!(shape(&map), [(10, 2, 0), (12, 2, 1), (14, 6, 0)]);
}

fn remapped(old: (u64, u64), new: (u64, u64), flags: u32) -> RangeOp {
    RangeOp::Remap {
        old_address: old.0 * PAGE,
        old_length: old.1 * PAGE,
        new_address: new.0 * PAGE,
        new_length: new.1 * PAGE,
        flags,
    }
}

#[test]
fn mremap_shrinks_in_place() {
    let map = after(&[mapped(10 * PAGE, 8 * PAGE), remapped((10, 8), (10, 3), 0)]);
    assert_eq!(shape(&map), [(10, 3, 0)]);
}

#[test]
fn mremap_growth_belongs_to_who_grew_it() {
    let map = after(&[mapped(10 * PAGE, 2 * PAGE), remapped((10, 2), (10, 5), 1)]);
    assert_eq!(shape(&map), [(10, 2, 0), (12, 3, 1)]);
}

#[test]
fn mremap_moves_pieces_with_their_stacks_and_ages() {
    let map = after(&[
        mapped(10 * PAGE, 4 * PAGE),
        mapped(12 * PAGE, PAGE),
        remapped((11, 3), (40, 4), 1),
    ]);
    assert_eq!(shape(&map), [(10, 1, 0), (40, 1, 0), (41, 1, 1), (42, 1, 0), (43, 1, 2)]);
    let ages: Vec<_> = map.ranges(100, &|_| None).iter().map(|range| range.age_ns).collect();
    assert_eq!(ages, [100, 100, 90, 100, 80]);
}

#[test]
fn mremap_dontunmap_keeps_the_old_range() {
    let map =
        after(&[mapped(10 * PAGE, 4 * PAGE), remapped((10, 4), (50, 4), 1 | MREMAP_DONTUNMAP)]);
    assert_eq!(shape(&map), [(10, 4, 0), (50, 4, 1)]);
}

#[test]
fn mremap_of_old_length_zero_maps_the_pages_a_second_time() {
    let map = after(&[mapped(10 * PAGE, 4 * PAGE), remapped((10, 0), (50, 4), 1)]);
    assert_eq!(shape(&map), [(10, 4, 0), (50, 4, 1)]);
}

#[test]
fn mremap_of_memory_older_than_the_attach_maps_only_the_growth() {
    assert_eq!(shape(&after(&[remapped((10, 4), (50, 6), 1)])), [(54, 2, 0)]);
    assert_eq!(shape(&after(&[remapped((10, 4), (50, 3), 1)])), []);
}

#[test]
fn a_break_that_is_told_beforehand_makes_the_first_growth_known() {
    let mut map = RangeMap::new(PAGE);
    map.set_break(0x100_0000);
    let op = RangeOp::Brk { old_break: None, new_break: 0x100_0000 + 3 * PAGE };
    map.apply(&RangeEvent { time_ns: 1, op, stack: 1, allocator_internal: false });
    assert_eq!(map.anomalies(), RangeAnomalies::default());
    assert_eq!(
        map.ranges(2, &|_| None).iter().map(|range| range.length_bytes).sum::<u64>(),
        3 * PAGE
    );
}

#[test]
fn the_break_grows_and_shrinks_by_pages() {
    let at = |bytes| RangeOp::Brk { old_break: None, new_break: 0x100_0000 + bytes };
    let map = after(&[at(0), at(100), at(3 * PAGE), at(PAGE + 1)]);
    assert_eq!(shape(&map), [(0x1000, 1, 1), (0x1001, 1, 2)]);
    assert_eq!(map.anomalies().unknown_break, 1);
    let map = after(&[RangeOp::Brk { old_break: Some(0x100_0000), new_break: 0x100_0000 + PAGE }]);
    assert_eq!(shape(&map), [(0x1000, 1, 0)]);
    assert_eq!(map.anomalies(), RangeAnomalies::default());
}

#[test]
fn a_break_that_shrinks_below_what_was_seen_unmaps_only_what_was_seen() {
    let told = |old, new| RangeOp::Brk {
        old_break: Some(0x100_0000 + old * PAGE),
        new_break: 0x100_0000 + new * PAGE,
    };
    assert_eq!(shape(&after(&[told(8, 9), told(9, 2), told(2, 3)])), [(0x1002, 1, 2)]);
}

#[test]
fn prot_none_is_reserved_until_it_is_opened() {
    let map = after(&[
        RangeOp::Map { address: 10 * PAGE, length: 8 * PAGE, prot: 0, flags: 0x22, is_file: false },
        RangeOp::Protect { address: 11 * PAGE, length: 2 * PAGE, prot: RW },
    ]);
    let reserved = |map: &RangeMap| -> Vec<_> {
        map.ranges(0, &|_| None)
            .iter()
            .map(|range| (range.length_bytes / PAGE, range.reserved))
            .collect()
    };
    assert_eq!(reserved(&map), [(1, true), (2, false), (5, true)]);
    let mut map = map;
    map.apply(&event(RangeOp::Protect { address: 10 * PAGE, length: 8 * PAGE, prot: 1 }, 9, 9));
    assert_eq!(reserved(&map), [(8, false)]);
}

#[test]
fn owners_are_told_apart() {
    let mut map = RangeMap::new(PAGE);
    let mut add = |page: u64, flags, is_file, stack, allocator_internal| {
        let op = RangeOp::Map { address: page * PAGE, length: PAGE, prot: RW, flags, is_file };
        map.apply(&RangeEvent { time_ns: 0, op, stack, allocator_internal });
    };
    add(10, 0x22, false, 1, false);
    add(20, 0x22, false, 1, true);
    add(30, 0x22, false, 77, false);
    add(40, 0x2, true, 77, true);
    add(50, 0x22 | MAP_STACK, false, 1, false);
    let owners: Vec<_> = map
        .ranges(0, &|stack| (stack == 77).then_some(RangeOwner::GoRuntime))
        .iter()
        .map(|range| range.owner)
        .collect();
    use RangeOwner::*;
    assert_eq!(owners, [Native, AllocatorInternal, GoRuntime, File, ThreadStack]);
}

#[test]
fn events_outside_the_address_space_are_counted_and_change_nothing() {
    let map = after(&[
        mapped(10 * PAGE, PAGE),
        mapped(u64::MAX - 10, 100),
        RangeOp::Unmap { address: 4096, length: u64::MAX },
        remapped((10, 1), (u64::MAX / PAGE, 2), 0),
        RangeOp::Brk { old_break: Some(0), new_break: u64::MAX },
        RangeOp::Protect { address: u64::MAX, length: 1, prot: 0 },
    ]);
    assert_eq!(map.anomalies().malformed, 5);
    assert_eq!(shape(&map), [(10, 1, 0)]);
}

/// The same rules on single pages: slow, and too simple to be wrong.
#[derive(Default)]
struct Model {
    pages: Pages<u64, (u64, u64, bool)>,
    brk: Option<u64>,
}

impl Model {
    fn apply(&mut self, event: &RangeEvent) {
        let fresh = (event.stack, event.time_ns, false);
        let last_page = |bytes: u64| bytes.div_ceil(PAGE);
        match event.op {
            RangeOp::Map { address, length, prot, .. } => {
                for page in address / PAGE..last_page(address + length) {
                    self.pages.insert(page, (event.stack, event.time_ns, prot == 0));
                }
            }
            RangeOp::Unmap { address, length } => {
                for page in address / PAGE..last_page(address + length) {
                    self.pages.remove(&page);
                }
            }
            RangeOp::Remap { old_address, old_length, new_address, new_length, .. } => {
                let (old, new) = (old_address / PAGE, new_address / PAGE);
                let (old_count, new_count) = (last_page(old_length), last_page(new_length));
                let taken: Vec<_> = (0..old_count).map(|i| self.pages.remove(&(old + i))).collect();
                let model = taken.iter().rev().flatten().next().copied();
                for i in 0..new_count {
                    self.pages.remove(&(new + i));
                    let page = match taken.get(i as usize) {
                        Some(page) => *page,
                        None => Some((event.stack, event.time_ns, model.is_some_and(|m| m.2))),
                    };
                    if let Some(page) = page {
                        self.pages.insert(new + i, page);
                    }
                }
            }
            RangeOp::Brk { new_break, .. } => {
                if let Some(old) = self.brk {
                    for page in last_page(new_break)..last_page(old) {
                        self.pages.remove(&page);
                    }
                    for page in last_page(old)..last_page(new_break) {
                        self.pages.insert(page, fresh);
                    }
                }
                self.brk = Some(new_break);
            }
            RangeOp::Protect { address, length, prot } => {
                for page in address / PAGE..last_page(address + length) {
                    if let Some(page) = self.pages.get_mut(&page) {
                        page.2 = prot == 0;
                    }
                }
            }
        }
    }
}

fn any_op() -> impl Strategy<Value = RangeOp> {
    let address = || (0u64..60).prop_map(|page| page * PAGE);
    let length = || 1u64..12 * PAGE;
    let prot = || prop_oneof![Just(0u32), Just(RW)];
    prop_oneof![
        4 => (address(), length(), prot()).prop_map(|(address, length, prot)| RangeOp::Map {
            address, length, prot, flags: 0x22, is_file: false
        }),
        2 => (address(), length()).prop_map(|(address, length)| RangeOp::Unmap { address, length }),
        // The kernel refuses overlapping moves: in place, or to the other half.
        1 => (address(), length(), length()).prop_map(|(address, old_length, new_length)| {
            let new_address = if new_length <= old_length { address } else { address + 100 * PAGE };
            RangeOp::Remap { old_address: address, old_length, new_address, new_length, flags: 1 }
        }),
        1 => (address(), length()).prop_map(|(address, old_length)| RangeOp::Remap {
            old_address: address + 100 * PAGE, old_length, new_address: address,
            new_length: old_length, flags: 1
        }),
        2 => (0u64..20 * PAGE).prop_map(|above| RangeOp::Brk {
            old_break: None, new_break: 200 * PAGE + above
        }),
        2 => (address(), length(), prot()).prop_map(|(address, length, prot)| RangeOp::Protect {
            address, length, prot
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn intervals_are_disjoint_and_equal_the_model_page_by_page(
        operations in proptest::collection::vec(any_op(), 1..40),
    ) {
        let mut map = RangeMap::new(PAGE);
        let mut model = Model::default();
        for (i, op) in operations.iter().enumerate() {
            let event = event(*op, i as u64 % 5, i as u64 / 3);
            map.apply(&event);
            model.apply(&event);

            let now = 1000;
            let ranges = map.ranges(now, &|_| None);
            let mut pages = Pages::new();
            let mut previous_end = 0;
            for range in &ranges {
                prop_assert!(range.length_bytes > 0);
                prop_assert!(range.start >= previous_end, "{ranges:?}");
                previous_end = range.start + range.length_bytes;
                for page in range.start / PAGE..previous_end / PAGE {
                    pages.insert(page, (range.stack, now - range.age_ns, range.reserved));
                }
            }
            prop_assert_eq!(&pages, &model.pages);
            prop_assert_eq!(map.covered_bytes(), model.pages.len() as u64 * PAGE);
        }
    }
}
