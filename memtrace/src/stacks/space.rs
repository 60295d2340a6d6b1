//! The unwind space of a process: its executable mappings, each with the rows of its object.
//!
//! Tables are built once per object, in parallel, and shared between mappings and processes: by
//! build id where the object has one and by device and inode otherwise. Rows are appended to one
//! run that never moves, because the kernel side reads it meanwhile; the caller copies
//! [`TableStore::rows`] from where its copy ended.
//!
//! Not covered: the 257th executable mapping of a process (counted).

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memtrace_common::unwind::{CfaKind, MAX_MAPPINGS, UnwindMapping, UnwindRow};

use super::elf::ElfSegments;
use super::rules::Rule;
use super::table::{TableError, TableStats, UnwindTable, build_table_of_file};
use crate::snapshot::ObjectMapping;
use crate::tracee::MappedFile;

/// Most rows of all objects together: 512 MiB, far beyond any process known.
const MAX_TOTAL_ROWS: usize = 64 << 20;

/// The runtime address of row-pc 0 for a mapping: from the segment that covers the mapping's file
/// offset. `None` when no segment does: the file is not what was mapped.
pub fn bias(elf: &ElfSegments, mapping: &ObjectMapping) -> Option<u64> {
    elf.load_bias(mapping).map(|bias| bias.wrapping_add(elf.base_vaddr()))
}

/// The name of frames in executable memory without a file: the walk steps through it by frame
/// pointer, which such code need not keep.
pub const GENERATED_CODE: &str = "[generated code: its callers are a guess]";

/// What makes two mapped files the same object: device and inode, and what tells a file that was
/// rewritten in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    pub device: (u32, u32),
    pub inode: u64,
    pub size_bytes: u64,
    /// Nanoseconds, as the file system tells it.
    pub modified: i128,
}

impl FileIdentity {
    pub fn of(file: &MappedFile) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = file.file.metadata()?;
        Ok(Self {
            device: file.device,
            inode: file.inode,
            size_bytes: meta.len(),
            modified: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        })
    }
}

/// One object's rows in the common run.
#[derive(Clone, Debug)]
struct Placed {
    first_row: u32,
    row_count: u32,
    segments: ElfSegments,
    /// Row-pcs to which the kernel returns from signal handlers.
    signal_returns: Vec<std::ops::Range<u32>>,
}

impl Placed {
    fn range(&self) -> std::ops::Range<usize> {
        let first = self.first_row as usize;
        first..first + self.row_count as usize
    }
}

/// Why a mapping of the process has no rows.
#[derive(Debug)]
pub struct NoTable {
    pub path: String,
    pub reason: TableError,
}

/// Sums over all tables of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub objects: u64,
    pub rows: u64,
    /// Time in which tables were built, on the clock, all threads together counted once.
    pub build: Duration,
}

/// All rows of all objects seen, and where each object's are.
#[derive(Debug, Default)]
pub struct TableStore {
    rows: Vec<u64>,
    by_file: HashMap<FileIdentity, Option<usize>>,
    by_build_id: HashMap<String, usize>,
    placed: Vec<Placed>,
    tables: Vec<(String, TableStats)>,
    failures: Vec<NoTable>,
    jit_row: Option<u32>,
    stats: StoreStats,
}

/// A mapping of which nobody said that it stays.
const GOES: UnwindMapping = UnwindMapping {
    start: 0,
    end: 0,
    bias: 0,
    first_row: 0,
    row_count: 0,
    owner: 0,
    may_go: 1,
    zero: [0; 6],
};

/// The mappings of one process, ready for the kernel side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSpace {
    /// Sorted by start, disjoint.
    pub mappings: Vec<UnwindMapping>,
    /// Executable mappings left out because there are more than [`MAX_MAPPINGS`].
    pub mappings_left_out: u64,
    /// Executable mappings whose object has no table: a walk ends there, `NoUnwindRow`.
    pub mappings_without_table: u64,
}

