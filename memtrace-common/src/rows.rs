//! The rows of the BPF maps and of the ring: the same bytes on both sides.
//!
//! `repr(C)`, no implicit padding, sizes asserted; an all-zero row is never a valid one.

use crate::calls::{Frame, MAX_PROBES, Request};
use crate::counters::{Loss, Tally};
use crate::unwind::{MAX_FRAMES, MAX_MAPPINGS, UnwindMapping};

/// The programs do nothing but count [`Tally::UnarmedHits`].
pub const UNARMED: u32 = 0;
/// Every call counts.
pub const ARMED: u32 = 1;
/// Calls entered while armed are still brought to their end, so that the books close balanced;
/// no other call counts.
pub const DRAINING: u32 = 2;

/// The only entry of `CONFIG`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConfigRow {
    /// [`UNARMED`], [`ARMED`] or [`DRAINING`]
    pub armed: u32,
    /// Where system calls are traced: the number of the first one's probe, plus one. Else 0.
    pub system_calls: u32,
    /// Random per run: a tracee cannot prepare stacks whose hashes collide.
    pub seed: u64,
    pub check_seed: u64,
}

/// Key of `BLOCKS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct BlockKey {
    pub address: u64,
    /// [`ProcessRow::image`]
    pub image: u32,
    pub zero: u32,
}

/// One live block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BlockRow {
    /// As asked for by the caller.
    pub size: u64,
    pub stack: u64,
    /// `CLOCK_MONOTONIC`
    pub time_ns: u64,
}

/// Key of `TOTALS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TotalsKey {
    pub stack: u64,
    /// [`ProcessRow::image`]
    pub image: u32,
    pub zero: u32,
}

/// The books of one stack. Only ever added to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TotalsRow {
    /// The stack's second hash.
    pub check: u64,
    pub allocated_bytes: u64,
    pub allocated_blocks: u64,
    pub freed_bytes: u64,
    pub freed_blocks: u64,
}

/// The stack of bytes whose stack could not be stored.
pub const STACK_STORE_FULL: u64 = 1;
/// The stack of bytes whose stack's hash is another stack's.
pub const STACK_COLLISION: u64 = 2;
/// Hashes below are moved out of the way of the reserved ids.
pub const FIRST_STACK: u64 = 16;

/// One stack, in `STACKS` by its 64-bit hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StackRow {
    /// A second, independent hash of the same frames.
    pub check: u64,
    /// [`ProcessRow::image`]
    pub image: u32,
    /// How many of `frames` are valid; what lies behind is left over from other stacks.
    pub count: u8,
    /// [`crate::unwind::WalkEnd`]
    pub end: u8,
    /// The lower half of [`ChangesRow::count`] at the walk.
    pub changes: u16,
    /// Addresses with their owners: [`crate::unwind::owned`].
    pub frames: [u64; MAX_FRAMES],
}

/// The allocator call that a thread is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CallSlot {
    pub frame: Frame,
    pub request: Request,
    /// The hashes of its stack; the frames are in [`ThreadRow::scratch`].
    pub stack: u64,
    pub check: u64,
    /// `realloc`'s old block, out of `BLOCKS` while the call lasts; address 0: none.
    pub old: BlockRow,
    pub old_address: u64,
}

/// The range call that a thread is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RangeSlot {
    pub frame: Frame,
    pub entry_ns: u64,
    /// 0: part of an allocator call, whose stack it takes.
    pub stack: u64,
    pub args: [u64; 6],
}

/// A walk in progress. In the thread's row, so that it outlives a tail call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WalkRow {
    /// Of the frame that is stepped from.
    pub pc: u64,
    pub sp: u64,
    pub bp: u64,
    /// The two hashes, of the frames so far.
    pub hash: u64,
    pub check: u64,
    /// The address that [`ThreadRow::window`] was copied from.
    pub window: u64,
    /// Of the function that was entered; 0: not readable.
    pub return_address: u64,
    /// The last word read on the way to a goroutine's stack, and its address; for the self-check.
    pub switch: [u64; 2],
    /// Frames so far.
    pub count: u32,
    /// [`ProcessRow::generation`] at the start.
    pub generation: u32,
    /// [`crate::unwind::WalkEnd`]
    pub end: u32,
    /// `pc` is no return address: a signal interrupted there.
    pub interrupted: u32,
    /// Without `bpf_loop`: the program that follows the walk.
    pub afterwards: u32,
    /// [`TRUST_ALL`] or less
    pub distrust: u32,
}

