//! THE WALL: plain data between those who gather and those who explain.
//!
//! A [`Recording`] is self-contained: it needs neither process nor kernel to be explained, and a
//! live run explains itself through the same types. Nothing here does I/O but `file`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

mod delta;
pub mod facts;
pub mod file;
pub mod redact;
pub mod runtimes;
#[cfg(test)]
pub(crate) mod synthetic;

/// Changes when a reader of the old schema would misread the new one.
pub const SCHEMA_VERSION: u32 = 1;

/// A process is its pid *and* its start time: pids are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time_ticks: u64,
}

/// A figure that may be unknown, with the reason: never 0, never a guess.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known<T> {
    Value(T),
    Unknown { reason: String },
}

impl<T> Known<T> {
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown { reason: reason.into() }
    }

    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Unknown { .. } => None,
        }
    }

    /// What follows from the figure; from none, nothing, for the same reason.
    pub fn map<U>(&self, follows: impl FnOnce(&T) -> U) -> Known<U> {
        self.and_then(|value| Known::Value(follows(value)))
    }

    /// The same where what follows may be unknown, too.
    pub fn and_then<U>(&self, follows: impl FnOnce(&T) -> Known<U>) -> Known<U> {
        match self {
            Self::Value(value) => follows(value),
            Self::Unknown { reason } => Known::unknown(reason.clone()),
        }
    }

    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Value(_) => None,
            Self::Unknown { reason } => Some(reason),
        }
    }
}

/// What is known once, at the start of a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub schema: u32,
    /// memtrace's own version.
    pub memtrace: String,
    /// Unix time at which the probes were armed.
    pub armed_at_unix_ns: u64,
    /// `--min-age`: what [`LiveBlocks::aged_bytes`] counts; 0 when none was asked for.
    #[serde(default)]
    pub min_age_ns: u64,
    pub host: HostSummary,
    pub tracee: Tracee,
    pub probes: ProbeReport,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostSummary {
    /// `uname -r`
    pub kernel_release: String,
    pub architecture: String,
    pub cpus: u32,
    pub page_size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tracee {
    pub id: ProcessId,
    pub comm: String,
    pub executable: String,
    pub command_line: Vec<String>,
    pub container: Option<Container>,
    /// Go version from the build info, where the executable is a Go program.
    pub go_version: Option<String>,
    pub objects: Vec<Object>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// "docker", "podman", …; "cgroup" when only the cgroup path told.
    pub runtime: String,
    pub id: String,
    pub name: Option<String>,
    pub image: Option<String>,
}

/// One mapped ELF object, as the tracee sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Path inside the tracee's mount namespace.
    pub path: String,
    /// Lower-case hex; `None` when the object carries none.
    pub build_id: Option<String>,
    /// Executable mappings of it.
    pub mappings: Vec<ObjectMapping>,
    /// Whose: [`Image::number`].
    #[serde(default)]
    pub image: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectMapping {
    pub start: u64,
    pub end: u64,
    pub file_offset: u64,
}

/// What was planned, what was attached, and what cannot be seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    pub attached: Vec<AttachedProbe>,
    pub not_probed: Vec<NotProbed>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachedProbe {
    /// Path of the object inside the tracee's mount namespace.
    pub object: String,
    /// The allocator family, e.g. "glibc", "jemalloc".
    pub allocator: String,
    pub function: String,
    /// Offset of the function in the file, bytes.
    pub function_file_offset: u64,
    /// Offset of the entry site from the function's first byte.
    pub entry_site: u64,
    /// The instruction the entry probe stands on, disassembled.
    pub entry_instruction: String,
    /// Whether the kernel emulates that instruction (one trap) or single-steps it (two).
    pub entry_is_emulated: bool,
    /// Offset of the return probe's site, where the function has one.
    pub return_site: Option<u64>,
}

/// A function or an object that is not covered, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotProbed {
    pub object: String,
    pub function: Option<String>,
    pub reason: String,
}

