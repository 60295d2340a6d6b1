//! A recording made by hand for tests: a Go+cgo service with a C leak, a `C.CString` leak, healthy
//! churn, inlined C++ and the unpleasant rest (truncated walks, names that try to paint the
//! terminal). Every figure is odd enough to be recognized wherever it comes out again.

use memtrace_common::counters::{Loss, Tally};

use super::*;

pub const MIB: u64 = 1 << 20;
pub const SECOND_NS: u64 = 1_000_000_000;

/// Ids of the stacks.
pub const SQLITE_LEAK: u64 = 0x51;
/// The same names as [`SQLITE_LEAK`] through another address of the same line.
pub const SQLITE_LEAK_TWIN: u64 = 0x52;
pub const CSTRING_LEAK: u64 = 0x53;
pub const CHURN: u64 = 0x54;
pub const INLINED: u64 = 0x55;
pub const TRUNCATED: u64 = 0x56;
pub const STORE_FULL: u64 = 0x57;
pub const MAPPER: u64 = 0x58;
pub const HOSTILE: u64 = 0x59;

const EXE: u64 = 0x40_0000;
const LIBC: u64 = 0x7f10_0000_0000;
const SQLITE: u64 = 0x7f20_0000_0000;
const XML: u64 = 0x7f30_0000_0000;
const STRIPPED: u64 = 0x7f40_0000_0000;

fn object(path: &str, build_id: Option<&str>, start: u64) -> Object {
    Object {
        path: path.to_owned(),
        build_id: build_id.map(str::to_owned),
        mappings: vec![ObjectMapping { start, end: start + 0x20_0000, file_offset: 0x1000 }],
        image: 0,
    }
}

fn name(function: &str, at: Option<(&str, u32)>, inlined: bool) -> Name {
    Name {
        function: function.to_owned(),
        file: at.map(|(file, _)| file.to_owned()),
        line: at.map(|(_, line)| line),
        inlined,
    }
}

fn names(address: u64, object: u32, names: Vec<Name>) -> AddressNames {
    AddressNames { image: 0, address, object: Some(object), names }
}

fn one(address: u64, object: u32, function: &str, at: Option<(&str, u32)>) -> AddressNames {
    names(address, object, vec![name(function, at, false)])
}

fn counters(
    labels: impl Iterator<Item = &'static str>,
    given: &[(&str, u64)],
) -> Vec<(String, u64)> {
    labels
        .map(|label| {
            let value = given.iter().find(|(name, _)| *name == label).map_or(0, |(_, n)| *n);
            (label.to_owned(), value)
        })
        .collect()
}

pub fn losses(given: &[(&str, u64)]) -> Vec<(String, u64)> {
    counters(Loss::ALL.iter().map(|loss| loss.label()), given)
}

fn tallies(given: &[(&str, u64)]) -> Vec<(String, u64)> {
    counters(Tally::ALL.iter().map(|tally| tally.label()), given)
}

/// `(stack, allocated blocks, bytes each, freed blocks, youngest s, oldest s, aged blocks)`
fn totals(row: (u64, u64, u64, u64, u64, u64, u64)) -> StackTotals {
    let (stack, allocated, size, freed, youngest, oldest, aged) = row;
    StackTotals {
        stack,
        allocated_bytes: allocated * size,
        allocated_blocks: allocated,
        freed_bytes: freed * size,
        freed_blocks: freed,
        live: Some(LiveBlocks {
            bytes: (allocated - freed) * size,
            blocks: allocated - freed,
            youngest_age_ns: youngest * SECOND_NS,
            oldest_age_ns: oldest * SECOND_NS,
            aged_bytes: aged * size,
            aged_blocks: aged,
        }),
    }
}

fn probe(function: &str, offset: u64, entry: &str, return_site: Option<u64>) -> AttachedProbe {
    AttachedProbe {
        object: "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned(),
        allocator: "glibc".to_owned(),
        function: function.to_owned(),
        function_file_offset: offset,
        entry_site: 0,
        entry_instruction: entry.to_owned(),
        entry_is_emulated: true,
        return_site,
    }
}

