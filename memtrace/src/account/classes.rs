//! Whose memory a mapping is: every mapping, or every piece of one, in exactly one class.
//!
//! The rules stand in the order in which they are tried; each is about what the kernel shows (name,
//! protection, neighbours) or what a header in the memory itself said when it was read. Limits:
//! without a name from the kernel the Go runtime's tables look like any other anonymous mapping.

use std::collections::HashSet;

use serde::Serialize;

use super::runtimes::RuntimeHeaps;
use crate::snapshot::facts::{MappingFacts, ProcessFacts};
use crate::snapshot::runtimes::Runtime;

/// glibc aligns the heaps of its arenas to `HEAP_MAX_SIZE` (`malloc/arena.c`).
pub const GLIBC_HEAP_BYTES: u64 = 64 << 20;
/// The smallest stack that a thread can have (`PTHREAD_STACK_MIN`).
const SMALLEST_STACK: u64 = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    GoHeap,
    GoRuntime,
    MainHeap,
    Arena,
    MappedChunk,
    AllocatorRegion,
    RuntimeHeap,
    NativeAnonymous,
    GeneratedCode,
    ThreadStack,
    ElfData,
    Bss,
    ElfReadOnly,
    ElfText,
    MappedFile,
    SharedMemory,
    Reserved,
    Special,
}

impl Class {
    pub const ALL: [Self; 18] = [
        Self::GoHeap,
        Self::GoRuntime,
        Self::MainHeap,
        Self::Arena,
        Self::MappedChunk,
        Self::AllocatorRegion,
        Self::RuntimeHeap,
        Self::NativeAnonymous,
        Self::GeneratedCode,
        Self::ThreadStack,
        Self::ElfData,
        Self::Bss,
        Self::ElfReadOnly,
        Self::ElfText,
        Self::MappedFile,
        Self::SharedMemory,
        Self::Reserved,
        Self::Special,
    ];

    pub fn key(self) -> &'static str {
        match self {
            Self::GoHeap => "go_heap",
            Self::GoRuntime => "go_runtime",
            Self::MainHeap => "c_main_heap",
            Self::Arena => "c_arenas",
            Self::MappedChunk => "c_mapped_chunks",
            Self::AllocatorRegion => "allocator_regions",
            Self::RuntimeHeap => "runtime_heap",
            Self::NativeAnonymous => "native_anonymous",
            Self::GeneratedCode => "generated_code",
            Self::ThreadStack => "thread_stacks",
            Self::ElfData => "elf_data",
            Self::Bss => "elf_bss",
            Self::ElfReadOnly => "elf_read_only",
            Self::ElfText => "elf_text",
            Self::MappedFile => "mapped_files",
            Self::SharedMemory => "shared_memory",
            Self::Reserved => "reserved",
            Self::Special => "special",
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::GoHeap => "Go heap and goroutine stacks",
            Self::GoRuntime => "Go runtime's own tables",
            Self::MainHeap => "C heap: main arena ([heap])",
            Self::Arena => "C heap: other arenas of glibc",
            Self::MappedChunk => "C heap: blocks mapped one by one",
            Self::AllocatorRegion => "regions of another allocator",
            Self::RuntimeHeap => "heaps of language runtimes",
            Self::NativeAnonymous => "anonymous mappings",
            Self::GeneratedCode => "generated code",
            Self::ThreadStack => "thread stacks",
            Self::ElfData => "data of programs and libraries",
            Self::Bss => "bss of programs and libraries",
            Self::ElfReadOnly => "read-only data of programs, libraries",
            Self::ElfText => "code of programs and libraries",
            Self::MappedFile => "mapped files",
            Self::SharedMemory => "shared memory",
            Self::Reserved => "reserved, no access",
            Self::Special => "the kernel's own mappings",
        }
    }

    pub fn is_go(self) -> bool {
        matches!(self, Self::GoHeap | Self::GoRuntime)
    }

    /// glibc's malloc.
    pub fn is_c_heap(self) -> bool {
        matches!(self, Self::MainHeap | Self::Arena | Self::MappedChunk)
    }
}

/// One class of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClassTotals {
    pub class: Class,
    pub mappings: u64,
    /// Address space.
    pub size: u64,
    pub rss: u64,
    pub pss: u64,
    pub anonymous: u64,
    pub private: u64,
    pub lazy_free: u64,
    pub anon_huge: u64,
    pub swap: u64,
}