impl TableStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// All rows so far; only ever grows at its end.
    pub fn rows(&self) -> &[u64] {
        &self.rows
    }

    pub fn stats(&self) -> &StoreStats {
        &self.stats
    }

    /// What building each object's table met, with the object's path.
    pub fn tables(&self) -> &[(String, TableStats)] {
        &self.tables
    }

    /// Objects without a table, and why.
    pub fn failures(&self) -> &[NoTable] {
        &self.failures
    }

    /// Builds the tables of the files not seen before, on as many threads as there are processors.
    pub fn add(&mut self, files: &[MappedFile]) {
        let started = Instant::now();
        let mut new: Vec<(FileIdentity, &MappedFile)> = Vec::new();
        for file in files.iter().filter(|file| !file.mappings.is_empty()) {
            match FileIdentity::of(file) {
                Ok(identity) if self.by_file.contains_key(&identity) => {}
                Ok(identity) => {
                    // Reserved here, so that one file mapped under two paths is built once.
                    self.by_file.insert(identity, None);
                    new.push((identity, file));
                }
                Err(error) => self.fail(file, error.into()),
            }
        }
        for (index, result) in build_all(&new) {
            let (identity, file) = new[index];
            match result {
                Ok(table) => {
                    let at = self.place(&file.path, table);
                    self.by_file.insert(identity, at);
                }
                Err(reason) => self.fail(file, reason),
            }
        }
        if !new.is_empty() {
            self.stats.build += started.elapsed();
        }
    }

    fn fail(&mut self, file: &MappedFile, reason: TableError) {
        self.failures.push(NoTable { path: file.path.clone(), reason });
    }

    fn place(&mut self, path: &str, table: UnwindTable) -> Option<usize> {
        // A build id is the tracee's word: the rows themselves must be equal too.
        if let Some(at) = table.build_id.as_ref().and_then(|id| self.by_build_id.get(id))
            && let Some(placed) = self.placed.get(*at)
            && placed.segments == table.segments
            && self.rows.get(placed.range()) == Some(&table.rows)
        {
            return Some(*at);
        }
        let first_row = u32::try_from(self.rows.len()).ok()?;
        let row_count = u32::try_from(table.rows.len()).ok()?;
        if self.rows.len() + table.rows.len() > MAX_TOTAL_ROWS {
            return None;
        }
        self.rows.extend(&table.rows);
        let at = self.placed.len();
        self.placed.push(Placed {
            first_row,
            row_count,
            segments: table.segments,
            signal_returns: signal_returns(&table.rows),
        });
        self.tables.push((path.to_owned(), table.stats));
        if let Some(build_id) = table.build_id {
            self.by_build_id.insert(build_id, at);
        }
        self.stats.objects += 1;
        self.stats.rows = self.rows.len() as u64;
        Some(at)
    }

    /// The space of a process with these files mapped; [`Self::add`] them first.
    ///
    /// `anonymous`: executable mappings without a file (generated code): stepped through by frame
    /// pointer, which is a guess. Tell them apart by [`Self::is_approximate`].
    pub fn space_of(&mut self, files: &[MappedFile], anonymous: &[(u64, u64)]) -> ProcessSpace {
        let mut space = ProcessSpace::default();
        for file in files {
            let placed = FileIdentity::of(file)
                .ok()
                .and_then(|identity| *self.by_file.get(&identity)?)
                .map(|at| &self.placed[at]);
            for mapping in &file.mappings {
                let found = placed.and_then(|p| Some((p, bias(&p.segments, mapping)?)));
                let (bias, first_row, row_count) = match found {
                    Some((placed, bias)) => (bias, placed.first_row, placed.row_count),
                    None => {
                        space.mappings_without_table += 1;
                        (mapping.start, 0, 0)
                    }
                };
                let (start, end) = (mapping.start, mapping.end);
                let mapping = UnwindMapping { start, end, bias, first_row, row_count, ..GOES };
                space.mappings.push(mapping);
            }
        }
        if !anonymous.is_empty() {
            let first_row = self.jit_row();
            space.mappings.extend(anonymous.iter().map(|(start, end)| UnwindMapping {
                start: *start,
                end: *end,
                bias: *start,
                first_row,
                row_count: 1,
                ..GOES
            }));
        }
        space.mappings.sort_by_key(|mapping| mapping.start);
        space.mappings.dedup_by(|later, earlier| later.start < earlier.end);
        if space.mappings.len() > MAX_MAPPINGS {
            space.mappings_left_out = (space.mappings.len() - MAX_MAPPINGS) as u64;
            // Anonymous code and objects without rows go first: they add least.
            space.mappings.sort_by_key(|mapping| std::cmp::Reverse(mapping.row_count.min(2)));
            space.mappings.truncate(MAX_MAPPINGS);
            space.mappings.sort_by_key(|mapping| mapping.start);
        }
        space
    }

    /// The addresses to which the kernel returns from signal handlers: what stands above such a
    /// return address on a stack was interrupted, and is no return address.
    pub fn signal_returns(&self, space: &ProcessSpace) -> Vec<std::ops::Range<u64>> {
        let mut found = Vec::new();
        for mapping in &space.mappings {
            let placed = self.placed.iter().find(|placed| placed.first_row == mapping.first_row);
            for range in placed.iter().flat_map(|placed| &placed.signal_returns) {
                let at = |pc: u32| mapping.bias.wrapping_add(u64::from(pc));
                let (start, end) = (at(range.start), at(range.end));
                if mapping.start <= start && start < mapping.end {
                    found.push(start..end.min(mapping.end));
                }
            }
        }
        found
    }

    /// Whether a step through this mapping is a guess.
    pub fn is_approximate(&self, mapping: &UnwindMapping) -> bool {
        self.jit_row == Some(mapping.first_row) && mapping.row_count == 1
    }

    fn jit_row(&mut self) -> u32 {
        *self.jit_row.get_or_insert_with(|| {
            self.rows.push(Rule::GUESS.at(0));
            self.stats.rows = self.rows.len() as u64;
            (self.rows.len() - 1) as u32
        })
    }
}

