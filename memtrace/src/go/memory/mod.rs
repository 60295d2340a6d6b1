//! The Go runtime's books read from the process's memory: no endpoint, no stop, nothing injected.
//!
//! ```text
//! mapped files ─► object (version, tables) ─► locate (addresses, proved) ─┐
//!                                             layout (offsets by release) ─┤
//! process's memory ─► access ──────────────────────────────────────────────┴─► statistics
//!                                                             buckets ─► heap_profile ─► naming
//! ```
//!
//! Promise: a figure only when the runtime's own invariants hold among everything that was read;
//! else an error that says why. Equal to `runtime.ReadMemStats` and to `/debug/pprof/heap` of the
//! same instant, but for what `statistics` and `heap_profile` say. Reading takes no lock of the
//! process and writes nothing to it.
//!
//! Limits: linux/amd64, Go 1.21 and later; one runtime per process, the largest that answers: that
//! there are others, or objects whose runtime does not answer, is said beside the figures.

pub mod access;
pub mod buckets;
pub mod build_info;
pub mod heap_profile;
pub mod layout;
mod layout_data;
pub mod locate;
pub mod naming;
pub mod object;
pub mod references;
pub mod statistics;

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::profile::{Budget, Limits, Values, sum_up};
use crate::snapshot::{GoBooks, GoProfile, GoStack, Name};
use crate::tracee::MappedFile;
use crate::tracee::process::{Process, ProcessError};
use access::{Memory, ProcessMemory};
use buckets::Buckets;
use heap_profile::{Checks, ProfileAt};
use layout::Layout;
use locate::{NotFound, Way};
use naming::{NameId, Naming};
use object::{GoObject, ObjectError};
use statistics::{Statistics, StatisticsAt, StatisticsError};

pub use layout_data::LAYOUTS;

/// Why a process's books could not be read from its memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("not a Go program: no mapped file is one")]
    NotGo,
    #[error("`{path}`: {reason}")]
    Object { path: String, reason: ObjectError },
    #[error("the runtime's statistics were not found: {0}")]
    Statistics(NotFound),
    #[error("the runtime's statistics could not be read: {0}")]
    Reading(#[from] StatisticsError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("the process has exited")]
    Gone,
    #[error("the profile cannot be shown: {0}")]
    Profile(#[from] super::profile::ProfileError),
}

/// How to read; the defaults are for everyone but tests.
#[derive(Clone, Debug)]
pub struct Options {
    pub profile: GoProfile,
    /// Ways to find the runtime's variables, in the order in which they are tried.
    pub ways: Vec<Way>,
    /// Instead of the row of the program's version.
    pub layout: Option<Layout>,
}

impl Default for Options {
    fn default() -> Self {
        Self { profile: GoProfile::Published, ways: Way::ALL.to_vec(), layout: None }
    }
}

/// Reads the books of one process, again and again; what never changes is kept.
#[derive(Debug)]
pub struct MemoryReader {
    process: Process,
    options: Options,
    found: Option<Found>,
    failed: Option<Failed>,
}

/// Why nothing was found in these files, which will not change.
#[derive(Debug)]
struct Failed {
    files: Vec<FileKey>,
    /// `None`: none of them is a Go object.
    object: Option<(String, ObjectError)>,
}

/// A Go runtime in the process.
#[derive(Debug)]
struct Found {
    object: GoObject,
    statistics: StatisticsAt,
    statistics_way: Way,
    profile: Result<(ProfileAt, [Way; 3]), NotFound>,
    buckets: Buckets,
    naming: Naming,
    /// Of names kept in `frames`, over all readings.
    budget: Budget,
    /// The stacks of the profile as they read, each once.
    frames: Vec<Arc<[Arc<Name>]>>,
    /// The same, by their names' numbers.
    ids: Vec<Arc<[NameId]>>,
    /// Of each row among all, by names.
    ranks: Vec<usize>,
    row_of_names: HashMap<Arc<[NameId]>, usize>,
    /// By the address at which the bucket's stack is kept here.
    row_of_bucket: HashMap<usize, usize>,
    /// Whether `runtime.mmap` goes through libc; `None`: not found.
    cgo: Option<bool>,
    /// Files that were looked at: device and inode.
    known: HashSet<FileKey>,
    /// Go objects whose books are not in the figures, with the reason.
    left_out: Vec<String>,
}

type FileKey = ((u32, u32), u64);

/// How the runtime was found, for `--verbose` and for tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundBy {
    pub path: String,
    pub version: String,
    pub on_trial: bool,
    pub statistics: Way,
    /// Buckets, cycle, rate.
    pub profile: Option<[Way; 3]>,
    pub cgo: Option<bool>,
}

impl MemoryReader {
    pub fn open(pid: u32, options: Options) -> Result<Self, MemoryError> {
        let process = Process::open(pid)?;
        Ok(Self { process, options, found: None, failed: None })
    }

