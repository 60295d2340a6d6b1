//! The table walk: from registers to a stack, its two hashes and the reason why it ended.
//!
//! Frame 0 is the function that was entered: CFA = RSP + 8, RBP unchanged, without a table (libc
//! variants without unwind information work as well). All others are return addresses, looked up
//! at `pc − 1`. A walk always ends: after [`MAX_FRAMES`] frames at the latest.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_loop;
use memtrace_common::calls::is_trampoline;
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::{
    CACHED_ROWS, FIRST_STACK, NOTICE_UNKNOWN_MAPPING, NoticedKey, ProcessRow, ThreadRow,
    WINDOW_WORDS,
};
use memtrace_common::unwind::{
    CfaKind, MAX_FRAMES, MAX_MAPPINGS, RBP_AT_RBP, UnwindMapping, UnwindRow, WalkEnd,
};

use crate::hook::{Hook, copy, read_pair, read_word};
use crate::maps::{CACHE, NOTICED, ROWS};
use crate::tasks::notify;

/// What a walk found; the frames are in the thread's scratch.
pub struct Walked {
    pub stack: u64,
    pub check: u64,
    /// Of the function that was entered.
    pub return_address: u64,
}

struct Walk {
    thread: *mut ThreadRow,
    process: *const ProcessRow,
    pc: u64,
    sp: u64,
    bp: u64,
    hash: u64,
    check: u64,
    count: u32,
    generation: u32,
    /// The address that the thread's window starts at.
    window: u64,
    end: WalkEnd,
    /// `pc` is no return address: a signal interrupted there.
    interrupted: bool,
}

/// Takes the stack at a function's entry.
#[inline(always)]
pub fn walk(hook: &Hook, process: &'static ProcessRow, thread: &mut ThreadRow) -> Walked {
    // SAFETY: the context of a uprobe is the tracee's registers.
    let (pc, bp) = unsafe { ((*hook.regs).rip, (*hook.regs).rbp) };
    let sp = hook.sp();
    let mut walk = Walk {
        thread,
        process,
        pc: 0,
        sp: sp.wrapping_add(8),
        bp,
        hash: hook.config.seed ^ u64::from(hook.tgid()),
        check: hook.config.check_seed,
        count: 1,
        generation: process.generation,
        window: NO_WINDOW,
        end: WalkEnd::TooDeep,
        interrupted: false,
    };
    thread.scratch.frames[0] = pc;
    mix(&mut walk, pc);
    let return_address = walk.word(sp);
    match return_address {
        Some(address) => {
            walk.pc = unpatched(thread, sp, address);
            // SAFETY: `step` has the signature that the helper calls, and `walk` outlives it.
            unsafe {
                bpf_loop(MAX_FRAMES as u32 - 1, step as *mut c_void, (&raw mut walk).cast(), 0);
            }
        }
        None => walk.end = WalkEnd::Unreadable,
    }
    finish(hook, process, thread, &mut walk);
    Walked { stack: walk.hash, check: walk.check, return_address: return_address.unwrap_or(0) }
}

/// Completes the scratch row and the hashes; tells what a user must know.
#[inline(always)]
fn finish(hook: &Hook, process: &ProcessRow, thread: &mut ThreadRow, walk: &mut Walk) {
    // SAFETY: a volatile read of a live map value; it changes when the row's memory is reused.
    if unsafe { core::ptr::read_volatile(&raw const process.generation) } != walk.generation {
        walk.end = WalkEnd::UnknownMapping;
    } else if walk.end == WalkEnd::UnknownMapping && !is_trampoline(walk.pc) {
        let page = walk.pc & !0xfff;
        let key = NoticedKey { page, generation: walk.generation, zero: 0 };
        if NOTICED.insert(key, 1, BPF_NOEXIST.into()).is_ok() {
            notify(hook.counters, NOTICE_UNKNOWN_MAPPING, hook.thread_id, walk.pc);
        }
    }
    hook.counters.tally(match walk.end {
        WalkEnd::Complete => Tally::WalkComplete,
        _ => Tally::WalkTruncated,
    });
    if walk.end == WalkEnd::Unreadable {
        hook.counters.lose(Loss::StackUnreadable);
    }
    mix(walk, walk.end as u64);
    if walk.hash < FIRST_STACK {
        walk.hash += FIRST_STACK;
    }
    let scratch = &mut thread.scratch;
    scratch.check = walk.check;
    scratch.tgid = hook.tgid();
    scratch.count = walk.count as u16;
    scratch.end = walk.end as u8;
    scratch.zero = 0;
}

/// One more word of the stack into both hashes.
#[inline(always)]
fn mix(walk: &mut Walk, word: u64) {
    walk.hash = (walk.hash ^ word).rotate_left(27).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    walk.check = (walk.check ^ (walk.check >> 29)).wrapping_add(word);
    walk.check = walk.check.wrapping_mul(0xbf58_476d_1ce4_e5b9);
}