fn header() -> Header {
    Header {
        schema: SCHEMA_VERSION,
        memtrace: "0.1.0".to_owned(),
        armed_at_unix_ns: 1_790_000_000 * SECOND_NS,
        min_age_ns: 0,
        host: HostSummary {
            kernel_release: "6.18.5".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 2,
            page_size_bytes: 4096,
        },
        tracee: Tracee {
            id: ProcessId { pid: 4711, start_time_ticks: 123_456 },
            comm: "orders".to_owned(),
            executable: "/app/orders".to_owned(),
            command_line: vec!["/app/orders".to_owned(), "--listen=:8080".to_owned()],
            container: Some(Container {
                runtime: "docker".to_owned(),
                id: "3f9d1c6b2a7e".repeat(5),
                name: Some("orders-1".to_owned()),
                image: Some("registry.example/orders:2.4.1".to_owned()),
            }),
            go_version: Some("go1.27.3".to_owned()),
            objects: vec![
                object("/app/orders", Some("a1b2c3d4e5f60718"), EXE),
                object("/usr/lib/x86_64-linux-gnu/libc.so.6", Some("00112233445566778899"), LIBC),
                object(
                    "/usr/lib/x86_64-linux-gnu/libsqlite3.so.0.8.6",
                    Some("feedfacefeedface"),
                    SQLITE,
                ),
                object("/usr/lib/x86_64-linux-gnu/libxml2.so.2.9.14", None, XML),
            ],
        },
        probes: ProbeReport {
            attached: vec![
                probe("malloc", 0x9_9040, "test rdi, rdi", Some(0)),
                probe("free", 0x9_9640, "test rdi, rdi", None),
            ],
            not_probed: vec![NotProbed {
                object: "/opt/vendor/libblob.so".to_owned(),
                function: None,
                reason: "it holds an allocator (strings say jemalloc 5.3) but no symbol names it"
                    .to_owned(),
            }],
        },
    }
}

fn stack(id: u64, frames: &[u64], end: u8) -> StackDef {
    StackDef { id, image: 0, frames: frames.to_vec(), end }
}

fn stacks() -> Vec<StackDef> {
    let malloc = LIBC + 0x99040;
    let go_tail = [EXE + 0x100, EXE + 0x110, EXE + 0x120, EXE + 0x130, EXE + 0x140, EXE + 0x150];
    let with_tail = |head: &[u64]| [head, &go_tail].concat();
    vec![
        stack(SQLITE_LEAK, &with_tail(&[malloc, SQLITE + 0x10, SQLITE + 0x20, EXE + 0x90]), 0),
        stack(SQLITE_LEAK_TWIN, &with_tail(&[malloc, SQLITE + 0x14, SQLITE + 0x20, EXE + 0x90]), 0),
        stack(
            CSTRING_LEAK,
            &[
                malloc,
                EXE + 0x80,
                EXE + 0x100,
                EXE + 0x110,
                EXE + 0x170,
                EXE + 0x180,
                EXE + 0x160,
                EXE + 0x150,
            ],
            0,
        ),
        stack(CHURN, &with_tail(&[malloc, XML + 0x10, EXE + 0x90]), 0),
        stack(INLINED, &with_tail(&[malloc, XML + 0x30, EXE + 0x90]), 0),
        stack(TRUNCATED, &[malloc, STRIPPED + 0x123], 3),
        stack(STORE_FULL, &[], 6),
        stack(MAPPER, &[LIBC + 0x11_b000, SQLITE + 0x40, EXE + 0x90, EXE + 0x120, EXE + 0x150], 0),
        stack(HOSTILE, &[malloc, XML + 0x50, XML + 0x60], 4),
    ]
}

