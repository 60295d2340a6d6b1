//! Exact: each program prints its own truth, and memtrace's difference to it is zero bytes and
//! blocks, in total and by call site, with zero losses.

use std::time::Duration;

use anyhow::Result;
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::conformance::Case;

const JEMALLOC: &str = "libjemalloc.so.2";
const TCMALLOC: &str = "libtcmalloc_minimal.so.4";
const MIMALLOC: &str = "libmimalloc.so.2";

/// What libraries of every allocator have in common: the programs that run under each of them.
const SIMPLE: [&str; 8] = [
    "malloc",
    "calloc",
    "realloc_resize",
    "realloc_null",
    "realloc_zero",
    "posix_memalign",
    "cross_thread_free",
    "mixed_threads",
];

macro_rules! cases {
    ($($name:ident: $case:expr;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            $case.check()
        })*
    };
}

cases! {
    malloc_keeps_what_is_not_freed: Case::new("malloc", Kind::C);
    calloc_counts_the_product_and_nothing_on_overflow: Case::new("calloc", Kind::C);
    realloc_leaves_one_block_of_the_last_size: Case::new("realloc_resize", Kind::C);
    failed_realloc_keeps_the_old_block: Case::new("realloc_failed", Kind::C);
    realloc_of_null_is_malloc: Case::new("realloc_null", Kind::C);
    realloc_to_zero_is_what_it_returns: Case::new("realloc_zero", Kind::C);
    realloc_of_an_unknown_block_is_known_afterwards: Case::new("realloc_unknown", Kind::C);
    reallocarray_overflow_keeps_the_old_block: Case::new("reallocarray", Kind::C);
    posix_memalign_records_only_success: Case::new("posix_memalign", Kind::C);
    aligned_allocators_count_what_was_asked_for: Case::new("aligned", Kind::C);
    free_of_null_and_of_unknown_blocks_is_counted_as_such: Case::new("free_null", Kind::C);
    libc_allocates_for_its_caller: Case::new("strings", Kind::C);
    opening_and_closing_leaves_nothing: Case::new("stdio_churn", Kind::C);
    another_thread_may_free: Case::new("cross_thread_free", Kind::C);
    a_dead_thread_leaves_its_blocks: Case::new("thread_death", Kind::C);
    one_thread_walks_over_all_allocators: Case::new("mixed_threads", Kind::C).arguments(&["1"]);
    eight_threads_walk_over_all_allocators: Case::new("mixed_threads", Kind::C).arguments(&["8"]);
    an_allocator_inside_the_executable_is_seen: Case::new("own_allocator", Kind::C);
    longjmp_out_of_an_allocator_drops_the_call: Case::new("longjmp", Kind::C);
    longjmp_out_of_a_signal_drops_the_call: Case::new("signal_longjmp", Kind::C);
    a_child_has_its_own_books: Case::new("fork", Kind::C);
    exec_closes_the_books_as_they_were: Case::new("exec", Kind::C).until_exec();
    partial_munmap_leaves_the_rest: Case::new("mmap_partial", Kind::C);
    mremap_carries_the_range: Case::new("mremap", Kind::C);
    map_fixed_replaces_what_is_there: Case::new("map_fixed", Kind::C);
    prot_none_is_reserved_and_not_used: Case::new("mprotect_reserved", Kind::C);
    the_break_is_a_range: Case::new("brk", Kind::C);
    twenty_thousand_stacks_are_all_told: Case::new("distinct_stacks", Kind::C)
        .memtrace(&["--max-stacks", "65536"]);
    two_million_blocks_are_all_held: Case::new("many_blocks", Kind::C)
        .arguments(&["2000000"])
        .memtrace(&["--max-blocks", "4000000"])
        .limit(Duration::from_secs(240));
    ten_million_calls_are_all_counted: Case::new("many_calls", Kind::C)
        .arguments(&["10000000", "1"])
        .limit(Duration::from_secs(400));
    ten_million_calls_by_eight_threads_are_all_counted: Case::new("many_calls", Kind::C)
        .arguments(&["10000000", "8"])
        .limit(Duration::from_secs(400));
    jemallocs_own_functions_are_seen: Case::new("jemalloc_api", Kind::CWith("jemalloc"));
    jemalloc_linked_takes_the_place_of_libc: Case::new("mixed_threads", Kind::CWith("jemalloc"))
        .arguments(&["8"]);
    jemalloc_inside_the_executable_is_seen: Case::new("jemalloc_api", Kind::CArchive("jemalloc"));
    cgo_over_a_static_allocator_is_seen: Case::new("allocations", Kind::GoArchive("jemalloc_pic"));
    rust_over_its_own_jemalloc_is_seen_beside_libc: Case::new("allocations", Kind::RustJemalloc);
    mimallocs_own_functions_are_seen: Case::new("mimalloc_api", Kind::CWith("mimalloc"));
    tcmallocs_own_functions_are_seen: Case::new("tcmalloc_api", Kind::CWith("tcmalloc_minimal"));
    tcmalloc_inside_the_executable_is_seen:
        Case::new("tcmalloc_api", Kind::CArchive("tcmalloc_minimal"));
    tcmalloc_inside_the_executable_takes_the_place_of_libc:
        Case::new("mixed_threads", Kind::CArchive("tcmalloc_minimal")).arguments(&["8"]);
    allocators_that_arrive_by_dlopen_are_seen_beside_libc:
        Case::new("arriving_allocators", Kind::C).arguments(&[MIMALLOC, TCMALLOC]);
    cpp_new_and_delete_pair: Case::new("new_delete", Kind::Cpp);
    cpp_aligned_new_counts_what_was_asked_for: Case::new("new_aligned", Kind::Cpp);
    cpp_sized_delete_frees_the_whole_block: Case::new("sized_delete", Kind::Cpp);
    cpp_constructor_that_throws_leaves_nothing: Case::new("constructor_throws", Kind::Cpp);
    cpp_containers_hold_what_their_allocator_says: Case::new("containers", Kind::Cpp);
    go_functions_are_named_above_their_c_memory: Case::new("allocations", Kind::Go);
    go_linked_statically_carries_its_allocator: Case::new("allocations", Kind::GoStatic);
    go_calls_c_calls_go_calls_c: Case::new("callback", Kind::Go);
    rust_collections_hold_their_capacity: Case::new("allocations", Kind::Rust);
    rust_and_c_call_each_other: Case::new("with_c", Kind::RustWithC);
}

