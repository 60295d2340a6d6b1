use super::*;
use crate::account::fixtures::{MIB, PAGE, mapping, process};
use crate::snapshot::Known;
use crate::snapshot::facts::{GlibcHeap, Piece};

fn classes(process: &ProcessFacts) -> Vec<Class> {
    classify(process).into_iter().map(|owned| owned.class).collect()
}

#[test]
fn a_program_and_its_library_are_text_data_and_bss() {
    let process = process(
        7,
        vec![
            mapping(0x40_0000, 0x1000, "r--p", "/bin/program", 0x1000),
            mapping(0x40_1000, 0x2000, "r-xp", "/bin/program", 0x1000),
            mapping(0x40_3000, 0x1000, "rw-p", "/bin/program", 0x1000),
            mapping(0x40_4000, 0x4000, "rw-p", "", 0x2000),
            mapping(0x100_0000, 0x4000, "rw-p", "[heap]", 0x4000),
            mapping(0x7f00_0000_0000, 0x8000, "r--s", "/usr/lib/locale", 0x8000),
            mapping(0x7fff_0000_0000, 0x8000, "rw-p", "[stack]", 0x3000),
            mapping(0x7fff_0001_0000, 0x2000, "r-xp", "[vdso]", 0x1000),
        ],
    );
    assert_eq!(
        classes(&process),
        [
            Class::ElfReadOnly,
            Class::ElfText,
            Class::ElfData,
            Class::Bss,
            Class::MainHeap,
            Class::MappedFile,
            Class::ThreadStack,
            Class::Special
        ]
    );
}

#[test]
fn relocated_constants_are_data_though_they_are_read_only_now() {
    let mut relro = mapping(0x40_3000, 0x1000, "r--p", "/bin/program", 0x1000);
    relro.anonymous = 0x1000;
    let code = mapping(0x40_1000, 0x2000, "r-xp", "/bin/program", 0x1000);
    assert_eq!(classes(&process(7, vec![code, relro])), [Class::ElfText, Class::ElfData]);
}

#[test]
fn a_heap_of_an_arena_is_known_by_its_alignment_and_what_is_reserved_behind_it() {
    let start = 0x7f00_0400_0000 & !(GLIBC_HEAP_BYTES - 1);
    let used = 3 * MIB;
    let mut process = process(
        7,
        vec![
            mapping(start, used, "rw-p", "", used),
            mapping(start + used, GLIBC_HEAP_BYTES - used, "---p", "", 0),
            // As large, and not aligned.
            mapping(start + GLIBC_HEAP_BYTES + PAGE, used, "rw-p", "", used),
        ],
    );
    assert_eq!(classes(&process), [Class::Arena, Class::Reserved, Class::NativeAnonymous]);
    // What the headers say counts more than the shape.
    process.glibc_heaps = Known::Value(Vec::new());
    assert_eq!(classes(&process)[0], Class::NativeAnonymous);
    process.glibc_heaps =
        Known::Value(vec![GlibcHeap { start, end: start + used, arena: start + 48 }]);
    assert_eq!(classes(&process)[0], Class::Arena);
}

#[test]
fn an_arena_s_heap_in_a_merged_mapping_is_cut_out() {
    let heap = 0x7f00_0400_0000 & !(GLIBC_HEAP_BYTES - 1);
    let below = MIB;
    let mut merged = mapping(heap - below, below + 2 * MIB, "rw-p", "", 2 * MIB);
    merged.pieces = vec![
        Piece { start: heap - below, end: heap, resident: MIB / 2 },
        Piece { start: heap, end: heap + 2 * MIB, resident: MIB },
    ];
    let reserved = mapping(heap + 2 * MIB, GLIBC_HEAP_BYTES - 2 * MIB, "---p", "", 0);
    let process = process(7, vec![merged, reserved]);
    let owned = classify(&process);
    assert_eq!(owned[0].class, Class::NativeAnonymous);
    assert_eq!(owned[1].class, Class::Arena);
    // What pagemap did not tell goes to the last piece: the whole is what smaps says.
    assert_eq!((owned[0].rss, owned[1].rss), (MIB / 2, 2 * MIB - MIB / 2));
}