/// A mapping, or a piece of one, and its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    pub class: Class,
    pub mapping: usize,
    pub start: u64,
    pub end: u64,
    pub rss: u64,
    pub anonymous: u64,
    /// Of [`Class::RuntimeHeap`]: whose, and how that is known.
    pub runtime: Option<(Runtime, Evidence)>,
}

/// How it is known that a range is a language runtime's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The runtime named the mapping.
    Name,
    /// Its own headers in the memory were read.
    Headers,
    /// Only where it lies: nothing else that is known maps so.
    Place,
}

/// Every mapping in exactly one class; one that was cut, each piece in exactly one.
pub fn classify(process: &ProcessFacts) -> Vec<Owned> {
    let Some(mappings) = process.mappings.value() else { return Vec::new() };
    let rules = Rules::of(process, mappings);
    let mut owned = Vec::with_capacity(mappings.len());
    for (index, mapping) in mappings.iter().enumerate() {
        if mapping.pieces.is_empty() {
            let (class, runtime) = rules.class_of(index, mapping.start, mapping.end);
            owned.push(Owned {
                class,
                mapping: index,
                start: mapping.start,
                end: mapping.end,
                rss: mapping.rss,
                anonymous: mapping.anonymous,
                runtime,
            });
            continue;
        }
        // What the pieces leave belongs to the last one: the whole is what smaps says.
        let (mut rss_left, mut anonymous_left) = (mapping.rss, mapping.anonymous);
        for (at, piece) in mapping.pieces.iter().enumerate() {
            let last = at + 1 == mapping.pieces.len();
            let rss = if last { rss_left } else { piece.resident.min(rss_left) };
            let anonymous = if last { anonymous_left } else { rss.min(anonymous_left) };
            rss_left -= rss;
            anonymous_left -= anonymous;
            let (class, runtime) = rules.class_of(index, piece.start, piece.end);
            owned.push(Owned {
                class,
                mapping: index,
                start: piece.start,
                end: piece.end,
                rss,
                anonymous,
                runtime,
            });
        }
    }
    owned
}

/// Sums by class, in the order of [`Class::ALL`]; classes without a mapping are left out.
pub fn totals(process: &ProcessFacts) -> Vec<ClassTotals> {
    let Some(mappings) = process.mappings.value() else { return Vec::new() };
    let owned = classify(process);
    let of_class = |class: Class| {
        let mut sum = ClassTotals {
            class,
            mappings: 0,
            size: 0,
            rss: 0,
            pss: 0,
            anonymous: 0,
            private: 0,
            lazy_free: 0,
            anon_huge: 0,
            swap: 0,
        };
        for piece in owned.iter().filter(|piece| piece.class == class) {
            let mapping = &mappings[piece.mapping];
            sum.mappings += 1;
            sum.size = sum.size.saturating_add(piece.end - piece.start);
            sum.rss = sum.rss.saturating_add(piece.rss);
            sum.anonymous = sum.anonymous.saturating_add(piece.anonymous);
            // What smaps tells of the whole mapping only goes where the mapping begins.
            if piece.start == mapping.start {
                sum.pss = sum.pss.saturating_add(mapping.pss);
                sum.private = sum
                    .private
                    .saturating_add(mapping.private_clean.saturating_add(mapping.private_dirty));
                sum.lazy_free = sum.lazy_free.saturating_add(mapping.lazy_free);
                sum.anon_huge = sum.anon_huge.saturating_add(mapping.anon_huge);
                sum.swap = sum.swap.saturating_add(mapping.swap);
            }
        }
        sum
    };
    Class::ALL.iter().map(|class| of_class(*class)).filter(|sum| sum.mappings > 0).collect()
}

/// Allocators that are known by the library that is mapped.
const ALLOCATORS: [(&str, &str); 5] = [
    ("libjemalloc", "jemalloc"),
    ("libtcmalloc", "tcmalloc"),
    ("libmimalloc", "mimalloc"),
    ("ld-musl-", "musl"),
    ("libsnmalloc", "snmalloc"),
];

/// The allocator that is mapped beside glibc's, or instead of it.
pub fn other_allocator(mappings: &[MappingFacts]) -> Option<&'static str> {
    let mapped = |library: &str| {
        mappings.iter().any(|mapping| {
            mapping.name.rsplit('/').next().is_some_and(|file| file.starts_with(library))
        })
    };
    ALLOCATORS.iter().find(|(library, _)| mapped(library)).map(|(_, allocator)| *allocator)
}