#[test]
fn a_library_that_arrives_by_dlopen_is_named() -> Result<()> {
    let plugin = compile::program("plugin", Kind::CLibrary)?;
    let path: &'static str = plugin.to_string_lossy().into_owned().leak();
    Case::new("dlopen_library", Kind::C).arguments(vec![path].leak()).check()
}

/// Runs the common programs of one build or allocator, and tells all that differ at once.
fn all(cases: impl Iterator<Item = Result<Case>>) -> Result<()> {
    let mut failures = Vec::new();
    for case in cases {
        if let Err(error) = case.and_then(|case| case.check()) {
            failures.push(format!("{error:#}"));
        }
    }
    anyhow::ensure!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

fn simple(kind: Kind) -> impl Iterator<Item = Case> {
    SIMPLE.into_iter().map(move |name| Case::new(name, kind))
}

#[test]
fn without_bpf_loop_it_is_as_exact() -> Result<()> {
    let c = ["calloc", "realloc_resize", "mmap_partial", "brk", "longjmp"];
    let cases = c.into_iter().map(|name| Case::new(name, Kind::C)).chain([
        Case::new("mixed_threads", Kind::C).arguments(&["8"]),
        Case::new("distinct_stacks", Kind::C).memtrace(&["--max-stacks", "65536"]),
        Case::new("new_delete", Kind::Cpp),
        Case::new("callback", Kind::Go),
    ]);
    all(cases.map(|case| Ok(case.chained())))
}

#[test]
fn musl_is_exact() -> Result<()> {
    let more = ["aligned", "reallocarray", "realloc_failed", "free_null"];
    let more = more.into_iter().map(|name| Case::new(name, Kind::CMusl));
    all(simple(Kind::CMusl).chain(more).map(Ok))
}

#[test]
fn static_musl_is_exact() -> Result<()> {
    let more = ["aligned", "realloc_failed"].map(|name| Case::new(name, Kind::CStaticMusl));
    all(simple(Kind::CStaticMusl).chain(more).map(Ok))
}

#[test]
fn static_glibc_is_exact() -> Result<()> {
    let more = ["aligned", "strings", "free_null"].map(|name| Case::new(name, Kind::CStaticGlibc));
    all(simple(Kind::CStaticGlibc).chain(more).map(Ok))
}

#[test]
fn preloaded_jemalloc_is_exact() -> Result<()> {
    all(simple(Kind::C).map(|case| case.arguments(&["8"]).preload(JEMALLOC)))
}

#[test]
fn preloaded_tcmalloc_is_exact() -> Result<()> {
    let cpp = ["new_delete", "sized_delete"].map(|name| Case::new(name, Kind::Cpp));
    all(simple(Kind::C).chain(cpp).map(|case| case.preload(TCMALLOC)))
}

#[test]
fn preloaded_mimalloc_is_exact() -> Result<()> {
    let cpp = ["new_delete", "new_aligned"].map(|name| Case::new(name, Kind::Cpp));
    all(simple(Kind::C).chain(cpp).map(|case| case.preload(MIMALLOC)))
}

/// The mmap family as it enters the kernel, in place of libc's functions.
const FROM_KERNEL: &[&str] = &["--mmap-source", "kernel"];

#[test]
fn system_calls_without_libc_are_exact() -> Result<()> {
    let builds = [Kind::C, Kind::CMusl, Kind::CStaticGlibc, Kind::CStaticMusl];
    all(builds.map(|kind| Ok(Case::new("raw_mmap", kind).memtrace(FROM_KERNEL))).into_iter())
}

#[test]
fn seen_from_the_kernel_libcs_mappings_are_as_exact() -> Result<()> {
    let programs = [
        "mmap_partial",
        "mremap",
        "map_fixed",
        "mprotect_reserved",
        "brk",
        "malloc",
        "mixed_threads",
        "thread_death",
        "fork",
    ];
    all(programs.map(|name| Ok(Case::new(name, Kind::C).memtrace(FROM_KERNEL))).into_iter())
}