/// A stack by its id; frames from the leaf (the allocator's caller side) outwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StackDef {
    pub id: u64,
    /// Whose addresses these are: [`Image::number`].
    #[serde(default)]
    pub image: u32,
    /// Absolute addresses in the tracee. `frames[0]` is the probed function's entry; all others
    /// are return addresses. Where several objects were mapped at an address one after the other,
    /// bits 57 and up tell which: `memtrace_common::unwind::{plain, owner_of}`.
    pub frames: Vec<u64>,
    /// `memtrace_common::unwind::WalkEnd` as a number.
    pub end: u8,
}

/// The names of one address: several when functions were inlined, innermost first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressNames {
    /// Whose address this is: [`Image::number`].
    #[serde(default)]
    pub image: u32,
    /// As it stands in [`StackDef::frames`]: the look-up already took return addresses as such.
    pub address: u64,
    /// Index into [`Tracee::objects`], continued in [`Recording::new_objects`], where the address lies in an object.
    pub object: Option<u32>,
    pub names: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Name {
    /// Demangled.
    pub function: String,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub inlined: bool,
}

/// The state of the books at one instant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub sequence: u32,
    pub unix_ns: u64,
    /// Since the probes were armed.
    pub elapsed_ns: u64,
    /// The tracee kept allocating while this was read: rows are each right, their sum is not of
    /// one instant.
    pub moving: bool,
    /// How long the reading took.
    pub read_ns: u64,
    pub native: Native,
    pub go: Known<GoBooks>,
    pub process: Known<ProcessMemory>,
    /// memtrace's own cost.
    pub own: OwnCost,
    /// Why the recording ended, at its last snapshot.
    pub ended: Option<String>,
    /// What was probed since the previous snapshot: libraries that arrived. Part of
    /// [`Header::probes`], too, once the snapshot is in a [`Recording`].
    #[serde(default)]
    pub new_probes: ProbeReport,
    /// The container's memory as `memtrace explain` reads it: what [`crate::account`] explains.
    #[serde(default = "memory_not_read")]
    pub memory: Known<facts::Facts>,
    /// The name of the phase that begins here: what `memtrace mark` or a signal said.
    #[serde(default)]
    pub mark: Option<String>,
    /// Images that came since the previous snapshot. In [`Recording::images`], too, once the
    /// snapshot is in a [`Recording`].
    #[serde(default)]
    pub new_images: Vec<Image>,
    /// Each image whose books are open: [`Snapshot::native`] is their sum.
    #[serde(default)]
    pub images: Vec<ImageBooks>,
    /// Images whose books were closed since the previous snapshot. In [`Recording::closed`], too.
    #[serde(default)]
    pub closed: Vec<ClosedImage>,
    /// Processes of the target that are not traced.
    #[serde(default)]
    pub untraced: Untraced,
}

/// One program that a process of the target runs or ran: `exec` starts another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// From 1 on, in the order in which they were first traced; of this recording only.
    pub number: u32,
    pub id: ProcessId,
    pub comm: String,
    pub executable: String,
    pub command_line: Vec<String>,
    /// Go version from the build info, where the executable is a Go program.
    pub go_version: Option<String>,
    pub came: Came,
    /// When its calls began to count, since the probes were armed; 0: with the recording.
    pub armed_elapsed_ns: u64,
    /// How long it ran before: its calls in that time were not seen. `None`: it ran already when
    /// the recording began.
    pub unseen_ns: Option<u64>,
}

/// How an image came into the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Came {
    /// It was there when the recording began, or was started by memtrace.
    AtStart,
    /// Forked by the process that ran this image.
    Forked { parent: u32 },
    /// Executed by the process that ran this image before.
    Executed { before: u32 },
    /// Found among the target's processes.
    Found,
}

/// Figures of one image at one snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageBooks {
    /// [`Image::number`]
    pub image: u32,
    pub totals: ImageTotals,
    pub memory: Known<ProcessMemory>,
    /// It has ended, and its books stand as it left them.
    pub ended: bool,
}

/// Sums of the blocks of one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTotals {
    pub allocated_bytes: u64,
    pub allocated_blocks: u64,
    pub freed_bytes: u64,
    pub freed_blocks: u64,
}

