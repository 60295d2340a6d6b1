//! The mmap family.

use memtrace::kernel::{Notice, RangeEvent};
use memtrace_common::calls::Signature;
use memtrace_common::counters::Tally;

use crate::target::{Target, names};

fn ranges(target: &mut Target) -> Vec<RangeEvent> {
    target.kernel.drain_ring_fully().ranges
}

#[test]
fn a_range_call_that_succeeded_is_told_with_its_arguments_and_result() {
    let mut target = Target::start();
    let at = target.run("mmap 0 8192 0");
    target.run("munmap 0 4096 4096");
    let moved = target.run("mremap 0 4096 1048576");
    let events = ranges(&mut target);
    assert_eq!(
        events.iter().map(|event| event.signature).collect::<Vec<_>>(),
        [Signature::Mmap, Signature::Munmap, Signature::Mremap]
    );
    assert_eq!((events[0].result, events[0].args[1]), (at, 8192));
    assert_eq!(events[1].args[..2], [at + 4096, 4096]);
    assert_eq!((events[2].args[0], events[2].result), (at, moved));
    assert_eq!(events[2].args[1..3], [4096, 1_048_576]);
    assert!(events.iter().all(|event| !event.allocator_internal));
    assert!(events.iter().all(|event| event.entry_ns < event.return_ns));
    assert_eq!(target.books().tally(Tally::RangeCalls), 3);
}

#[test]
fn a_failing_range_call_is_not_told() {
    let mut target = Target::start();
    target.run("mmap 0 0 0");
    target.run("munmap 0 4096 2");
    assert_eq!(ranges(&mut target), []);
    assert_eq!(target.books().tally(Tally::RangeCalls), 0);
}

#[test]
fn a_mapping_inside_an_allocator_is_the_allocators_and_has_its_stack() {
    let mut target = Target::start();
    target.run("map_inside 1");
    target.run("malloc 0 13");
    let events = ranges(&mut target);
    assert_eq!(events.len(), 1);
    assert!(events[0].allocator_internal);
    let books = target.books();
    assert_eq!(books.outstanding(), (13, 1));
    assert_eq!(events[0].stack, books.stacks[0].stack);
    let stacks = target.kernel.new_stacks().unwrap();
    assert_eq!(stacks.len(), 1);
    assert_eq!(names(&target.program, &stacks[0])[..2], ["my_malloc", "main"]);
}

#[test]
fn a_mapping_of_its_own_has_its_own_stack() {
    let mut target = Target::start();
    target.run("mmap 0 8192 0");
    let events = ranges(&mut target);
    let stacks = target.kernel.new_stacks().unwrap();
    assert_eq!(stacks.len(), 1);
    assert_eq!(stacks[0].stack.id, events[0].stack);
    assert_eq!(names(&target.program, &stacks[0])[..2], ["my_mmap", "main"]);
}

#[test]
fn an_unknown_mapping_is_noticed_once_per_page_and_version() {
    let mut target = Target::start();
    target.set_mappings(|name| !name.contains("libc"));
    target.run("malloc 0 13");
    target.run("malloc 1 13");
    let notices = target.kernel.drain_ring().notices;
    assert_eq!(notices.len(), 1, "{notices:?}");
    let Notice::UnknownMapping { tgid, pc } = notices[0] else { panic!("{notices:?}") };
    assert_eq!(tgid, target.program.pid());
    let libc = target.program.mappings().into_iter().find(|(_, _, n)| n.contains("libc")).unwrap();
    assert!((libc.0..libc.1).contains(&pc), "{pc:#x}");
    target.set_mappings(|name| !name.contains("libc"));
    target.run("malloc 2 13");
    assert_eq!(target.kernel.drain_ring().notices.len(), 1);
    target.set_mappings(|_| true);
    target.run("malloc 3 13");
    assert_eq!(target.kernel.drain_ring().notices, []);
    let books = target.books();
    assert_eq!(books.outstanding(), (52, 4));
    assert_eq!(books.tally(Tally::WalkTruncated), 3);
    assert_eq!(books.tally(Tally::WalkComplete), 1);
}
