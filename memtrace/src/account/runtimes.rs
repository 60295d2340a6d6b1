//! Heaps of language runtimes among the anonymous mappings, and how it is known that they are.
//!
//! By the name that the runtime gave a mapping, by its own headers in the memory, or only by the
//! place: then the row says so and is derived. What is left of a process that runs such a runtime
//! may be its too, and is not said to be. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::classes::{Evidence, classify};
use super::row::{How, Row};
use crate::snapshot::Known;
use crate::snapshot::facts::{MappingFacts, ProcessFacts};
use crate::snapshot::runtimes::{Runtime, RuntimeRange};

/// V8 asks for its pages at random multiples of this (`MemoryChunk::kAlignment`).
const V8_PAGE: u64 = 256 << 10;
/// The kernel puts what has no address of its own next to what is there already.
const APART: u64 = 1 << 30;
/// With compressed references a Java heap ends below this, in multiples of a huge page.
const JAVA_LIMIT: u64 = 64 << 30;
const JAVA_ALIGNMENT: u64 = 64 << 10;

/// The heap of one runtime in one process, as far as one kind of evidence reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RuntimeHeap {
    pub runtime: Runtime,
    pub evidence: Evidence,
    pub mappings: u64,
    pub rss: u64,
    pub anonymous: u64,
}

/// What is known of a process's runtimes, to ask for each mapping.
pub(super) struct RuntimeHeaps<'a> {
    ranges: &'a [RuntimeRange],
    present: Vec<Runtime>,
    /// Ascending ends and starts of what has a place of its own: files, the break, the stack.
    placed: Vec<(u64, u64)>,
}

impl<'a> RuntimeHeaps<'a> {
    pub(super) fn of(process: &'a ProcessFacts, mappings: &[MappingFacts]) -> Self {
        let present = Runtime::of_process(mappings);
        let has_place = |it: &&MappingFacts| it.inode != 0 || it.name.starts_with('[');
        // The JVM maps its archive of classes into its heap.
        let named =
            |it: &&MappingFacts| !it.name.starts_with("[anon") && !it.name.ends_with(".jsa");
        let placed = mappings.iter().filter(has_place).filter(named).map(|it| (it.start, it.end));
        Self { ranges: &process.runtime_ranges, present, placed: placed.collect() }
    }

    /// Whose heap a private anonymous mapping, or a piece of one that begins at `start`, is.
    pub(super) fn heap_of(
        &self,
        mapping: &MappingFacts,
        start: u64,
    ) -> Option<(Runtime, Evidence)> {
        let given = mapping.name.strip_prefix("[anon:").map(|it| it.trim_end_matches(']').trim());
        if let Some(runtime) = given.and_then(Runtime::of_name) {
            return Some((runtime, Evidence::Name));
        }
        let at = self.ranges.partition_point(|range| range.end <= start);
        if let Some(range) = self.ranges.get(at).filter(|range| range.start <= start) {
            return Some((range.runtime, Evidence::Headers));
        }
        let whole = start == mapping.start;
        if whole && self.has(Runtime::V8) && start.is_multiple_of(V8_PAGE) && self.is_apart(mapping)
        {
            return Some((Runtime::V8, Evidence::Place));
        }
        let low = mapping.end <= JAVA_LIMIT && start.is_multiple_of(JAVA_ALIGNMENT);
        if whole && self.has(Runtime::Jvm) && low && self.is_apart(mapping) {
            return Some((Runtime::Jvm, Evidence::Place));
        }
        None
    }

    pub(super) fn has(&self, runtime: Runtime) -> bool {
        self.present.contains(&runtime)
    }

    /// Far from every file, the break and the stack: at an address that somebody asked for.
    fn is_apart(&self, mapping: &MappingFacts) -> bool {
        let above = self.placed.partition_point(|(start, _)| *start < mapping.start);
        let below = above.checked_sub(1).and_then(|below| self.placed.get(below));
        let far = |from: u64, to: u64| to.saturating_sub(from) >= APART;
        below.is_none_or(|(_, end)| far(*end, mapping.start))
            && self.placed.get(above).is_none_or(|(start, _)| far(mapping.end, *start))
    }
}

