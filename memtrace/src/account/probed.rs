//! What probes saw of a process, as parts of what is resident in its C heap.
//!
//! ```text
//! C heap, resident = outstanding by stack + rounding + free chunks + tops + residual
//! ```
//!
//! The residual is what was allocated before the attach and still is (+), and what was allocated and
//! never touched (−). Where malloc's books were not read, what malloc retains is in it, too. Pure.

use std::collections::BTreeMap;

use super::row::{How, Kind, Row};
use crate::outstanding::books::{Books, StackLine};
use crate::outstanding::callers::callers;
use crate::snapshot::facts::Facts;
use crate::snapshot::{Known, OpenImage};

/// Rows of callers; the others share one.
const SHOWN_STACKS: usize = 5;
/// Before each block of glibc, and the smallest chunk and its alignment (`malloc/malloc.c`, 64 bits).
const CHUNK_HEADER: u64 = 8;
const SMALLEST_CHUNK: u64 = 32;
const CHUNK_ALIGNMENT: u64 = 16;
/// A function's name may be a whole C++ template.
const LONGEST_NAME: usize = 120;

/// Outstanding blocks of one process, seen by probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    pub bytes: u64,
    pub blocks: u64,
    /// Who asked for most of it: by the program's own call nearest to the allocator, bytes, blocks.
    pub callers: Vec<(String, u64, u64)>,
    /// Bytes and blocks of each stack.
    pub stacks: Vec<(u64, u64)>,
}

/// The same of every process that probes see, by PID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen(BTreeMap<u32, Outstanding>);

impl Seen {
    /// `facts` are the memory read for the same snapshot.
    pub fn of(books: &Books<'_>, facts: &Facts) -> Self {
        let executable = |pid| {
            let process = facts.processes.iter().find(|process| process.id.pid == pid);
            process.map_or("", |process| process.executable.as_str())
        };
        let running = books.images.iter().filter(|image| !image.ended);
        running
            .map(|image| (image.id.pid, Outstanding::of(books, image, executable(image.id.pid))))
            .collect()
    }

    pub fn of_process(&self, pid: u32) -> Option<&Outstanding> {
        self.0.get(&pid)
    }
}

impl FromIterator<(u32, Outstanding)> for Seen {
    fn from_iter<T: IntoIterator<Item = (u32, Outstanding)>>(processes: T) -> Self {
        Self(processes.into_iter().collect())
    }
}

impl Outstanding {
    fn of(books: &Books<'_>, image: &OpenImage, executable: &str) -> Self {
        let held = |line: &StackLine| line.by_image.get(&image.number).copied().unwrap_or_default();
        let callers = callers(&books.stacks, held, executable);
        let named = callers.iter().take(SHOWN_STACKS).map(|line| {
            let frame = line.frame.as_ref();
            let mut name = frame.map_or("[unknown]".to_owned(), |frame| frame.label());
            if let Some(go) = &line.go_caller {
                name.push_str(&format!(" ← {}", go.label()));
            }
            (name.chars().take(LONGEST_NAME).collect(), line.held.bytes, line.held.blocks)
        });
        Self {
            // Blocks whose stack could not be kept are of the image, and of no stack of its own.
            bytes: image.totals.outstanding_bytes(),
            blocks: image.totals.outstanding_blocks(),
            callers: named.collect(),
            stacks: books
                .stacks
                .iter()
                .map(held)
                .map(|held| (held.bytes, held.blocks))
                .filter(|(bytes, _)| *bytes > 0)
                .collect(),
        }
    }

    /// What glibc adds to the blocks: a header, and up to the next chunk size. Blocks of one stack
    /// are taken to be of one size, which they mostly are.
    fn rounding(&self) -> u64 {
        let of_stack = |(bytes, blocks): &(u64, u64)| {
            let mean = bytes.checked_div(*blocks).unwrap_or(0);
            let chunk = mean
                .saturating_add(CHUNK_HEADER)
                .checked_next_multiple_of(CHUNK_ALIGNMENT)
                .unwrap_or(u64::MAX)
                .max(SMALLEST_CHUNK);
            chunk.saturating_mul(*blocks).saturating_sub(*bytes)
        };
        self.stacks.iter().map(of_stack).fold(0, u64::saturating_add)
    }

    /// The row of what is outstanding, with the stacks that hold most.
    fn row(&self) -> Row {
        let mut row = Row::new(
            "c_outstanding",
            "outstanding, allocated since the attach",
            Known::Value(self.bytes.into()),
            How::Measured,
            format!("probes: {} blocks allocated − freed", self.blocks),
        );
        for (name, bytes, blocks) in &self.callers {
            row.rows.push(Row::new(
                "c_outstanding_by",
                format!("by {name}"),
                Known::Value((*bytes).into()),
                How::Measured,
                format!("probes: {blocks} blocks"),
            ));
        }
        if row.rows.is_empty() {
            return row;
        }
        let rest = i128::from(self.bytes) - row.sum_of_parts();
        if rest != 0 {
            row.rows.push(Row::derived("c_outstanding_others", "by others", rest, "the rest"));
        }
        row
    }

