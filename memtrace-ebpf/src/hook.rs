//! What every probe does first: is it armed, whose call is it, where does the thread stand.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_NOEXIST, pt_regs};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_probe_read_user};
use memtrace_common::calls::{Cookie, Signature};
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::{ARMED, CHAINED_PROGRAMS, ConfigRow, DRAINING, ProcessRow, ThreadRow};

use crate::count::Counters;
use crate::maps::{CHAIN, CONFIG, FRESH_THREAD, PROCESSES, THREADS};

/// An armed probe that was hit.
pub struct Hook {
    pub regs: *const pt_regs,
    pub counters: Counters,
    pub config: &'static ConfigRow,
    /// `tgid << 32 | tid`
    pub thread_id: u64,
    pub cookie: Cookie,
}

impl Hook {
    /// At an entry. `None`: not armed, and counted.
    #[inline(always)]
    pub fn enter(ctx: &impl EbpfContext) -> Option<Self> {
        Self::arrive(ctx, ARMED)
    }

    /// At a return, which also counts while draining. `None`: not armed, and counted.
    #[inline(always)]
    pub fn leave(ctx: &impl EbpfContext) -> Option<Self> {
        Self::arrive(ctx, DRAINING)
    }

    /// In a program that an entry's program has called: whether it is armed was asked then.
    #[inline(always)]
    pub fn resume(ctx: &impl EbpfContext) -> Option<Self> {
        let counters = Counters::get()?;
        let config = CONFIG.get(0)?;
        if config.armed > DRAINING {
            stay_off_private_stacks(ctx);
        }
        Some(Self::new(ctx, counters, config))
    }

    /// At a system call, in the kernel: `or` is the state besides [`ARMED`] in which it acts. There
    /// are no registers of a probe. `None`: not armed; not counted, as it is seen host-wide.
    #[inline(always)]
    pub fn system_call(place: u16, signature: Signature, or: u32) -> Option<Self> {
        let counters = Counters::get()?;
        let config = CONFIG.get(0)?;
        if config.system_calls == 0 || (config.armed != ARMED && config.armed != or) {
            return None;
        }
        let index = (config.system_calls as u16).wrapping_sub(1).wrapping_add(place);
        let thread_id = bpf_get_current_pid_tgid();
        let cookie = Cookie::new(index, signature);
        Some(Self { regs: core::ptr::null(), counters, config, thread_id, cookie })
    }

    #[inline(always)]
    fn new(ctx: &impl EbpfContext, counters: Counters, config: &'static ConfigRow) -> Self {
        let thread_id = bpf_get_current_pid_tgid();
        // SAFETY: the context is the program's own.
        let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
        Self { regs: ctx.as_ptr().cast(), counters, config, thread_id, cookie }
    }

    #[inline(always)]
    fn arrive(ctx: &impl EbpfContext, or: u32) -> Option<Self> {
        let counters = Counters::get()?;
        let config = CONFIG.get(0)?;
        if config.armed != ARMED && config.armed != or {
            counters.tally(Tally::UnarmedHits);
            if config.armed > DRAINING {
                stay_off_private_stacks(ctx);
            }
            return None;
        }
        let hook = Self::new(ctx, counters, config);
        if !hook.cookie.is_of(hook.tgid()) {
            counters.tally(Tally::ForeignHits);
            return None;
        }
        Some(hook)
    }

    /// A return whose entry is not in the books; while draining it was not to be.
    #[inline(always)]
    pub fn no_entry(&self) {
        if self.config.armed == ARMED {
            self.counters.lose(Loss::ReturnWithoutEntry);
        } else {
            self.counters.tally(Tally::UnarmedHits);
        }
    }

    #[inline(always)]
    pub fn tgid(&self) -> u32 {
        (self.thread_id >> 32) as u32
    }

