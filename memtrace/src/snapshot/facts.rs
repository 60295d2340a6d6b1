//! What was read to explain a container's memory: plain data, so that a recorded reading can be
//! explained again, by another memtrace, on another machine. Nothing here is inferred.
//!
//! Figures are bytes. A figure of the cgroup is named as a reader would look it up: the file, and
//! the key in it where it has keys (`memory.stat anon`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::runtimes::RuntimeRange;
use super::{Container, GoMemory, HostSummary, Known, ProcessId};

/// Changes when a reader of the old facts would misread the new ones.
pub const FACTS_SCHEMA: u32 = 1;

/// A limit that is none: cgroup v2's `max`, and v1's largest number of pages.
pub const NO_LIMIT: u64 = u64::MAX;

/// One reading of everything, in the order in which it was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub schema: u32,
    /// memtrace's own version.
    pub memtrace: String,
    /// When the reading began.
    pub unix_ns: u64,
    /// How long it took, from the first cgroup file to the last.
    pub read_ns: u64,
    /// How long after that the books of Go and malloc took, read last; 0 where none were.
    #[serde(default)]
    pub books_read_ns: u64,
    pub host: HostSummary,
    /// `/proc/meminfo MemTotal`
    pub host_memory: Known<u64>,
    pub subject: Subject,
    pub cgroup: Known<CgroupFacts>,
    pub processes: Vec<ProcessFacts>,
    /// Processes of the container of which nothing could be read, and why.
    pub unread: Vec<Unread>,
    pub overhead: Vec<OverheadFacts>,
    /// What `--freeze` did; `None` when it was not asked for.
    pub freeze: Option<FreezeFacts>,
}

/// Who is explained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// As the user named it.
    pub asked: String,
    pub container: Option<Container>,
    /// Kubernetes' UID of the pod, in lower case with dashes where it had any.
    pub pod_uid: Option<String>,
    /// The process that was named, or the container's first one.
    pub main_pid: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupVersion {
    V1,
    V2,
}

/// The memory controller's files of one cgroup, read twice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CgroupFacts {
    pub version: CgroupVersion,
    /// In the hierarchy, as `/proc/PID/cgroup` tells it.
    pub path: String,
    /// Where it was read.
    pub directory: String,
    /// Before the processes were read.
    pub before: CgroupReading,
    /// After them: what the ledger is made of.
    pub after: CgroupReading,
    /// This cgroup first, then every ancestor up to the mount.
    pub limits: Vec<LimitFacts>,
    /// The mount shows a part of the hierarchy only: ancestors beyond it are not seen.
    pub ancestors_hidden: bool,
    pub nested: Vec<NestedFacts>,
    /// Cgroups below this one that were not listed.
    pub nested_beyond: u64,
    /// To whom the file pages that the processes have mapped are charged.
    pub mapped_file_pages: Known<FilePages>,
}

/// File pages that are mapped, each counted once, by the cgroup that they are charged to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePages {
    /// To the cgroup explained, or one below it.
    pub here_bytes: u64,
    pub elsewhere_bytes: u64,
    /// How many other cgroups that is.
    pub other_cgroups: u64,
    pub uncharged_bytes: u64,
    /// Not looked at: beyond the most pages that are.
    pub beyond_bytes: u64,
}

/// One reading of one cgroup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CgroupReading {
    /// Since the beginning of the reading.
    pub at_ns: u64,
    /// By file and key; limits may be [`NO_LIMIT`].
    pub figures: BTreeMap<String, u64>,
    /// The charge just before the other files were read, where it differs from what it was after.
    pub usage_before: u64,
    /// Files that were not there or could not be read, and why.
    pub absent: BTreeMap<String, String>,
    /// `memory.pressure`, as it stands there.
    pub pressure: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitFacts {
    pub path: String,
    /// By file: `memory.max`, `memory.limit_in_bytes`, …; limits may be [`NO_LIMIT`].
    pub figures: BTreeMap<String, u64>,
}

/// A cgroup below the one that is explained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NestedFacts {
    /// Relative to the cgroup explained.
    pub path: String,
    pub usage: u64,
    pub processes: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unread {
    pub pid: u32,
    pub comm: String,
    pub reason: String,
}

/// One process of the container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessFacts {
    pub id: ProcessId,
    pub comm: String,
    pub executable: String,
    /// `/proc/PID/status`
    pub status: StatusFigures,
    pub oom_score: Option<i64>,
    pub oom_score_adj: Option<i64>,
    /// `/proc/PID/smaps_rollup`, before `smaps` was read and after.
    pub rollup_before: Known<Rollup>,
    pub rollup_after: Known<Rollup>,
    /// How often `smaps` was read until both rollups agreed, or memtrace gave up.
    pub attempts: u32,
    pub mappings: Known<Vec<MappingFacts>>,
    /// Lines of `smaps` that were not understood, and mappings beyond the most that are kept.
    pub mappings_lost: u64,
    /// Stack pointers of the threads that are not running (`/proc/PID/task/TID/syscall`).
    pub stack_pointers: Vec<u64>,
    /// Threads whose stack pointer is not known: they were running, or could not be read.
    pub threads_without_pointer: u32,
    /// Devices of `tmpfs` mounts in the process's mount namespace.
    pub tmpfs_devices: Vec<(u32, u32)>,
    /// Go version from the build info, where the executable is a Go program.
    pub go_version: Option<String>,
    pub go: Known<GoFacts>,
    /// Address ranges that the Go runtime says are its heap's.
    pub go_ranges: Known<Vec<(u64, u64)>>,
    /// Heaps of glibc's arenas, as far as the header at the beginning of each tells.
    pub glibc_heaps: Known<Vec<GlibcHeap>>,
    /// Parts of the heaps of language runtimes, by their own headers in the memory.
    #[serde(default)]
    pub runtime_ranges: Vec<RuntimeRange>,
    /// Where such a header could have been, and was not looked for: beyond the most that are.
    #[serde(default)]
    pub runtime_places_beyond: u64,
    pub heap: Known<HeapCensus>,
}