fn all_names() -> Vec<AddressNames> {
    let orders = "/src/orders/store.go";
    vec![
        one(LIBC + 0x99040, 1, "malloc", None),
        one(LIBC + 0x11_b000, 1, "mmap", None),
        one(
            SQLITE + 0x10,
            2,
            "sqlite3MemMalloc",
            Some(("/build/sqlite3-3.40.1/sqlite3.c", 25_493)),
        ),
        one(
            SQLITE + 0x14,
            2,
            "sqlite3MemMalloc",
            Some(("/build/sqlite3-3.40.1/sqlite3.c", 25_493)),
        ),
        one(SQLITE + 0x20, 2, "sqlite3LockAndPrepare", Some(("sqlite3.c", 139_876))),
        one(SQLITE + 0x40, 2, "unixRemapfile", Some(("sqlite3.c", 41_874))),
        one(XML + 0x10, 3, "xmlStrndup", None),
        names(
            XML + 0x30,
            3,
            vec![
                name(
                    "std::allocator<xml::Node>::allocate(unsigned long)",
                    Some(("alloc.h", 127)),
                    true,
                ),
                name("std::vector<xml::Node>::_M_realloc_insert", Some(("vector.tcc", 459)), true),
                name("xml::Document::append(xml::Node const&)", Some(("document.cc", 88)), false),
            ],
        ),
        one(XML + 0x50, 3, "evil\u{1b}[31m\u{1b}]0;owned\u{7}\nname\u{202e}", Some(("a\rb.c", 7))),
        AddressNames { image: 0, address: XML + 0x60, object: Some(3), names: vec![] },
        one(EXE + 0x80, 0, "_cgo_3c1cec0c9a4e_Cfunc__Cmalloc", None),
        one(
            EXE + 0x90,
            0,
            "_cgo_3c1cec0c9a4e_Cfunc_sqlite3_prepare_v2",
            Some(("cgo-gcc-prolog", 61)),
        ),
        one(
            EXE + 0x100,
            0,
            "runtime.asmcgocall.abi0",
            Some(("/usr/local/go/src/runtime/asm_amd64.s", 923)),
        ),
        one(EXE + 0x110, 0, "runtime.cgocall", Some(("/usr/local/go/src/runtime/cgocall.go", 185))),
        names(
            EXE + 0x120,
            0,
            vec![
                name(
                    "example.com/orders/store._Cfunc_sqlite3_prepare_v2",
                    Some(("_cgo_gotypes.go", 412)),
                    true,
                ),
                name("example.com/orders/store.(*Stmt).prepare", Some((orders, 97)), false),
            ],
        ),
        one(EXE + 0x130, 0, "example.com/orders/store.(*DB).Query", Some((orders, 141))),
        one(EXE + 0x140, 0, "main.handleOrder", Some(("/src/orders/main.go", 58))),
        one(
            EXE + 0x150,
            0,
            "runtime.goexit",
            Some(("/usr/local/go/src/runtime/asm_amd64.s", 1771)),
        ),
        one(EXE + 0x170, 0, "main._cgo_cmalloc", Some(("_cgo_gotypes.go", 77))),
        one(EXE + 0x180, 0, "main._Cfunc_CString", Some(("_cgo_gotypes.go", 65))),
        one(EXE + 0x160, 0, "main.logLine", Some(("/src/orders/log.go", 23))),
    ]
}

fn go_books(scale: u64) -> GoBooks {
    let stacks = vec![
        GoStack {
            frames: vec![
                name("bytes.growSlice", Some(("/usr/local/go/src/bytes/buffer.go", 252)), true),
                name(
                    "bytes.(*Buffer).grow",
                    Some(("/usr/local/go/src/bytes/buffer.go", 161)),
                    false,
                ),
                name("main.cacheOrder", Some(("/src/orders/cache.go", 34)), false),
            ]
            .into_iter()
            .map(Arc::new)
            .collect(),
            inuse_bytes: 11 * MIB * scale + 13,
            inuse_objects: 113 * scale,
            alloc_bytes: 71 * MIB * scale,
            alloc_objects: 977 * scale,
        },
        GoStack {
            frames: [Arc::new(name("main.main", Some(("/src/orders/main.go", 12)), false))].into(),
            inuse_bytes: 524_801,
            inuse_objects: 1,
            alloc_bytes: 524_801,
            alloc_objects: 1,
        },
    ];
    GoBooks {
        source: "http://127.0.0.1:6060/debug/pprof/heap?debug=1".to_owned(),
        inuse_bytes: stacks.iter().map(|stack| stack.inuse_bytes).sum(),
        inuse_objects: stacks.iter().map(|stack| stack.inuse_objects).sum(),
        alloc_bytes: stacks.iter().map(|stack| stack.alloc_bytes).sum(),
        alloc_objects: stacks.iter().map(|stack| stack.alloc_objects).sum(),
        sample_rate_bytes: 524_288,
        memory: Some(GoMemory {
            sys: 48_000_000,
            heap_alloc: 14 * MIB,
            heap_sys: 40_000_000,
            heap_idle: 20_000_000,
            heap_inuse: 20_000_000,
            heap_released: 9_000_000,
            stack_inuse: 1_000_000,
            stack_sys: 1_000_000,
            mspan_sys: 500_000,
            mcache_sys: 15_600,
            buck_hash_sys: 1_484_400,
            gc_sys: 4_000_000,
            other_sys: 1_000_000,
            next_gc: 28 * MIB,
            num_gc: 17,
            ..GoMemory::default()
        }),
        stacks,
        ..GoBooks::default()
    }
}

fn ranges(elapsed_s: u64) -> Vec<Range> {
    let range = |start, length_bytes, stack, age_s: u64, owner, reserved| Range {
        start,
        length_bytes,
        stack,
        age_ns: age_s.min(elapsed_s) * SECOND_NS,
        owner,
        reserved,
        image: 0,
    };
    vec![
        range(0xc0_0000_0000, 64 * MIB, CSTRING_LEAK, 19, RangeOwner::GoRuntime, false),
        range(0x7e00_0000_0000, 4 * MIB + 4096, MAPPER, 12, RangeOwner::Native, false),
        range(0x7e10_0000_0000, 8 * MIB, MAPPER, 11, RangeOwner::ThreadStack, false),
        range(0x7e20_0000_0000, 132 * 1024, CHURN, 10, RangeOwner::AllocatorInternal, false),
        range(0x7e30_0000_0000, MIB, MAPPER, 9, RangeOwner::Native, true),
        range(0x7e40_0000_0000, 2 * MIB, MAPPER, 8, RangeOwner::File, false),
    ]
}