    /// One reading. `files` are the mapped files, looked at until a Go runtime was found in them.
    pub fn read(&mut self, files: &[MappedFile]) -> Result<GoBooks, MemoryError> {
        let memory = ProcessMemory::of(self.process.pid());
        if self.found.is_none() {
            self.found = Some(self.find(files, &memory)?);
        }
        let result = match &mut self.found {
            Some(found) => {
                found.look_at_new(files, &memory, &self.options);
                found.read(&memory, &self.options)
            }
            None => Err(MemoryError::NotGo),
        };
        // What was read was this process's only if it still runs.
        if self.process.has_exited() {
            return Err(MemoryError::Gone);
        }
        let mut books = result?;
        let pid = self.process.pid();
        if let Some(found) = &self.found {
            let GoObject { path, version, layout, on_trial, .. } = &found.object;
            let trial = match on_trial {
                true => format!(", read as {} on trial", layout.release),
                false => String::new(),
            };
            books.source = format!("memory of PID {pid} ({path}, {version}{trial})");
        }
        Ok(books)
    }

    /// Looks for a runtime, unless these files are known to hold none.
    fn find(&mut self, files: &[MappedFile], memory: &dyn Memory) -> Result<Found, MemoryError> {
        let keys = || files.iter().map(|file| (file.device, file.inode));
        if let Some(failed) = &self.failed
            && failed.files.iter().copied().eq(keys())
        {
            return Err(match &failed.object {
                None => MemoryError::NotGo,
                Some((path, reason)) => {
                    MemoryError::Object { path: path.clone(), reason: reason.clone() }
                }
            });
        }
        let result = find(files, memory, &self.options);
        let object = match &result {
            Err(MemoryError::NotGo) => None,
            Err(MemoryError::Object { path, reason }) if reason.is_for_good() => {
                Some((path.clone(), reason.clone()))
            }
            // A runtime that only starts may answer later.
            _ => return result,
        };
        self.failed = Some(Failed { files: keys().collect(), object });
        result
    }

    pub fn found_by(&self) -> Option<FoundBy> {
        let found = self.found.as_ref()?;
        Some(FoundBy {
            path: found.object.path.clone(),
            version: found.object.version.clone(),
            on_trial: found.object.on_trial,
            statistics: found.statistics_way,
            profile: found.profile.as_ref().ok().map(|(_, ways)| *ways),
            cgo: found.cgo,
        })
    }
}

/// The Go object with the largest runtime that answers; where none does, the first one's reason.
fn find(
    files: &[MappedFile],
    memory: &dyn Memory,
    options: &Options,
) -> Result<Found, MemoryError> {
    let mut objects = Vec::new();
    let mut texts = Vec::new();
    let mut failed = None;
    for file in files {
        match GoObject::open(file, memory, options.layout.as_ref()) {
            Ok((object, text)) => {
                objects.push(object);
                texts.push(text);
            }
            Err(ObjectError::NotGo) => {}
            Err(reason) => {
                let path = file.path.clone();
                failed.get_or_insert(MemoryError::Object { path, reason });
            }
        }
    }
    let mut left_out: Vec<String> = failed.iter().map(ToString::to_string).collect();
    let mut answering = Vec::new();
    for object in objects {
        match locate::find_statistics(memory, &object, &object.layout, &options.ways) {
            Ok(found) => answering.push((object, found)),
            Err(tried) => {
                left_out.push(format!("`{}`: {tried}", object.path));
                failed.get_or_insert(MemoryError::Statistics(tried));
            }
        }
    }
    answering.sort_by_key(|(_, (_, _, statistics))| statistics.figures.sys);
    let Some((object, (at, way, statistics))) = answering.pop() else {
        return Err(failed.unwrap_or(MemoryError::NotGo));
    };
    left_out.extend(answering.iter().map(|(other, _)| another_runtime(other)));
    let collections = statistics.figures.num_gc;
    let profile = locate::find_profile(memory, &object, &object.layout, collections, &options.ways);
    Ok(Found {
        statistics: at,
        statistics_way: way,
        profile,
        buckets: Buckets::default(),
        naming: Naming::new(texts, object.minor),
        budget: Budget::new(&Limits::default()),
        frames: Vec::new(),
        ids: Vec::new(),
        ranks: Vec::new(),
        row_of_names: HashMap::new(),
        row_of_bucket: HashMap::new(),
        cgo: locate::find_cgo_mmap(memory, &object).map(|function| function != 0),
        object,
        known: files.iter().map(|file| (file.device, file.inode)).collect(),
        left_out,
    })
}

fn another_runtime(object: &GoObject) -> String {
    let GoObject { path, version, .. } = object;
    format!("`{path}` brings another Go runtime ({version}), whose memory these figures leave out")
}

impl Found {
    /// Libraries that came since may be Go, too.
    fn look_at_new(&mut self, files: &[MappedFile], memory: &dyn Memory, options: &Options) {
        for file in files {
            if !self.known.insert((file.device, file.inode)) {
                continue;
            }
            match GoObject::open(file, memory, options.layout.as_ref()) {
                Ok((object, _)) => self.left_out.push(another_runtime(&object)),
                Err(ObjectError::NotGo) => {}
                Err(reason) => self.left_out.push(format!("`{}`: {reason}", file.path)),
            }
        }
    }