impl ImageTotals {
    pub fn outstanding_bytes(&self) -> u64 {
        self.allocated_bytes.saturating_sub(self.freed_bytes)
    }

    pub fn outstanding_blocks(&self) -> u64 {
        self.allocated_blocks.saturating_sub(self.freed_blocks)
    }

    pub fn of<'a>(rows: impl IntoIterator<Item = &'a StackTotals>) -> Self {
        rows.into_iter().fold(Self::default(), |sum, row| Self {
            allocated_bytes: sum.allocated_bytes.saturating_add(row.allocated_bytes),
            allocated_blocks: sum.allocated_blocks.saturating_add(row.allocated_blocks),
            freed_bytes: sum.freed_bytes.saturating_add(row.freed_bytes),
            freed_blocks: sum.freed_blocks.saturating_add(row.freed_blocks),
        })
    }
}

/// An image whose books are open at a snapshot, with its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenImage {
    /// [`Image::number`]
    pub number: u32,
    pub id: ProcessId,
    pub totals: ImageTotals,
    pub ended: bool,
}

/// The last state of an image that ended while others went on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClosedImage {
    /// [`Image::number`]
    pub image: u32,
    pub how: Ended,
    /// When its end was noticed, since the probes were armed.
    pub elapsed_ns: u64,
    pub stacks: Vec<StackTotals>,
    pub ranges: Vec<Range>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The process ended.
    Exited,
    /// The process runs another program (`exec`).
    Replaced,
}

/// Processes of the target whose calls are not seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Untraced {
    /// Ended before their probes were armed, since the recording began.
    pub came_and_went: u64,
    /// Running without probes now: how many, and some of them with the reason.
    pub running: u64,
    pub some: Vec<UntracedProcess>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UntracedProcess {
    pub pid: u32,
    pub comm: String,
    pub reason: String,
}

/// Of recordings that were made before snapshots carried it.
fn memory_not_read() -> Known<facts::Facts> {
    Known::unknown("this recording does not carry the container's memory")
}

/// The C side: everything that the probes saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Native {
    /// Per stack of simple allocators (malloc and its kin). Since the attach.
    pub stacks: Vec<StackTotals>,
    /// Ranges mapped since the attach and still mapped, disjoint.
    pub ranges: Vec<Range>,
    /// `memtrace_common::counters::Loss`, by label, zeros included.
    pub losses: Vec<(String, u64)>,
    /// `memtrace_common::counters::Tally`, by label, zeros included.
    pub tallies: Vec<(String, u64)>,
    /// Calls seen per probed function (index into [`ProbeReport::attached`]).
    pub hits: Vec<u64>,
    /// To which instant ages count, since the probes were armed; 0 in recordings of format 1.
    #[serde(default)]
    pub ages_at_ns: u64,
    /// How much of what was allocated in each interval still lives.
    #[serde(default)]
    pub cohorts: Cohorts,
}