fn snapshot(sequence: u32, elapsed_s: u64, rows: Vec<StackTotals>, rss: u64) -> Snapshot {
    let hits = rows.iter().map(|row| row.allocated_blocks).sum::<u64>();
    let frees = rows.iter().map(|row| row.freed_blocks).sum::<u64>();
    Snapshot {
        sequence,
        unix_ns: (1_790_000_000 + elapsed_s) * SECOND_NS,
        elapsed_ns: elapsed_s * SECOND_NS,
        moving: false,
        read_ns: 7_300_000,
        native: Native {
            stacks: rows,
            ranges: ranges(elapsed_s),
            losses: losses(&[]),
            tallies: tallies(&[
                ("alloc_calls", hits),
                ("free_calls", frees + 41),
                ("free_unknown", 41),
                ("free_null", 7),
                ("walk_truncated", 9),
                ("walk_complete", hits - 9),
            ]),
            hits: vec![hits, frees + 48],
            ages_at_ns: elapsed_s * SECOND_NS,
            cohorts: Cohorts::default(),
        },
        go: Known::Value(go_books(u64::from(sequence) + 1)),
        process: Known::Value(ProcessMemory {
            rss,
            rss_anon: rss - 21 * MIB,
            rss_file: 20 * MIB,
            rss_shmem: MIB,
            rss_peak: rss + 3 * MIB,
            swap: 0,
            threads: 14,
        }),
        own: OwnCost {
            probe_hits: hits + frees + 48,
            bpf_time_ns: Some(412_000_000),
            kernel_memory_bytes: 9 * MIB + 81_920,
            user_memory_bytes: 31 * MIB,
            user_cpu_ns: 230_000_000,
            unwind_rows: 183_220,
            unwind_build_ns: 95_000_000,
            container_read_ns: 21_000_000,
            heap_read_ns: Some(9_000_000),
        },
        ended: None,

        new_probes: ProbeReport::default(),
        memory: Known::unknown("not read"),
        mark: None,
        new_images: Vec::new(),
        images: Vec::new(),
        closed: Vec::new(),
        untraced: Default::default(),
    }
}

/// Three snapshots at 1 s, 10 s and 20 s; the last one ended the recording.
pub fn recording() -> Recording {
    let first = snapshot(
        0,
        1,
        vec![
            totals((SQLITE_LEAK, 100, 4099, 0, 0, 1, 0)),
            totals((CHURN, 1_000, 37, 990, 0, 1, 0)),
        ],
        90 * MIB,
    );
    let second = snapshot(
        1,
        10,
        vec![
            totals((SQLITE_LEAK, 1_000, 4099, 0, 0, 10, 450)),
            totals((SQLITE_LEAK_TWIN, 10, 4099, 0, 0, 8, 5)),
            totals((CSTRING_LEAK, 50_003, 61, 0, 0, 10, 25_000)),
            totals((CHURN, 20_000, 37, 10_000, 0, 2, 0)),
        ],
        101 * MIB,
    );
    let mut third = snapshot(
        2,
        20,
        vec![
            totals((SQLITE_LEAK, 2_000, 4099, 0, 0, 20, 1_500)),
            totals((SQLITE_LEAK_TWIN, 20, 4099, 0, 1, 18, 15)),
            totals((CSTRING_LEAK, 100_003, 61, 0, 0, 20, 75_001)),
            totals((CHURN, 40_000, 37, 39_990, 0, 1, 0)),
            totals((INLINED, 31, 70_001, 11, 1, 19, 13)),
            totals((TRUNCATED, 7, 333_333, 0, 5, 17, 7)),
            totals((STORE_FULL, 1, 10_007, 0, 3, 3, 0)),
            totals((HOSTILE, 3, 4_001, 0, 2, 4, 0)),
        ],
        112 * MIB,
    );
    third.ended = Some("--duration 20s is over".to_owned());
    Recording {
        header: header(),
        new_objects: vec![object("/opt/vendor/libblob.so", None, STRIPPED)],
        stacks: stacks(),
        names: all_names(),
        snapshots: vec![first, second, third],
        images: Vec::new(),
        closed: Vec::new(),
    }
}
