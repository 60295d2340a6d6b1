//! The laws, held against recorded texts and against facts that nothing sane would produce.

use proptest::collection::vec;
use proptest::prelude::*;

use super::fixtures::*;
use super::probed::Outstanding;
use super::row::{Kind, Row};
use super::*;
use crate::snapshot::facts::*;

fn charge_of(ledger: &Ledger) -> &Row {
    ledger.charge.value().expect("a charge")
}

fn at(ledger: &Ledger, key: &str) -> i128 {
    charge_of(ledger).find(key).and_then(Row::value).unwrap_or_else(|| panic!("no row {key}"))
}

fn broken(ledger: &Ledger) -> Vec<&Check> {
    ledger.checks.iter().filter(|check| check.holds == Some(false)).collect()
}

fn heap_of(bytes: u64) -> Vec<MappingFacts> {
    vec![mapping(0x5555_0000_0000, bytes, "rw-p", "[heap]", bytes)]
}

#[test]
fn a_v1_charge_is_its_terms_and_epsilon() {
    let facts =
        facts(Known::Value(cgroup(CgroupVersion::V1, V1)), vec![process(7, heap_of(4_145_152))]);
    let ledger = Ledger::of(&facts);
    assert_eq!(at(&ledger, "charge"), 5_058_560);
    assert_eq!(at(&ledger, "anon"), 4_145_152);
    assert_eq!(at(&ledger, "file"), 98_304);
    assert_eq!(at(&ledger, "kernel"), 544_768);
    // 5,058,560 − 4,145,152 − 98,304 − 544,768
    assert_eq!(at(&ledger, "epsilon"), 270_336);
    assert_eq!(at(&ledger, "anon_residual"), 0);
    // 3 threads × 16 KiB, then VmPTE; the rest is slab and per-cpu.
    assert_eq!(at(&ledger, "kernel_residual"), 544_768 - 3 * 16_384 - 45_056);
    assert!(broken(&ledger).is_empty(), "{:#?}", broken(&ledger));
}

#[test]
fn a_v2_charge_is_its_terms_and_epsilon() {
    let facts =
        facts(Known::Value(cgroup(CgroupVersion::V2, V2)), vec![process(7, heap_of(25_268_224))]);
    let ledger = Ledger::of(&facts);
    assert_eq!(at(&ledger, "charge"), 26_169_344);
    assert_eq!(at(&ledger, "kernel"), 339_968);
    assert_eq!(at(&ledger, "slab_unreclaimable"), 118_432);
    assert_eq!(at(&ledger, "kernel_residual"), 339_968 - 16_384 - 81_920 - 86_408 - 118_432);
    assert_eq!(at(&ledger, "epsilon"), 26_169_344 - 25_268_224 - 249_856 - 339_968);
    assert!(broken(&ledger).is_empty(), "{:#?}", broken(&ledger));
    let tool = |key: &str| {
        ledger
            .tools
            .iter()
            .find(|tool| tool.key == key)
            .and_then(|tool| tool.bytes.value().copied())
    };
    // What docker's own client printed for this reading: 24.72 MiB.
    assert_eq!(tool("docker"), Some(25_919_488));
    assert_eq!(tool("podman"), tool("docker"));
    assert_eq!(tool("kubectl"), tool("docker"));
    assert_eq!(tool("cadvisor_rss"), Some(25_268_224));
}

#[test]
fn a_kernel_before_5_18_has_its_parts_summed() {
    let old: Vec<(&str, String)> =
        V2.iter().map(|(file, text)| (*file, text.replace("kernel 339968\n", ""))).collect();
    let old: Vec<(&str, &str)> = old.iter().map(|(file, text)| (*file, text.as_str())).collect();
    let ledger = Ledger::of(&facts(Known::Value(cgroup(CgroupVersion::V2, &old)), Vec::new()));
    assert_eq!(at(&ledger, "kernel"), 16_384 + 81_920 + 204_840);
    assert!(broken(&ledger).iter().all(|check| check.name != "I12"));
}

