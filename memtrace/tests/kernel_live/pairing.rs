//! One test per pairing rule.

use memtrace_common::counters::Tally;
use memtrace_common::unwind::WalkEnd;

use crate::target::{Target, names};

#[test]
fn nothing_happens_when_nothing_is_called() {
    let mut target = Target::start();
    target.run("nothing");
    let books = target.books();
    assert_eq!(books.outstanding(), (0, 0));
    assert_eq!(books.losses(), []);
    assert_eq!(books.snapshot.hits, [0; 11]);
}

#[test]
fn a_block_is_outstanding_until_it_is_freed() {
    let mut target = Target::start();
    target.run("malloc 0 1013");
    target.run("malloc 1 17");
    assert_eq!(target.books().outstanding(), (1030, 2));
    target.run("free 0");
    let books = target.books();
    assert_eq!(books.outstanding(), (17, 1));
    assert_eq!(books.losses(), []);
    assert_eq!(books.tally(Tally::AllocCalls), 2);
    assert_eq!(books.tally(Tally::FreeCalls), 1);
}

#[test]
fn every_allocating_function_books_what_was_asked_for_once() {
    let cases = [
        ("malloc 0 13", 13),
        ("calloc 0 13 7", 91),
        ("realloc 0 13", 13),
        ("reallocarray 0 13 7", 91),
        ("posix_memalign 0 64 13", 13),
        ("aligned_alloc 0 64 128", 128),
        ("new 0 19", 19),
        ("malloc 0 0", 0),
    ];
    for (line, bytes) in cases {
        let mut target = Target::start();
        target.run(line);
        let books = target.books();
        assert_eq!(books.outstanding(), (bytes, 1), "{line}");
        assert_eq!(books.tally(Tally::AllocCalls), 1, "{line}");
        assert_eq!(books.losses(), [], "{line}");
        target.run("free 0");
        assert_eq!(target.books().outstanding(), (0, 0), "{line}");
    }
}

#[test]
fn a_failed_call_books_nothing() {
    for line in [
        "malloc 0 13",
        "calloc 0 3 4",
        "posix_memalign 0 64 13",
        "aligned_alloc 0 64 128",
        "new 0 9",
    ] {
        let mut target = Target::start();
        target.run("fail 1");
        target.run(line);
        let books = target.books();
        assert_eq!(books.outstanding(), (0, 0), "{line}");
        assert_eq!(books.tally(Tally::AllocFailed), 1, "{line}");
        assert_eq!(books.losses(), [], "{line}");
    }
}

#[test]
fn an_overflowing_calloc_or_reallocarray_books_nothing_and_keeps_the_old_block() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.run("calloc 1 4611686018427387904 8");
    target.run("reallocarray 0 4611686018427387904 8");
    let books = target.books();
    assert_eq!(books.outstanding(), (13, 1));
    assert_eq!(books.tally(Tally::AllocFailed), 2);
    assert_eq!(books.losses(), []);
}

#[test]
fn realloc_moves_the_block_to_the_new_stack() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.run("realloc 0 170");
    let books = target.books();
    assert_eq!(books.outstanding(), (170, 1));
    assert_eq!(books.tally(Tally::ReallocCalls), 1);
    assert_eq!(books.stacks.len(), 2, "one stack closed its block, another opened one");
    assert_eq!(books.losses(), []);
}

#[test]
fn failed_realloc_keeps_the_old_block() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.run("fail 1");
    target.run("realloc 0 170");
    let books = target.books();
    assert_eq!(books.outstanding(), (13, 1));
    assert_eq!(books.tally(Tally::AllocFailed), 1);
    assert_eq!(books.losses(), []);
}

#[test]
fn realloc_to_zero_that_returns_null_frees() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.run("realloc 0 0");
    let books = target.books();
    assert_eq!(books.outstanding(), (0, 0));
    assert_eq!(books.losses(), []);
}

#[test]
fn a_call_inside_another_is_part_of_it() {
    let mut target = Target::start();
    target.run("calloc 0 3 5");
    target.run("new 1 7");
    let books = target.books();
    assert_eq!(books.outstanding(), (22, 2));
    assert_eq!(books.tally(Tally::NestedCalls), 2);
    let stacks = target.kernel.new_stacks().unwrap();
    let mut leaves: Vec<String> =
        stacks.iter().map(|stack| names(&target.program, stack)[0].clone()).collect();
    leaves.sort();
    assert_eq!(leaves, ["my_calloc", "my_new"], "the outermost function is the leaf");
}

