//! Which counts are published when, and what is refused.

use super::*;
use crate::go::memory::access::tests::Image;
use crate::go::memory::buckets::tests::{List, list};
use crate::go::memory::layout_data::LAYOUTS;

const AT: ProfileAt = ProfileAt { buckets: 0x1000, cycle: 0x1010, rate: 0x1018 };

fn image(list: List, cycle: u32, rate: u64) -> Image {
    let mut image = list.image;
    image.regions.insert(0x1000, vec![0; 64]);
    image.put(AT.buckets, list.head);
    image.put_half(AT.cycle, cycle);
    image.put(AT.rate, rate);
    image
}

fn checks(collections: u64) -> Checks {
    Checks { collections, total_alloc: 1 << 40, on_trial: false }
}

fn read_of(
    image: &Image,
    layout: &Layout,
    kind: GoProfile,
    checks: Checks,
) -> Result<HeapProfile, ProfileError> {
    read(image, AT, layout, kind, &mut Buckets::default(), checks)
}

/// (objects in use, allocated) of one bucket of 64-byte objects at rate 1.
fn counts(cycles: [(u64, u64); 4], cycle: u32, kind: GoProfile) -> (u64, u64, u32) {
    let mut seen = None;
    for layout in LAYOUTS {
        let image = image(list(layout, &[(3, 64, cycles)]), cycle, 1);
        let collections = u64::from(cycle >> 1);
        let profile = read_of(&image, layout, kind, checks(collections)).unwrap();
        let sample = &profile.samples[0];
        assert_eq!(sample.inuse_bytes, sample.inuse_objects * 64);
        let found = (sample.inuse_objects, sample.alloc_objects, profile.collections_old);
        assert!(seen.is_none_or(|seen| seen == found), "layouts differ");
        seen = Some(found);
    }
    seen.unwrap()
}

#[test]
fn published_is_what_is_active_and_the_cycle_that_waits_for_its_flush() {
    // Collection 7 is over: cycle 7, slot 1 is to be flushed, slot 2 to be published next.
    let cycles = [(100, 40), (1, 0), (20, 5), (300, 200)];
    assert_eq!(counts(cycles, 7 << 1, GoProfile::Published), (75, 120, 1));
    assert_eq!(counts(cycles, 7 << 1 | 1, GoProfile::Published), (75, 120, 1));
    assert_eq!(counts(cycles, 7 << 1, GoProfile::Current), (176, 421, 0));
}

#[test]
fn a_profile_with_nothing_left_to_publish_is_of_the_last_collection() {
    let cycles = [(100, 40), (7, 0), (0, 0), (0, 0)];
    assert_eq!(counts(cycles, 7 << 1 | 1, GoProfile::Published), (60, 100, 0));
}

#[test]
fn before_anything_is_published_the_profile_is_everything() {
    let cycles = [(0, 0), (0, 0), (0, 0), (300, 0)];
    assert_eq!(counts(cycles, 0, GoProfile::Published), (300, 300, 0));
    // Slot 0 of cycle 0 counts as published: nothing is empty any more.
    let cycles = [(0, 0), (1, 0), (0, 0), (300, 0)];
    assert_eq!(counts(cycles, 0, GoProfile::Published), (1, 1, 0));
}

#[test]
fn samples_are_scaled_as_pprof_scales_them() {
    let layout = &LAYOUTS[6];
    let image = image(list(layout, &[(3, 1000, [(10, 4), (0, 0), (0, 0), (0, 0)])]), 2, 524_288);
    let profile = read_of(&image, layout, GoProfile::Published, checks(1)).unwrap();
    let scale = 1.0 / (1.0 - (-1000.0f64 / 524_288.0).exp());
    let sample = &profile.samples[0];
    assert_eq!(sample.alloc_bytes, (10_000.0 * scale) as u64);
    assert_eq!(sample.inuse_objects, (6.0 * scale) as u64);
    assert_eq!(profile.rate, 524_288);
}

#[test]
fn a_profile_that_is_off_says_so() {
    let layout = &LAYOUTS[6];
    let empty = [(0, 0); 4];
    let image = image(list(layout, &[(3, 64, empty)]), 2, 0);
    let result = read_of(&image, layout, GoProfile::Published, checks(1));
    assert_eq!(result, Err(ProfileError::Off));
}

#[test]
fn impossible_profiles_are_refused() {
    let layout = &LAYOUTS[6];
    let one = [(10, 4), (0, 0), (0, 0), (0, 0)];
    let refused = |image: &Image, checks| {
        read_of(image, layout, GoProfile::Published, checks).expect_err("impossible")
    };
    let negative = image(list(layout, &[(3, 64, [(4, 10), (0, 0), (0, 0), (0, 0)])]), 2, 1);
    assert!(matches!(refused(&negative, checks(1)), ProfileError::Negative { .. }));
    let right = image(list(layout, &[(3, 64, one)]), 2, 1);
    assert!(matches!(refused(&right, checks(50)), ProfileError::Cycle { cycle: 1, .. }));
    let rate = image(list(layout, &[(3, 64, one)]), 2, u64::MAX);
    assert!(matches!(refused(&rate, checks(1)), ProfileError::Rate { rate: -1 }));
    let large = image(list(layout, &[(3, 1 << 30, one)]), 2, 1);
    let few = Checks { total_alloc: 1 << 30, ..checks(1) };
    assert!(matches!(refused(&large, few), ProfileError::TooMuch { .. }));
    let mut nowhere = right;
    nowhere.put(AT.buckets, 0xdead_0000);
    assert!(matches!(refused(&nowhere, checks(1)), ProfileError::Bucket(_)));
}

#[test]
fn a_layout_on_trial_must_fit_the_places_of_the_buckets() {
    let (old, new) = (&LAYOUTS[5], &LAYOUTS[6]);
    let shapes: Vec<_> = (0..20).map(|n| (3 + n, 64, [(1, 0), (0, 0), (0, 0), (0, 0)])).collect();
    let trial = Checks { on_trial: true, ..checks(1) };
    let right = image(list(new, &shapes), 2, 1);
    assert!(read_of(&right, new, GoProfile::Published, trial).is_ok());
    let wrong = image(list(old, &shapes), 2, 1);
    let result = read_of(&wrong, new, GoProfile::Published, trial);
    assert_eq!(result, Err(ProfileError::NotAdjacent));
}
