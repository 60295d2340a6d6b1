//! Full maps are counted, nothing is lost silently, and reading is quick.

use std::time::Duration;

use memtrace::kernel::KernelConfig;
use memtrace_common::counters::Tally;
use memtrace_common::unwind::WalkEnd;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::target::{Target, small};

#[test]
fn a_full_block_map_is_counted_with_its_bytes() {
    let mut target = Target::start_with(&KernelConfig { max_blocks: 100, ..small() });
    target.run("blocks 150 10");
    let books = target.books();
    let (bytes, blocks) = books.outstanding();
    let [("block_map_full", lost)] = books.losses()[..] else { panic!("{:?}", books.losses()) };
    assert_eq!(blocks + lost, 150);
    assert_eq!(bytes + books.tally(Tally::UnbookedBytes), 1500);
}

#[test]
fn bytes_of_stacks_beyond_the_store_are_kept_under_its_own_name() {
    let mut target = Target::start_with(&KernelConfig { max_stacks: 8, ..small() });
    target.run("depths 20 10");
    let books = target.books();
    assert_eq!(books.outstanding(), (200, 20));
    let [("stack_store_full", full)] = books.losses()[..] else { panic!("{:?}", books.losses()) };
    assert!((12..=20).contains(&full), "{full}");
    let stacks = target.kernel.new_stacks().unwrap();
    let reserved = stacks.iter().find(|s| s.stack.end == WalkEnd::StoreFull as u8).unwrap();
    let kept = books.stacks.iter().find(|s| s.stack == reserved.stack.id).unwrap();
    assert_eq!(kept.allocated_blocks, full);
}

#[test]
fn a_stack_deeper_than_the_limit_is_marked() {
    let mut target = Target::start();
    target.run("depth 300 10");
    let books = target.books();
    assert_eq!(books.outstanding(), (10, 1));
    assert_eq!(books.tally(Tally::WalkTruncated), 1);
    let stacks = target.kernel.new_stacks().unwrap();
    assert_eq!(stacks[0].stack.end, WalkEnd::TooDeep as u8);
    assert_eq!(stacks[0].stack.frames.len(), 127);
}

#[test]
fn a_million_blocks_are_read_within_a_second() {
    let config = KernelConfig { max_blocks: 1 << 20, ..small() };
    let mut target = Target::start_with(&config);
    target.run("blocks 1000000 24");
    let books = target.books();
    assert_eq!(books.outstanding(), (24_000_000, 1_000_000));
    assert_eq!(books.losses(), []);
    // By this thread's CPU time: other work on the machine is not meant.
    let before = thread_cpu();
    let again = target.books().snapshot.read_ns;
    let cpu = thread_cpu() - before;
    println!(
        "1,000,000 blocks read in {} ms, {} ms of CPU time",
        again / 1_000_000,
        cpu.as_millis()
    );
    assert!(cpu < Duration::from_secs(1), "{cpu:?}");
    let live = books.stacks[0].live.unwrap();
    assert!(live.oldest_age_ns >= live.youngest_age_ns);
    assert_eq!((live.aged_bytes, live.aged_blocks), (24_000_000, 1_000_000));
    let young = target.kernel.snapshot(Some(u64::MAX)).unwrap();
    assert_eq!(young.processes[0].stacks[0].live.unwrap().aged_blocks, 0);
}

/// CPU time of this thread so far, user and kernel mode.
fn thread_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let microseconds = |time: TimeVal| time.num_microseconds().unsigned_abs();
    let total = microseconds(usage.user_time()) + microseconds(usage.system_time());
    Duration::from_micros(total)
}