#[test]
fn a_free_of_null_is_nothing() {
    let mut target = Target::start();
    target.run("free 0");
    let books = target.books();
    assert_eq!(books.tally(Tally::FreeNull), 1);
    assert_eq!(books.tally(Tally::FreeCalls), 0);
    assert_eq!(books.tally(Tally::FreeUnknown), 0);
}

#[test]
fn a_free_of_an_unknown_block_is_counted() {
    let mut target = Target::start();
    target.run("free_stranger");
    let books = target.books();
    assert_eq!(books.tally(Tally::FreeCalls), 1);
    assert_eq!(books.tally(Tally::FreeUnknown), 1);
    assert_eq!(books.outstanding(), (0, 0));
}

#[test]
fn a_block_may_be_freed_by_another_thread() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.run("thread_frees 0");
    let books = target.books();
    assert_eq!(books.outstanding(), (0, 0));
    assert_eq!(books.losses(), []);
}

#[test]
fn the_blocks_of_a_dead_thread_stay() {
    let mut target = Target::start();
    for _ in 0..20 {
        target.run("thread_dies");
    }
    let books = target.books();
    assert_eq!(books.outstanding(), (31 * 20, 20));
    assert_eq!(books.losses(), []);
}

#[test]
fn a_call_that_jumped_out_is_dropped_and_counted_at_any_depth() {
    for depth in [0, 1, 9] {
        let mut target = Target::start();
        target.run(&format!("jump {depth}"));
        // Above, at, and far below the stack pointer of the call that never returned.
        target.run("malloc 0 13");
        target.run("deeper 1 3 17");
        target.run("deeper 2 30 19");
        let books = target.books();
        assert_eq!(books.outstanding(), (49, 3), "depth {depth}");
        assert_eq!(books.losses(), [("stale_call_dropped", 1)], "depth {depth}");
    }
}

#[test]
fn a_realloc_that_jumped_out_keeps_the_old_block() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.run("jump_realloc 0");
    target.run("malloc 1 17");
    let books = target.books();
    assert_eq!(books.outstanding(), (30, 2));
    assert_eq!(books.losses(), [("stale_call_dropped", 1)]);
}

#[test]
fn a_forked_child_has_no_part_in_the_books() {
    let mut target = Target::start();
    target.run("malloc 0 13");
    target.run("fork 0");
    let books = target.books();
    assert_eq!(books.outstanding(), (13, 1));
    assert_eq!(books.losses(), []);
}

#[test]
fn each_stack_has_its_own_books_and_its_frames() {
    let mut target = Target::start();
    target.run("depth 2 13");
    target.run("depth 2 14");
    target.run("depth 3 100");
    let books = target.books();
    let mut sums: Vec<(u64, u64)> =
        books.stacks.iter().map(|s| (s.allocated_bytes, s.allocated_blocks)).collect();
    sums.sort();
    assert_eq!(sums, [(27, 2), (100, 1)]);
    let stacks = target.kernel.new_stacks().unwrap();
    assert_eq!(stacks.len(), 2);
    for stack in &stacks {
        let names = names(&target.program, stack);
        let turns = names.iter().filter(|name| *name == "at_depth").count();
        assert_eq!(names[0], "my_malloc");
        assert!(turns == 3 || turns == 4, "{names:?}");
        assert_eq!(names[turns + 1], "main", "{names:?}");
        assert_eq!(stack.stack.end, WalkEnd::Complete as u8);
    }
    assert_eq!(target.kernel.new_stacks().unwrap(), [], "each stack is delivered once");
    assert_eq!(books.tally(Tally::WalkComplete), 3);
}

#[test]
fn eight_threads_lose_nothing() {
    let mut target = Target::start();
    target.run("churn 8 4000 24");
    let books = target.books();
    assert_eq!(books.outstanding(), (8 * 2000 * 24, 8 * 2000));
    assert_eq!(books.losses(), []);
    assert_eq!(books.snapshot.hits[0], 8 * 4000);
    assert_eq!(books.snapshot.hits[7], 8 * 2000);
}
