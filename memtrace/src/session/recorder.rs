//! Puts one snapshot together from all sources and writes it away: into the file for later, and
//! aside for the report at the end. No snapshot stays in memory, so memtrace's own memory does not
//! grow with their number.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use memtrace_common::counters::{Loss, Tally};

use super::explain::MemoryCost;
use super::outputs::Sink;
use super::say::warn;
use super::space::AddressSpace;
use super::spool::{Spool, Tee};
use crate::kernel::{KernelCost, KernelSnapshot, monotonic_ns};
use crate::outstanding::cohorts::Intervals;
use crate::outstanding::ranges::RangeMap;
use crate::snapshot::facts::Facts;
use crate::snapshot::file::{
    Completeness, FileError, ReadLimits, RecordingWriter, read_recording_within,
};
use crate::snapshot::{
    AddressNames, AttachedProbe, Cohorts, GoBooks, Header, Known, Name, Native, Object, OwnCost,
    ProbeReport, ProcessMemory, RangeOwner, Recording, Snapshot, StackDef,
};
use crate::stacks::frames::range_owner;
use crate::stacks::text::demangle;

pub struct Recorder {
    pid: u32,
    min_age_ns: u64,
    writer: RecordingWriter<Tee>,
    snapshots: u32,
    /// Mapped objects that the recording knows.
    objects: usize,
    /// Where it goes, for messages.
    file: String,
    /// Why the file was given up.
    failed: Option<anyhow::Error>,
    armed: Instant,
    /// The same, of the kernel side's clock.
    armed_monotonic_ns: u64,
    /// Into which the lives of blocks are cut, of the kernel side's clock.
    intervals: Intervals,
    /// By address; what is in here is in the recording, too.
    names: HashMap<u64, Vec<Name>>,
    /// The probed function by the address of its entry site: the leaf of every stack.
    probed: HashMap<u64, String>,
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
    pub memory: Known<Facts>,
    pub memory_cost: MemoryCost,
    /// memtrace's own resident memory, bytes.
    pub own_memory: u64,
    /// Why the recording ends here, at the last snapshot.
    pub ended: Option<String>,
    /// Of attached probes, in their order.
    pub hits: Vec<u64>,
    /// Attached since the last snapshot.
    pub new_probes: ProbeReport,
    /// The name of the phase that begins here.
    pub mark: Option<String>,
}

impl Recorder {
    /// Starts the file, if there is to be one.
    pub fn start(header: &Header, sink: Option<Sink>, armed: Instant) -> Result<Self> {
        let file = sink.as_ref().map(|sink| sink.name().to_owned()).unwrap_or_default();
        let tee = Tee::new(sink, Spool::default());
        let mut writer = RecordingWriter::create(tee, header)?;
        if let Some(source) = writer.output().take_failure() {
            return Err(FileError::Write(source))
                .with_context(|| format!("failed to start the recording in {file}"));
        }
        let (names, range_owners) = (HashMap::new(), HashMap::new());
        let Header { probes, tracee, .. } = header;
        let probed = probed_functions(&probes.attached, &tracee.objects).collect();
        Ok(Self {
            pid: tracee.id.pid,
            min_age_ns: header.min_age_ns,
            writer,
            snapshots: 0,
            objects: tracee.objects.len(),
            file,
            failed: None,
            armed,
            armed_monotonic_ns: monotonic_ns().saturating_sub(as_ns(armed.elapsed())),
            intervals: Intervals::default(),
            names,
            probed,
            range_owners,
        })
    }

    pub fn min_age_ns(&self) -> u64 {
        self.min_age_ns
    }

    /// The instants that end an interval so far, of the kernel side's clock.
    pub fn births(&self) -> &[u64] {
        self.intervals.ends_ns()
    }

    /// How many snapshots were taken.
    pub fn snapshots(&self) -> u32 {
        self.snapshots
    }

