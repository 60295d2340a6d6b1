//! memtrace's kernel side: a table of contents, one thin entry point per hook.
//!
//! | hook | program | does |
//! |---|---|---|
//! | allocator entry | `call_entry` | takes the stack, remembers the request |
//! | allocator return | `call_return` | puts the block into the books |
//! | deallocator entry | `free_entry` | takes the block out of the books |
//! | mmap family entry | `range_entry` | remembers the arguments |
//! | mmap family return | `range_return` | sends the event |
//! | system call in and out, where libc is not asked | `syscall_enter`, `syscall_exit` | the two of the mmap family |
//! | thread exit, exec | `thread_exit`, `exec` | clears what is in flight, tells the user side |
//! | fork of a member of the family | `fork` | makes the child a member, tells the user side |
//! | the entries, without `bpf_loop` | `call_entry_chained`, `range_entry_chained`, `walk_frames`, `after_call_walk`, `after_range_walk` | the same, by tail calls |
//! | the loader's list of libraries changes | `link_map_changed` | distrusts what may be gone, tells the user side |
//! | allocator entry, in the benchmark | `stack_only` | takes the stack, and forgets it |
//! | allocator entry, of a self-check only | `selftest_entry` | sends the stack and its memory |
//!
//! Programs sleep never, store nothing per CPU but counters, and act only on processes in
//! `PROCESSES` while `CONFIG.armed` is set.
#![no_std]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the BPF target's AtomicU64 has no fetch_add")]
#![no_main]

mod calls;
mod chained;
mod changes;
mod count;
mod hook;
mod maps;
mod ranges;
mod selftest;
mod syscalls;
mod tasks;
mod unwind;

use aya_ebpf::macros::{raw_tracepoint, uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext, RetProbeContext};

#[uprobe]
pub fn call_entry(ctx: ProbeContext) -> u32 {
    calls::enter(&ctx);
    0
}

#[uretprobe]
pub fn call_return(ctx: RetProbeContext) -> u32 {
    calls::leave(&ctx);
    0
}

#[uprobe]
pub fn free_entry(ctx: ProbeContext) -> u32 {
    calls::free(&ctx);
    0
}

#[uprobe]
pub fn range_entry(ctx: ProbeContext) -> u32 {
    ranges::enter(&ctx);
    0
}

#[uretprobe]
pub fn range_return(ctx: RetProbeContext) -> u32 {
    ranges::leave(&ctx);
    0
}

#[uprobe]
pub fn call_entry_chained(ctx: ProbeContext) -> u32 {
    chained::enter_call(&ctx);
    0
}

#[uprobe]
pub fn range_entry_chained(ctx: ProbeContext) -> u32 {
    chained::enter_range(&ctx);
    0
}

#[uprobe]
pub fn walk_frames(ctx: ProbeContext) -> u32 {
    chained::walk_frames(&ctx);
    0
}

#[uprobe]
pub fn after_call_walk(ctx: ProbeContext) -> u32 {
    chained::after_call_walk(&ctx);
    0
}

#[uprobe]
pub fn after_range_walk(ctx: ProbeContext) -> u32 {
    chained::after_range_walk(&ctx);
    0
}

#[uprobe]
pub fn link_map_changed(ctx: ProbeContext) -> u32 {
    changes::link_map(&ctx);
    0
}

#[uprobe]
pub fn stack_only(ctx: ProbeContext) -> u32 {
    calls::take_stack(&ctx);
    0
}

#[uprobe]
pub fn selftest_entry(ctx: ProbeContext) -> u32 {
    selftest::enter(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn syscall_enter(ctx: RawTracePointContext) -> i32 {
    syscalls::enter(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn syscall_exit(ctx: RawTracePointContext) -> i32 {
    syscalls::leave(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(ctx: RawTracePointContext) -> i32 {
    tasks::exit(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec(ctx: RawTracePointContext) -> i32 {
    tasks::exec(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn fork(ctx: RawTracePointContext) -> i32 {
    tasks::fork(&ctx);
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