struct Rules<'a> {
    process: &'a ProcessFacts,
    mappings: &'a [MappingFacts],
    /// (device, inode) of files of which code is mapped.
    programs: HashSet<((u32, u32), u64)>,
    has_other_allocator: bool,
    runtimes: RuntimeHeaps<'a>,
    /// Sizes of the mappings in which a stack pointer lies, their guard below them.
    stack_sizes: HashSet<u64>,
}

impl<'a> Rules<'a> {
    fn of(process: &'a ProcessFacts, mappings: &'a [MappingFacts]) -> Self {
        let code = |mapping: &&MappingFacts| mapping.executable && mapping.inode != 0;
        let mut rules = Self {
            process,
            mappings,
            programs: mappings.iter().filter(code).map(|m| (m.device, m.inode)).collect(),
            has_other_allocator: other_allocator(mappings).is_some(),
            runtimes: RuntimeHeaps::of(process, mappings),
            stack_sizes: HashSet::new(),
        };
        rules.stack_sizes = (0..mappings.len())
            .filter(|index| {
                let mapping = &mappings[*index];
                rules.has_guard(*index) && rules.holds_pointer(mapping.start, mapping.end)
            })
            .map(|index| mappings[index].end - mappings[index].start)
            .collect();
        rules
    }

    fn class_of(&self, index: usize, start: u64, end: u64) -> (Class, Option<(Runtime, Evidence)>) {
        let class = self.class_without_runtimes(index, start, end);
        let mapping = &self.mappings[index];
        if matches!(class, Class::NativeAnonymous | Class::AllocatorRegion)
            && let Some(runtime) = self.runtimes.heap_of(mapping, start)
        {
            return (Class::RuntimeHeap, Some(runtime));
        }
        (class, None)
    }

    fn class_without_runtimes(&self, index: usize, start: u64, end: u64) -> Class {
        let mapping = &self.mappings[index];
        if let Some(class) = class_of_name(mapping) {
            return class;
        }
        let unnamed = mapping.name.is_empty() || mapping.name.starts_with("[anon:");
        if mapping.inode == 0 && unnamed {
            return if mapping.shared {
                Class::SharedMemory
            } else {
                self.anonymous(index, start, end)
            };
        }
        self.file(mapping)
    }

    fn anonymous(&self, index: usize, start: u64, end: u64) -> Class {
        let mapping = &self.mappings[index];
        if self.is_go_heap(start) {
            return Class::GoHeap;
        }
        if !mapping.readable && !mapping.writable && !mapping.executable {
            return Class::Reserved;
        }
        if mapping.executable {
            return Class::GeneratedCode;
        }
        if self.is_arena(index, start, end) {
            return Class::Arena;
        }
        if self.is_thread_stack(index, start, end) {
            return Class::ThreadStack;
        }
        if start == mapping.start && mapping.malloc_chunks > 0 {
            return Class::MappedChunk;
        }
        if start == mapping.start && self.is_bss(index) {
            return Class::Bss;
        }
        if self.has_other_allocator { Class::AllocatorRegion } else { Class::NativeAnonymous }
    }

    /// By what the runtime says; else by the addresses it asks the kernel for (`mallocinit` in
    /// `runtime/malloc.go`: 0x00c0 << 32, in each of 127 terabytes).
    fn is_go_heap(&self, start: u64) -> bool {
        if let Some(ranges) = self.process.go_ranges.value() {
            return ranges.iter().any(|(from, to)| (*from..*to).contains(&start));
        }
        // V8 asks for addresses at random, one in eight of which looks like Go's.
        if self.process.go_version.is_none() && self.runtimes.has(Runtime::V8) {
            return false;
        }
        let in_terabyte = start & 0xff_ffff_ffff;
        start >> 40 < 0x7f && (0xc0_0000_0000..0xe0_0000_0000).contains(&in_terabyte)
    }

    /// A heap of glibc begins at a multiple of 64 MiB; what it has not used yet is reserved behind
    /// it, up to the next one. Where the headers were read, they say more than that.
    fn is_arena(&self, index: usize, start: u64, end: u64) -> bool {
        if let Some(heaps) = self.process.glibc_heaps.value() {
            return heaps.iter().any(|heap| (heap.start..heap.end).contains(&start));
        }
        if !start.is_multiple_of(GLIBC_HEAP_BYTES) || start == 0 || !self.mappings[index].writable {
            return false;
        }
        let Some(limit) = start.checked_add(GLIBC_HEAP_BYTES) else { return false };
        let reserved_behind = |behind: &MappingFacts| {
            behind.start == end && behind.end >= limit && is_reserved(behind)
        };
        end == limit || end < limit && self.mappings.get(index + 1).is_some_and(reserved_behind)
    }

