//! Lists of buckets made by hand, right and hostile ones.

use proptest::prelude::*;

use super::*;
use crate::go::memory::access::tests::Image;
use crate::go::memory::fuzz_cases;
use crate::go::memory::layout_data::LAYOUTS;

const BASE: u64 = 0x7f00_0000_0000;

/// A list of buckets side by side, the newest first in the list and last in memory.
pub struct List {
    pub image: Image,
    pub head: u64,
    pub places: Vec<u64>,
}

/// Depth of the stack, size of an object, counts of active and of the three cycles.
pub type Shape = (usize, u64, [(u64, u64); 4]);

pub fn list(layout: &Layout, shapes: &[Shape]) -> List {
    let (b, r) = (&layout.bucket, &layout.record);
    let bytes: usize = shapes.iter().map(|(depth, ..)| b.bytes + 8 * depth + r.bytes).sum();
    let mut image = Image::default();
    image.regions.insert(BASE, vec![0; bytes]);
    let (mut at, mut head, mut places) = (BASE, 0, Vec::new());
    for (index, (depth, size, counts)) in shapes.iter().enumerate() {
        let stack: Vec<u64> =
            (0..*depth as u64).map(|n| 0x40_1000 + n * 16 + index as u64).collect();
        image.put(at + b.allnext as u64, head);
        image.put(at + b.typ as u64, MEMORY_PROFILE);
        image.put(at + b.hash as u64, stack_hash(&stack, *size));
        image.put(at + b.size as u64, *size);
        image.put(at + b.nstk as u64, *depth as u64);
        let mut place = at + b.bytes as u64;
        for pc in stack {
            image.put(place, pc);
            place += 8;
        }
        let starts = [r.active, r.future, r.future + r.cycle_bytes, r.future + 2 * r.cycle_bytes];
        for (start, (allocs, frees)) in starts.into_iter().zip(counts) {
            let cycle = place + start as u64;
            image.put(cycle + r.cycle_allocs as u64, *allocs);
            image.put(cycle + r.cycle_frees as u64, *frees);
            for (offset, count) in [(r.cycle_alloc_bytes, allocs), (r.cycle_free_bytes, frees)] {
                if let Some(offset) = offset {
                    image.put(cycle + offset as u64, count * size);
                }
            }
        }
        places.push(at);
        head = at;
        at = place + r.bytes as u64;
    }
    List { image, head, places }
}

const COUNTS: [(u64, u64); 4] = [(5, 2), (1, 0), (0, 1), (3, 0)];

fn follow(list: &List, layout: &Layout) -> Result<Buckets, BucketError> {
    let mut buckets = Buckets::default();
    buckets.follow(&list.image, list.head, layout)?;
    Ok(buckets)
}

#[test]
fn buckets_and_their_records_are_read_with_every_layout() {
    for layout in LAYOUTS {
        let list = list(layout, &[(3, 64, COUNTS), (40, 4096, COUNTS), (1030, 0, COUNTS)]);
        let buckets = follow(&list, layout).unwrap();
        let depths: Vec<usize> = buckets.all().iter().map(|bucket| bucket.stack.len()).collect();
        assert_eq!(depths, [3, 40, 1030]);
        assert_eq!(buckets.adjacent(layout), 2);
        let records = buckets.records(&list.image, layout).unwrap();
        let counts = |(allocs, frees)| Counts {
            allocs,
            frees,
            alloc_bytes: allocs * 4096,
            free_bytes: frees * 4096,
        };
        let [active, future @ ..] = COUNTS.map(counts);
        assert_eq!(records[1], Record { active, future });
    }
}

#[test]
fn a_later_reading_walks_only_what_is_new() {
    let layout = &LAYOUTS[6];
    let mut list = list(layout, &[(3, 64, COUNTS), (4, 64, COUNTS), (5, 64, COUNTS)]);
    let mut buckets = Buckets::default();
    buckets.follow(&list.image, list.places[1], layout).unwrap();
    assert_eq!(buckets.all().len(), 2);
    // An old header that changes later is not looked at again.
    list.image.put(list.places[0] + layout.bucket.hash as u64, 0);
    buckets.follow(&list.image, list.head, layout).unwrap();
    assert_eq!(buckets.all().len(), 3);
    // A list that no longer holds what it held is not the runtime's.
    let other = list.places[0];
    assert_eq!(buckets.follow(&list.image, other, layout), Err(BucketError::Forgotten));
    assert_eq!(buckets.follow(&list.image, 0, layout), Err(BucketError::Forgotten));
}

