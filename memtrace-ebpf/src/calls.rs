//! Allocators and deallocators: from calls to books. The rules are `memtrace_common::calls`.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use memtrace_common::calls::{self, Frame, Outcome, Return, Signature, Standing};
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::{
    BlockKey, BlockRow, CallSlot, ProcessRow, STACK_COLLISION, STACK_STORE_FULL, ThreadRow,
    TotalsKey, TotalsRow,
};

use crate::count::{Counters, add};
use crate::hook::{Hook, read_word};
use crate::maps::{BLOCKS, STACKS, TOTALS};
use crate::unwind;

const EEXIST: i32 = -17;

/// An allocator is entered: the outermost call's request and stack go into its thread's slot.
#[inline(always)]
pub fn enter(ctx: &ProbeContext) {
    let Some((hook, process, thread)) = begin(ctx) else { return };
    unwind::walk(&hook, process, thread);
    remember(&hook, thread);
}

/// An allocator is entered by an outermost call.
#[inline(always)]
pub fn begin(ctx: &ProbeContext) -> Option<(Hook, &'static ProcessRow, &'static mut ThreadRow)> {
    let hook = Hook::enter(ctx)?;
    let process = hook.process()?;
    hook.counters.hit(hook.cookie.index());
    let thread = hook.thread(process)?;
    if !is_outermost(&hook, thread) {
        hook.counters.tally(Tally::NestedCalls);
        return None;
    }
    Some((hook, process, thread))
}

/// The call whose stack was walked is in progress.
#[inline(always)]
pub fn remember(hook: &Hook, thread: &mut ThreadRow) {
    let Some(signature) = hook.cookie.signature() else { return };
    let request = calls::request(signature, hook.args());
    let ThreadRow { call, walk, image, parent, .. } = thread;
    call.frame =
        Frame { sp: hook.sp(), return_address: walk.return_address, cookie: hook.cookie.0 };
    call.request = request;
    call.stack = walk.hash;
    call.check = walk.check;
    call.old_address = 0;
    if request.old != 0 {
        match take_block(*image, request.old) {
            Some(old) => {
                call.old = old;
                call.old_address = request.old;
            }
            None => hook.counters.tally(unknown(*parent, request.old)),
        }
    }
}

/// The walk alone, for measuring it.
#[inline(always)]
pub fn take_stack(ctx: &ProbeContext) {
    let Some(hook) = Hook::enter(ctx) else { return };
    let Some(process) = hook.process() else { return };
    let Some(thread) = hook.thread(process) else { return };
    unwind::walk(&hook, process, thread);
}

/// An allocator returns: its effect happens, if it is the outermost call.
#[inline(always)]
pub fn leave(ctx: &RetProbeContext) {
    let Some(hook) = Hook::leave(ctx) else { return };
    let Some(thread) = hook.known_thread() else {
        // Of a traced process, it was entered before the probes were armed.
        if hook.process().is_some() {
            hook.counters.tally(Tally::UnarmedHits);
        }
        return;
    };
    match calls::returning(&thread.call.frame, hook.sp(), hook.cookie) {
        Return::Outermost => {}
        Return::Nested => return,
        Return::WithoutEntry => {
            hook.no_entry();
            return;
        }
        Return::BeyondStale => {
            drop_stale(&hook, thread);
            hook.counters.lose(Loss::ReturnWithoutEntry);
            return;
        }
    }
    if let Some(signature) = hook.cookie.signature() {
        settle(&hook, thread, signature);
    }
    thread.call.frame.sp = 0;
}

/// Puts the effect of the returned call into the books.
#[inline(always)]
fn settle(hook: &Hook, thread: &mut ThreadRow, signature: Signature) {
    let request = thread.call.request;
    match calls::outcome(signature, &request, hook.result(), read_word) {
        Outcome::Failed => {
            hook.counters.tally(Tally::AllocFailed);
            put_back(&thread.call, thread.image);
        }
        Outcome::Unreadable => hook.counters.lose(Loss::ArgumentUnreadable),
        Outcome::Released => {
            hook.counters.tally(Tally::FreeCalls);
            close_old(thread);
        }
        Outcome::Allocated { address } => {
            let resized = request.old != 0;
            hook.counters.tally(if resized { Tally::ReallocCalls } else { Tally::AllocCalls });
            close_old(thread);
            open_block(hook, thread, address);
        }
    }
}

