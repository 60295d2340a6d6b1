use super::super::summary::GoCounted;
use super::*;
use crate::snapshot::Known;
use crate::snapshot::synthetic::{self, MIB, recording};

fn line<'a>(books: &'a Books<'_>, id: u64) -> &'a StackLine {
    books.stacks.iter().find(|line| line.ids.contains(&id)).unwrap()
}

fn check<'a>(books: &'a Books<'_>, name: &str) -> &'a Check {
    books.checks.iter().find(|check| check.name == name).unwrap()
}

#[test]
fn a_snapshot_without_calls_holds_nothing() {
    let mut recording = recording();
    recording.snapshots.truncate(1);
    recording.snapshots[0].native = Default::default();
    let librarian = Librarian::new(&recording);
    let books = librarian.books(0, None).unwrap();
    assert_eq!(books.outstanding, Amount::default());
    assert_eq!(books.stacks, []);
    assert_eq!(books.peak_bytes, 0);
    assert!(books.is_lossless());
    let of_ranges = RangeAnomalies::default().counters().len();
    assert_eq!(books.losses.len(), Loss::COUNT + of_ranges);
    assert!(librarian.books(1, None).is_none());
}

#[test]
fn outstanding_is_allocated_minus_freed() {
    let recording = recording();
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    let expected =
        2020 * 4099 + 100_003 * 61 + 10 * 37 + 20 * 70_001 + 7 * 333_333 + 10_007 + 3 * 4_001;
    assert_eq!(books.outstanding.bytes, expected);
    assert_eq!(books.outstanding.blocks, 2020 + 100_003 + 10 + 20 + 7 + 1 + 3);
    assert_eq!(books.allocated.bytes - books.freed.bytes, expected);
    assert_eq!(books.stacks.iter().map(|line| line.outstanding.bytes).sum::<u64>(), expected);
    assert!((books.stacks.iter().map(|line| line.share).sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(books.checks.iter().all(|check| check.holds), "{:?}", books.checks);
}

#[test]
fn stacks_that_read_the_same_are_one_row_with_both_ids() {
    let recording = recording();
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    let row = line(&books, synthetic::SQLITE_LEAK);
    assert_eq!(row.ids, [synthetic::SQLITE_LEAK, synthetic::SQLITE_LEAK_TWIN]);
    assert_eq!(row.outstanding, Amount { bytes: 2020 * 4099, blocks: 2020 });
    assert_eq!(row.ages_ns, Some((0, 20 * synthetic::SECOND_NS)));
}

#[test]
fn stacks_of_another_line_stay_apart() {
    let mut recording = recording();
    let twin = recording.names.iter_mut().filter(|names| {
        names.names.first().is_some_and(|name| name.function == "sqlite3MemMalloc")
    });
    twin.last().unwrap().names[0].line = Some(25_494);
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    assert_eq!(line(&books, synthetic::SQLITE_LEAK).ids, [synthetic::SQLITE_LEAK]);
}

#[test]
fn addresses_without_a_name_are_never_folded() {
    let mut recording = recording();
    recording.names.clear();
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    assert!(books.stacks.iter().all(|line| line.ids.len() == 1));
}

#[test]
fn rows_are_sorted_by_outstanding_bytes_whatever_the_order_of_the_recording() {
    let recording = recording();
    let mut reversed = recording.clone();
    reversed.stacks.reverse();
    reversed.names.reverse();
    reversed.snapshots.iter_mut().for_each(|snapshot| {
        snapshot.native.stacks.reverse();
        snapshot.native.ranges.reverse();
    });
    let (a, b) = (Librarian::new(&recording), Librarian::new(&reversed));
    let (a, b) = (a.books(2, None).unwrap(), b.books(2, None).unwrap());
    assert_eq!(a.stacks, b.stacks);
    assert_eq!(a.ranges, b.ranges);
    assert!(a.stacks.windows(2).all(|pair| pair[0].outstanding >= pair[1].outstanding));
}

#[test]
fn growth_is_told_between_the_first_and_the_last_snapshot() {
    let recording = recording();
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    let growth = line(&books, synthetic::SQLITE_LEAK).growth.unwrap();
    assert_eq!(growth.bytes, (2020 - 100) * 4099);
    assert!((growth.bytes_per_second - growth.bytes as f64 / 19.0).abs() < 1e-6);
    assert_eq!(books.growth_base, GrowthBase { sequence: Some(0), elapsed_ns: 1_000_000_000 });
    assert_eq!(line(&books, synthetic::CHURN).growth.unwrap().bytes, 0);

    let since_second = librarian.books(2, Some(1)).unwrap();
    assert_eq!(line(&since_second, synthetic::CHURN).growth.unwrap().bytes, 370 - 370_000);

    let since_attach = librarian.books(0, None).unwrap();
    assert_eq!(since_attach.growth_base, GrowthBase { sequence: None, elapsed_ns: 0 });
    assert_eq!(line(&since_attach, synthetic::SQLITE_LEAK).growth.unwrap().bytes, 409_900);
}

#[test]
fn the_peak_is_that_of_the_snapshots_so_far() {
    let mut recording = recording();
    recording.snapshots[2].native.stacks.truncate(1);
    let librarian = Librarian::new(&recording);
    let second = librarian.books(1, None).unwrap().outstanding.bytes;
    let books = librarian.books(2, None).unwrap();
    assert_eq!(books.peak_bytes, second.max(books.outstanding.bytes));
    assert_eq!(line(&librarian.books(1, None).unwrap(), synthetic::CHURN).peak_bytes, 370_000);
    assert_eq!(librarian.books(0, None).unwrap().peak_elapsed_ns, synthetic::SECOND_NS);
}

#[test]
fn min_age_ranks_by_what_is_old() {
    let mut recording = recording();
    recording.header.min_age_ns = 5 * synthetic::SECOND_NS;
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    assert_eq!(books.aged.unwrap().bytes, 1515 * 4099 + 75_001 * 61 + 13 * 70_001 + 7 * 333_333);
    let aged: Vec<_> = books.stacks.iter().map(|line| line.aged.unwrap().bytes).collect();
    assert!(aged.windows(2).all(|pair| pair[0] >= pair[1]), "{aged:?}");
}

#[test]
fn truncated_bytes_are_summed_and_stay_in_the_total() {
    let recording = recording();
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    assert_eq!(books.truncated, Amount { bytes: 7 * 333_333 + 10_007 + 3 * 4_001, blocks: 11 });
}

#[test]
fn a_stack_that_freed_more_than_it_allocated_is_shown_as_a_violation() {
    let mut recording = recording();
    recording.snapshots[2].native.stacks[3].freed_bytes += 10_000;
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    assert_eq!(line(&books, synthetic::CHURN).outstanding.bytes, 0);
    assert!(!check(&books, "stacks_overdrawn").holds);
    let balance = check(&books, "bytes_balance");
    assert_eq!(balance.right - balance.left, 10_000);
}

#[test]
fn live_blocks_that_differ_from_the_totals_are_shown_as_a_violation() {
    let mut recording = recording();
    recording.snapshots[2].native.stacks[0].live.as_mut().unwrap().blocks += 3;
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    let balance = check(&books, "blocks_balance");
    assert_eq!((balance.holds, balance.right - balance.left), (false, 3));
    assert!(check(&books, "bytes_balance").holds);
}

#[test]
fn overlapping_ranges_are_shown_as_a_violation() {
    let mut recording = recording();
    recording.snapshots[2].native.ranges[1].length_bytes = 1 << 62;
    let librarian = Librarian::new(&recording);
    assert!(!check(&librarian.books(2, None).unwrap(), "ranges_disjoint").holds);
}

#[test]
fn the_parts_and_the_residual_make_the_resident_memory() {
    let recording = recording();
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    let summary = &books.summary;
    assert_eq!(summary.go_retained, Known::Value(39_000_000));
    assert_eq!(summary.go_counted, GoCounted::Retained);
    assert_eq!(summary.native_ranges, 4 * MIB + 4096);
    assert_eq!(summary.thread_stacks, 8 * MIB);
    assert_eq!(summary.reserved, MIB);
    let parts = 39_000_000 + summary.native_blocks + summary.native_ranges + 21 * MIB;
    let unexplained = *summary.unexplained.value().unwrap();
    assert_eq!(i128::from(parts) + unexplained, i128::from(112 * MIB));
}

#[test]
fn a_negative_residual_keeps_its_sign() {
    let mut recording = recording();
    recording.snapshots[2].native.ranges[1].length_bytes = 1 << 30;
    let librarian = Librarian::new(&recording);
    let unexplained = librarian.books(2, None).unwrap().summary.unexplained;
    assert!(*unexplained.value().unwrap() < 0);
}

#[test]
fn without_a_profile_go_is_not_counted_and_the_reason_is_kept() {
    let mut recording = recording();
    recording.snapshots[2].go = Known::unknown("connection refused");
    let librarian = Librarian::new(&recording);
    let summary = librarian.books(2, None).unwrap().summary;
    assert_eq!(summary.go_counted, GoCounted::Nothing);
    assert_eq!(summary.go_inuse.reason(), Some("connection refused"));

    recording.snapshots[2].process = Known::unknown("the process is gone");
    let librarian = Librarian::new(&recording);
    let summary = librarian.books(2, None).unwrap().summary;
    assert_eq!(summary.unexplained.reason(), Some("the process is gone"));
}

#[test]
fn a_loss_of_a_newer_memtrace_is_shown_too() {
    let mut recording = recording();
    let losses = &mut recording.snapshots[2].native.losses;
    losses.retain(|(label, _)| label != "block_map_full");
    losses.push(("gremlins".to_owned(), 3));
    losses.iter_mut().find(|(label, _)| label == "totals_full").unwrap().1 = 5;
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    assert!(!books.is_lossless());
    let count = |label: &str| books.losses.iter().find(|line| line.label == label).unwrap().count;
    assert_eq!((count("block_map_full"), count("totals_full"), count("gremlins")), (0, 5, 3));
}

#[test]
fn figures_of_a_hostile_recording_do_not_overflow() {
    let mut recording = recording();
    for row in &mut recording.snapshots[2].native.stacks {
        row.allocated_bytes = u64::MAX;
        row.allocated_blocks = u64::MAX;
        row.live = Some(crate::snapshot::LiveBlocks {
            bytes: u64::MAX,
            blocks: u64::MAX,
            youngest_age_ns: u64::MAX,
            oldest_age_ns: 0,
            aged_bytes: u64::MAX,
            aged_blocks: u64::MAX,
        });
    }
    for range in &mut recording.snapshots[2].native.ranges {
        range.length_bytes = u64::MAX;
    }
    recording.snapshots[2].elapsed_ns = 0;
    let librarian = Librarian::new(&recording);
    let books = librarian.books(2, None).unwrap();
    assert_eq!(books.outstanding.bytes, u64::MAX);
    assert_eq!(books.growth, None);
    assert!(books.checks.iter().any(|check| !check.holds));
}