    /// Names new stacks, composes the snapshot, appends it to the recording.
    pub fn take(&mut self, readings: Readings, space: &mut AddressSpace, ranges: &RangeMap) {
        let new_probes = probed_functions(&readings.new_probes.attached, &space.objects);
        self.probed.extend(new_probes);
        let new_names = self.name(space, &readings.new_stacks);
        let new_objects = space.objects.get(self.objects..).unwrap_or_default();

        let kernel = readings.kernel;
        let of_process = kernel.processes.into_iter().find(|process| process.tgid == self.pid);
        let (stacks, cohorts) =
            of_process.map(|process| (process.stacks, process.cohorts)).unwrap_or_default();
        // As the blocks were counted: the interval that ends with this reading is the last one.
        let since_armed = |at: u64| at.saturating_sub(self.armed_monotonic_ns);
        let ends = self.intervals.ends_ns().iter().chain([&kernel.monotonic_ns]);
        let ends_ns = ends.map(|end| since_armed(*end)).collect();
        let snapshot = Snapshot {
            sequence: self.snapshots,
            unix_ns: unix_ns(),
            elapsed_ns: as_ns(self.armed.elapsed()),
            moving: kernel.moving,
            read_ns: kernel.read_ns,
            native: Native {
                stacks,
                ranges: ranges
                    .ranges(kernel.monotonic_ns, &|stack| self.range_owners.get(&stack).copied()),
                losses: labelled(Loss::ALL, &kernel.losses, Loss::label)
                    .into_iter()
                    .chain(ranges.anomalies().counters().map(|line| (line.0.to_owned(), line.1)))
                    .collect(),
                tallies: labelled(Tally::ALL, &kernel.tallies, Tally::label),
                hits: readings.hits,
                ages_at_ns: since_armed(kernel.monotonic_ns),
                cohorts: Cohorts { ends_ns, rows: cohorts },
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
                container_read_ns: as_ns(readings.memory_cost.whole),
                heap_read_ns: readings.memory_cost.heap.map(as_ns),
            },
            ended: readings.ended,
            new_probes: readings.new_probes,
            memory: readings.memory,
            mark: readings.mark,
        };
        self.intervals.snapshot_at(kernel.monotonic_ns);
        let appended = self.writer.append(new_objects, &readings.new_stacks, &new_names, &snapshot);
        self.objects = space.objects.len();
        self.snapshots = self.snapshots.saturating_add(1);
        let failure = self.writer.output().take_failure().map(FileError::Write);
        if let Some(error) = appended.err().or(failure) {
            self.give_up(error);
        }
    }

    /// A full disk ends the file, which stays readable up to there, and not the tracing.
    fn give_up(&mut self, error: FileError) {
        self.writer.output().close_sink();
        let gone = |source: &std::io::Error| source.kind() == std::io::ErrorKind::BrokenPipe;
        if matches!(&error, FileError::Write(source) if gone(source)) {
            // A reader that went away (`| head`) is no error.
            return;
        }
        let error = anyhow::Error::from(error)
            .context(format!("the recording in {} ends early", self.file));
        warn(format_args!("{error:#}; the tracing goes on"));
        self.failed = Some(error);
    }

    /// Ends the file; what was recorded, for the report, and whether the file holds all of it.
    pub fn finish(self, reason: &str) -> Result<(Recording, Result<()>)> {
        let Self { writer, file, failed, .. } = self;
        let mut tee = writer.finish(reason)?;
        let mut written = failed.map_or(Ok(()), Err);
        match tee.take_failure() {
            Some(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
                written = written.and(
                    Err(FileError::Write(source))
                        .with_context(|| format!("the recording in {file} ends early")),
                );
            }
            _ => {}
        }
        // Written by this process: no limit but what there is.
        let limits = ReadLimits { total_raw_bytes: u64::MAX, ..ReadLimits::default() };
        let spool = tee.into_spool().context("failed to read back what was recorded")?;
        let (recording, completeness) = read_recording_within(spool, &limits)
            .context("failed to read back what was recorded")?;
        if let Completeness::Torn(torn) = completeness {
            let lost = anyhow!("what was set aside for the report is {torn}");
            warn(format_args!("{lost:#}: the report ends there"));
            written = written.and(Err(lost));
        }
        Ok((recording, written))
    }

