//! Puts one snapshot together from all sources and writes it away: into the file for later, and
//! aside for the report at the end. No snapshot stays in memory, so memtrace's own memory does not
//! grow with their number.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use memtrace_common::counters::{Loss, Tally};

use super::container_memory::MemoryCost;
use super::image::TracedImage;
use super::outputs::Sink;
use super::say::warn;
use super::space::Tables;
use super::spool::{Spool, Tee};
use crate::kernel::{KernelCost, KernelSnapshot, monotonic_ns};
use crate::outstanding::cohorts::Intervals;
use crate::outstanding::frames::CodeAddress;
use crate::outstanding::ranges::RangeAnomalies;
use crate::snapshot::facts::Facts;
use crate::snapshot::file::{
    Completeness, FileError, ReadLimits, RecordingWriter, read_recording_within,
};
use crate::snapshot::{
    AddressNames, AttachedProbe, ClosedImage, CohortRow, Cohorts, GoBooks, Header, ImageBooks,
    ImageTotals, Known, Name, Native, Object, OwnCost, ProbeReport, ProcessMemory, Range,
    RangeOwner, Recording, Snapshot, StackDef, StackTotals, Untraced,
};
use crate::stacks::frames::range_owner;
use crate::stacks::text::demangle;

pub struct Recorder {
    min_age_ns: u64,
    writer: RecordingWriter<Tee>,
    snapshots: u32,
    /// Mapped objects that the recording knows; those of the first image stand in its header.
    objects: usize,
    first_objects: usize,
    /// All so far.
    attached: Vec<AttachedProbe>,
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
    names: HashMap<CodeAddress, Vec<Name>>,
    /// The probed function by the address of its entry site: the leaf of every stack.
    probed: HashMap<CodeAddress, String>,
    /// Of the stacks in which the Go runtime or an allocator maps memory for itself.
    range_owners: HashMap<u64, RangeOwner>,
    pending: Pending,
}

/// What the next snapshot brings along.
#[derive(Default)]
struct Pending {
    objects: Vec<Object>,
    stacks: Vec<StackDef>,
    names: Vec<AddressNames>,
    probes: ProbeReport,
    images: Vec<crate::snapshot::Image>,
    closed: Vec<ClosedImage>,
    /// Of images whose books are closed.
    anomalies: Vec<RangeAnomalies>,
}

