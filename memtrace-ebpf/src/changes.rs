//! Mappings that go: noticed when it happens, so that no walk uses the rows of what was there.
//!
//! The dynamic loader calls an empty function before and after it changes its list of libraries, for
//! debuggers (`_dl_debug_state`). Of other code that unmaps, what goes through the probed mmap family
//! is seen. What makes the system call itself is not: then the user side's next look, within a
//! second, is the first to know.
//!
//! `CHANGES` counts; a row of `PROCESSES` carries the count of before its mappings were read. While
//! the two differ, a walk takes no step by rows of mappings that may go.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::programs::ProbeContext;
use memtrace_common::calls::Signature;
use memtrace_common::rows::{
    ChangesRow, NOTICE_MAPPINGS_CHANGED, ProcessRow, TRUST_ALL, TRUST_NONE, TRUST_WHAT_STAYS,
};

use crate::count::add;
use crate::hook::Hook;
use crate::maps::CHANGES;
use crate::tasks::notify;
use crate::unwind::{Overlap, Steps, overlapped};

/// The loader tells of a change. The probe's cookie is the address of its `r_state`; 0: none known.
#[inline(always)]
pub fn link_map(ctx: &ProbeContext) {
    // Before it is armed as well: what is read meanwhile must not be trusted later.
    let Some(hook) = Hook::resume(ctx) else { return };
    let Some(process) = hook.process() else { return };
    let Some(changes) = changes_of(process) else { return };
    let mut state = u32::MAX;
    // SAFETY: the helper checks the user address; the destination is four bytes of our stack.
    let status =
        unsafe { bpf_probe_read_user((&raw mut state).cast(), 4, hook.cookie.0 as *const _) };
    if status != 0 {
        state = u32::MAX;
    }
    // SAFETY: a live map value; the loader calls this under its lock, one thread at a time.
    unsafe {
        let by = (*changes).by(state);
        (*changes).state = state;
        add(&raw mut (*changes).count, by);
    }
    notify(hook.counters, NOTICE_MAPPINGS_CHANGED, hook.thread_id, 0);
}

/// A range call is entered, or has returned: does it take addresses away from mapped code?
///
/// Both times: the user side may read the mappings between the entry and the effect, and another
/// thread may map code there between the effect and the return.
#[inline(always)]
pub fn range_goes<S: Steps>(
    hook: &Hook,
    process: &ProcessRow,
    signature: Signature,
    args: &[u64; 6],
) {
    const MAP_FIXED: u64 = 0x10;
    let goes = match signature {
        Signature::Munmap | Signature::Mremap => true,
        Signature::Mmap => args[3] & MAP_FIXED != 0,
        _ => false,
    };
    if !goes {
        return;
    }
    went::<S>(hook, process, args[0], args[1]);
    const MREMAP_FIXED: u64 = 2;
    if signature as u8 == Signature::Mremap as u8 && args[3] & MREMAP_FIXED != 0 {
        went::<S>(hook, process, args[4], args[2]);
    }
}

#[inline(always)]
fn went<S: Steps>(hook: &Hook, process: &ProcessRow, start: u64, length: u64) {
    let overlap = overlapped::<S>(process, start, start.wrapping_add(length));
    if overlap == Overlap::None {
        return;
    }
    let Some(changes) = changes_of(process) else { return };
    // SAFETY: a live map value; all who write these words add to them atomically.
    unsafe {
        if overlap == Overlap::OfWhatStays {
            add(&raw mut (*changes).beyond, 1);
        }
        add(&raw mut (*changes).count, 2);
    }
    notify(hook.counters, NOTICE_MAPPINGS_CHANGED, hook.thread_id, start);
}

#[inline(always)]
fn changes_of(process: &ProcessRow) -> Option<*mut ChangesRow> {
    CHANGES.get_ptr_mut(process.slot)
}

/// Which rows of the process a walk that starts now may use, and the count of now.
#[inline(always)]
pub fn trust(process: &ProcessRow) -> (u32, u64) {
    let Some(changes) = changes_of(process) else { return (TRUST_NONE, 0) };
    // SAFETY: a live map value; other CPUs write it.
    let (count, beyond) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*changes).count),
            core::ptr::read_volatile(&raw const (*changes).beyond),
        )
    };
    let distrust = if beyond != process.beyond {
        TRUST_NONE
    } else if count != process.changes || count % 2 == 1 {
        TRUST_WHAT_STAYS
    } else {
        TRUST_ALL
    };
    (distrust, count)
}
