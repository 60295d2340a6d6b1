//! The mmap family: ordered events of the calls that succeeded.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use memtrace_common::calls::{self, Frame, Return, Standing};
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::{
    ProcessRow, RANGE_ALLOCATOR_INTERNAL, RECORD_RANGE, RangeRecord, RangeSlot, ThreadRow,
};

use crate::calls::{is_outermost, keep, keep_stack};
use crate::changes::range_goes;
use crate::hook::{Hook, read_word};
use crate::maps::RING;
use crate::unwind::{self, Bounded, Looping, Steps};

/// A range function is entered. Inside an allocator call it takes that call's stack.
#[inline(always)]
pub fn enter(ctx: &ProbeContext) {
    let Some((hook, process, thread)) = begin::<Looping>(ctx) else { return };
    if is_outermost(&hook, thread) {
        unwind::walk(&hook, process, thread);
        keep_own_stack(&hook, thread);
    }
    thread.range.frame.sp = hook.sp();
}

/// A range function is entered by an outermost call, whose arguments are in the thread's slot.
#[inline(always)]
pub fn begin<S: Steps>(
    ctx: &ProbeContext,
) -> Option<(Hook, &'static ProcessRow, &'static mut ThreadRow)> {
    let hook = Hook::enter(ctx)?;
    let process = hook.process()?;
    hook.counters.hit(hook.cookie.index());
    let thread = hook.thread(process)?;
    let args = hook.all_args();
    if let Some(signature) = hook.cookie.signature() {
        range_goes::<S>(&hook, process, signature, &args);
    }
    match calls::standing(&thread.range.frame, hook.sp(), read_word) {
        Standing::Idle => {}
        // sbrk's brk, mmap64's mmap: part of the outer call.
        Standing::InProgress => return None,
        Standing::Stale => hook.counters.lose(Loss::StaleCallDropped),
    }
    thread.range = RangeSlot {
        // Not in progress before its stack is known.
        frame: Frame { sp: 0, return_address: 0, cookie: hook.cookie.0 },
        // SAFETY: the helper has no preconditions.
        entry_ns: unsafe { bpf_ktime_get_ns() },
        stack: 0,
        args,
    };
    Some((hook, process, thread))
}

/// The call has the stack that was walked.
#[inline(always)]
pub fn keep_own_stack(hook: &Hook, thread: &mut ThreadRow) {
    thread.range.frame.return_address = thread.walk.return_address;
    // Kept now: an allocator call inside this one would walk into the same place.
    thread.range.stack = keep(hook.counters, thread, thread.walk.hash);
}

/// A range function returns.
#[inline(always)]
pub fn leave(ctx: &RetProbeContext) {
    let Some(hook) = Hook::leave(ctx) else { return };
    let Some(thread) = hook.known_thread() else {
        if hook.process().is_some() {
            hook.counters.tally(Tally::UnarmedHits);
        }
        return;
    };
    match calls::returning(&thread.range.frame, hook.sp(), hook.cookie) {
        Return::Outermost => {}
        Return::Nested => return,
        Return::WithoutEntry => {
            hook.no_entry();
            return;
        }
        Return::BeyondStale => {
            thread.range.frame.sp = 0;
            hook.counters.lose(Loss::StaleCallDropped);
            hook.counters.lose(Loss::ReturnWithoutEntry);
            return;
        }
    }
    thread.range.frame.sp = 0;
    send(&hook, thread, hook.result());
}

/// Tells the call in the thread's slot, which returned `result`.
#[inline(always)]
pub fn send(hook: &Hook, thread: &mut ThreadRow, result: u64) {
    let Some(signature) = hook.cookie.signature() else { return };
    if !calls::range_succeeded(signature, result) {
        return;
    }
    hook.counters.tally(Tally::RangeCalls);
    if let Some(process) = hook.process() {
        range_goes::<Bounded>(hook, process, signature, &thread.range.args);
    }
    let (stack, flags) = match thread.range.stack {
        0 => (keep_stack(hook.counters, thread), RANGE_ALLOCATOR_INTERNAL),
        stack => (stack, 0),
    };
    let Some(mut record) = RING.reserve::<RangeRecord>(0) else {
        hook.counters.lose(Loss::RangeEventDropped);
        return;
    };
    record.write(RangeRecord {
        record: RECORD_RANGE,
        signature: signature as u32,
        flags,
        tgid: hook.tgid(),
        tid: hook.thread_id as u32,
        image: thread.image,
        entry_ns: thread.range.entry_ns,
        // SAFETY: the helper has no preconditions.
        return_ns: unsafe { bpf_ktime_get_ns() },
        stack,
        args: thread.range.args,
        result,
    });
    // Who waits at the ring waits for notices.
    record.submit(u64::from(BPF_RB_NO_WAKEUP));
}