/// A deallocator is entered.
#[inline(always)]
pub fn free(ctx: &ProbeContext) {
    let Some(hook) = Hook::enter(ctx) else { return };
    let mut outermost = true;
    let (image, parent) = match hook.known_thread() {
        Some(thread) => {
            outermost = is_outermost(&hook, thread);
            (thread.image, thread.parent)
        }
        None => {
            let Some(process) = hook.process() else { return };
            (process.image, process.parent)
        }
    };
    hook.counters.hit(hook.cookie.index());
    let address = hook.args()[0];
    if !outermost {
        hook.counters.tally(Tally::NestedCalls);
    } else if address == 0 {
        hook.counters.tally(Tally::FreeNull);
    } else {
        hook.counters.tally(Tally::FreeCalls);
    }
    if address == 0 {
        return;
    }
    match take_block(image, address) {
        Some(block) => close(image, block.stack, block.size),
        // Inside an allocator it may be a block that never was in the books.
        None if outermost => hook.counters.tally(unknown(parent, address)),
        None => {}
    }
}

/// Whether the call that is entered now is no part of a recorded one; drops a stale record.
#[inline(always)]
pub fn is_outermost(hook: &Hook, thread: &mut ThreadRow) -> bool {
    is_outermost_at(hook, thread, hook.sp())
}

/// The same where the thread's stack pointer is `sp`.
#[inline(always)]
pub fn is_outermost_at(hook: &Hook, thread: &mut ThreadRow, sp: u64) -> bool {
    match calls::standing(&thread.call.frame, sp, read_word) {
        Standing::Idle => true,
        Standing::InProgress => false,
        Standing::Stale => {
            drop_stale(hook, thread);
            true
        }
    }
}

#[inline(always)]
fn drop_stale(hook: &Hook, thread: &mut ThreadRow) {
    hook.counters.lose(Loss::StaleCallDropped);
    put_back(&thread.call, thread.image);
    thread.call.frame.sp = 0;
}

/// Takes a block out of the books of live blocks. Whoever removes the entry owns it.
#[inline(always)]
fn take_block(image: u32, address: u64) -> Option<BlockRow> {
    let key = BlockKey { address, image, zero: 0 };
    // SAFETY: copied before it is removed.
    let block = *unsafe { BLOCKS.get(key) }?;
    BLOCKS.remove(key).ok()?;
    Some(block)
}

/// What the free of a block is that is not in the books: of one that the process was forked with,
/// where the process that forked it still has it.
#[inline(always)]
fn unknown(parent: u32, address: u64) -> Tally {
    let key = BlockKey { address, image: parent, zero: 0 };
    // SAFETY: only whether there is a row is looked at.
    if parent != 0 && unsafe { BLOCKS.get(key) }.is_some() {
        Tally::FreeInherited
    } else {
        Tally::FreeUnknown
    }
}

/// `realloc`'s old block goes back, with its stack and its time.
#[inline(always)]
pub fn put_back(call: &CallSlot, image: u32) {
    if call.old_address == 0 {
        return;
    }
    let key = BlockKey { address: call.old_address, image, zero: 0 };
    if BLOCKS.insert(key, &call.old, BPF_NOEXIST.into()).is_err()
        && let Some(counters) = Counters::get()
    {
        counters.lose(Loss::BlockMapFull);
        counters.tally_by(Tally::UnbookedBytes, call.old.size);
    }
}

#[inline(always)]
fn close_old(thread: &ThreadRow) {
    let call = &thread.call;
    if call.old_address != 0 {
        close(thread.image, call.old.stack, call.old.size);
    }
}