/// Live blocks by when they were allocated. Without intervals when blocks were not read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cohorts {
    /// Ends of the intervals, ascending, since the probes were armed: instants of snapshots. Interval
    /// `i` begins where the one before it ends; the first one begins with the arming.
    pub ends_ns: Vec<u64>,
    /// By stack, then by interval; intervals of which nothing lives are left out.
    pub rows: Vec<CohortRow>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CohortRow {
    pub stack: u64,
    /// Index into [`Cohorts::ends_ns`]; one beyond its end: allocated while this was read.
    pub cohort: u32,
    pub bytes: u64,
    pub blocks: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackTotals {
    pub stack: u64,
    pub allocated_bytes: u64,
    pub allocated_blocks: u64,
    pub freed_bytes: u64,
    pub freed_blocks: u64,
    /// From the walk over the live blocks; `None` when blocks were not read for this snapshot.
    pub live: Option<LiveBlocks>,
}

/// What the walk over the live blocks of one stack found. Equal to `allocated - freed` when the
/// snapshot is quiescent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveBlocks {
    pub bytes: u64,
    pub blocks: u64,
    pub youngest_age_ns: u64,
    pub oldest_age_ns: u64,
    /// Bytes and blocks at least as old as the `--min-age` of the recording.
    pub aged_bytes: u64,
    pub aged_blocks: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub start: u64,
    pub length_bytes: u64,
    pub stack: u64,
    pub age_ns: u64,
    pub owner: RangeOwner,
    /// `PROT_NONE`: reserved, not used.
    pub reserved: bool,
    /// Whose addresses these are: [`Image::number`].
    #[serde(default)]
    pub image: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RangeOwner {
    /// Anonymous memory that native code asked for itself.
    Native,
    /// Mapped inside an allocator call: malloc's own; already explained by the blocks in it.
    AllocatorInternal,
    /// Mapped as a thread's stack (`MAP_STACK`): large, and touched as far as the thread went.
    ThreadStack,
    /// Mapped by the Go runtime (through libc's mmap in cgo binaries).
    GoRuntime,
    /// A file mapping.
    File,
}

/// The Go runtime's own books.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoBooks {
    /// Where they were read, e.g. `http://127.0.0.1:6060/debug/pprof/heap`.
    pub source: String,
    /// `inuse_space` in total: sampled, scaled, as of the last completed collection.
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
    pub alloc_bytes: u64,
    pub alloc_objects: u64,
    /// Mean bytes between samples; 0 when unknown.
    pub sample_rate_bytes: u64,
    /// `runtime.MemStats`, where the source carries it.
    pub memory: Option<GoMemory>,
    /// The profile's stacks, symbolized by the Go runtime or by its own tables.
    pub stacks: Vec<GoStack>,
    /// Why there is no heap profile, only statistics: the profile's figures then say nothing.
    #[serde(default)]
    pub no_profile: Option<String>,
    /// Which of the runtime's profiles this is.
    #[serde(default)]
    pub profile: GoProfile,
    /// How many collections before the last one the profile is of; unknown from other sources than
    /// memory.
    #[serde(default)]
    pub collections_old: Option<u32>,
    /// Better sources that failed before this one was read, each with the reason.
    #[serde(default)]
    pub tried: Vec<String>,
    /// Where the Go heap lies; only from memory.
    #[serde(default)]
    pub arenas: Vec<GoArena>,
    /// Whether the runtime uses libc (cgo); unknown from other sources than memory.
    #[serde(default)]
    pub cgo: Option<bool>,
}

/// Which state of the heap a profile shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoProfile {
    /// What the runtime publishes: consistent, as of a completed collection.
    #[default]
    Published,
    /// Everything counted so far: allocations of now, frees only up to the last sweep.
    Current,
}

/// A range of addresses that the Go heap lies in; reserved, not all of it in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoArena {
    pub start: u64,
    pub length_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoStack {
    /// Leaf first; stacks and names are shared by the snapshots of one run.
    pub frames: Arc<[Arc<Name>]>,
    pub inuse_bytes: u64,
    pub inuse_objects: u64,
    pub alloc_bytes: u64,
    pub alloc_objects: u64,
}

/// Fields of `runtime.MemStats`, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoMemory {
    pub sys: u64,
    pub heap_alloc: u64,
    pub heap_sys: u64,
    pub heap_idle: u64,
    pub heap_inuse: u64,
    pub heap_released: u64,
    pub stack_inuse: u64,
    pub stack_sys: u64,
    pub mspan_sys: u64,
    pub mcache_sys: u64,
    pub buck_hash_sys: u64,
    pub gc_sys: u64,
    pub other_sys: u64,
    pub next_gc: u64,
    pub num_gc: u64,
    #[serde(default)]
    pub mspan_inuse: Option<u64>,
    #[serde(default)]
    pub mcache_inuse: Option<u64>,
    /// Of [`Self::num_gc`], those that the program asked for.
    #[serde(default)]
    pub num_forced_gc: Option<u64>,
    /// Unix time of the end of the last collection; 0 before the first.
    #[serde(default)]
    pub last_gc_unix_ns: Option<u64>,
    /// `GOGC`, percent; -1 when off. Only from memory.
    #[serde(default)]
    pub gogc_percent: Option<i32>,
    /// `GOMEMLIMIT`, bytes; `i64::MAX` without one. Only from memory.
    #[serde(default)]
    pub memory_limit: Option<u64>,
}