/// All that one snapshot is made of.
pub struct Readings {
    pub kernel: KernelSnapshot,
    pub cost: KernelCost,
    pub go: Known<GoBooks>,
    /// Of each open image, in their order.
    pub processes: Vec<Known<ProcessMemory>>,
    pub memory: Known<Facts>,
    pub memory_cost: MemoryCost,
    /// memtrace's own resident memory, bytes.
    pub own_memory: u64,
    /// Why the recording ends here, at the last snapshot.
    pub ended: Option<String>,
    /// Of attached probes, in their order.
    pub hits: Vec<u64>,
    pub untraced: Untraced,
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
        Ok(Self {
            min_age_ns: header.min_age_ns,
            writer,
            snapshots: 0,
            first_objects: header.tracee.objects.len(),
            objects: header.tracee.objects.len(),
            attached: header.probes.attached.clone(),
            file,
            failed: None,
            armed,
            armed_monotonic_ns: monotonic_ns().saturating_sub(as_ns(armed.elapsed())),
            intervals: Intervals::default(),
            names: HashMap::new(),
            probed: HashMap::new(),
            range_owners: HashMap::new(),
            pending: Pending::default(),
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

    /// Takes what came since the last time: images, their objects, probes; and names new stacks.
    pub fn learn(
        &mut self,
        images: &mut [TracedImage],
        new_probes: ProbeReport,
        new_stacks: Vec<StackDef>,
    ) {
        self.attached.extend_from_slice(&new_probes.attached);
        self.pending.probes.attached.extend(new_probes.attached);
        self.pending.probes.not_probed.extend(new_probes.not_probed);
        for image in images.iter_mut() {
            if !image.is_told {
                image.is_told = true;
                self.pending.images.push(image.definition());
            }
            let known = image.objects_told.len();
            for object in image.space.objects.get(known..).unwrap_or_default() {
                // Those of the first image stand in the header already.
                let position = image.objects_told.len();
                let at = if image.number == 1 && position < self.first_objects {
                    position
                } else {
                    self.pending.objects.push(object.clone());
                    self.objects += 1;
                    self.objects - 1
                };
                image.objects_told.push(u32::try_from(at).unwrap_or(u32::MAX));
            }
            let number = image.number;
            let probed = probed_functions(self.attached.iter(), &image.space.objects);
            self.probed.extend(
                probed.map(|(address, name)| (CodeAddress { image: number, address }, name)),
            );
            let own: Vec<&StackDef> =
                new_stacks.iter().filter(|stack| stack.image == number).collect();
            let names = self.name(image, &own);
            self.pending.names.extend(names);
        }
        self.pending.stacks.extend(new_stacks);
    }

    /// Closes the books of images that have ended while others go on: their last state.
    pub fn close(&mut self, kernel: &mut KernelSnapshot, ended: Vec<TracedImage>) {
        for image in ended {
            let Some((how, elapsed_ns)) = image.ended else { continue };
            let found = kernel.processes.iter_mut().find(|it| it.image == image.number);
            self.pending.closed.push(ClosedImage {
                image: image.number,
                how,
                elapsed_ns,
                stacks: found.map(|it| std::mem::take(&mut it.stacks)).unwrap_or_default(),
                ranges: self.ranges_of(&image, kernel.monotonic_ns),
            });
            self.pending.anomalies.push(image.ranges.anomalies());
        }
    }

    fn ranges_of(&self, image: &TracedImage, now_ns: u64) -> Vec<Range> {
        let owner = |stack| self.range_owners.get(&stack).copied();
        let mut ranges = image.ranges.ranges(now_ns, &owner);
        ranges.iter_mut().for_each(|range| range.image = image.number);
        ranges
    }

    /// Composes the snapshot, appends it to the recording.
    pub fn take(&mut self, readings: Readings, images: &[TracedImage], tables: &Tables) {
        let kernel = readings.kernel;
        let mut stacks: BTreeMap<u64, StackTotals> = BTreeMap::new();
        let mut cohorts: BTreeMap<(u64, u32), CohortRow> = BTreeMap::new();
        let mut books = Vec::with_capacity(images.len());
        for (image, memory) in images.iter().zip(&readings.processes) {
            let of_image = kernel.processes.iter().find(|it| it.image == image.number);
            let rows = of_image.map_or(&[][..], |it| &it.stacks);
            books.push(ImageBooks {
                image: image.number,
                totals: ImageTotals::of(rows),
                memory: memory.clone(),
                ended: !image.is_running(),
            });
            for row in rows {
                // The reserved stacks are of all images.
                stacks.entry(row.stack).and_modify(|sum| add_row(sum, row)).or_insert(*row);
            }
            for row in of_image.map_or(&[][..], |it| &it.cohorts) {
                let empty = CohortRow { bytes: 0, blocks: 0, ..*row };
                let sum = cohorts.entry((row.stack, row.cohort)).or_insert(empty);
                sum.bytes = sum.bytes.saturating_add(row.bytes);
                sum.blocks = sum.blocks.saturating_add(row.blocks);
            }
        }
        let anomalies = images.iter().map(|image| image.ranges.anomalies());
        let anomalies: Vec<_> = anomalies.chain(self.pending.anomalies.iter().cloned()).collect();
        let mut losses = labelled(Loss::ALL, &kernel.losses, Loss::label);
        for (at, (label, ..)) in RangeAnomalies::default().counters().iter().enumerate() {
            let counts = anomalies.iter().map(|anomalies| anomalies.counters()[at].1);
            losses.push(((*label).to_owned(), counts.sum()));
        }
        let Pending {
            objects, stacks: new_stacks, names, probes, images: new_images, closed, ..
        } = std::mem::take(&mut self.pending);
        self.pending.anomalies = anomalies.into_iter().skip(images.len()).collect();
        let now_ns = kernel.monotonic_ns;
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
                stacks: stacks.into_values().collect(),
                ranges: images.iter().flat_map(|image| self.ranges_of(image, now_ns)).collect(),
                losses,
                tallies: labelled(Tally::ALL, &kernel.tallies, Tally::label),
                hits: readings.hits,
                ages_at_ns: since_armed(kernel.monotonic_ns),
                cohorts: Cohorts { ends_ns, rows: cohorts.into_values().collect() },
            },
            go: readings.go,
            process: together(&readings.processes),
            own: OwnCost {
                probe_hits: readings.cost.probe_hits,
                bpf_time_ns: readings.cost.bpf_time_ns,
                kernel_memory_bytes: readings.cost.kernel_memory_bytes,
                user_memory_bytes: readings.own_memory,
                user_cpu_ns: own_cpu_ns(),
                unwind_rows: tables.store.stats().rows,
                unwind_build_ns: as_ns(tables.store.stats().build),
                container_read_ns: as_ns(readings.memory_cost.whole),
                heap_read_ns: readings.memory_cost.heap.map(as_ns),
            },
            ended: readings.ended,
            new_probes: probes,
            memory: readings.memory,
            new_images,
            images: books,
            closed,
            untraced: readings.untraced,
            mark: readings.mark,
        };
        self.intervals.snapshot_at(kernel.monotonic_ns);
        let appended = self.writer.append(&objects, &new_stacks, &names, &snapshot);
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

    /// The names that these stacks of an image need and the recording lacks.
    fn name(&mut self, image: &mut TracedImage, stacks: &[&StackDef]) -> Vec<AddressNames> {
        let number = image.number;
        let at = |address| CodeAddress { image: number, address };
        let frames = stacks.iter().map(|stack| stack.frames.as_slice());
        let mut new_names = image.space.symbolizer.name_stacks(frames);
        new_names.retain(|names| !self.names.contains_key(&at(names.address)));
        for names in &mut new_names {
            names.image = number;
            let object = names.object.and_then(|object| image.objects_told.get(object as usize));
            names.object = object.copied();
            if let Some(function) = self.probed.get(&at(names.address)) {
                name_as_probed(&mut names.names, function);
            }
            self.names.insert(at(names.address), names.names.clone());
        }
        for stack in stacks {
            let names = stack.addresses().filter_map(|at| self.names.get(&at)).flatten();
            if let Some(owner) = range_owner(names) {
                self.range_owners.insert(stack.id, owner);
            }
        }
        new_names
    }
}

fn add_row(sum: &mut StackTotals, row: &StackTotals) {
    sum.allocated_bytes = sum.allocated_bytes.saturating_add(row.allocated_bytes);
    sum.allocated_blocks = sum.allocated_blocks.saturating_add(row.allocated_blocks);
    sum.freed_bytes = sum.freed_bytes.saturating_add(row.freed_bytes);
    sum.freed_blocks = sum.freed_blocks.saturating_add(row.freed_blocks);
    let Some(live) = row.live else { return };
    let Some(all) = &mut sum.live else {
        sum.live = Some(live);
        return;
    };
    let youngest = match (all.blocks, live.blocks) {
        (0, _) => live.youngest_age_ns,
        (_, 0) => all.youngest_age_ns,
        _ => all.youngest_age_ns.min(live.youngest_age_ns),
    };
    all.bytes = all.bytes.saturating_add(live.bytes);
    all.blocks = all.blocks.saturating_add(live.blocks);
    all.youngest_age_ns = youngest;
    all.oldest_age_ns = all.oldest_age_ns.max(live.oldest_age_ns);
    all.aged_bytes = all.aged_bytes.saturating_add(live.aged_bytes);
    all.aged_blocks = all.aged_blocks.saturating_add(live.aged_blocks);
}

/// The memory of all processes that run; pages that several have mapped count in each.
fn together(processes: &[Known<ProcessMemory>]) -> Known<ProcessMemory> {
    let known = processes.iter().filter_map(Known::value);
    let sum = known.copied().reduce(|sum, one| ProcessMemory {
        rss: sum.rss.saturating_add(one.rss),
        rss_anon: sum.rss_anon.saturating_add(one.rss_anon),
        rss_file: sum.rss_file.saturating_add(one.rss_file),
        rss_shmem: sum.rss_shmem.saturating_add(one.rss_shmem),
        rss_peak: sum.rss_peak.saturating_add(one.rss_peak),
        swap: sum.swap.saturating_add(one.swap),
        threads: sum.threads.saturating_add(one.threads),
    });
    let reason = processes.first().and_then(Known::reason);
    sum.map_or_else(|| Known::unknown(reason.unwrap_or("no process runs")), Known::Value)
}

/// Where each probe stands in the tracee, and what the plan calls the function there.
fn probed_functions<'a>(
    probes: impl Iterator<Item = &'a AttachedProbe>,
    objects: &'a [Object],
) -> impl Iterator<Item = (u64, String)> {
    probes.flat_map(|probe| {
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
        let functions: HashMap<_, _> =
            probed_functions(header.probes.attached.iter(), objects).collect();
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
        let found = probed_functions(header.probes.attached.iter(), &header.tracee.objects);
        assert_eq!(found.count(), 0);
    }
}