    /// The thread's row, where it has one: then its process is traced.
    #[inline(always)]
    pub fn known_thread(&self) -> Option<&'static mut ThreadRow> {
        // SAFETY: only the thread itself uses its row, and it is removed at the thread's exit.
        THREADS.get_ptr_mut(self.thread_id).map(|row| unsafe { &mut *row })
    }

    /// The mappings of the thread's process. `None`: not traced, and counted.
    #[inline(always)]
    pub fn process(&self) -> Option<&'static ProcessRow> {
        // SAFETY: read only; a row replaced meanwhile is noticed by its generation.
        let process = unsafe { PROCESSES.get(self.tgid()) };
        if process.is_none() {
            self.counters.tally(Tally::ForeignHits);
        }
        process
    }

    /// The thread's row, made at its first call. `None`: there is no room, and counted.
    #[inline(always)]
    pub fn thread(&self, process: &ProcessRow) -> Option<&'static mut ThreadRow> {
        if let Some(thread) = self.known_thread() {
            return Some(thread);
        }
        let fresh = FRESH_THREAD.get(0)?;
        let inserted = THREADS.insert(self.thread_id, fresh, BPF_NOEXIST.into());
        let Some(thread) = self.known_thread() else {
            self.counters.lose(Loss::ThreadStateFull);
            return None;
        };
        if inserted.is_err() {
            self.counters.lose(Loss::ThreadStateFull);
        }
        thread.image = process.image;
        thread.parent = process.parent;
        Some(thread)
    }

    #[inline(always)]
    pub fn sp(&self) -> u64 {
        // SAFETY: the context of a uprobe is the tracee's registers.
        unsafe { (*self.regs).rsp }
    }

    /// The first four arguments.
    #[inline(always)]
    pub fn args(&self) -> [u64; 4] {
        // SAFETY: as in `sp`.
        unsafe { [(*self.regs).rdi, (*self.regs).rsi, (*self.regs).rdx, (*self.regs).rcx] }
    }

    /// All six arguments that travel in registers.
    #[inline(always)]
    pub fn all_args(&self) -> [u64; 6] {
        let [a, b, c, d] = self.args();
        // SAFETY: as in `sp`.
        unsafe { [a, b, c, d, (*self.regs).r8, (*self.regs).r9] }
    }

    /// What the function returned.
    #[inline(always)]
    pub fn result(&self) -> u64 {
        // SAFETY: as in `sp`.
        unsafe { (*self.regs).rax }
    }
}

/// Never called: that it stands in a program is what matters.
///
/// From Linux 6.13 on, the x86 kernel gives a probe program that uses 64 bytes of stack or more one
/// stack per CPU, and relies on its not starting twice on a CPU. A uprobe's program runs in a thread
/// that can be preempted by another that enters the same program: both then write one stack, and the
/// kernel kills what it corrupts. A program with a tail call anywhere stays on the thread's own
/// kernel stack (`check_max_stack_depth`, kernel/bpf/verifier.c).
#[inline(always)]
fn stay_off_private_stacks(ctx: &impl EbpfContext) {
    // SAFETY: there is no such place: the call returns at once.
    unsafe { CHAIN.tail_call(ctx, CHAINED_PROGRAMS) };
}

/// The eight bytes at an address of the tracee; never faults a page in.
#[inline(always)]
pub fn read_word(address: u64) -> Option<u64> {
    let mut word = 0_u64;
    // SAFETY: the helper checks the user address; the destination is eight bytes of our stack.
    let status = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const _) };
    if status == 0 { Some(word) } else { None }
}

/// The sixteen bytes at an address of the tracee.
#[inline(always)]
pub fn read_pair(address: u64) -> Option<[u64; 2]> {
    let mut pair = [0_u64; 2];
    // SAFETY: as in `read_word`, sixteen bytes.
    let status = unsafe { bpf_probe_read_user((&raw mut pair).cast(), 16, address as *const _) };
    if status == 0 { Some(pair) } else { None }
}

/// As many bytes of the tracee as `to` has room for: all of them, or `false`.
#[inline(always)]
pub fn copy<T>(to: *mut T, address: u64) -> bool {
    // SAFETY: as in `read_word`; the destination is the caller's, of that size.
    unsafe { bpf_probe_read_user(to.cast(), size_of::<T>() as u32, address as *const _) == 0 }
}
