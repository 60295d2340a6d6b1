//! For `cargo xtask bench`: takes the stack at every `malloc` of a process, and does nothing else.
//!
//! `walk_only PID` prints `armed` and ends with its standard input; then it prints as JSON how many
//! walks there were and how many reached the end of the stack.

use std::io::Read;

use anyhow::{Context, Result, bail};
use memtrace::doctor::gather_plain_host;
use memtrace::kernel::{AttachOutcome, ImageNumber, Kernel, KernelConfig};
use memtrace::plan::decide::{decide, is_wanted};
use memtrace::stacks::TableStore;
use memtrace::tracee::allocators::read_some;
use memtrace::tracee::mappings::Mappings;
use memtrace::tracee::process::Process;
use memtrace_common::counters::Tally;

fn main() -> Result<()> {
    let pid = std::env::args().nth(1).context("which process?")?.parse()?;
    let process = Process::open(pid)?;
    let mut mappings = Mappings::default();
    mappings.rescan(&process)?;
    let mut tables = TableStore::new();
    tables.add(&mappings.files);
    let objects = read_some(&process, &mappings.files, &is_wanted);
    let plan = decide(&objects.objects, &gather_plain_host());
    let malloc =
        plan.probes.iter().find(|probe| probe.function == "malloc").context("it has no malloc")?;

    let mut kernel = Kernel::load(&KernelConfig { count_bpf_time: false, ..Default::default() })?;
    let space = tables.space_of(&mappings.files, &[]);
    kernel.append_unwind_rows(tables.rows())?;
    kernel.set_process(pid, ImageNumber::first(1), &space.mappings)?;
    if let AttachOutcome::Failed { reason, .. } = kernel.attach_stack_only(pid, malloc)? {
        bail!("{reason}");
    }
    kernel.arm()?;
    println!("armed");
    std::io::stdin().read_to_end(&mut Vec::new()).context("wait for the end")?;
    kernel.disarm()?;
    let tallies = kernel.snapshot(None)?.tallies;
    let tally = |which: Tally| tallies[which as usize];
    let (complete, truncated) = (tally(Tally::WalkComplete), tally(Tally::WalkTruncated));
    println!("{{\"complete\":{complete},\"truncated\":{truncated}}}");
    Ok(())
}