#[test]
fn an_epsilon_beyond_the_kernels_batches_breaks_the_law_and_shows() {
    let more: Vec<(&str, String)> =
        V2.iter().map(|(file, text)| (*file, text.replace("26169344", "36169344"))).collect();
    let more: Vec<(&str, &str)> = more.iter().map(|(file, text)| (*file, text.as_str())).collect();
    let facts = facts(Known::Value(cgroup(CgroupVersion::V2, &more)), Vec::new());
    let ledger = Ledger::of(&facts);
    assert!(broken(&ledger).iter().any(|check| check.name == "I1"));
    let options = crate::report::ledger::LedgerOptions { width: 100, colour: false, exact: false };
    let text = crate::report::ledger::render_text(&facts, &ledger, options);
    assert!(text.contains("! I1 does not hold"), "{text}");
}

#[test]
fn the_bound_is_a_stock_for_each_cgroup_and_cpu() {
    let mut one = cgroup(CgroupVersion::V1, V1);
    let bound = |cgroup: &CgroupFacts| {
        let facts = facts(Known::Value(cgroup.clone()), Vec::new());
        charge::Charge::of(cgroup, &facts).value().unwrap().bound
    };
    assert_eq!(bound(&one).stock, 2 * 64 * PAGE);
    one.nested = vec![NestedFacts::default(); 3];
    assert_eq!(bound(&one).stock, 4 * 2 * 64 * PAGE);
    one.nested = vec![NestedFacts::default(); 300];
    assert_eq!(bound(&one).stock, 7 * 2 * 64 * PAGE);
}

#[test]
fn swap_cache_that_nobody_has_mapped_is_charged_beyond_the_terms() {
    let of = |extra: u64, cached: u64| {
        let mut cgroup = cgroup(CgroupVersion::V2, V2);
        let figures = &mut cgroup.after.figures;
        *figures.get_mut("memory.current").unwrap() += extra;
        figures.insert("memory.stat swapcached".to_owned(), cached);
        cgroup.after.usage_before += extra;
        let facts = facts(Known::Value(cgroup), vec![process(7, heap_of(25_268_224))]);
        let i1 = Ledger::of(&facts).checks.into_iter().find(|check| check.name == "I1").unwrap();
        i1.holds
    };
    assert_eq!(of(8 * MIB, 0), Some(false));
    assert_eq!(of(8 * MIB, 8 * MIB), Some(true));
}

#[test]
fn a_process_that_shares_pages_has_less_than_its_classes() {
    let mut sharer = process(7, heap_of(8 * MIB));
    if let Known::Value(rollup) = &mut sharer.rollup_after {
        rollup.pss_anon = Some(5 * MIB);
    }
    let ledger = ProcessLedger::of(&sharer, &facts(Known::unknown("none"), Vec::new()), None);
    let row = ledger.anonymous.value().unwrap();
    assert_eq!(row.find("anon_shared").and_then(Row::value), Some(-3 * i128::from(MIB)));
    assert_eq!(row.sum_of_parts(), 5 * i128::from(MIB));
}

fn go_process() -> ProcessFacts {
    let mut go = process(
        9,
        vec![
            mapping(0xc0_0000_0000, 64 * MIB, "rw-p", "", 50 * MIB),
            mapping(0x7f00_0000_0000, 8 * MIB, "rw-p", "", 7 * MIB),
        ],
    );
    go.go_version = Some("go1.27.3".to_owned());
    go.go = Known::Value(GoFacts {
        source: "http://127.0.0.1:6060/debug/pprof/heap".to_owned(),
        inuse: Known::Value(25 * MIB),
        sample_rate: 512 << 10,
        memory: Known::Value(go_memory()),
        memory_limit: Known::Value(NO_LIMIT),
    });
    go
}

