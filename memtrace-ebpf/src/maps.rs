//! Every map: key, value, capacity, who inserts, who removes.
//!
//! Capacities marked "by the user side" are set at load; the numbers here are what a load without
//! limits would get. No big map is preallocated: memory grows with use. Not preallocated also
//! means that an entry may be reused as soon as it is removed: copy a value before removing it.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use memtrace_common::rows::{
    BlockKey, BlockRow, CACHED_ROWS, CHAINED_PROGRAMS, CachedRow, ChangesRow, ConfigRow,
    CountersRow, MAX_PROCESSES, NoticedKey, ProcessRow, StackRow, ThreadRow, TotalsKey, TotalsRow,
};

/// One row; written by the user side.
#[map]
pub static CONFIG: Array<ConfigRow> = Array::with_max_entries(1, 0);

/// One row per CPU; added to through `count` only.
#[map]
pub static COUNTERS: PerCpuArray<CountersRow> = PerCpuArray::with_max_entries(1, 0);

/// tgid → mappings. Inserted and replaced by the user side, removed at `exec` here.
#[map]
pub static PROCESSES: HashMap<u32, ProcessRow> =
    HashMap::with_max_entries(MAX_PROCESSES as u32, BPF_F_NO_PREALLOC);

/// What happened to the mappings of a process, by the slot in its row. Added to by `changes`, and
/// prepared by the user side when a process gets the slot. Not in the row of `PROCESSES`: that is
/// replaced by one which was made of older facts.
#[map]
pub static CHANGES: Array<ChangesRow> = Array::with_max_entries(MAX_PROCESSES as u32, 0);

/// tgid → `MEMBER` or `MEMBER_WITH_CHILDREN`: the processes of the target, traced or not. Inserted
/// by the user side, and here when a member forks; removed when the group's leader exits.
#[map]
pub static FAMILY: HashMap<u32, u32> = HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);

/// Unwind rows of all objects; appended by the user side. Capacity by the user side.
#[map]
pub static ROWS: Array<u64> = Array::with_max_entries(1 << 20, BPF_F_MMAPABLE);

/// Unwind rows found by earlier walks. Overwritten freely: a torn entry is no hit.
#[map]
pub static CACHE: Array<CachedRow> = Array::with_max_entries(CACHED_ROWS as u32, 0);

/// `tgid << 32 | tid` → what is in flight. Inserted at a thread's first call, removed at its exit.
/// Capacity by the user side.
#[map]
pub static THREADS: HashMap<u64, ThreadRow> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

/// One all-zero row: what a thread starts with. Never written.
#[map]
pub static FRESH_THREAD: Array<ThreadRow> = Array::with_max_entries(1, 0);

/// Live blocks. Inserted when an allocator returned, removed when a deallocator or `realloc` is
/// entered, and by the user side once their image has ended. Capacity by the user side.
#[map]
pub static BLOCKS: HashMap<BlockKey, BlockRow> =
    HashMap::with_max_entries(1 << 22, BPF_F_NO_PREALLOC);

/// Stack id → frames. Inserted once per stack; removed by the user side once the image has ended
/// whose stack it is. Capacity by the user side.
#[map]
pub static STACKS: HashMap<u64, StackRow> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

/// (stack, image) → books. Inserted once; the reserved stacks of an image by the user side, so that
/// there is always a place. Removed by the user side once the image has ended: no program that looked
/// one up for it runs any more. Capacity by the user side.
#[map]
pub static TOTALS: HashMap<TotalsKey, TotalsRow> =
    HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

/// Pages that a notice was sent for: at most this many. Removed by the user side.
#[map]
pub static NOTICED: HashMap<NoticedKey, u32> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Range calls and notices, to the user side. Size by the user side.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// The programs of `chained`. Filled by the user side where the kernel has no `bpf_loop`. Every
/// uprobe program names it: see `hook::stay_off_private_stacks`.
#[map]
pub static CHAIN: ProgramArray = ProgramArray::with_max_entries(CHAINED_PROGRAMS, 0);