/// A block is gone.
#[inline(always)]
fn close(image: u32, stack: u64, size: u64) {
    let key = TotalsKey { stack, image, zero: 0 };
    if let Some(totals) = TOTALS.get_ptr_mut(key) {
        // SAFETY: rows of TOTALS are not removed while their image runs.
        unsafe {
            add(&raw mut (*totals).freed_bytes, size);
            add(&raw mut (*totals).freed_blocks, 1);
        }
    }
}

/// A block of the thread's request is there.
#[inline(always)]
fn open_block(hook: &Hook, thread: &mut ThreadRow, address: u64) {
    let size = thread.call.request.size;
    let Some((stack, totals)) = totals_of(hook, thread) else {
        hook.counters.lose(Loss::TotalsFull);
        hook.counters.tally_by(Tally::UnbookedBytes, size);
        return;
    };
    let key = BlockKey { address, image: thread.image, zero: 0 };
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let block = BlockRow { size, stack, time_ns };
    let mut inserted = BLOCKS.insert(key, block, BPF_NOEXIST.into());
    if inserted == Err(EEXIST) {
        // SAFETY: copied before it is overwritten.
        let older = unsafe { BLOCKS.get(key) }.copied();
        inserted = BLOCKS.insert(key, block, BPF_ANY.into());
        if let (Ok(()), Some(older)) = (inserted, older) {
            hook.counters.lose(Loss::BlockReplaced);
            close(thread.image, older.stack, older.size);
        }
    }
    if inserted.is_err() {
        hook.counters.lose(Loss::BlockMapFull);
        hook.counters.tally_by(Tally::UnbookedBytes, size);
        return;
    }
    // SAFETY: rows of TOTALS are not removed while their image runs.
    unsafe {
        add(&raw mut (*totals).allocated_bytes, size);
        add(&raw mut (*totals).allocated_blocks, 1);
    }
}

/// The books of the call's stack, opened at its first block; those of a reserved stack where the
/// stack cannot be kept.
#[inline(always)]
fn totals_of(hook: &Hook, thread: &mut ThreadRow) -> Option<(u64, *mut TotalsRow)> {
    let check = thread.call.check;
    let mut key = TotalsKey { stack: thread.call.stack, image: thread.image, zero: 0 };
    if let Some(totals) = TOTALS.get_ptr_mut(key) {
        // SAFETY: rows of TOTALS are not removed while their image runs.
        if unsafe { (*totals).check } == check {
            return Some((key.stack, totals));
        }
    }
    key.stack = keep_stack(hook.counters, thread);
    if key.stack >= memtrace_common::rows::FIRST_STACK {
        let opened = TotalsRow { check, ..TotalsRow::default() };
        match TOTALS.insert(key, opened, BPF_NOEXIST.into()) {
            Ok(()) | Err(EEXIST) => {}
            Err(_) => {
                hook.counters.lose(Loss::TotalsFull);
                key.stack = STACK_STORE_FULL;
            }
        }
    }
    TOTALS.get_ptr_mut(key).map(|totals| (key.stack, totals))
}

/// Stores the thread's stack, if it is new. Returns the id that its bytes go to.
#[inline(always)]
pub fn keep_stack(counters: Counters, thread: &ThreadRow) -> u64 {
    keep(counters, thread, thread.call.stack)
}

#[inline(always)]
pub fn keep(counters: Counters, thread: &ThreadRow, stack: u64) -> u64 {
    // The row is copied by the kernel, from map to map: it is too large for our stack.
    match STACKS.insert(stack, &thread.scratch, BPF_NOEXIST.into()) {
        Ok(()) => stack,
        Err(EEXIST) => {
            // SAFETY: rows of STACKS are not removed while their image runs.
            let same =
                unsafe { STACKS.get(stack) }.is_some_and(|kept| kept.check == thread.scratch.check);
            if same {
                stack
            } else {
                counters.lose(Loss::StackHashCollision);
                STACK_COLLISION
            }
        }
        Err(_) => {
            counters.lose(Loss::StackStoreFull);
            STACK_STORE_FULL
        }
    }
}