/// Sums by runtime and evidence; empty where no heap is known.
pub(super) fn heaps(process: &ProcessFacts) -> Vec<RuntimeHeap> {
    let mut sums: BTreeMap<(Runtime, Evidence), RuntimeHeap> = BTreeMap::new();
    for owned in classify(process) {
        let Some((runtime, evidence)) = owned.runtime else { continue };
        let none = RuntimeHeap { runtime, evidence, mappings: 0, rss: 0, anonymous: 0 };
        let sum = sums.entry((runtime, evidence)).or_insert(none);
        sum.mappings += 1;
        sum.rss = sum.rss.saturating_add(owned.rss);
        sum.anonymous = sum.anonymous.saturating_add(owned.anonymous);
    }
    sums.into_values().collect()
}

/// The row of all of them.
pub(super) fn label(heaps: &[RuntimeHeap]) -> String {
    let mut runtimes: Vec<Runtime> = heaps.iter().map(|heap| heap.runtime).collect();
    runtimes.dedup();
    match runtimes.is_empty() {
        true => "heaps of language runtimes".to_owned(),
        false => format!("heap of {}", names(&runtimes)),
    }
}

/// The same row's parts, which add up to it.
pub(super) fn rows(
    heaps: &[RuntimeHeap],
    source: &str,
    bytes: impl Fn(&RuntimeHeap) -> u64,
) -> Vec<Row> {
    let row = |heap: &RuntimeHeap| {
        let name = heap.runtime.label();
        let (label, how, evidence) = match (heap.evidence, heap.runtime) {
            (Evidence::Name, _) => {
                (format!("{name}: mappings that it named"), How::Measured, "its names")
            }
            (Evidence::Headers, Runtime::CPython) => (
                format!("{name}: small objects (pymalloc's pools)"),
                How::Measured,
                "its pools' headers",
            ),
            (Evidence::Headers, _) => {
                (format!("{name}: chunks of its allocator"), How::Measured, "its chunks' headers")
            }
            (Evidence::Place, _) => (
                format!("{name}: by the place, not read"),
                How::Derived,
                "alignment, and far from what the kernel places itself",
            ),
        };
        let source = format!("{source} of {} mappings; {evidence}", heap.mappings);
        Row::new("runtime_heap_of", label, Known::Value(bytes(heap).into()), how, source)
    };
    heaps.iter().filter(|heap| bytes(heap) > 0).map(row).collect()
}

/// `CPython's or PHP's`
pub(super) fn possessive(runtimes: &[Runtime]) -> String {
    let names: Vec<String> = runtimes.iter().map(|it| format!("{}'s", it.label())).collect();
    names.join(" or ")
}

/// Anonymous mappings of a process that runs these, of which nothing says whose they are.
pub(super) fn maybe_theirs(row: Row, runtimes: &[Runtime], process: &ProcessFacts) -> Row {
    let mut note = format!(
        "the process runs {}; whose each of these mappings is was not read",
        names(runtimes)
    );
    if process.runtime_places_beyond > 0 {
        let beyond = process.runtime_places_beyond;
        note.push_str(&format!(", and {beyond} places of its headers were not looked at"));
    }
    row.note(note)
}