#[test]
fn go_s_books_are_parts_of_its_arenas_with_a_signed_rest() {
    let facts = facts(Known::Value(cgroup(CgroupVersion::V1, V1)), vec![go_process()]);
    let ledger = Ledger::of(&facts);
    let resident = ledger.processes[0].resident.value().unwrap();
    let of = |key: &str| resident.find(key).and_then(Row::value).unwrap() / i128::from(MIB);
    assert_eq!(of("go_heap"), 50);
    assert_eq!((of("go_live"), of("go_garbage"), of("go_slack")), (25, 5, 6));
    assert_eq!((of("go_idle"), of("go_stacks")), (14, 4));
    assert_eq!(of("go_residual"), 50 - 25 - 5 - 6 - 14 - 4);
    // Without names the tables are among the other anonymous mappings: told beside, not added.
    assert_eq!(resident.find("go_tables").unwrap().kind, Kind::Within);
    // 7 MiB there, at most 6 MiB of them Go's: nothing is guessed, both bounds are told.
    assert_eq!((of("go_tables"), of("native_at_least")), (6, 1));
    let note = resident.find("native_anonymous").unwrap().note.as_deref();
    assert!(note.is_some_and(|note| note.contains("not told apart")), "{note:?}");
    let tool = |key: &str| ledger.tools.iter().find(|tool| tool.key == key).unwrap();
    assert_eq!(tool("pprof").bytes, Known::Value(i128::from(25 * MIB)));
    assert_eq!(tool("go_retained").bytes, Known::Value(i128::from(60 * MIB)));
}

#[test]
fn a_recording_s_c_heap_goes_on_to_what_is_outstanding() {
    let mut main = process(7, heap_of(12 * MIB));
    main.heap = Known::unknown("left out of this snapshot");
    let mut facts = facts(Known::Value(cgroup(CgroupVersion::V1, V1)), vec![main]);
    facts.subject.main_pid = Some(7);
    let seen = Outstanding {
        bytes: 5 * MIB,
        blocks: 5,
        callers: vec![("import".to_owned(), 3 * MIB, 3), ("label".to_owned(), MIB, 1)],
        stacks: vec![(3 * MIB, 3), (2 * MIB, 2)],
    };
    let seen: Seen = [(7, seen)].into_iter().collect();
    let ledger = Ledger::of_recorded(&facts, &seen);
    let broken_sums: Vec<_> = broken(&ledger).into_iter().filter(|it| it.name == "I12").collect();
    assert!(broken_sums.is_empty(), "{broken_sums:#?}");
    let heap = ledger.processes[0].resident.value().unwrap().find("c_heap").unwrap();
    let of = |key: &str| heap.find(key).and_then(Row::value).unwrap();
    assert_eq!(of("c_heap"), i128::from(12 * MIB));
    assert_eq!(of("c_outstanding_others"), i128::from(MIB));
    assert_eq!(of("c_rounding"), 5 * 16);
    assert_eq!(of("c_before"), i128::from(7 * MIB) - 80);
    assert_eq!(heap.find("c_main_heap").unwrap().kind, Kind::Within);
    assert!(heap.note.as_deref().unwrap().contains("left out"), "{:?}", heap.note);
    // Whoever is explained: each process has what was seen in it.
    facts.subject.main_pid = Some(8);
    facts.processes.push(process(8, heap_of(3 * MIB)));
    let several = Ledger::of_recorded(&facts, &seen);
    let heap_of = |pid: u32| {
        let process = several.processes.iter().find(|process| process.pid == pid).unwrap();
        process.resident.value().unwrap().find("c_heap").and_then(Row::value)
    };
    assert_eq!((heap_of(7), heap_of(8)), (Some(i128::from(12 * MIB)), None));
}