/// Where rows say that the kernel's signal frame is above.
fn signal_returns(rows: &[u64]) -> Vec<std::ops::Range<u32>> {
    let is_signal = |row: u64| UnwindRow::unpack(row).kind == CfaKind::Signal;
    rows.windows(2)
        .filter(|pair| is_signal(pair[0]))
        .map(|pair| pair[0] as u32..pair[1] as u32)
        .collect()
}

type Built = (usize, Result<UnwindTable, TableError>);

fn build_all(files: &[(FileIdentity, &MappedFile)]) -> Vec<Built> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len());
    let next = AtomicUsize::new(0);
    let built = Mutex::new(Vec::with_capacity(files.len()));
    let work = || {
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some((_, file)) = files.get(index)
        {
            let table = build_table_of_file(&file.file);
            built.lock().unwrap_or_else(|poison| poison.into_inner()).push((index, table));
        }
    };
    std::thread::scope(|scope| {
        // The first thread is this one: a process without threads to spare still works.
        for _ in 1..threads {
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    let mut built = built.into_inner().unwrap_or_else(|poison| poison.into_inner());
    // The rows' order must not depend on the threads' pace.
    built.sort_by_key(|(index, _)| *index);
    built
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtrace_common::unwind::{GUESSED, WalkEnd};
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;
    use std::sync::Arc;

    use crate::stacks::walk::UnwindSpace;

    fn mapped(path: &str, mappings: Vec<ObjectMapping>) -> MappedFile {
        let file = File::open(path).expect("the file opens");
        let inode = file.metadata().expect("it has metadata").ino();
        MappedFile {
            path: path.to_owned(),
            open_path: PathBuf::from(path),
            file: Arc::new(file),
            deleted: false,
            device: (0, 0),
            inode,
            mappings,
        }
    }

    fn mapping(start: u64, file_offset: u64) -> ObjectMapping {
        ObjectMapping { start, end: start + 0x1000, file_offset }
    }

    const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    const LIBM: &str = "/usr/lib/x86_64-linux-gnu/libm.so.6";

    #[test]
    fn an_object_mapped_by_two_processes_has_its_rows_once() {
        let mut store = TableStore::new();
        let one = [mapped(LIBC, vec![mapping(0x7000_0000, 0x28000)])];
        let two = [
            mapped(LIBC, vec![mapping(0x9000_0000, 0x28000)]),
            mapped(LIBM, vec![mapping(0xa000_0000, 0xe000)]),
        ];
        store.add(&one);
        let first = store.space_of(&one, &[]);
        let rows = store.rows().to_vec();
        store.add(&two);
        let second = store.space_of(&two, &[]);
        assert_eq!(store.stats().objects, 2);
        assert!(store.rows().starts_with(&rows), "rows in use do not move");
        assert_eq!(first.mappings[0].first_row, second.mappings[0].first_row);
        assert_eq!(second.mappings[0].bias - first.mappings[0].bias, 0x2000_0000);
        assert_eq!(second.mappings[1].first_row as usize, rows.len());
    }

    #[test]
    fn a_file_that_is_no_object_is_named_and_its_mapping_stops_the_walk() {
        let mut store = TableStore::new();
        let files = [mapped("/etc/passwd", vec![mapping(0x1000, 0)])];
        store.add(&files);
        store.add(&files);
        assert_eq!(store.failures().len(), 1, "told once");
        assert_eq!(store.failures()[0].path, "/etc/passwd");
        let space = store.space_of(&files, &[]);
        assert_eq!(space.mappings_without_table, 1);
        let walk = UnwindSpace { mappings: &space.mappings, rows: store.rows() };
        assert_eq!(walk.row_at(0x1000), Err(WalkEnd::NoUnwindRow));
    }

    #[test]
    fn generated_code_steps_by_frame_pointer_and_is_marked() {
        let mut store = TableStore::new();
        let space = store.space_of(&[], &[(0x5000, 0x6000), (0x8000, 0x9000)]);
        let walk = UnwindSpace { mappings: &space.mappings, rows: store.rows() };
        let row = UnwindRow { pc: 0, kind: CfaKind::FramePointer, offset_by_8: 0, rbp: GUESSED };
        assert_eq!(walk.row_at(0x8fff), Ok(row));
        assert_eq!(walk.row_at(0x7000), Err(WalkEnd::UnknownMapping));
        assert!(space.mappings.iter().all(|mapping| store.is_approximate(mapping)));
    }

    #[test]
    fn mappings_past_the_most_are_counted_and_objects_with_rows_stay() {
        let mut store = TableStore::new();
        let files = [mapped(LIBC, vec![mapping(1 << 40, 0x28000)])];
        store.add(&files);
        let anonymous: Vec<_> =
            (1..=MAX_MAPPINGS as u64 + 3).map(|i| (i << 16, (i << 16) + 4096)).collect();
        let space = store.space_of(&files, &anonymous);
        assert_eq!(space.mappings_left_out, 4);
        assert_eq!(space.mappings.len(), MAX_MAPPINGS);
        assert!(space.mappings.iter().any(|mapping| mapping.start == 1 << 40));
        assert!(space.mappings.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
