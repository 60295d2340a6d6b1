//! Puts one snapshot together from all sources, and keeps the recording: in memory for the report,
//! in the file for later.

use std::collections::HashSet;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use memtrace_common::counters::{Loss, Tally};

use super::outputs::Sink;
use super::space::AddressSpace;
use crate::kernel::{Kernel, KernelSnapshot};
use crate::outstanding::ranges::RangeMap;
use crate::snapshot::file::RecordingWriter;
use crate::snapshot::{
    GoBooks, Known, Native, OwnCost, ProcessMemory, Recording, Snapshot, StackDef,
};
use crate::stacks::frames::is_go_runtime_mapping;
use crate::stacks::symbolize::Symbolizer;

pub struct Recorder {
    pub recording: Recording,
    writer: Option<RecordingWriter<Sink>>,
    symbolizer: Symbolizer,
    /// Stacks in which the Go runtime maps memory for itself.
    go_runtime_stacks: HashSet<u64>,
    named: HashSet<u64>,
    objects_written: usize,
    armed: Instant,
}

/// What is read outside of the kernel side for one snapshot.
pub struct Surroundings {
    pub go: Known<GoBooks>,
    pub process: Known<ProcessMemory>,
    /// Why the recording ends here, at the last snapshot.
    pub ended: Option<String>,
}

impl Recorder {
    pub fn new(
        recording: Recording,
        writer: Option<RecordingWriter<Sink>>,
        symbolizer: Symbolizer,
        armed: Instant,
    ) -> Self {
        let objects_written = recording.header.tracee.objects.len();
        Self {
            recording,
            writer,
            symbolizer,
            go_runtime_stacks: HashSet::new(),
            named: HashSet::new(),
            objects_written,
            armed,
        }
    }

    /// Names new stacks, composes the snapshot, appends it to the recording.
    pub fn take(
        &mut self,
        kernel: &mut Kernel,
        space: &AddressSpace,
        ranges: &RangeMap,
        read: KernelSnapshot,
        around: Surroundings,
    ) -> Result<()> {
        let first_stack = self.recording.stacks.len();
        let first_name = self.recording.names.len();
        let first_object = self.recording.new_objects.len();
        self.recording.new_objects.extend_from_slice(&space.objects[self.objects_written..]);
        self.objects_written = space.objects.len();

        let new_stacks = kernel.new_stacks().context("failed to read the stacks")?;
        self.name(space, &new_stacks);
        self.recording.stacks.extend(new_stacks);

        let snapshot = Snapshot {
            sequence: u32::try_from(self.recording.snapshots.len()).unwrap_or(u32::MAX),
            unix_ns: unix_ns(),
            elapsed_ns: as_ns(self.armed.elapsed()),
            moving: read.moving,
            read_ns: as_ns(read.took),
            native: Native {
                stacks: read.stacks,
                ranges: ranges
                    .ranges(monotonic_ns(), &|stack| self.go_runtime_stacks.contains(&stack)),
                losses: labelled(Loss::ALL, &read.losses, |loss| loss.label()),
                tallies: labelled(Tally::ALL, &read.tallies, |tally| tally.label()),
                hits: read.hits.clone(),
            },
            go: around.go,
            process: around.process,
            own: own_cost(kernel, space, &read.hits),
            ended: around.ended,
        };
        if let Some(writer) = &mut self.writer {
            writer
                .append(
                    &self.recording.new_objects[first_object..],
                    &self.recording.stacks[first_stack..],
                    &self.recording.names[first_name..],
                    &snapshot,
                )
                .context("failed to write the recording")?;
        }
        self.recording.snapshots.push(snapshot);
        Ok(())
    }

    pub fn finish(mut self, reason: &str) -> Result<Recording> {
        if let Some(writer) = self.writer.take() {
            writer.finish(reason).context("failed to end the recording")?;
        }
        Ok(self.recording)
    }

    fn name(&mut self, space: &AddressSpace, stacks: &[StackDef]) {
        self.symbolizer.update(&space.files, &|file| space.object_index(file));
        let names = self.symbolizer.symbolize(stacks.iter().flat_map(|stack| {
            stack.frames.iter().enumerate().map(|(depth, &address)| (address, depth > 0))
        }));
        for names in names {
            if self.named.insert(names.address) {
                self.recording.names.push(names);
            }
        }
        let by_address: std::collections::HashMap<u64, &[crate::snapshot::Name]> =
            self.recording.names.iter().map(|n| (n.address, n.names.as_slice())).collect();
        for stack in stacks {
            let mut functions = stack
                .frames
                .iter()
                .filter_map(|address| by_address.get(address))
                .flat_map(|names| names.iter().map(|name| name.function.as_str()));
            if is_go_runtime_mapping(&mut functions) {
                self.go_runtime_stacks.insert(stack.id);
            }
        }
    }
}

fn labelled<T: Copy>(all: &[T], counts: &[u64], label: impl Fn(T) -> &'static str) -> Vec<(String, u64)> {
    all.iter()
        .enumerate()
        .map(|(i, &counter)| (label(counter).to_owned(), counts.get(i).copied().unwrap_or(0)))
        .collect()
}

fn own_cost(kernel: &Kernel, space: &AddressSpace, hits: &[u64]) -> OwnCost {
    let cost = kernel.own_cost();
    let (user_memory_bytes, user_cpu_ns) = self_usage();
    OwnCost {
        probe_hits: hits.iter().sum(),
        bpf_time_ns: cost.bpf_time_ns,
        kernel_memory_bytes: cost.map_bytes,
        user_memory_bytes,
        user_cpu_ns,
        unwind_rows: space.unwind_rows,
        unwind_build_ns: as_ns(space.unwind_build),
    }
}

/// memtrace's own resident memory and CPU time.
fn self_usage() -> (u64, u64) {
    let rss = crate::tracee::process::Process::open(std::process::id())
        .and_then(|own| own.memory())
        .map(|memory| memory.rss)
        .unwrap_or(0);
    let cpu = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)
        .map(|usage| {
            let ns = |time: nix::sys::time::TimeVal| {
                (time.tv_sec() as u64) * 1_000_000_000 + (time.tv_usec() as u64) * 1_000
            };
            ns(usage.user_time()) + ns(usage.system_time())
        })
        .unwrap_or(0);
    (rss, cpu)
}

pub fn as_ns(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(as_ns).unwrap_or(0)
}

/// The clock of the kernel side (`CLOCK_MONOTONIC`).
pub fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(|time| (time.tv_sec() as u64) * 1_000_000_000 + time.tv_nsec() as u64)
        .unwrap_or(0)
}
