//! Which programs of the conformance suite are traced in a guest. Emulation is slow: the counts
//! are smaller than in `live_conformance`, and what does not depend on the kernel is left out.

use memtrace_tests::compile::Kind;
use memtrace_tests::conformance::Case;

/// Not a case: the tracee of what is no comparison of books.
pub const BUSY: (&str, Kind) = ("busy", Kind::C);
pub const MALLOC: (&str, Kind) = ("malloc", Kind::C);

/// What the ledger's tests put into containers.
pub const LEDGER: [(&str, Kind); 2] = [("ledger", Kind::C), ("held", Kind::Go)];

/// A stack of every shape that the kernel side tells apart, and every rule of pairing that needs
/// a program of its own.
pub fn cases(short: bool) -> Vec<Case> {
    let mut cases = vec![
        Case::new("malloc", Kind::C),
        Case::new("realloc_resize", Kind::C),
        Case::new("cross_thread_free", Kind::C),
        Case::new("mmap_partial", Kind::C),
        Case::new("allocations", Kind::Go),
        Case::new("thread_death", Kind::C),
    ];
    if short {
        return cases;
    }
    let c = [
        "calloc",
        "realloc_failed",
        "realloc_null",
        "realloc_zero",
        "realloc_unknown",
        "reallocarray",
        "posix_memalign",
        "aligned",
        "free_null",
        "strings",
        "longjmp",
        "signal_longjmp",
        "fork",
        "mremap",
        "map_fixed",
        "mprotect_reserved",
        "brk",
    ];
    cases.extend(c.map(|name| Case::new(name, Kind::C)));
    cases.extend([
        Case::new("exec", Kind::C).until_exec(),
        Case::new("mixed_threads", Kind::C).arguments(&["8"]),
        Case::new("mixed_threads", Kind::C).arguments(&["8"]).chained(),
        Case::new("allocations", Kind::Go).chained(),
        Case::new("callback", Kind::Go).chained(),
        Case::new("distinct_stacks", Kind::C).memtrace(&["--max-stacks", "65536"]),
        Case::new("many_calls", Kind::C).arguments(&["50000", "8"]),
        Case::new("malloc", Kind::CStaticGlibc),
        Case::new("realloc_resize", Kind::CMusl),
        Case::new("new_delete", Kind::Cpp),
        Case::new("allocations", Kind::GoStatic),
        Case::new("callback", Kind::Go),
        Case::new("allocations", Kind::Rust),
        Case::new("with_c", Kind::RustWithC),
    ]);
    // TCG takes tens of microseconds for a probe.
    cases.into_iter().map(|case| case.limit(std::time::Duration::from_secs(240))).collect()
}

/// Everything to compile for a guest, once each.
pub fn programs(short: bool) -> Vec<(&'static str, Kind)> {
    let mut programs = vec![BUSY, MALLOC];
    for case in cases(short) {
        if !programs.contains(&(case.name, case.kind)) {
            programs.push((case.name, case.kind));
        }
    }
    programs
}