#[test]
fn blocks_that_the_kernel_merged_with_neighbours_are_told_by_malloc_s_count() {
    let chunks = mapping(0x7f00_1000_0000, 2 * MIB, "rw-p", "", 2 * MIB);
    let chunks = MappingFacts { malloc_chunks: 1, ..chunks };
    let merged = mapping(0x7f00_2000_0000, 20 * MIB, "rw-p", "", 20 * MIB);
    let mut python = process(7, vec![chunks, merged]);
    python.heap = Known::Value(HeapCensus {
        source: "/proc/7/mem".to_owned(),
        arenas: Vec::new(),
        mapped_chunks: Known::Value(9),
        mapped_bytes: Known::Value(10 * MIB),
        thread_caches: Known::unknown("not found"),
        trimmable_resident: Known::unknown("not found"),
    });
    let facts = facts(Known::Value(cgroup(CgroupVersion::V1, V1)), vec![python]);
    let ledger = Ledger::of(&facts);
    let row = ledger.processes[0].resident.value().unwrap().find("c_merged_chunks").unwrap();
    assert_eq!((row.value(), row.kind), (Some(8 * i128::from(MIB)), Kind::Within));
}

#[test]
fn a_sum_over_processes_at_work_says_nothing_rather_than_something_wrong() {
    let shares = process(7, heap_of(8 * MIB));
    let mut moving = cgroup(CgroupVersion::V1, V1);
    let i4 = |cgroup: CgroupFacts| {
        let facts = facts(Known::Value(cgroup), vec![shares.clone()]);
        Ledger::of(&facts).checks.into_iter().find(|check| check.name == "I4").unwrap()
    };
    assert_eq!(i4(moving.clone()).holds, Some(false));
    moving.before.figures.insert("memory.stat total_rss".to_owned(), 6 * MIB);
    let silent = i4(moving);
    assert_eq!(silent.holds, None);
    assert!(silent.unknown.unwrap().contains("--freeze"));
}

#[test]
fn go_books_that_break_their_own_laws_are_shown() {
    let mut lying = go_process();
    if let Known::Value(go) = &mut lying.go {
        go.memory = Known::Value(GoMemory { sys: MIB, ..go_memory() });
    }
    let facts = facts(Known::Value(cgroup(CgroupVersion::V1, V1)), vec![lying]);
    let ledger = Ledger::of(&facts);
    assert!(broken(&ledger).iter().any(|check| check.name == "I7"));
}

use crate::snapshot::GoMemory;