/// A return address that the kernel replaced by its trampoline, put back: the range call that is
/// in progress may be an outer frame of an allocator call.
#[inline(always)]
fn unpatched(thread: &ThreadRow, slot: u64, address: u64) -> u64 {
    if slot == thread.range.frame.sp && is_trampoline(address) {
        thread.range.frame.return_address
    } else {
        address
    }
}

/// One frame: records its pc, and steps to its caller. 0: go on, 1: the walk ended.
unsafe extern "C" fn step(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` passes what `walk` gave it.
    let walk = unsafe { &mut *context.cast::<Walk>() };
    let at = index as usize + 1;
    if at >= MAX_FRAMES {
        return 1;
    }
    let pc = walk.pc;
    // SAFETY: `at` is below the length of the array; the row is the thread's own.
    unsafe {
        let frames = (&raw mut (*walk.thread).scratch.frames).cast::<u64>();
        *frames.add(at) = pc;
    }
    walk.count = at as u32 + 1;
    mix(walk, pc);
    match to_caller(walk, pc) {
        Ok(()) => 0,
        Err(end) => {
            walk.end = end;
            1
        }
    }
}

#[inline(always)]
fn to_caller(walk: &mut Walk, pc: u64) -> Result<(), WalkEnd> {
    let row = find_row(walk, if walk.interrupted { pc } else { pc.wrapping_sub(1) })?;
    walk.interrupted = false;
    let offset = (i64::from(row.offset_by_8) * 8) as u64;
    let cfa = match row.kind {
        CfaKind::Rsp => walk.sp.wrapping_add(offset),
        CfaKind::Rbp => walk.bp.wrapping_add(offset),
        CfaKind::DerefRbp => walk.word(walk.bp.wrapping_add(offset)).ok_or(WalkEnd::Unreadable)?,
        CfaKind::Plt => walk.sp.wrapping_add(if pc & 15 >= 11 { 16 } else { 8 }),
        CfaKind::FramePointer => {
            if walk.bp == 0 {
                return Err(WalkEnd::Complete);
            }
            walk.bp.wrapping_add(16)
        }
        CfaKind::End => return Err(WalkEnd::Complete),
        CfaKind::Signal => return out_of_signal(walk),
        CfaKind::None => return Err(WalkEnd::NoUnwindRow),
    };
    // Only Go's frame-pointer steps change to another stack, up or down.
    let stays = row.kind != CfaKind::FramePointer && cfa < walk.sp;
    if stays || cfa == walk.sp {
        return Err(WalkEnd::NoProgress);
    }
    let bp = match (row.kind, row.rbp) {
        (CfaKind::FramePointer, _) => walk.word(cfa.wrapping_sub(16)),
        (_, 0) => Some(walk.bp),
        (_, RBP_AT_RBP) => walk.word(walk.bp),
        (_, by_8) => walk.word(cfa.wrapping_add((i64::from(by_8) * 8) as u64)),
    };
    let (Some(bp), Some(address)) = (bp, walk.word(cfa.wrapping_sub(8))) else {
        return Err(WalkEnd::Unreadable);
    };
    if address == 0 {
        return Err(WalkEnd::Complete);
    }
    // SAFETY: the thread's own row.
    walk.pc = unpatched(unsafe { &*walk.thread }, cfa.wrapping_sub(8), address);
    walk.sp = cfa;
    walk.bp = bp;
    Ok(())
}

const WINDOW_BYTES: u64 = 8 * WINDOW_WORDS as u64;
/// No user address is near it (a broken frame that points there finds the thread's own old words).
const NO_WINDOW: u64 = 1 << 63;

impl Walk {
    /// The word at an address, which a walk mostly asks for in rising order.
    #[inline(always)]
    fn word(&mut self, address: u64) -> Option<u64> {
        let mut at = address.wrapping_sub(self.window);
        if at > WINDOW_BYTES - 8 {
            // SAFETY: the thread's own row.
            let window = unsafe { &raw mut (*self.thread).window };
            // Past the end of the stack nothing can be copied, but maybe the word.
            if !copy(window, address) {
                self.window = NO_WINDOW;
                return read_word(address);
            }
            self.window = address;
            at = 0;
        }
        // SAFETY: `at` is at most the window's size less one word.
        Some(unsafe {
            (&raw const (*self.thread).window).byte_add(at as usize).cast::<u64>().read_unaligned()
        })
    }
}

/// Offsets of RBP, RSP and RIP in the `ucontext_t` that the kernel pushes for a handler; it lies
/// where RSP points when the handler has returned. `struct rt_sigframe`, arch/x86.
const UCONTEXT_RBP: u64 = 40 + 10 * 8;
const UCONTEXT_RSP: u64 = 40 + 15 * 8;

#[inline(always)]
fn out_of_signal(walk: &mut Walk) -> Result<(), WalkEnd> {
    let bp = read_word(walk.sp.wrapping_add(UCONTEXT_RBP)).ok_or(WalkEnd::Unreadable)?;
    let [sp, pc] = read_pair(walk.sp.wrapping_add(UCONTEXT_RSP)).ok_or(WalkEnd::Unreadable)?;
    walk.pc = pc;
    walk.sp = sp;
    walk.bp = bp;
    walk.interrupted = true;
    Ok(())
}

/// The unwind row of a pc: from the cache, or by two binary searches.
#[inline(always)]
fn find_row(walk: &Walk, pc: u64) -> Result<UnwindRow, WalkEnd> {
    let slot = (pc.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 % CACHED_ROWS as u32;
    let Some(cached) = CACHE.get_ptr_mut(slot) else { return Err(WalkEnd::NoUnwindRow) };
    // SAFETY: a live map value; other CPUs write it, which the key reveals.
    let (key, data) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*cached).key),
            core::ptr::read_volatile(&raw const (*cached).data),
        )
    };
    if key == pc ^ scrambled(data) && (data >> 32) as u32 == walk.generation {
        return Ok(UnwindRow::unpack(data << 32));
    }
    // SAFETY: read only; replaced rows are noticed at the end of the walk.
    let mapping = find_mapping(unsafe { &*walk.process }, pc).ok_or(WalkEnd::UnknownMapping)?;
    let row = find_in_table(mapping, pc).ok_or(WalkEnd::NoUnwindRow)?;
    let data = u64::from(walk.generation) << 32 | row >> 32;
    // SAFETY: as above.
    unsafe {
        core::ptr::write_volatile(&raw mut (*cached).key, pc ^ scrambled(data));
        core::ptr::write_volatile(&raw mut (*cached).data, data);
    }
    Ok(UnwindRow::unpack(row))
}

#[inline(always)]
fn scrambled(data: u64) -> u64 {
    data.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// A binary search for the last element at or below `wanted`: it is below `low`, if it is.
///
/// Both searches run in `bpf_loop`: the verifier follows an unrolled one along every path.
struct Search {
    process: *const ProcessRow,
    /// Of the table: the index of its first row.
    first: u32,
    low: u32,
    high: u32,
    wanted: u64,
}

/// The last mapping that starts at or below `pc`, if it holds it.
#[inline(always)]
fn find_mapping(process: &ProcessRow, pc: u64) -> Option<&UnwindMapping> {
    let mut search = Search { process, first: 0, low: 0, high: process.count, wanted: pc };
    // SAFETY: `halve_mappings` has the signature that the helper calls; `search` outlives it.
    unsafe {
        let halve = halve_mappings as *mut c_void;
        bpf_loop(MAX_MAPPINGS.ilog2() + 1, halve, (&raw mut search).cast(), 0);
    }
    let at = search.low.checked_sub(1)? as usize;
    // SAFETY: masked below the length of the array.
    let mapping = unsafe { &*mapping_at(process, at) };
    (pc >= mapping.start && pc < mapping.end).then_some(mapping)
}

#[inline(always)]
unsafe fn mapping_at(process: *const ProcessRow, at: usize) -> *const UnwindMapping {
    // SAFETY: the caller has a live row; masked below the length of the array.
    unsafe {
        let mappings = (&raw const (*process).mappings).cast::<UnwindMapping>();
        mappings.add(at & (MAX_MAPPINGS - 1))
    }
}

unsafe extern "C" fn halve_mappings(_: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` passes what `find_mapping` gave it.
    let search = unsafe { &mut *context.cast::<Search>() };
    if search.low >= search.high {
        return 1;
    }
    let middle = search.low + (search.high - search.low) / 2;
    // SAFETY: the process row is live for as long as the program.
    let start = unsafe { (*mapping_at(search.process, middle as usize)).start };
    search.narrow(middle, start);
    0
}