/// All rows of the process are right.
pub const TRUST_ALL: u32 = 0;
/// Those of mappings that may go are not: one may have gone.
pub const TRUST_WHAT_STAYS: u32 = 1;
/// A mapping went that was to stay.
pub const TRUST_NONE: u32 = 2;

/// Places in `CHAIN`.
pub const WALK_FRAMES: u32 = 0;
pub const AFTER_CALL_WALK: u32 = 1;
pub const AFTER_RANGE_WALK: u32 = 2;
pub const CHAINED_PROGRAMS: u32 = 3;

/// What is in flight in one thread; `THREADS`, by `tgid << 32 | tid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ThreadRow {
    pub call: CallSlot,
    pub range: RangeSlot,
    pub walk: WalkRow,
    /// Where a walk writes its frames: of a thread, as a CPU's would be shared under preemption.
    pub scratch: StackRow,
    /// A piece of the thread's stack, copied at once: see [`WINDOW_WORDS`].
    pub window: [u64; WINDOW_WORDS],
    /// [`ProcessRow::image`] and [`ProcessRow::parent`]: a thread does not outlive its image.
    pub image: u32,
    pub parent: u32,
}

/// A walk copies its stack in pieces of this many words: a copy costs about as much as reading one
/// word, and holds several frames.
pub const WINDOW_WORDS: usize = 64;

/// A traced process; `PROCESSES`, by tgid. Replaced whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessRow {
    /// Of this version of the mappings, in no other row and never 0.
    pub generation: u32,
    pub count: u32,
    /// Place in `CHANGES`.
    pub slot: u32,
    /// Whose books: a number for each program that a process runs, never 0. `exec` starts another
    /// image under the same tgid.
    pub image: u32,
    /// [`ChangesRow::count`] and [`ChangesRow::beyond`] before the mappings were read.
    pub changes: u64,
    pub beyond: u64,
    /// The image that it was forked from, whose blocks it inherited; 0: none that is traced.
    pub parent: u32,
    pub zero: u32,
    /// Sorted by start, disjoint; `count` of them.
    pub mappings: [UnwindMapping; MAX_MAPPINGS],
}

/// Most traced processes.
pub const MAX_PROCESSES: usize = 256;

/// What has happened to the mappings of a process, so that no walk uses rows of what is gone.
/// `CHANGES`, by [`ProcessRow::slot`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ChangesRow {
    /// Only grows. Odd: the loader is unloading.
    pub count: u64,
    /// Only grows: changes of mappings that were to stay.
    pub beyond: u64,
    /// The loader's `r_state` when it last told of a change.
    pub state: u32,
    pub zero: u32,
}

/// Values of `r_state` in `<link.h>`.
pub const LOADER_CONSISTENT: u32 = 0;
pub const LOADER_ADDS: u32 = 1;
pub const LOADER_DELETES: u32 = 2;

impl ChangesRow {
    /// The loader tells of a change, in the state `r_state` (`None`: not readable): what
    /// [`Self::count`] grows by.
    ///
    /// It tells before and after it unloads, in one state each; where it does not say which (the
    /// libraries of another namespace; musl) each time counts. What it loads replaces nothing.
    #[inline(always)]
    pub const fn by(&self, r_state: u32) -> u64 {
        let is_unloading = self.count % 2 == 1;
        match r_state {
            LOADER_ADDS => 0,
            LOADER_DELETES => !is_unloading as u64,
            LOADER_CONSISTENT if is_unloading => 1,
            LOADER_CONSISTENT if self.state == LOADER_ADDS => 0,
            _ => 2,
        }
    }
}