    fn read(&mut self, memory: &dyn Memory, options: &Options) -> Result<GoBooks, MemoryError> {
        let layout = self.object.layout;
        let statistics = statistics::read(memory, self.statistics, &layout)?;
        let profile = self.read_profile(memory, options, &statistics);
        let mut books = match profile {
            Ok(profile) => self.named(profile)?,
            Err(reason) => GoBooks { no_profile: Some(reason), ..GoBooks::default() },
        };
        books.profile = options.profile;
        books.memory = Some(statistics.figures);
        books.arenas = statistics.arenas;
        books.cgo = self.cgo;
        books.tried.clone_from(&self.left_out);
        Ok(books)
    }

    /// The profile with names, stacks that read the same folded into one.
    fn named(&mut self, profile: heap_profile::HeapProfile) -> Result<GoBooks, MemoryError> {
        // By row of `self.frames`.
        let mut sums: Vec<Values> = vec![[0; 4]; self.frames.len()];
        for sample in profile.samples {
            let row = self.row_of(&sample.stack)?;
            if row >= sums.len() {
                sums.resize(row + 1, [0; 4]);
            }
            let values = [
                sample.inuse_bytes,
                sample.inuse_objects,
                sample.alloc_bytes,
                sample.alloc_objects,
            ];
            for (sum, value) in sums[row].iter_mut().zip(values) {
                *sum = sum.saturating_add(value);
            }
        }
        self.rank();
        let mut rows: Vec<(usize, Values)> =
            sums.into_iter().enumerate().filter(|(_, sums)| *sums != [0; 4]).collect();
        rows.sort_unstable_by_key(|(row, [inuse_bytes, _, alloc_bytes, _])| {
            (Reverse((*inuse_bytes, *alloc_bytes)), self.ranks[*row])
        });
        let stacks = rows.into_iter().map(|(row, values)| {
            let [inuse_bytes, inuse_objects, alloc_bytes, alloc_objects] = values;
            let frames = Arc::clone(&self.frames[row]);
            GoStack { frames, inuse_bytes, inuse_objects, alloc_bytes, alloc_objects }
        });
        let mut books = sum_up("", profile.rate, stacks.collect())?;
        books.collections_old = Some(profile.collections_old);
        Ok(books)
    }

    /// Orders the rows by their names, when there are new ones: to compare names is dear.
    fn rank(&mut self) {
        if self.ranks.len() == self.frames.len() {
            return;
        }
        let names = self.naming.ranks();
        let ranks = |row: usize| self.ids[row].iter().map(|id| names.get(*id as usize));
        let mut order: Vec<usize> = (0..self.frames.len()).collect();
        order.sort_by(|a, b| ranks(*a).cmp(ranks(*b)));
        self.ranks = vec![0; order.len()];
        for (rank, row) in order.into_iter().enumerate() {
            self.ranks[row] = rank;
        }
    }

    /// The row of a bucket's stack. Buckets and their stacks stay, and so do their rows.
    fn row_of(&mut self, stack: &Arc<[u64]>) -> Result<usize, MemoryError> {
        let bucket = Arc::as_ptr(stack).cast::<u64>() as usize;
        if let Some(row) = self.row_of_bucket.get(&bucket) {
            return Ok(*row);
        }
        let names: Arc<[NameId]> = self.naming.stack(stack).into();
        let row = match self.row_of_names.entry(names) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let frames: Arc<[Arc<Name>]> =
                    entry.key().iter().filter_map(|id| self.naming.name(*id).cloned()).collect();
                frames.iter().try_for_each(|name| self.budget.take(name))?;
                self.frames.push(frames);
                self.ids.push(Arc::clone(entry.key()));
                *entry.insert(self.frames.len() - 1)
            }
        };
        self.row_of_bucket.insert(bucket, row);
        Ok(row)
    }

    fn read_profile(
        &mut self,
        memory: &dyn Memory,
        options: &Options,
        statistics: &Statistics,
    ) -> Result<heap_profile::HeapProfile, String> {
        let (at, _) =
            self.profile.as_ref().map_err(|tried| format!("it was not found: {tried}"))?;
        let checks = Checks {
            collections: statistics.figures.num_gc,
            total_alloc: statistics.total_alloc,
            on_trial: self.object.on_trial,
        };
        let buckets = &mut self.buckets;
        heap_profile::read(memory, *at, &self.object.layout, options.profile, buckets, checks)
            .map_err(|error| error.to_string())
    }
}

/// How many cases the property tests run: `MEMTRACE_FUZZ_CASES` for a longer run.
#[cfg(test)]
pub(crate) fn fuzz_cases(default: u32) -> u32 {
    std::env::var("MEMTRACE_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}