/// A heap of one of glibc's arenas other than the main one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlibcHeap {
    pub start: u64,
    /// End of what may be accessed.
    pub end: u64,
    /// Address of the arena that it belongs to.
    pub arena: u64,
}

/// Fields of `/proc/PID/status`; `None` where the kernel has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFigures {
    pub vm_rss: Option<u64>,
    pub rss_anon: Option<u64>,
    pub rss_file: Option<u64>,
    pub rss_shmem: Option<u64>,
    pub vm_hwm: Option<u64>,
    pub vm_size: Option<u64>,
    pub vm_pte: Option<u64>,
    pub vm_swap: Option<u64>,
    pub threads: Option<u64>,
}

/// Fields of `/proc/PID/smaps_rollup`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollup {
    pub rss: u64,
    pub pss: u64,
    /// These three since Linux 5.4.
    pub pss_anon: Option<u64>,
    pub pss_file: Option<u64>,
    pub pss_shmem: Option<u64>,
    pub private_clean: u64,
    pub private_dirty: u64,
    pub anonymous: u64,
    pub lazy_free: u64,
    pub anon_huge: u64,
    pub swap: u64,
    pub swap_pss: u64,
}

/// One mapping of `/proc/PID/smaps`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MappingFacts {
    pub start: u64,
    pub end: u64,
    pub readable: bool,
    pub writable: bool,
    pub executable: bool,
    pub shared: bool,
    pub file_offset: u64,
    pub device: (u32, u32),
    pub inode: u64,
    /// As the kernel names it; lossy UTF-8.
    pub name: String,
    pub rss: u64,
    pub pss: u64,
    pub private_clean: u64,
    pub private_dirty: u64,
    pub anonymous: u64,
    pub lazy_free: u64,
    pub anon_huge: u64,
    pub swap: u64,
    /// `Shared_Hugetlb` + `Private_Hugetlb`, which no other figure here contains.
    pub hugetlb: u64,
    /// `VmFlags` has `nh`: since Linux 6.7 what `MAP_STACK` leaves.
    pub no_huge_page: bool,
    /// Resident bytes of parts of this mapping that belong to different owners, ascending; from
    /// `/proc/PID/pagemap`. The kernel merges neighbours that are alike into one mapping.
    pub pieces: Vec<Piece>,
    /// What is in it are malloc's mapped chunks, by their own headers: how many.
    pub malloc_chunks: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub start: u64,
    pub end: u64,
    /// Pages present, in bytes.
    pub resident: u64,
}

/// The Go runtime's own books, without the stacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoFacts {
    /// Where they were read.
    pub source: String,
    /// `inuse_space` of the heap profile.
    pub inuse: Known<u64>,
    /// Mean bytes between samples; 0 when unknown.
    pub sample_rate: u64,
    pub memory: Known<GoMemory>,
    /// `GOMEMLIMIT` as the runtime has it; [`NO_LIMIT`] for none.
    pub memory_limit: Known<u64>,
}

/// glibc's malloc as its own books tell it, read from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeapCensus {
    /// Where it was read.
    pub source: String,
    pub arenas: Vec<ArenaFacts>,
    /// Chunks that malloc mapped one by one, and their bytes.
    pub mapped_chunks: Known<u64>,
    pub mapped_bytes: Known<u64>,
    /// Freed blocks that threads keep for themselves, bytes; `in_use` contains them.
    pub thread_caches: Known<u64>,
    /// What `malloc_trim(0)` would give back: whole free pages that are resident.
    pub trimmable_resident: Known<u64>,
}

/// One arena of glibc's malloc.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArenaFacts {
    /// Of its `malloc_state`.
    pub address: u64,
    /// The main arena, which lies in `[heap]`.
    pub is_main: bool,
    /// Taken from the system (`system_mem`).
    pub system_bytes: u64,
    /// `system_bytes` less what is free, thread caches included.
    pub in_use: Known<u64>,
    /// Free chunks, the top excluded.
    pub free: Known<u64>,
    pub top: Known<u64>,
}

/// A process of the runtime's that is there for this container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverheadFacts {
    pub pid: u32,
    pub comm: String,
    /// Why it belongs to this container.
    pub evidence: String,
    /// Where its memory is charged.
    pub cgroup_path: String,
    pub rollup: Known<Rollup>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FreezeFacts {
    /// The file that was written.
    pub file: String,
    pub frozen_for_ns: u64,
    /// It was frozen already (a paused container), and stays so.
    pub was_frozen: bool,
    /// The guard had thawed it before everything was read: it took too long.
    #[serde(default)]
    pub too_long: bool,
}
