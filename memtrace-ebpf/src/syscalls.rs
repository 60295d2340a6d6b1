//! The mmap family where it enters the kernel: sees the calls that a program makes without libc.
//!
//! Attached only where the plan says so, in place of the probes on libc's functions, so that no call
//! is seen twice. The tracepoints are the whole host's: whatever is no such call of a traced process
//! leaves in a few instructions.

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::programs::RawTracePointContext;
use memtrace_common::calls::{Frame, system_call};
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::{ARMED, DRAINING, RangeSlot};

use crate::calls::{is_outermost_at, keep};
use crate::changes::range_goes;
use crate::hook::Hook;
use crate::ranges::send;
use crate::unwind::{self, Bounded};

/// What is needed of the tracee's registers: those from RBP to RSP, as `pt_regs` has them.
#[repr(C)]
struct Registers {
    bp: u64,
    bx: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    ax: u64,
    cx: u64,
    dx: u64,
    si: u64,
    di: u64,
    orig_ax: u64,
    ip: u64,
    cs: u64,
    flags: u64,
    sp: u64,
}

const _: () = {
    let first = core::mem::offset_of!(pt_regs, rbp);
    assert!(core::mem::offset_of!(pt_regs, rsp) - first == core::mem::offset_of!(Registers, sp));
    assert!(core::mem::offset_of!(pt_regs, r10) - first == core::mem::offset_of!(Registers, r10));
    assert!(core::mem::offset_of!(pt_regs, rip) - first == core::mem::offset_of!(Registers, ip));
};

/// `sys_enter(struct pt_regs *, long id)`
#[inline(always)]
pub fn enter(ctx: &RawTracePointContext) {
    let number: u64 = ctx.arg(1);
    let Some((place, signature)) = system_call(number) else { return };
    let Some(hook) = Hook::system_call(place, signature, ARMED) else { return };
    let Some(process) = hook.process() else { return };
    hook.counters.hit(hook.cookie.index());
    let Some(registers) = registers(ctx.arg(0)) else {
        hook.counters.lose(Loss::ArgumentUnreadable);
        return;
    };
    let Some(thread) = hook.thread(process) else { return };
    if thread.range.frame.sp != 0 {
        // A thread is in one system call at a time: the exit of the last one was not seen.
        hook.counters.lose(Loss::StaleCallDropped);
    }
    let Registers { r10, r9, r8, dx, si, di, .. } = registers;
    let args = [di, si, dx, r10, r8, r9];
    range_goes::<Bounded>(&hook, process, signature, &args);
    thread.range = RangeSlot {
        // Not in progress before its stack is known.
        frame: Frame { sp: 0, return_address: 0, cookie: hook.cookie.0 },
        // SAFETY: the helper has no preconditions.
        entry_ns: unsafe { bpf_ktime_get_ns() },
        stack: 0,
        args,
    };
    // Inside an allocator call it takes that call's stack.
    if is_outermost_at(&hook, thread, registers.sp) {
        let from = [registers.ip, registers.sp, registers.bp];
        unwind::walk_from_inside(&hook, process, thread, from);
        thread.range.stack = keep(hook.counters, thread, thread.walk.hash);
    }
    thread.range.frame.sp = registers.sp;
}

/// `sys_exit(struct pt_regs *, long ret)`
#[inline(always)]
pub fn leave(ctx: &RawTracePointContext) {
    let regs: u64 = ctx.arg(0);
    let mut number = 0_u64;
    let at = regs.wrapping_add(core::mem::offset_of!(pt_regs, orig_rax) as u64);
    // SAFETY: the destination is eight bytes of our stack; the helper checks the source.
    let status =
        unsafe { bpf_probe_read_kernel((&raw mut number).cast(), 8, at as *const _) };
    if status != 0 {
        return;
    }
    let Some((place, signature)) = system_call(number) else { return };
    let Some(hook) = Hook::system_call(place, signature, DRAINING) else { return };
    let Some(thread) = hook.known_thread() else {
        // Of a traced process, it was entered before this was armed.
        if hook.process().is_some() {
            hook.counters.tally(Tally::UnarmedHits);
        }
        return;
    };
    if thread.range.frame.sp == 0 || thread.range.frame.cookie != hook.cookie.0 {
        hook.no_entry();
        return;
    }
    thread.range.frame.sp = 0;
    send(&hook, thread, ctx.arg(1));
}

#[inline(always)]
fn registers(regs: u64) -> Option<Registers> {
    let mut registers = core::mem::MaybeUninit::<Registers>::uninit();
    let at = regs.wrapping_add(core::mem::offset_of!(pt_regs, rbp) as u64);
    // SAFETY: the destination is of that size; the helper checks the source.
    let status = unsafe {
        bpf_probe_read_kernel(
            registers.as_mut_ptr().cast(),
            size_of::<Registers>() as u32,
            at as *const _,
        )
    };
    // SAFETY: on success all of it was written; any bytes are valid.
    if status == 0 { Some(unsafe { registers.assume_init() }) } else { None }
}