#[test]
fn advice_has_its_arithmetic_and_its_evidence() {
    let (one, two) = (0x7f00_0400_0000, 0x7f00_0800_0000);
    let mut mappings = heap_of(12 * MIB);
    mappings.push(mapping(one, 20 * MIB, "rw-p", "", 14 * MIB));
    mappings.push(mapping(two, 20 * MIB, "rw-p", "", 14 * MIB));
    let mut arenas = process(7, mappings);
    let heap = |start| GlibcHeap { start, end: start + 20 * MIB, arena: start + 48 };
    arenas.glibc_heaps = Known::Value(vec![heap(one), heap(two)]);
    let arena = |is_main, address: u64| ArenaFacts {
        address,
        is_main,
        system_bytes: 20 * MIB,
        in_use: Known::Value(4 * MIB),
        free: Known::Value(9 * MIB),
        top: Known::Value(7 * MIB),
    };
    arenas.heap = Known::Value(HeapCensus {
        source: "/proc/7/mem".to_owned(),
        arenas: vec![arena(true, 0x5555_0000_0000), arena(false, one + 48), arena(false, two + 48)],
        mapped_chunks: Known::Value(0),
        mapped_bytes: Known::Value(0),
        thread_caches: Known::unknown("not found"),
        trimmable_resident: Known::Value(18 * MIB),
    });
    let facts = facts(Known::Value(cgroup(CgroupVersion::V1, V1)), vec![arenas]);
    let ledger = Ledger::of(&facts);
    assert!(ledger.checks.iter().any(|check| check.name == "I10" && check.holds == Some(true)));
    let row = |key: &str| ledger.processes[0].resident.value().unwrap().find(key).unwrap();
    let of_arenas = |key: &str| row("c_arenas").find(key).and_then(Row::value);
    assert_eq!(of_arenas("c_in_use"), Some(8 * i128::from(MIB)));
    assert_eq!(of_arenas("c_residual"), Some((28 - 8 - 18 - 14) * i128::from(MIB)));
    let of = |key: &str| ledger.advice.iter().find(|advice| advice.key == key);
    // What the books tell of beyond the mappings may be new, unless everything stood still.
    let mut younger = facts.clone();
    if let Known::Value(census) = &mut younger.processes[0].heap {
        census.arenas.push(arena(false, 0x7f00_0c00_0030));
    }
    let i10 = |facts: &Facts| {
        Ledger::of(facts).checks.into_iter().find(|check| check.name == "I10").unwrap()
    };
    assert_eq!(i10(&younger).holds, None);
    assert!(i10(&younger).unknown.unwrap().contains("--freeze"));
    younger.freeze = Some(FreezeFacts {
        file: "cgroup.freeze".to_owned(),
        frozen_for_ns: 1,
        was_frozen: false,
        too_long: false,
    });
    assert_eq!(i10(&younger).holds, Some(false));
    assert_eq!(of("headroom").unwrap().bytes, i128::from(64 * MIB) - 5_058_560);
    assert_eq!(of("malloc_trim").unwrap().bytes, i128::from(18 * MIB));
    // 28 MiB resident in both, 8 MiB in use.
    assert_eq!(of("arena_max").unwrap().bytes, i128::from(20 * MIB));
    for advice in &ledger.advice {
        assert!(!advice.arithmetic.is_empty() && !advice.evidence.is_empty(), "{advice:?}");
        assert!(advice.what.bytes().any(|byte| byte.is_ascii_digit()), "{advice:?}");
    }
    // No figure, no advice: nothing was read of the heap's inside.
    let silent =
        super::fixtures::facts(Known::unknown("no cgroup"), vec![process(7, heap_of(MIB))]);
    assert!(Ledger::of(&silent).advice.is_empty());
}

#[test]
fn gomemlimit_leaves_room_for_what_is_not_go_s() {
    let facts = facts(Known::Value(cgroup(CgroupVersion::V1, V1)), vec![go_process()]);
    let ledger = Ledger::of(&facts);
    let advice = ledger.advice.iter().find(|advice| advice.key == "gomemlimit").unwrap();
    // Go holds 60 MiB, more than is charged here: nothing else takes room but the margin.
    assert_eq!(advice.bytes, i128::from(64 * MIB) - i128::from(64 * MIB) / 20);
    assert!(advice.what.starts_with("GOMEMLIMIT=60MiB"), "{}", advice.what);
}

#[test]
fn the_limit_reached_first_is_the_one_with_least_headroom() {
    let mut cgroup = cgroup(CgroupVersion::V2, V2);
    if let Some(parent) = cgroup.limits.get_mut(1) {
        parent.figures.insert("memory.max".to_owned(), 53 * MIB);
        parent.figures.insert("memory.low".to_owned(), 0);
        parent.figures.insert("memory.swap.max".to_owned(), NO_LIMIT);
    }
    let facts = facts(Known::Value(cgroup), Vec::new());
    let limits = Ledger::of(&facts).limits.unwrap();
    assert!(limits.protected.is_empty() && limits.swap.is_empty());
    // 53 MiB − 2 × 26,169,344 < 64 MiB − 26,169,344
    assert_eq!(limits.effective.unwrap().path, "/docker");
    assert_eq!(limits.all.len(), 2);
}

#[test]
fn without_a_cgroup_the_processes_are_told_and_the_reason_is() {
    let facts =
        facts(Known::unknown("it cannot be seen from here"), vec![process(7, heap_of(MIB))]);
    let ledger = Ledger::of(&facts);
    let options = crate::report::ledger::LedgerOptions { width: 80, colour: false, exact: false };
    let text = crate::report::ledger::render_text(&facts, &ledger, options);
    assert!(text.contains("unknown: it cannot be seen from here"), "{text}");
    assert!(text.contains("C heap: main arena"), "{text}");
    assert!(ledger.processes[0].resident.value().is_some());
}

