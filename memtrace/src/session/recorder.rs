//! Puts one snapshot together from all sources, and keeps the recording: in memory for the report,
//! in the file for later.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use memtrace_common::counters::{Loss, Tally};

use super::outputs::Sink;
use super::space::AddressSpace;
use crate::kernel::{KernelCost, KernelSnapshot};
use crate::outstanding::ranges::RangeMap;
use crate::snapshot::file::RecordingWriter;
use crate::snapshot::{
    AddressNames, GoBooks, Known, Name, Native, OwnCost, ProbeReport, ProcessMemory, RangeOwner,
    Recording, Snapshot, StackDef,
};
use crate::stacks::frames::range_owner;

pub struct Recorder {
    recording: Recording,
    writer: Option<RecordingWriter<Sink>>,
    armed: Instant,
    /// By address; what is in here is in the recording, too.
    names: HashMap<u64, Vec<Name>>,
    /// Of the stacks in which the Go runtime or an allocator maps memory for itself.
    range_owners: HashMap<u64, RangeOwner>,
}

/// All that one snapshot is made of.
pub struct Readings {
    pub kernel: KernelSnapshot,
    pub new_stacks: Vec<StackDef>,
    pub cost: KernelCost,
    pub go: Known<GoBooks>,
    pub process: Known<ProcessMemory>,
    /// memtrace's own resident memory, bytes.
    pub own_memory: u64,
    /// Why the recording ends here, at the last snapshot.
    pub ended: Option<String>,
    /// Of attached probes, in their order.
    pub hits: Vec<u64>,
    /// Attached since the last snapshot.
    pub new_probes: ProbeReport,
}

impl Recorder {
    pub fn new(
        recording: Recording,
        writer: Option<RecordingWriter<Sink>>,
        armed: Instant,
    ) -> Self {
        let (names, range_owners) = (HashMap::new(), HashMap::new());
        Self { recording, writer, armed, names, range_owners }
    }

    pub fn min_age_ns(&self) -> u64 {
        self.recording.header.min_age_ns
    }

    /// Names new stacks, composes the snapshot, appends it to the recording.
    pub fn take(
        &mut self,
        readings: Readings,
        space: &mut AddressSpace,
        ranges: &RangeMap,
    ) -> Result<()> {
        let new_names = self.name(space, &readings.new_stacks);
        let recording = &mut self.recording;
        let known_objects = recording.header.tracee.objects.len() + recording.new_objects.len();
        let new_objects = space.objects[known_objects..].to_vec();

        let kernel = readings.kernel;
        let pid = recording.header.tracee.id.pid;
        let of_process = kernel.processes.into_iter().find(|process| process.tgid == pid);
        let snapshot = Snapshot {
            sequence: u32::try_from(recording.snapshots.len()).unwrap_or(u32::MAX),
            unix_ns: unix_ns(),
            elapsed_ns: as_ns(self.armed.elapsed()),
            moving: kernel.moving,
            read_ns: kernel.read_ns,
            native: Native {
                stacks: of_process.map(|process| process.stacks).unwrap_or_default(),
                ranges: ranges
                    .ranges(kernel.monotonic_ns, &|stack| self.range_owners.get(&stack).copied()),
                losses: labelled(Loss::ALL, &kernel.losses, Loss::label),
                tallies: labelled(Tally::ALL, &kernel.tallies, Tally::label),
                hits: readings.hits,
            },
            go: readings.go,
            process: readings.process,
            own: OwnCost {
                probe_hits: readings.cost.probe_hits,
                bpf_time_ns: readings.cost.bpf_time_ns,
                kernel_memory_bytes: readings.cost.kernel_memory_bytes,
                user_memory_bytes: readings.own_memory,
                user_cpu_ns: own_cpu_ns(),
                unwind_rows: space.tables.stats().rows,
                unwind_build_ns: as_ns(space.tables.stats().build),
            },
            ended: readings.ended,
            new_probes: readings.new_probes,
        };
        if let Some(writer) = &mut self.writer {
            writer
                .append(&new_objects, &readings.new_stacks, &new_names, &snapshot)
                .context("failed to write the recording")?;
        }
        recording.new_objects.extend(new_objects);
        recording.stacks.extend(readings.new_stacks);
        recording.names.extend(new_names);
        recording.push(snapshot);
        Ok(())
    }

    /// Ends the file; what was recorded, for the report.
    pub fn finish(mut self, reason: &str) -> Result<Recording> {
        if let Some(writer) = self.writer.take() {
            writer.finish(reason).context("failed to end the recording")?;
        }
        Ok(self.recording)
    }

    /// The names that these stacks need and the recording lacks.
    fn name(&mut self, space: &mut AddressSpace, stacks: &[StackDef]) -> Vec<AddressNames> {
        let frames = stacks.iter().map(|stack| stack.frames.as_slice());
        let mut new_names = space.symbolizer.name_stacks(frames);
        new_names.retain(|names| !self.names.contains_key(&names.address));
        for names in &new_names {
            self.names.insert(names.address, names.names.clone());
        }
        for stack in stacks {
            let names = stack.frames.iter().filter_map(|address| self.names.get(address)).flatten();
            if let Some(owner) = range_owner(names) {
                self.range_owners.insert(stack.id, owner);
            }
        }
        new_names
    }
}

fn labelled<T: Copy>(
    all: &[T],
    counts: &[u64],
    label: fn(T) -> &'static str,
) -> Vec<(String, u64)> {
    all.iter().zip(counts).map(|(&counter, &count)| (label(counter).to_owned(), count)).collect()
}

/// CPU time of memtrace itself, user and system.
fn own_cpu_ns() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeVal;
    let ns = |time: TimeVal| {
        let microseconds = time.tv_sec().saturating_mul(1_000_000) + time.tv_usec();
        u64::try_from(microseconds).unwrap_or(0).saturating_mul(1_000)
    };
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| ns(usage.user_time()) + ns(usage.system_time()))
}

pub fn as_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// 0 where the clock stands before 1970.
pub fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, as_ns)
}