#[test]
fn a_list_with_a_cycle_ends_with_a_reason() {
    let layout = &LAYOUTS[0];
    let mut list = list(layout, &[(3, 64, COUNTS), (4, 64, COUNTS), (5, 64, COUNTS)]);
    list.image.put(list.places[0] + layout.bucket.allnext as u64, list.places[1]);
    let error = follow(&list, layout).unwrap_err();
    assert_eq!(error, BucketError::Cycle { address: list.places[1] });
    // To itself.
    list.image.put(list.head + layout.bucket.allnext as u64, list.head);
    assert_eq!(follow(&list, layout).unwrap_err(), BucketError::Cycle { address: list.head });
}

#[test]
fn what_is_no_bucket_ends_the_list_with_a_reason() {
    let layout = &LAYOUTS[0];
    let b = &layout.bucket;
    let wrong = [
        (b.typ, 2),
        (b.nstk, 0),
        (b.nstk, 1031),
        (b.nstk, u64::MAX),
        (b.size, u64::MAX),
        (b.hash, 1),
        (b.bytes, 0x1234),
        (b.allnext, BASE + 4),
        (b.allnext, u64::MAX - 7),
    ];
    for (offset, value) in wrong {
        let mut list = list(layout, &[(3, 64, COUNTS), (4, 64, COUNTS)]);
        list.image.put(list.places[0] + offset as u64, value);
        let error = follow(&list, layout).err();
        assert!(matches!(error, Some(BucketError::NoBucket { .. })), "{offset}: {error:?}");
    }
    let mut list = list(layout, &[(3, 64, COUNTS)]);
    list.image.put(list.head + b.allnext as u64, 0x1000);
    assert!(matches!(follow(&list, layout).err(), Some(BucketError::Unreadable(_))));
}

#[test]
fn the_record_size_of_another_release_is_noticed() {
    let (old, new) = (&LAYOUTS[5], &LAYOUTS[6]);
    assert_ne!(old.record.bytes, new.record.bytes);
    let shapes = [(3, 64, COUNTS), (4, 64, COUNTS), (5, 64, COUNTS)];
    // Too large: the buckets would overlap.
    let error = follow(&list(new, &shapes), old).err();
    assert!(matches!(error, Some(BucketError::Overlap { .. })), "{error:?}");
    // Too small: no bucket stands behind another one.
    let buckets = follow(&list(old, &shapes), new).unwrap();
    assert_eq!(buckets.adjacent(new), 0);
}

#[test]
fn a_record_whose_bytes_are_not_its_objects_is_refused() {
    let layout = &LAYOUTS[0];
    let mut list = list(layout, &[(3, 64, COUNTS)]);
    let buckets = follow(&list, layout).unwrap();
    let record = list.head + (layout.bucket.bytes + 24) as u64;
    list.image.add(record + layout.record.cycle_alloc_bytes.unwrap() as u64, 1);
    let error = buckets.records(&list.image, layout).unwrap_err();
    assert!(matches!(error, BucketError::Record { .. }), "{error}");
    // The 16-byte form has counts alone; absurd ones are refused.
    let layout = &LAYOUTS[6];
    let mut list = self::list(layout, &[(3, 64, COUNTS)]);
    let buckets = follow(&list, layout).unwrap();
    list.image.put(list.head + (layout.bucket.bytes + 24) as u64, u64::MAX / 2);
    let error = buckets.records(&list.image, layout).unwrap_err();
    assert!(matches!(error, BucketError::Record { .. }), "{error}");
}

#[test]
fn heads_are_found_by_their_hashes_alone() {
    let layout = &LAYOUTS[3];
    let list = list(layout, &[(3, 64, COUNTS), (4, 64, COUNTS)]);
    let mut data = vec![0u8; 80];
    for (at, value) in [(8, 0x1234u64), (16, BASE + 8), (40, list.head), (64, u64::MAX)] {
        data[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let heads = find_heads(&list.image, &data, 0x50_0000, layout);
    assert_eq!(heads, HashMap::from([(0x50_0028, list.head)]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(fuzz_cases(512)))]

    #[test]
    fn a_damaged_list_never_panics_and_never_grows(
        row in 0..LAYOUTS.len(),
        depths in prop::collection::vec(1usize..60, 1..12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0u8..3), 0..6),
    ) {
        let layout = &LAYOUTS[row];
        let shapes: Vec<_> = depths.iter().map(|depth| (*depth, 64, COUNTS)).collect();
        let mut list = list(layout, &shapes);
        let words = list.image.regions[&BASE].len() / 8;
        for (index, value, kind) in damage {
            // Pointers into the list are worse than noise.
            let value = match kind {
                0 => value,
                1 => BASE + 8 * (value % words as u64),
                _ => list.places[value as usize % list.places.len()],
            };
            list.image.put(BASE + 8 * index.index(words) as u64, value);
        }
        if let Ok(buckets) = follow(&list, layout) {
            prop_assert!(buckets.all().len() <= words);
            if let Ok(records) = buckets.records(&list.image, layout) {
                prop_assert_eq!(records.len(), buckets.all().len());
            }
        }
    }
}
