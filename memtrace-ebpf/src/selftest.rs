//! The self-check: the walk that recording uses, beside a copy of the memory that it walked.
//!
//! Loaded by `memtrace selftest` alone, which attaches it where recording takes stacks. Nothing
//! enters the books. At most one call in an interval is sampled per thread, at random.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::programs::ProbeContext;
use memtrace_common::selftest::{
    HITS_DROPPED, HITS_PACED, PAGE, RECORD_SELFTEST, STACK_PAGES, SelftestRecord, TOP_PAGES,
};
use memtrace_common::unwind::MAX_FRAMES;

use crate::hook::{Hook, copy};
use crate::maps::RING;
use crate::unwind;

/// The mean time between two samples of one thread. Set at load.
#[unsafe(no_mangle)]
static SELFTEST_INTERVAL_NS: u32 = 0;

/// An allocator is entered.
#[inline(always)]
pub fn enter(ctx: &ProbeContext) {
    let Some(hook) = Hook::enter(ctx) else { return };
    let Some(process) = hook.process() else { return };
    hook.counters.hit(hook.cookie.index());
    let Some(thread) = hook.thread(process) else { return };
    // SAFETY: the helpers have no preconditions.
    let (now_ns, random) = unsafe { (bpf_ktime_get_ns(), bpf_get_prandom_u32()) };
    // No call is ever in progress here: of its slot only this time is used.
    if now_ns < thread.call.old.time_ns {
        hook.counters.hit(HITS_PACED);
        return;
    }
    // Before the walk: where there is no room it would be for nothing.
    let Some(mut entry) = RING.reserve::<SelftestRecord>(0) else {
        hook.counters.hit(HITS_DROPPED);
        return;
    };
    // SAFETY: a plain static that the loader may have replaced: read as such.
    let interval_ns = unsafe { core::ptr::read_volatile(&raw const SELFTEST_INTERVAL_NS) };
    // Up to twice the mean, so that no rhythm of the program is followed.
    let wait_ns = (u64::from(random) * u64::from(interval_ns)) >> 31;
    thread.call.old.time_ns = now_ns + wait_ns;

    unwind::walk(&hook, process, thread);
    let record = entry.as_mut_ptr();
    // SAFETY: the reserved record has these fields; every field below `frames` is written.
    unsafe {
        (*record).record = RECORD_SELFTEST;
        (*record).tgid = hook.tgid();
        (*record).tid = hook.thread_id as u32;
        (*record).generation = thread.walk.generation;
        (*record).pc = (*hook.regs).rip;
        (*record).sp = hook.sp();
        (*record).bp = (*hook.regs).rbp;
        (*record).count = u16::from(thread.scratch.count);
        (*record).end = thread.scratch.end;
        (*record).zero = [0; 3];
        (*record).switch = thread.walk.switch;
        bpf_probe_read_kernel(
            (&raw mut (*record).frames).cast(),
            (8 * MAX_FRAMES) as u32,
            (&raw const thread.scratch.frames).cast(),
        );
        (*record).stack_pages = copy_upwards((&raw mut (*record).stack).cast(), hook.sp());
        (*record).top_page = thread.walk.sp & !(PAGE as u64 - 1);
        (*record).top_pages = copy_downwards((&raw mut (*record).top).cast(), thread.walk.sp);
    }
    entry.submit(0);
}

/// Copies pages from that of `from` upwards, until one cannot be read; how many.
///
/// # Safety
/// `to` has room for `STACK_PAGES` pages.
#[inline(always)]
unsafe fn copy_upwards(to: *mut u8, from: u64) -> u8 {
    let first = from & !(PAGE as u64 - 1);
    for page in 0..STACK_PAGES {
        // SAFETY: within the room that the caller promises.
        let to = unsafe { to.add(page * PAGE) };
        if !copy(to.cast::<[u8; PAGE]>(), first.wrapping_add((page * PAGE) as u64)) {
            return page as u8;
        }
    }
    STACK_PAGES as u8
}

/// Copies pages from that of `from` downwards, the last one first, until one cannot be read; how
/// many.
///
/// # Safety
/// `to` has room for `TOP_PAGES` pages.
#[inline(always)]
unsafe fn copy_downwards(to: *mut u8, from: u64) -> u8 {
    let last = from & !(PAGE as u64 - 1);
    for page in 0..TOP_PAGES {
        // SAFETY: within the room that the caller promises.
        let to = unsafe { to.add((TOP_PAGES - 1 - page) * PAGE) };
        if !copy(to.cast::<[u8; PAGE]>(), last.wrapping_sub((page * PAGE) as u64)) {
            return page as u8;
        }
    }
    TOP_PAGES as u8
}