fn names(runtimes: &[Runtime]) -> String {
    runtimes.iter().map(|runtime| runtime.label()).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::classes::Class;
    use crate::account::fixtures::{self, MIB, mapping};
    use crate::account::process::ProcessLedger;

    const LIBRARIES: u64 = 0x7f31_f000_0000;

    fn process_of(program: &str, more: Vec<MappingFacts>) -> ProcessFacts {
        let mut mappings = vec![mapping(0x5600_0000_0000, MIB, "r-xp", program, MIB)];
        mappings.extend(more);
        mappings.push(mapping(LIBRARIES, MIB, "r-xp", "/usr/lib/libc.so.6", MIB));
        mappings.sort_by_key(|it| it.start);
        fixtures::process(7, mappings)
    }

    fn classes_of(process: &ProcessFacts) -> Vec<Class> {
        classify(process).into_iter().map(|owned| owned.class).collect()
    }

    #[test]
    fn v8_s_pages_lie_alone_at_random_multiples_of_their_size() {
        let page = |start| mapping(start, 256 << 10, "rw-p", "", 256 << 10);
        // One of them as Go would ask for.
        let heap = [
            page(0x1f_827c_0000),
            page(0xc0_0004_0000),
            page(0x2896_4640_0000),
            page(0x7d9e_0600_0000),
        ];
        // Aligned by chance, where the kernel itself puts mappings; far off, and not aligned.
        let others = [page(LIBRARIES - 64 * MIB), page(0x1234_5678_9000)];
        let all = heap.iter().chain(&others).cloned().collect();
        let node = process_of("/usr/bin/node", all);
        let found: Vec<u64> =
            classify(&node).iter().filter(|it| it.runtime.is_some()).map(|it| it.start).collect();
        assert_eq!(found, heap.iter().map(|it| it.start).collect::<Vec<_>>());
        let other = process_of("/usr/bin/other", heap.to_vec());
        assert!(!classes_of(&other).contains(&Class::RuntimeHeap));
    }

    #[test]
    fn a_java_heap_lies_where_references_can_be_compressed() {
        let heap = mapping(0xf800_0000, 20 * MIB, "rw-p", "", 16 * MIB);
        let archive = mapping(heap.end, MIB, "rw-p", "/usr/lib/jvm/lib/server/classes.jsa", MIB);
        let elsewhere = mapping(LIBRARIES - 64 * MIB, 2 * MIB, "rw-p", "", MIB);
        let all = vec![heap, archive, elsewhere];
        let found = classes_of(&process_of("/usr/lib/jvm/lib/server/libjvm.so", all));
        assert_eq!(found[0], Class::RuntimeHeap);
        assert_eq!(found[3], Class::NativeAnonymous);
    }

    #[test]
    fn names_that_runtimes_give_settle_it() {
        for (name, runtime) in [
            ("[anon:zend_alloc]", Runtime::Php),
            ("[anon:cpython:pymalloc]", Runtime::CPython),
            ("[anon:Ruby:GC:default:heap_page_body_allocate_mmap]", Runtime::Ruby),
            ("[anon:v8]", Runtime::V8),
        ] {
            let named = mapping(LIBRARIES - 9 * MIB, MIB, "rw-p", name, MIB);
            let process = process_of("/anything", vec![named]);
            let heaps = heaps(&process);
            assert_eq!((heaps[0].runtime, heaps[0].evidence), (runtime, Evidence::Name), "{name}");
        }
    }

    #[test]
    fn a_runtime_s_rows_add_up_and_what_is_left_is_not_said_to_be_its() {
        let start = LIBRARIES - 16 * MIB;
        let mut merged = mapping(start, 8 * MIB, "rw-p", "", 6 * MIB);
        let piece = |from, to, resident| crate::snapshot::facts::Piece {
            start: start + from * MIB,
            end: start + to * MIB,
            resident: resident * MIB,
        };
        merged.pieces = vec![piece(0, 3, 1), piece(3, 7, 4), piece(7, 8, 1)];
        let mut python = process_of("/usr/bin/python3.11", vec![merged]);
        let range = RuntimeRange {
            runtime: Runtime::CPython,
            start: start + 3 * MIB,
            end: start + 7 * MIB,
        };
        python.runtime_ranges = vec![range];
        let facts = fixtures::facts(Known::unknown("no cgroup"), vec![python.clone()]);
        let ledger = ProcessLedger::of(&python, &facts, None);
        let Known::Value(resident) = &ledger.resident else { panic!("no tree") };
        let mut broken = Vec::new();
        resident.broken(&mut broken);
        assert!(broken.is_empty(), "{broken:?}");
        let heap = resident.find("runtime_heap").unwrap();
        assert_eq!(heap.label, "heap of CPython");
        assert_eq!((heap.value(), heap.sum_of_parts()), (Some(4 << 20), 4 << 20));
        let left = resident.find("native_anonymous").unwrap();
        assert_eq!(left.value(), Some(2 << 20));
        assert_eq!(left.label, "anonymous mappings: native, or CPython's");
        assert!(left.note.as_deref().is_some_and(|note| note.contains("was not read")));
    }
}