/// `/proc/PID/status` and `smaps_rollup`, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    pub rss: u64,
    pub rss_anon: u64,
    pub rss_file: u64,
    pub rss_shmem: u64,
    pub rss_peak: u64,
    pub swap: u64,
    pub threads: u32,
}

/// What memtrace itself cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnCost {
    pub probe_hits: u64,
    /// Time in BPF programs; unknown unless the kernel counts it (`kernel.bpf_stats_enabled`).
    pub bpf_time_ns: Option<u64>,
    /// Memory of the BPF maps as the kernel tells it (`memlock` of the map's fdinfo).
    pub kernel_memory_bytes: u64,
    /// memtrace's own resident memory.
    pub user_memory_bytes: u64,
    /// memtrace's own CPU time.
    pub user_cpu_ns: u64,
    /// Unwind tables: rows, and the time it took to build them.
    pub unwind_rows: u64,
    pub unwind_build_ns: u64,
    /// Time it took to read the container's memory for this snapshot, malloc's books included.
    #[serde(default)]
    pub container_read_ns: u64,
    /// Of it malloc's books; `None` where they were left out of this snapshot.
    #[serde(default)]
    pub heap_read_ns: Option<u64>,
}

/// A whole recording in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    pub header: Header,
    /// Objects mapped after the start; indices go on from [`Tracee::objects`].
    pub new_objects: Vec<Object>,
    pub stacks: Vec<StackDef>,
    pub names: Vec<AddressNames>,
    pub snapshots: Vec<Snapshot>,
    /// In the order of their numbers; empty in recordings of one process that were made before
    /// there could be several.
    #[serde(default)]
    pub images: Vec<Image>,
    /// In the order in which they were closed.
    #[serde(default)]
    pub closed: Vec<ClosedImage>,
}

impl Recording {
    /// Appends a snapshot; what was probed and which images came and ended since the previous one
    /// becomes the recording's.
    pub fn push(&mut self, snapshot: Snapshot) {
        let probes = &mut self.header.probes;
        probes.attached.extend_from_slice(&snapshot.new_probes.attached);
        probes.not_probed.extend_from_slice(&snapshot.new_probes.not_probed);
        self.images.extend_from_slice(&snapshot.new_images);
        self.closed.extend_from_slice(&snapshot.closed);
        self.snapshots.push(snapshot);
    }

    /// Whose books are open at a snapshot. Recordings of one process that were made before there could
    /// be several have one image, 0.
    pub fn open_at(&self, at: &Snapshot) -> Vec<OpenImage> {
        if self.images.is_empty() {
            let totals = ImageTotals::of(&at.native.stacks);
            return vec![OpenImage { number: 0, id: self.header.tracee.id, totals, ended: false }];
        }
        let defined = |number| self.images.iter().find(|image| image.number == number);
        let open = at.images.iter().filter_map(|books| {
            let ImageBooks { image: number, totals, ended, .. } = *books;
            Some(OpenImage { number, id: defined(number)?.id, totals, ended })
        });
        open.collect()
    }

    /// The header as it stood before the first snapshot: without the probes that came later.
    pub fn header_as_written(&self) -> Header {
        let mut header = self.header.clone();
        let later = self.snapshots.iter().map(|at| &at.new_probes);
        let (attached, not_probed) = later.fold((0, 0), |sum: (usize, usize), probes| {
            (sum.0 + probes.attached.len(), sum.1 + probes.not_probed.len())
        });
        let probes = &mut header.probes;
        probes.attached.truncate(probes.attached.len().saturating_sub(attached));
        probes.not_probed.truncate(probes.not_probed.len().saturating_sub(not_probed));
        header
    }
}
