//! Kernels without `bpf_loop`: the walk as programs that tail-call one another.
//!
//! The entry program starts the walk, `walk_frames` takes [`FRAMES_PER_PROGRAM`] frames and calls
//! itself for the next ones, and a last program does what follows the walk. All run in one hit, on
//! one thread, and hand the walk on in the thread's row.
//!
//! [`FRAMES_PER_PROGRAM`]: memtrace_common::unwind::FRAMES_PER_PROGRAM

use aya_ebpf::programs::ProbeContext;
use memtrace_common::counters::Loss;
use memtrace_common::rows::{
    AFTER_CALL_WALK, AFTER_RANGE_WALK, ProcessRow, ThreadRow, WALK_FRAMES,
};

use crate::calls;
use crate::hook::Hook;
use crate::maps::CHAIN;
use crate::ranges;
use crate::unwind::{self, Bounded};

/// An allocator is entered.
#[inline(always)]
pub fn enter_call(ctx: &ProbeContext) {
    let Some((hook, process, thread)) = calls::begin(ctx) else { return };
    start(ctx, &hook, process, thread, AFTER_CALL_WALK);
}

/// A range function is entered.
#[inline(always)]
pub fn enter_range(ctx: &ProbeContext) {
    let Some((hook, process, thread)) = ranges::begin::<Bounded>(ctx) else { return };
    if calls::is_outermost(&hook, thread) {
        start(ctx, &hook, process, thread, AFTER_RANGE_WALK);
    } else {
        thread.range.frame.sp = hook.sp();
    }
}

#[inline(always)]
fn start(
    ctx: &ProbeContext,
    hook: &Hook,
    process: &ProcessRow,
    thread: &mut ThreadRow,
    afterwards: u32,
) {
    thread.walk.afterwards = afterwards;
    let more = unwind::start(hook, process, thread);
    go_on(ctx, hook, if more { WALK_FRAMES } else { afterwards });
}

/// Some frames of the walk in progress.
#[inline(always)]
pub fn walk_frames(ctx: &ProbeContext) {
    let Some((hook, process, thread)) = resume(ctx) else { return };
    let more = unwind::some_frames(process, thread);
    go_on(ctx, &hook, if more { WALK_FRAMES } else { thread.walk.afterwards });
}

/// The stack of an allocator call is there.
#[inline(always)]
pub fn after_call_walk(ctx: &ProbeContext) {
    let Some((hook, process, thread)) = resume(ctx) else { return };
    unwind::finish(&hook, process, thread);
    calls::remember(&hook, thread);
}

/// The stack of a range call is there.
#[inline(always)]
pub fn after_range_walk(ctx: &ProbeContext) {
    let Some((hook, process, thread)) = resume(ctx) else { return };
    unwind::finish(&hook, process, thread);
    ranges::keep_own_stack(&hook, thread);
    thread.range.frame.sp = hook.sp();
}

#[inline(always)]
fn resume(ctx: &ProbeContext) -> Option<(Hook, &'static ProcessRow, &'static mut ThreadRow)> {
    let hook = Hook::resume(ctx)?;
    let process = hook.process()?;
    let thread = hook.known_thread()?;
    Some((hook, process, thread))
}

/// The next program. Returns only where there is none: then the call is lost, and counted.
#[inline(always)]
fn go_on(ctx: &ProbeContext, hook: &Hook, program: u32) {
    // SAFETY: nothing here has a destructor that must run.
    unsafe { CHAIN.tail_call(ctx, program) };
    hook.counters.lose(Loss::WalkInterrupted);
}
