//! Threads and programs that end: what was in flight goes with them.

use aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::info;
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::{NOTICE_EXEC, NOTICE_EXIT, NoticeRecord, RECORD_NOTICE};

use crate::calls::put_back;
use crate::count::Counters;
use crate::maps::{PROCESSES, RING, THREADS};

/// `sched_process_exit(struct task_struct *)`, in the thread that ends.
#[inline(always)]
pub fn exit(_: &RawTracePointContext) {
    let thread_id = bpf_get_current_pid_tgid();
    let tgid = (thread_id >> 32) as u32;
    let Some(counters) = Counters::get() else { return };
    forget_thread(counters, thread_id);
    let leads = tgid == thread_id as u32;
    // SAFETY: only whether there is a row is looked at.
    if leads && unsafe { PROCESSES.get(tgid) }.is_some() {
        notify(counters, NOTICE_EXIT, thread_id, 0);
    }
}

/// `sched_process_exec(struct task_struct *, pid_t old_pid, struct linux_binprm *)`: the new image
/// is not traced, and nothing of the old one is in flight. All other threads have ended.
#[inline(always)]
pub fn exec(ctx: &RawTracePointContext) {
    let thread_id = bpf_get_current_pid_tgid();
    let tgid = (thread_id >> 32) as u32;
    if PROCESSES.remove(tgid).is_err() {
        return;
    }
    let Some(counters) = Counters::get() else { return };
    let old_tid: u32 = ctx.arg(1);
    forget_thread(counters, thread_id);
    forget_thread(counters, u64::from(tgid) << 32 | u64::from(old_tid));
    notify(counters, NOTICE_EXEC, thread_id, 0);
    info!(ctx, "process {} runs another program and is traced no more", tgid);
}

#[inline(always)]
fn forget_thread(counters: Counters, thread_id: u64) {
    let Some(thread) = THREADS.get_ptr_mut(thread_id) else { return };
    // SAFETY: the thread that uses the row is the one that ends here.
    let thread = unsafe { &mut *thread };
    if thread.call.frame.sp != 0 {
        counters.tally(Tally::EndedInCall);
        put_back(&thread.call, (thread_id >> 32) as u32);
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
