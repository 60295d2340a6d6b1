//! The table walk: from registers to a stack, its two hashes and the reason why it ended.
//!
//! Frame 0 is the function that was entered: CFA = RSP + 8, RBP unchanged, without a table (libc
//! variants without unwind information work as well). All others are return addresses, looked up
//! at `pc − 1`. A walk always ends: after [`MAX_FRAMES`] frames at the latest. It ends, too, before a
//! frame in a mapping that may have been replaced since its rows were read: what stands there now is
//! not known, and so has no name.
//!
//! Its state stands in the thread's row. Where the kernel has `bpf_loop`, [`walk`] goes through all
//! frames at once; otherwise programs of [`FRAMES_PER_PROGRAM`] frames call one another
//! ([`start`], [`some_frames`], [`finish`]).

mod rows;

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_loop;
use memtrace_common::calls::is_trampoline;
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::{
    FIRST_STACK, NOTICE_UNKNOWN_MAPPING, NoticedKey, ProcessRow, ThreadRow, WINDOW_WORDS, WalkRow,
};
use memtrace_common::unwind::{
    BY_STACK_DEPTH, CfaKind, FRAMES_PER_PROGRAM, G_STACK_HI, GUESSED, MAX_FRAMES, RBP_AT_RBP,
    UnwindRow, WalkEnd, owned,
};

use self::rows::find_row;
pub use self::rows::{Bounded, Looping, Overlap, Steps, overlapped};
use crate::changes::trust;
use crate::hook::{Hook, copy, read_pair, read_word};
use crate::maps::NOTICED;
use crate::tasks::notify;

/// Takes the stack at a function's entry: the frames are in the thread's scratch, the rest in its
/// walk.
#[inline(always)]
pub fn walk(hook: &Hook, process: &'static ProcessRow, thread: &mut ThreadRow) {
    if start(hook, process, thread) {
        all_frames(process, thread);
    }
    finish(hook, process, thread);
}

/// Takes the stack of a thread that stands inside a function, behind the instruction before `pc`.
#[inline(always)]
pub fn walk_from_inside(
    hook: &Hook,
    process: &'static ProcessRow,
    thread: &mut ThreadRow,
    [pc, sp, bp]: [u64; 3],
) {
    begin(hook, process, thread, sp, bp);
    thread.walk.pc = pc;
    all_frames(process, thread);
    finish(hook, process, thread);
}

#[inline(always)]
fn all_frames(process: &'static ProcessRow, thread: &mut ThreadRow) {
    let mut frames = Frames { thread, process };
    // SAFETY: `next_frame` has the signature that the helper calls; `frames` outlives it.
    unsafe {
        let next = next_frame as *mut c_void;
        bpf_loop(MAX_FRAMES as u32, next, (&raw mut frames).cast(), 0);
    }
}

/// A walk without a frame yet, from these registers.
#[inline(always)]
fn begin(hook: &Hook, process: &ProcessRow, thread: &mut ThreadRow, sp: u64, bp: u64) {
    // After the row: what is replaced later is noticed at the end.
    let (distrust, changes) = trust(process);
    thread.scratch.changes = changes as u16;
    thread.walk = WalkRow {
        pc: 0,
        sp,
        bp,
        hash: hook.config.seed ^ u64::from(process.image),
        check: hook.config.check_seed,
        window: NO_WINDOW,
        return_address: 0,
        switch: [0; 2],
        count: 0,
        generation: process.generation,
        end: WalkEnd::TooDeep as u32,
        interrupted: 0,
        afterwards: thread.walk.afterwards,
        distrust,
    };
}

/// Records the function that was entered. Whether there is a frame to step from.
#[inline(always)]
pub fn start(hook: &Hook, process: &ProcessRow, thread: &mut ThreadRow) -> bool {
    // SAFETY: the context of a uprobe is the tracee's registers.
    let (pc, bp) = unsafe { ((*hook.regs).rip, (*hook.regs).rbp) };
    let sp = hook.sp();
    begin(hook, process, thread, sp.wrapping_add(8), bp);
    thread.walk.count = 1;
    thread.scratch.frames[0] = pc;
    mix(&mut thread.walk, pc);
    let mut failed = false;
    let address = word(thread, sp, &mut failed);
    if failed {
        thread.walk.end = WalkEnd::Unreadable as u32;
        return false;
    }
    thread.walk.return_address = address;
    thread.walk.pc = unpatched(thread, sp, address);
    true
}

/// What `bpf_loop` hands to each step.
struct Frames {
    thread: *mut ThreadRow,
    process: *const ProcessRow,
}