/// An unwind row found before: `pc ^ scrambled(data)`, so that a torn pair is no hit.
///
/// The data of a row: `generation:24 << 40 | owner:8 << 32 | the upper half of the unwind row`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachedRow {
    pub key: u64,
    pub data: u64,
}

/// Slots of the cache of unwind rows, by a hash of the pc. 128 KiB.
pub const CACHED_ROWS: usize = 8192;

/// All counters of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CountersRow {
    pub losses: [u64; Loss::COUNT],
    pub tallies: [u64; Tally::COUNT],
    pub hits: [u64; MAX_PROBES],
}

/// The first word of a ring record.
pub const RECORD_RANGE: u32 = 1;
pub const RECORD_NOTICE: u32 = 2;

/// The call was made inside an allocator: the memory is the allocator's own.
pub const RANGE_ALLOCATOR_INTERNAL: u32 = 1;

/// A range call that succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RangeRecord {
    /// [`RECORD_RANGE`]
    pub record: u32,
    /// [`crate::calls::Signature`]
    pub signature: u32,
    pub flags: u32,
    pub tgid: u32,
    pub tid: u32,
    /// [`ProcessRow::image`]
    pub image: u32,
    pub entry_ns: u64,
    pub return_ns: u64,
    pub stack: u64,
    pub args: [u64; 6],
    pub result: u64,
}

/// Value of `FAMILY`: what its children are is not asked.
pub const MEMBER: u32 = 1;
/// Value of `FAMILY`: its children are members, too.
pub const MEMBER_WITH_CHILDREN: u32 = 2;

/// The image was replaced; the process is no longer traced.
pub const NOTICE_EXEC: u32 = 1;
/// The thread group's leader ended.
pub const NOTICE_EXIT: u32 = 2;
/// A walk met a pc outside the known mappings; once per page and mapping version.
pub const NOTICE_UNKNOWN_MAPPING: u32 = 3;
/// A process was forked by a member of the family: `tgid`, by the process `address`.
pub const NOTICE_FORK: u32 = 5;

/// Mappings may have gone: until they are read again, walks do not trust the rows of what may go.
pub const NOTICE_MAPPINGS_CHANGED: u32 = 4;

/// Something that the user side must act on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NoticeRecord {
    /// [`RECORD_NOTICE`]
    pub record: u32,
    pub notice: u32,
    pub tgid: u32,
    pub tid: u32,
    pub time_ns: u64,
    pub address: u64,
}

/// Key of `NOTICED`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct NoticedKey {
    pub page: u64,
    pub generation: u32,
    pub zero: u32,
}

const _: () = {
    use core::mem::size_of;
    assert!(size_of::<ConfigRow>() == 24);
    assert!(size_of::<BlockKey>() == 16);
    assert!(size_of::<BlockRow>() == 24);
    assert!(size_of::<TotalsKey>() == 16);
    assert!(size_of::<TotalsRow>() == 40);
    assert!(size_of::<StackRow>() == 16 + 8 * MAX_FRAMES);
    assert!(size_of::<CallSlot>() == 24 + 24 + 16 + 24 + 8);
    assert!(size_of::<RangeSlot>() == 24 + 16 + 48);
    assert!(size_of::<ThreadRow>() == 96 + 88 + 96 + 16 + 8 * (MAX_FRAMES + WINDOW_WORDS) + 8);
    assert!(size_of::<WalkRow>() == 96);
    assert!(size_of::<ProcessRow>() == 40 + 40 * MAX_MAPPINGS);
    assert!(size_of::<ChangesRow>() == 24);
    assert!(MAX_FRAMES <= u8::MAX as usize);
    assert!(size_of::<CountersRow>() == 8 * (Loss::COUNT + Tally::COUNT + MAX_PROBES));
    assert!(size_of::<RangeRecord>() == 24 + 24 + 48 + 8);
    assert!(size_of::<NoticeRecord>() == 32);
    assert!(size_of::<NoticedKey>() == 16);
    assert!(CACHED_ROWS.is_power_of_two());
    assert!(MAX_MAPPINGS.is_power_of_two());
};