    /// The names that these stacks need and the recording lacks.
    fn name(&mut self, space: &mut AddressSpace, stacks: &[StackDef]) -> Vec<AddressNames> {
        let frames = stacks.iter().map(|stack| stack.frames.as_slice());
        let mut new_names = space.symbolizer.name_stacks(frames);
        new_names.retain(|names| !self.names.contains_key(&names.address));
        for names in &mut new_names {
            if let Some(function) = self.probed.get(&names.address) {
                name_as_probed(&mut names.names, function);
            }
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

/// Where each probe stands in the tracee, and what the plan calls the function there.
fn probed_functions(
    probes: &[AttachedProbe],
    objects: &[Object],
) -> impl Iterator<Item = (u64, String)> {
    probes.iter().flat_map(|probe| {
        let site = probe.function_file_offset.saturating_add(probe.entry_site);
        let objects = objects.iter().filter(|object| object.path == probe.object);
        let mappings = objects.flat_map(|object| &object.mappings);
        mappings.filter_map(move |mapping| {
            let offset = site.checked_sub(mapping.file_offset)?;
            let at = mapping.start.checked_add(offset).filter(|at| *at < mapping.end)?;
            Some((at, demangle(&probe.function).into_owned()))
        })
    })
}

/// The function under the name that was probed (`malloc`) instead of another one of the same code
/// (`__libc_malloc`), which the debug information may prefer. File and line stay.
fn name_as_probed(names: &mut Vec<Name>, function: &str) {
    match names.iter_mut().find(|name| !name.inlined) {
        Some(name) => function.clone_into(&mut name.function),
        None => names.push(Name {
            function: function.to_owned(),
            file: None,
            line: None,
            inlined: false,
        }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::synthetic;

    fn name(function: &str, inlined: bool) -> Name {
        Name { function: function.into(), file: Some("malloc.c".into()), line: Some(7), inlined }
    }

    #[test]
    fn the_leaf_has_the_name_that_was_probed_and_keeps_its_line() {
        let mut names = vec![name("checked_request2size", true), name("__libc_malloc", false)];
        name_as_probed(&mut names, "malloc");
        assert_eq!(names, [name("checked_request2size", true), name("malloc", false)]);
    }

    #[test]
    fn a_leaf_without_a_name_gets_the_one_that_was_probed() {
        let mut names = Vec::new();
        name_as_probed(&mut names, "malloc");
        let expected = Name { file: None, line: None, ..name("malloc", false) };
        assert_eq!(names, [expected]);
    }

    #[test]
    fn a_probe_is_found_at_its_entry_site_in_its_own_object_only() {
        let mut header = synthetic::recording().header;
        header.probes.attached[0].entry_site = 4;
        let objects = &header.tracee.objects;
        let functions: HashMap<_, _> = probed_functions(&header.probes.attached, objects).collect();
        let probe = &header.probes.attached[0];
        let libc = objects.iter().find(|object| object.path == probe.object).unwrap();
        let mapping = &libc.mappings[0];
        let at = mapping.start + probe.function_file_offset + 4 - mapping.file_offset;
        assert_eq!(functions.get(&at).map(String::as_str), Some("malloc"));
        assert_eq!(functions.len(), header.probes.attached.len());
    }

    #[test]
    fn a_probe_outside_of_every_mapping_names_nothing() {
        let mut header = synthetic::recording().header;
        for probe in &mut header.probes.attached {
            probe.entry_site = u64::MAX;
        }
        let found = probed_functions(&header.probes.attached, &header.tracee.objects);
        assert_eq!(found.count(), 0);
    }
}