unsafe extern "C" fn next_frame(_: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` passes what `walk` gave it.
    let frames = unsafe { &*context.cast::<Frames>() };
    // SAFETY: the thread's own row, which nobody else uses.
    let thread = unsafe { &mut *frames.thread };
    i64::from(!step::<Looping>(thread, frames.process))
}

/// Some more frames, without `bpf_loop`. Whether there are more.
#[inline(always)]
pub fn some_frames(process: &ProcessRow, thread: &mut ThreadRow) -> bool {
    // Of 64 bits: see `Bounded`.
    for _ in 0..u64::from(FRAMES_PER_PROGRAM) {
        if !step::<Bounded>(thread, process) {
            return false;
        }
    }
    true
}

/// Completes the scratch row and the hashes; tells what a user must know.
#[inline(always)]
pub fn finish(hook: &Hook, process: &ProcessRow, thread: &mut ThreadRow) {
    let walk = &mut thread.walk;
    let mut end = WalkEnd::from_u8(walk.end as u8);
    // SAFETY: a volatile read of a live map value; it changes when the row's memory is reused.
    if unsafe { core::ptr::read_volatile(&raw const process.generation) } != walk.generation {
        // What the walk has read of it may be anyone's.
        end = WalkEnd::MappingsChanged;
        walk.count = 1;
    } else if end == WalkEnd::UnknownMapping && !is_trampoline(walk.pc) {
        let page = walk.pc & !0xfff;
        let key = NoticedKey { page, generation: walk.generation, zero: 0 };
        if NOTICED.insert(key, 1, BPF_NOEXIST.into()).is_ok() {
            notify(hook.counters, NOTICE_UNKNOWN_MAPPING, hook.thread_id, walk.pc);
        }
    }
    hook.counters.tally(match end {
        WalkEnd::Complete => Tally::WalkComplete,
        _ => Tally::WalkTruncated,
    });
    if end == WalkEnd::Unreadable {
        hook.counters.lose(Loss::StackUnreadable);
    }
    mix(walk, end as u64);
    if end == WalkEnd::UnknownMapping {
        // Whose address the last one is depends on when it was.
        mix(walk, u64::from(thread.scratch.changes));
    }
    if walk.hash < FIRST_STACK {
        walk.hash += FIRST_STACK;
    }
    let scratch = &mut thread.scratch;
    scratch.check = walk.check;
    scratch.image = process.image;
    scratch.count = walk.count as u8;
    scratch.end = end as u8;
}

/// One more word of the stack into both hashes.
#[inline(always)]
fn mix(walk: &mut WalkRow, word: u64) {
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

/// One frame: records its pc, and steps to its caller. Whether there is one.
#[inline(always)]
fn step<S: Steps>(thread: &mut ThreadRow, process: *const ProcessRow) -> bool {
    let at = thread.walk.count as usize;
    if at >= MAX_FRAMES {
        return false;
    }
    let pc = thread.walk.pc;
    let wanted = if thread.walk.interrupted != 0 { pc } else { pc.wrapping_sub(1) };
    let found = find_row::<S>(&thread.walk, process, wanted);
    let end = found.end().unwrap_or(WalkEnd::TooDeep as u32);
    thread.walk.end = end;
    if end == WalkEnd::MappingsChanged as u32 {
        return false;
    }
    let frame = owned(pc, found.owner());
    // SAFETY: `at` is below the length of the array.
    unsafe { *(&raw mut thread.scratch.frames).cast::<u64>().add(at) = frame };
    thread.walk.count = at as u32 + 1;
    mix(&mut thread.walk, frame);
    if found.end().is_some() {
        return false;
    }
    match to_caller(thread, found.row(), pc) {
        Ok(()) => true,
        Err(end) => {
            thread.walk.end = end as u32;
            false
        }
    }
}

#[inline(always)]
fn to_caller(thread: &mut ThreadRow, row: UnwindRow, pc: u64) -> Result<(), WalkEnd> {
    let (sp, mut bp) = (thread.walk.sp, thread.walk.bp);
    let is_guess = row.kind == CfaKind::FramePointer && row.rbp == GUESSED;
    thread.walk.interrupted = 0;
    let mut failed = false;
    let offset = (i64::from(row.offset_by_8) * 8) as u64;
    let cfa = match row.kind {
        CfaKind::Rsp => sp.wrapping_add(offset),
        CfaKind::Rbp => bp.wrapping_add(offset),
        CfaKind::DerefRbp => word(thread, bp.wrapping_add(offset), &mut failed),
        CfaKind::Plt => sp.wrapping_add(if pc & 15 >= 11 { 16 } else { 8 }),
        CfaKind::FramePointer => {
            if row.offset_by_8 >= BY_STACK_DEPTH {
                let saved_at = sp.wrapping_add(offset).wrapping_sub(8 * BY_STACK_DEPTH as u64);
                bp = by_stack_depth(thread, saved_at, &mut failed);
            }
            if bp == 0 && !failed {
                return Err(if is_guess { WalkEnd::NoUnwindRow } else { WalkEnd::Complete });
            }
            bp.wrapping_add(16)
        }
        CfaKind::End => return Err(WalkEnd::Complete),
        CfaKind::Signal => return out_of_signal(&mut thread.walk),
        CfaKind::None => return Err(WalkEnd::NoUnwindRow),
    };
    if failed {
        return Err(WalkEnd::Unreadable);
    }
    // Only Go's frame-pointer steps change to another stack, up or down.
    let stays = (row.kind != CfaKind::FramePointer || is_guess) && cfa < sp;
    if stays || cfa == sp {
        return Err(WalkEnd::NoProgress);
    }
    let saved_bp = match (row.kind, row.rbp) {
        (CfaKind::FramePointer, _) => word(thread, cfa.wrapping_sub(16), &mut failed),
        (_, 0) => bp,
        (_, RBP_AT_RBP) => word(thread, bp, &mut failed),
        (_, by_8) => word(thread, cfa.wrapping_add((i64::from(by_8) * 8) as u64), &mut failed),
    };
    let address = word(thread, cfa.wrapping_sub(8), &mut failed);
    if failed {
        return Err(WalkEnd::Unreadable);
    }
    if address == 0 {
        return Err(if is_guess { WalkEnd::NoUnwindRow } else { WalkEnd::Complete });
    }
    thread.walk.pc = unpatched(thread, cfa.wrapping_sub(8), address);
    thread.walk.sp = cfa;
    thread.walk.bp = saved_bp;
    Ok(())
}

/// The frame pointer of Go's `asmcgocall`, on the goroutine's stack, by the depth that it saved at
/// `saved_at`: a callback may have moved that stack since.
#[inline(always)]
fn by_stack_depth(thread: &mut ThreadRow, saved_at: u64, failed: &mut bool) -> u64 {
    let depth = word(thread, saved_at, failed);
    let g = word(thread, saved_at.wrapping_add(8), failed);
    if g == 0 {
        return depth;
    }
    let place = g.wrapping_add(G_STACK_HI);
    let mut end = 0_u64;
    *failed |= !copy(&raw mut end, place);
    thread.walk.switch = [place, end];
    end.wrapping_sub(depth)
}

const WINDOW_BYTES: u64 = 8 * WINDOW_WORDS as u64;
/// No user address is near it (a broken frame that points there finds the thread's own old words).
const NO_WINDOW: u64 = 1 << 63;

/// The word at an address of the thread's stack; a walk mostly asks in rising order. 0 and
/// `failed`, where it cannot be read.
///
/// Not an `Option`: of `None` the compiler keeps a register that holds nothing, and verifiers before
/// Linux 6.3 let nobody spill that.
#[inline(always)]
fn word(thread: &mut ThreadRow, address: u64, failed: &mut bool) -> u64 {
    let mut at = address.wrapping_sub(thread.walk.window);
    if at > WINDOW_BYTES - 8 || at % 8 != 0 {
        // Past the end of the stack no whole window can be copied, but maybe the word.
        if !copy(&raw mut thread.window, address) {
            thread.walk.window = NO_WINDOW;
            let mut word = 0_u64;
            *failed |= !copy(&raw mut word, address);
            return word;
        }
        thread.walk.window = address;
        at = 0;
    }
    // SAFETY: `at` is at most the window's size less one word, and a multiple of a word's.
    unsafe { (&raw const thread.window).byte_add(at as usize).cast::<u64>().read() }
}

/// Offsets of RBP, RSP and RIP in the `ucontext_t` that the kernel pushes for a handler; it lies
/// where RSP points when the handler has returned. `struct rt_sigframe`, arch/x86.
const UCONTEXT_RBP: u64 = 40 + 10 * 8;
const UCONTEXT_RSP: u64 = 40 + 15 * 8;

#[inline(always)]
fn out_of_signal(walk: &mut WalkRow) -> Result<(), WalkEnd> {
    let bp = read_word(walk.sp.wrapping_add(UCONTEXT_RBP)).ok_or(WalkEnd::Unreadable)?;
    let [sp, pc] = read_pair(walk.sp.wrapping_add(UCONTEXT_RSP)).ok_or(WalkEnd::Unreadable)?;
    walk.pc = pc;
    walk.sp = sp;
    walk.bp = bp;
    walk.interrupted = 1;
    Ok(())
}