#[test]
fn nothing_the_tracee_names_reaches_the_terminal_raw() {
    let mut hostile = process(7, heap_of(MIB));
    hostile.comm = "\u{1b}[2Jx\r\n".to_owned();
    let mut facts = facts(Known::Value(cgroup(CgroupVersion::V2, V2)), vec![hostile]);
    facts.unread.push(Unread {
        pid: 8,
        comm: "\u{1b}]0;x\u{7}".to_owned(),
        reason: "\u{202e}".to_owned(),
    });
    let ledger = Ledger::of(&facts);
    for width in [40, 80, 100, 160] {
        let options = crate::report::ledger::LedgerOptions { width, colour: false, exact: false };
        let text = crate::report::ledger::render_text(&facts, &ledger, options);
        assert!(!text.chars().any(|c| c != '\n' && crate::sanitize::must_escape(c)), "{text:?}");
        for line in text.lines() {
            assert!(
                unicode_width::UnicodeWidthStr::width(line) <= width.max(44),
                "{width}: {line}"
            );
        }
    }
    let json = crate::report::ledger::render_json(&facts, &ledger).unwrap();
    let json = String::from_utf8(json).unwrap();
    assert!(!json.trim_end().chars().any(crate::sanitize::must_escape));
    serde_json::from_str::<serde_json::Value>(&json).unwrap();
}

fn any_mapping() -> impl Strategy<Value = MappingFacts> {
    let names = prop_oneof![
        Just(""),
        Just("[heap]"),
        Just("[stack]"),
        Just("[anon: Go: heap]"),
        Just("[anon: Go: gc bits]"),
        Just("[anon: glibc: malloc arena]"),
        Just("[anon:jemalloc_pg]"),
        Just("/lib/libc.so.6"),
        Just("/memfd:x (deleted)"),
        Just("[vdso]"),
    ];
    let figures = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    (any::<u64>(), any::<u64>(), names, any::<[bool; 5]>(), figures, vec(any::<u64>(), 0..4))
        .prop_map(|(a, b, name, flags, (rss, anonymous, pss, swap), pieces)| {
            let (start, end) = (a.min(b) & !0xfff, a.max(b).saturating_add(1));
            let mut cuts: Vec<u64> =
                pieces.into_iter().filter(|cut| start < *cut && *cut < end).chain([end]).collect();
            cuts.sort_unstable();
            cuts.dedup();
            let mut from = start;
            let pieces = cuts
                .into_iter()
                .map(|to| {
                    let piece = Piece { start: from, end: to, resident: to - from };
                    from = to;
                    piece
                })
                .collect();
            MappingFacts {
                start,
                end,
                readable: flags[0],
                writable: flags[1],
                executable: flags[2],
                shared: flags[3],
                name: name.to_owned(),
                inode: u64::from(name.starts_with('/')),
                rss,
                pss,
                anonymous,
                swap,
                pieces: if flags[4] { pieces } else { Vec::new() },
                ..MappingFacts::default()
            }
        })
}

