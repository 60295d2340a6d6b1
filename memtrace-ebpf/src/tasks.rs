//! Threads and programs that end: what was in flight goes with them. Processes that begin: the
//! children of a member of the family are members.

use aya_ebpf::bindings::{BPF_ANY, BPF_RB_FORCE_WAKEUP};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::info;
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::{
    MEMBER_WITH_CHILDREN, NOTICE_EXEC, NOTICE_EXIT, NOTICE_FORK, NoticeRecord, RECORD_NOTICE,
};

use crate::calls::put_back;
use crate::count::Counters;
use crate::maps::{FAMILY, PROCESSES, RING, THREADS};

/// Offset of `tgid` in the kernel's `task_struct`. Set at load; 0: not known, no fork is seen.
#[unsafe(no_mangle)]
static TASK_TGID_OFFSET: u32 = 0;

/// `sched_process_exit(struct task_struct *)`, in the thread that ends.
#[inline(always)]
pub fn exit(_: &RawTracePointContext) {
    let thread_id = bpf_get_current_pid_tgid();
    let tgid = (thread_id >> 32) as u32;
    let Some(counters) = Counters::get() else { return };
    forget_thread(counters, thread_id);
    if tgid != thread_id as u32 {
        return;
    }
    let was_member = FAMILY.remove(tgid).is_ok();
    // SAFETY: only whether there is a row is looked at.
    if was_member || unsafe { PROCESSES.get(tgid) }.is_some() {
        notify(counters, NOTICE_EXIT, thread_id, 0);
    }
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`, in the parent,
/// before the child runs.
#[inline(always)]
pub fn fork(ctx: &RawTracePointContext) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: copied at once.
    if unsafe { FAMILY.get(tgid) }.copied() != Some(MEMBER_WITH_CHILDREN) {
        return;
    }
    // SAFETY: a plain static that the loader may have replaced: read as such.
    let offset = unsafe { core::ptr::read_volatile(&raw const TASK_TGID_OFFSET) };
    let child: u64 = ctx.arg(1);
    let mut child_tgid = 0_u32;
    // SAFETY: the helper checks the address; the destination is four bytes of our stack.
    let status = unsafe {
        let from = child.wrapping_add(u64::from(offset));
        bpf_probe_read_kernel((&raw mut child_tgid).cast(), 4, from as *const _)
    };
    // A thread is of its own process.
    if offset == 0 || status != 0 || child_tgid == tgid {
        return;
    }
    let Some(counters) = Counters::get() else { return };
    counters.tally(Tally::Forks);
    if FAMILY.insert(child_tgid, MEMBER_WITH_CHILDREN, BPF_ANY.into()).is_err() {
        counters.lose(Loss::FamilyFull);
        return;
    }
    notify(counters, NOTICE_FORK, u64::from(child_tgid) << 32, u64::from(tgid));
}

/// `sched_process_exec(struct task_struct *, pid_t old_pid, struct linux_binprm *)`: the new image
/// is not traced, and nothing of the old one is in flight. All other threads have ended.
#[inline(always)]
pub fn exec(ctx: &RawTracePointContext) {
    let thread_id = bpf_get_current_pid_tgid();
    let tgid = (thread_id >> 32) as u32;
    let was_traced = PROCESSES.remove(tgid).is_ok();
    // SAFETY: only whether there is a row is looked at.
    if !was_traced && unsafe { FAMILY.get(tgid) }.is_none() {
        return;
    }
    let Some(counters) = Counters::get() else { return };
    let old_tid: u32 = ctx.arg(1);
    forget_thread(counters, thread_id);
    forget_thread(counters, u64::from(tgid) << 32 | u64::from(old_tid));
    notify(counters, NOTICE_EXEC, thread_id, 0);
    if was_traced {
        info!(ctx, "process {} runs another program", tgid);
    }
}

#[inline(always)]
fn forget_thread(counters: Counters, thread_id: u64) {
    let Some(thread) = THREADS.get_ptr_mut(thread_id) else { return };
    // SAFETY: the thread that uses the row is the one that ends here.
    let thread = unsafe { &mut *thread };
    if thread.call.frame.sp != 0 {
        counters.tally(Tally::EndedInCall);
        put_back(&thread.call, thread.image);
    }
    // No one else removes it, so this cannot fail.
    let _ = THREADS.remove(thread_id);
}

/// Sends a notice, and wakes who waits for one; a full ring is counted.
#[inline(always)]
pub fn notify(counters: Counters, notice: u32, thread_id: u64, address: u64) {
    let Some(mut record) = RING.reserve::<NoticeRecord>(0) else {
        counters.lose(Loss::NoticeDropped);
        return;
    };
    record.write(NoticeRecord {
        record: RECORD_NOTICE,
        notice,
        tgid: (thread_id >> 32) as u32,
        tid: thread_id as u32,
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
        address,
    });
    record.submit(u64::from(BPF_RB_FORCE_WAKEUP));
}