    fn is_thread_stack(&self, index: usize, start: u64, end: u64) -> bool {
        let mapping = &self.mappings[index];
        if !mapping.writable || end - start < SMALLEST_STACK {
            return false;
        }
        if self.holds_pointer(start, end) {
            return true;
        }
        let whole = (start, end) == (mapping.start, mapping.end);
        whole
            && self.has_guard(index)
            && (mapping.no_huge_page || self.stack_sizes.contains(&(end - start)))
    }

    fn holds_pointer(&self, start: u64, end: u64) -> bool {
        self.process.stack_pointers.iter().any(|pointer| (start..end).contains(pointer))
    }

    fn has_guard(&self, index: usize) -> bool {
        let below = index.checked_sub(1).and_then(|below| self.mappings.get(below));
        below.is_some_and(|below| {
            below.end == self.mappings[index].start && below.inode == 0 && is_reserved(below)
        })
    }

    /// What a program's data segment has beyond its file follows that directly.
    fn is_bss(&self, index: usize) -> bool {
        let mapping = &self.mappings[index];
        let below = index.checked_sub(1).and_then(|below| self.mappings.get(below));
        mapping.writable
            && below.is_some_and(|below| {
                below.end == mapping.start && below.writable && self.is_program(below)
            })
    }

    fn is_program(&self, mapping: &MappingFacts) -> bool {
        mapping.inode != 0
            && !mapping.shared
            && self.programs.contains(&(mapping.device, mapping.inode))
    }

    fn file(&self, mapping: &MappingFacts) -> Class {
        if self.is_program(mapping) {
            return if mapping.executable {
                Class::ElfText
            } else if mapping.writable || mapping.anonymous > 0 {
                Class::ElfData
            } else {
                Class::ElfReadOnly
            };
        }
        match self.process.tmpfs_devices.contains(&mapping.device) {
            true => Class::SharedMemory,
            false => Class::MappedFile,
        }
    }
}

fn is_reserved(mapping: &MappingFacts) -> bool {
    !mapping.readable && !mapping.writable && !mapping.executable && !mapping.shared
}

/// What the kernel's name of a mapping settles. Names in brackets with `anon:` were given by the
/// program (`PR_SET_VMA_ANON_NAME`): Go since 1.25, glibc since 2.39 when asked to.
fn class_of_name(mapping: &MappingFacts) -> Option<Class> {
    let name = mapping.name.as_str();
    if let Some(given) = name.strip_prefix("[anon:").or_else(|| name.strip_prefix("[anon_shmem:")) {
        let given = given.trim_end_matches(']').trim();
        if name.starts_with("[anon_shmem:") {
            return Some(Class::SharedMemory);
        }
        return Some(match given {
            _ if given.starts_with("Go: heap") => Class::GoHeap,
            _ if given.starts_with("Go:") => Class::GoRuntime,
            "glibc: malloc arena" => Class::Arena,
            "glibc: malloc" => Class::MappedChunk,
            _ if given.starts_with("glibc: pthread stack") => Class::ThreadStack,
            _ if given.starts_with("jemalloc")
                || given.starts_with("tcmalloc")
                || given.starts_with("mimalloc")
                || given.starts_with("scudo") =>
            {
                Class::AllocatorRegion
            }
            _ => return None,
        });
    }
    match name {
        "[heap]" => Some(Class::MainHeap),
        "[stack]" => Some(Class::ThreadStack),
        "[vdso]" | "[vvar]" | "[vvar_vclock]" | "[vsyscall]" | "[uprobes]" => Some(Class::Special),
        _ if name.starts_with("anon_inode:") => Some(Class::Special),
        _ if name.starts_with("/memfd:") || name.starts_with("/SYSV") => Some(Class::SharedMemory),
        _ if name.starts_with("/dev/zero") && mapping.shared => Some(Class::SharedMemory),
        _ if name.starts_with("/dev/shm/") => Some(Class::SharedMemory),
        _ if name.starts_with("/dev/") => Some(Class::Special),
        _ => None,
    }
}

#[cfg(test)]
#[path = "classes_tests.rs"]
mod tests;