proptest! {
    #[test]
    fn every_mapping_is_in_exactly_one_class_and_nothing_is_lost(
        mappings in vec(any_mapping(), 0..30),
    ) {
        let process = process(7, mappings.clone());
        let owned = classes::classify(&process);
        for (index, mapping) in mappings.iter().enumerate() {
            let pieces: Vec<_> = owned.iter().filter(|piece| piece.mapping == index).collect();
            let rss: u128 = pieces.iter().map(|piece| u128::from(piece.rss)).sum();
            let anonymous: u128 = pieces.iter().map(|piece| u128::from(piece.anonymous)).sum();
            prop_assert_eq!(rss, u128::from(mapping.rss));
            prop_assert_eq!(anonymous, u128::from(mapping.anonymous));
            prop_assert_eq!(pieces.first().map(|piece| piece.start), Some(mapping.start));
            prop_assert_eq!(pieces.last().map(|piece| piece.end), Some(mapping.end));
        }
    }

    /// Whatever a file holds, hostile or torn: every sum adds up, nothing panics.
    #[test]
    fn every_tree_conserves_bytes(
        v2 in any::<bool>(),
        figures in vec((0usize..24, any::<u64>()), 0..24),
        mappings in vec(any_mapping(), 0..12),
        cpus in any::<u32>(),
        nested in 0usize..9,
        go in proptest::option::of(any::<[u64; 14]>()),
    ) {
        const KEYS: [[&str; 12]; 2] = [
            ["memory.usage_in_bytes", "memory.kmem.usage_in_bytes", "memory.stat total_rss",
             "memory.stat total_cache", "memory.stat total_shmem", "memory.stat total_inactive_file",
             "memory.stat total_active_file", "memory.stat total_mapped_file",
             "memory.stat total_swapcached", "memory.max_usage_in_bytes",
             "memory.kmem.tcp.usage_in_bytes", "memory.stat total_unevictable"],
            ["memory.current", "memory.stat anon", "memory.stat file", "memory.stat kernel",
             "memory.stat slab_reclaimable", "memory.stat slab_unreclaimable", "memory.stat sock",
             "memory.stat shmem", "memory.stat inactive_file", "memory.stat active_file",
             "memory.stat swapcached", "memory.peak"],
        ];
        let version = if v2 { CgroupVersion::V2 } else { CgroupVersion::V1 };
        let mut cgroup = cgroup(version, if v2 { V2 } else { V1 });
        for (key, value) in figures {
            cgroup.after.figures.insert(KEYS[usize::from(v2)][key % 12].to_owned(), value);
        }
        cgroup.nested = vec![NestedFacts::default(); nested];
        let mut process = process(7, mappings);
        if let Some(f) = go {
            process.go_version = Some("go1".to_owned());
            process.go = Known::Value(GoFacts {
                source: "x".to_owned(),
                inuse: Known::Value(f[13]),
                sample_rate: f[0],
                memory: Known::Value(GoMemory {
                    sys: f[0], heap_alloc: f[1], heap_sys: f[2], heap_idle: f[3],
                    heap_inuse: f[4], heap_released: f[5], stack_inuse: f[6], stack_sys: f[7],
                    mspan_sys: f[8], mcache_sys: f[9], buck_hash_sys: f[10], gc_sys: f[11],
                    other_sys: f[12], next_gc: 0, num_gc: 0,
                    ..GoMemory::default()
                }),
                memory_limit: Known::Value(f[1]),
            });
        }
        let mut facts = facts(Known::Value(cgroup), vec![process]);
        facts.host.cpus = cpus;
        let ledger = Ledger::of(&facts);
        let sums = ledger.checks.iter().find(|check| check.name == "I12").unwrap();
        prop_assert_eq!(sums.holds, Some(true), "{}", sums.law);
        for least in [0, 1 << 20, u64::MAX] {
            let folded = charge_of(&ledger).folded(least);
            let mut broken = Vec::new();
            folded.broken(&mut broken);
            prop_assert!(broken.is_empty(), "folding at {least}: {:?}", broken.first());
        }
        let options = crate::report::ledger::LedgerOptions { width: 100, colour: true, exact: true };
        crate::report::ledger::render_text(&facts, &ledger, options);
        let json = crate::report::ledger::render_json(&facts, &ledger).unwrap();
        serde_json::from_slice::<serde_json::Value>(&json).unwrap();
        // Saved and read again, it is explained alike.
        let saved = serde_json::to_vec(&facts).unwrap();
        let again: Facts = serde_json::from_slice(&saved).unwrap();
        prop_assert_eq!(crate::report::ledger::render_json(&again, &Ledger::of(&again)).unwrap(), json);
    }
}