#[test]
fn a_thread_s_stack_is_known_by_its_guard_and_a_stack_pointer() {
    let guard = mapping(0x7f10_0000_0000, PAGE, "---p", "", 0);
    let stack = mapping(guard.end, 8 * MIB, "rw-p", "", 40 * 1024);
    let other_guard = mapping(0x7f20_0000_0000, PAGE, "---p", "", 0);
    let idle = mapping(other_guard.end, 8 * MIB, "rw-p", "", 8 * 1024);
    let unguarded = mapping(0x7f30_0000_0000, 8 * MIB, "rw-p", "", 8 * 1024);
    let mut process = process(7, vec![guard, stack.clone(), other_guard, idle, unguarded]);
    assert_eq!(classes(&process)[1], Class::NativeAnonymous);
    process.stack_pointers = vec![stack.end - 4000];
    // A stack of the same size behind a guard is one too: its thread was running, or has ended.
    let found = classes(&process);
    assert_eq!(found[1], Class::ThreadStack);
    assert_eq!(found[3], Class::ThreadStack);
    assert_eq!(found[4], Class::NativeAnonymous);
}

#[test]
fn what_map_stack_leaves_tells_a_stack_without_a_pointer() {
    let guard = mapping(0x7f10_0000_0000, PAGE, "---p", "", 0);
    let mut stack = mapping(guard.end, MIB, "rw-p", "", 40 * 1024);
    stack.no_huge_page = true;
    assert_eq!(classes(&process(7, vec![guard, stack]))[1], Class::ThreadStack);
}

#[test]
fn a_goroutine_s_stack_pointer_does_not_make_go_s_heap_a_stack() {
    let mut go = process(7, vec![mapping(0xc0_0000_0000, 4 * MIB, "rw-p", "", MIB)]);
    go.stack_pointers = vec![0xc0_0000_1000];
    assert_eq!(classes(&go), [Class::GoHeap]);
    // What the runtime says counts more than the addresses it usually asks for.
    go.go_ranges = Known::Value(Vec::new());
    assert_eq!(classes(&go), [Class::ThreadStack]);
    go.go_ranges = Known::Value(vec![(0xc0_0000_0000, 0xc0_0400_0000)]);
    assert_eq!(classes(&go), [Class::GoHeap]);
}

#[test]
fn names_given_by_the_program_settle_it() {
    for (name, class) in [
        ("[anon: Go: heap]", Class::GoHeap),
        ("[anon: Go: heap reservation]", Class::GoHeap),
        ("[anon: Go: immortal metadata]", Class::GoRuntime),
        ("[anon: glibc: malloc arena]", Class::Arena),
        ("[anon: glibc: malloc]", Class::MappedChunk),
        ("[anon: glibc: pthread stack: 77]", Class::ThreadStack),
        ("[anon:jemalloc_pg]", Class::AllocatorRegion),
        ("[anon:something else]", Class::NativeAnonymous),
        ("[anon_shmem:queue]", Class::SharedMemory),
    ] {
        let process = process(7, vec![mapping(0x7f00_0000_0000, MIB, "rw-p", name, MIB)]);
        assert_eq!(classes(&process), [class], "{name}");
    }
}

#[test]
fn shared_memory_is_not_taken_for_a_file() {
    let mut tmpfs = mapping(0x7f00_0000_0000, MIB, "rw-s", "/data/file", MIB);
    tmpfs.device = (0, 44);
    let anonymous = mapping(0x7f10_0000_0000, MIB, "rw-s", "", MIB);
    let zero = mapping(0x7f20_0000_0000, MIB, "rw-s", "/dev/zero (deleted)", MIB);
    let sysv = mapping(0x7f30_0000_0000, MIB, "rw-s", "/SYSV00000000 (deleted)", MIB);
    let process = process(7, vec![tmpfs, anonymous, zero, sysv]);
    assert_eq!(classes(&process), [Class::SharedMemory; 4]);
}

#[test]
fn another_allocator_s_regions_are_its_own() {
    let process = process(
        7,
        vec![
            mapping(0x7f00_0000_0000, 0x1000, "r-xp", "/usr/lib/libjemalloc.so.2", 0x1000),
            mapping(0x7f10_0000_0000, 8 * MIB, "rw-p", "", MIB),
        ],
    );
    assert_eq!(classes(&process), [Class::ElfText, Class::AllocatorRegion]);
    assert_eq!(other_allocator(process.mappings.value().unwrap()), Some("jemalloc"));
}

#[test]
fn mapped_chunks_and_generated_code_are_told_apart() {
    let mut chunk = mapping(0x7f00_0000_0000, MIB, "rw-p", "", MIB);
    chunk.malloc_chunks = 1;
    let code = mapping(0x7f10_0000_0000, MIB, "rwxp", "", MIB);
    assert_eq!(classes(&process(7, vec![chunk, code])), [Class::MappedChunk, Class::GeneratedCode]);
}