impl Search {
    #[inline(always)]
    fn narrow(&mut self, middle: u32, found: u64) {
        if found <= self.wanted {
            self.low = middle + 1;
        } else {
            self.high = middle;
        }
    }
}

/// A table of this many rows is searched through: all that `u32` can count.
const TABLE_STEPS: u32 = 32;

/// The last row of the mapping's table at or below `pc`, packed.
#[inline(always)]
fn find_in_table(mapping: &UnwindMapping, pc: u64) -> Option<u64> {
    let wanted = pc.checked_sub(mapping.bias)?;
    if wanted > u64::from(u32::MAX) {
        return None;
    }
    let mut search = Search {
        process: core::ptr::null(),
        first: mapping.first_row,
        low: 0,
        high: mapping.row_count,
        wanted,
    };
    // SAFETY: as in `find_mapping`.
    unsafe {
        bpf_loop(TABLE_STEPS, halve_table as *mut c_void, (&raw mut search).cast(), 0);
    }
    let at = search.low.checked_sub(1)?;
    ROWS.get(search.first.wrapping_add(at)).copied()
}

unsafe extern "C" fn halve_table(_: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` passes what `find_in_table` gave it.
    let search = unsafe { &mut *context.cast::<Search>() };
    if search.low >= search.high {
        return 1;
    }
    let middle = search.low + (search.high - search.low) / 2;
    let Some(row) = ROWS.get(search.first.wrapping_add(middle)) else { return 1 };
    search.narrow(middle, u64::from(*row as u32));
    0
}