    /// The C heap of one process as one row: `classes` are its mappings' rows, `free` what malloc's
    /// own books tell of them.
    pub(super) fn heap_row(
        &self,
        classes: Vec<Row>,
        free: Vec<Row>,
        allocator: Option<&str>,
    ) -> Row {
        let whole: i128 = classes.iter().filter_map(Row::value).sum();
        let mut row = Row::derived("c_heap", "C heap", whole, "Σ of its mappings, below");
        row.rows.push(self.row());
        row.rows.push(match allocator {
            None => Row::derived(
                "c_rounding",
                "malloc's headers and rounding",
                self.rounding().into(),
                "Σ by stack: blocks × chunk of their mean size − bytes",
            ),
            Some(name) => Row::new(
                "c_rounding",
                "the allocator's rounding",
                Known::unknown(format!("the size classes of {name} are not known here")),
                How::Derived,
                "size classes",
            ),
        });
        let has_books = !free.is_empty();
        row.rows.extend(free);
        let label = match has_books {
            true => "allocated before the attach (+), not touched (−)",
            false => "retained, or allocated before the attach (+), not touched (−)",
        };
        let row = row.closed("c_before", label, "");
        row.with(classes.into_iter().map(|class| Row {
            // Of the same bytes, told the other way.
            kind: Kind::Within,
            label: format!("of it {}", class.label),
            rows: Vec::new(),
            note: None,
            ..class
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::fixtures;
    use crate::outstanding::books::Librarian;
    use crate::snapshot::{Came, Image, ImageBooks, ImageTotals, ProcessId, synthetic};

    fn seen(stacks: &[(u64, u64)]) -> Outstanding {
        Outstanding {
            bytes: stacks.iter().map(|(bytes, _)| bytes).sum(),
            blocks: stacks.iter().map(|(_, blocks)| blocks).sum(),
            callers: stacks
                .iter()
                .enumerate()
                .take(SHOWN_STACKS)
                .map(|(at, (bytes, blocks))| (format!("f{at}"), *bytes, *blocks))
                .collect(),
            stacks: stacks.to_vec(),
        }
    }

    fn mapping(key: &str, bytes: i128) -> Row {
        Row::derived(key, key, bytes, "smaps")
    }

    #[test]
    fn rounding_is_what_malloc_adds_to_each_block() {
        // 1 B → 32, 24 B → 32, 25 B → 48, 1000 B → 1008.
        assert_eq!(seen(&[(10, 10)]).rounding(), 310);
        assert_eq!(seen(&[(24, 1), (25, 1), (1000, 1)]).rounding(), 8 + 23 + 8);
        assert_eq!(seen(&[(u64::MAX, u64::MAX)]).rounding(), 0);
        assert_eq!(seen(&[]).rounding(), 0);
    }

    #[test]
    fn the_heap_is_the_sum_of_its_parts_and_names_who_holds_most() {
        let stacks: Vec<_> = (1..=8).rev().map(|size| (size * 1000, 1)).collect();
        let seen = seen(&stacks);
        let free = vec![mapping("c_free", 7_000), mapping("c_top", 3_000)];
        let classes = vec![mapping("c_main_heap", 60_000), mapping("c_arenas", 4_096)];
        let row = seen.heap_row(classes, free, None);
        let mut broken = Vec::new();
        row.broken(&mut broken);
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(row.value(), Some(64_096));
        let value = |key: &str| row.find(key).and_then(Row::value);
        assert_eq!(value("c_outstanding"), Some(36_000));
        assert_eq!(value("c_outstanding_others"), Some(6_000));
        let rounding = value("c_rounding").unwrap();
        assert_eq!(value("c_before"), Some(64_096 - 36_000 - rounding - 10_000));
        let by = row.find("c_outstanding").unwrap();
        assert_eq!(by.rows.len(), SHOWN_STACKS + 1);
        assert_eq!(by.rows[0].value(), Some(8_000));
    }

    /// Rows of stacks that could not be kept are of all images, and have no image of their own.
    #[test]
    fn blocks_without_a_stack_of_their_own_are_in_their_process_all_the_same() {
        let mut recording = synthetic::recording();
        let id = ProcessId { pid: 7, start_time_ticks: 1 };
        let rows = &recording.snapshots[0].native.stacks;
        let totals = ImageTotals::of(rows);
        assert!(totals.outstanding_bytes() > 0);
        recording.images = vec![Image {
            number: 1,
            id,
            comm: "notes".to_owned(),
            executable: String::new(),
            command_line: Vec::new(),
            go_version: None,
            came: Came::AtStart,
            armed_elapsed_ns: 0,
            unseen_ns: None,
        }];
        let memory = Known::unknown("not read");
        recording.snapshots[0].images = vec![ImageBooks { image: 1, totals, memory, ended: false }];
        // No stack of the recording says that it is of image 1.
        let books = Librarian::new(&recording).books(0, None).unwrap();
        let facts = fixtures::facts(Known::unknown("no cgroup"), Vec::new());
        let seen = Seen::of(&books, &facts);
        let process = seen.of_process(7).unwrap();
        assert_eq!(process.bytes, totals.outstanding_bytes());
        assert_eq!(process.blocks, totals.outstanding_blocks());
        assert!(process.stacks.is_empty());
    }

    #[test]
    fn another_allocator_s_rounding_is_unknown_and_the_residual_says_so() {
        let row = seen(&[(100, 1)]).heap_row(
            vec![mapping("allocator_regions", 8_192)],
            Vec::new(),
            Some("jemalloc"),
        );
        let rest = row.find("c_before").unwrap();
        assert_eq!(rest.value(), Some(8_092));
        assert!(rest.note.as_deref().is_some_and(|note| note.contains("rounding")), "{rest:?}");
    }
}
