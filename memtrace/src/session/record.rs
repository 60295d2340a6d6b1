//! `memtrace record`: resolve, plan, attach, watch, report. Reads as the architecture.

mod processes;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::unix::AsyncFd;

use super::container_memory::{ContainerMemory, Traced};
use super::control::{Asked, Control, Request};
use super::exit::SessionError;
use super::family::{Family, Scope};
use super::image::TracedImage;
use super::marks::Marks;
use super::outputs::{Outputs, Sink};
use super::probes::{Mmaps, Planned, Probes, explain, plan_for, reasons};
use super::process_books::ports_of;
use super::progress::{Progress, Status};
use super::recorder::{Readings, Recorder, as_ns, unix_ns};
use super::say::{say, warn};
use super::signals::{Event, Signals};
use super::space::Tables;
use super::target::{Target, resolve};
use crate::cli::RecordArgs;
use crate::doctor::gather_plain_host;
use crate::go::{GoReader, open_network_namespace};
use crate::kernel::{ImageNumber, Kernel, KernelConfig, LogReader, monotonic_ns};
use crate::plan::host::HostFacts;
use crate::report::visible;
use crate::snapshot::facts::Facts;
use crate::snapshot::{
    Came, GoBooks, GoProfile, Header, HostSummary, Known, ProbeReport, SCHEMA_VERSION, Tracee,
};
use crate::tracee::process::Process;

/// How often range events and notices are taken from the ring.
const DRAIN_EVERY: Duration = Duration::from_millis(100);
/// How long a call may still take to return after the end.
const SETTLE: Duration = Duration::from_millis(30);
/// How often the mappings are compared with what is known, without a notice.
const RESCAN_EVERY: Duration = Duration::from_secs(1);
/// A program that is younger is looked at more often: its libraries are being mapped.
const YOUNG_NS: u64 = 2_000_000_000;

pub async fn run(args: RecordArgs) -> Result<ExitCode> {
    let mut outputs = Outputs::open(&args.formats, args.output.as_deref(), None)?;
    let target = resolve(&args.target).await?;
    let mut session = Session::prepare(&args, target)?;
    // Before it says that it traces: who waits for that may send a signal at once.
    let mut signals = Signals::taken()?;
    let mut control = args.control.as_deref().map(Control::listen).transpose()?;
    let mut recorder = session.arm(&args, outputs.take_recording())?;
    let ended = session.watch(&args, &mut recorder, &mut signals, control.as_mut()).await?;
    drop(control);
    signals.give_back();
    session.close().await?;
    session.take(&args, &mut recorder, None, Some(ended.clone())).await?;
    // Seconds, in which the report is written.
    let detaching = session.kernel.detach_meanwhile();

    let (recording, written) = recorder.finish(&ended)?;
    let rendered = outputs.render(&recording, &args.formats, None, None);
    drop(detaching);
    let code = session.child_exit_code()?;
    rendered.and(written)?;
    Ok(code)
}

/// Everything that lives as long as the probes.
struct Session {
    target: Target,
    host: HostFacts,
    tables: Tables,
    /// What the first image's probes stand on.
    planned: Planned,
    probes: Probes,
    mmaps: Mmaps,
    kernel: Kernel,
    /// Those whose books are open, in the order of their numbers.
    images: Vec<TracedImage>,
    next_image: u32,
    most_processes: usize,
    family: Family,
    /// Of the image of this number.
    go: (u32, GoReader),
    memory: (u32, ContainerMemory),
    own: Process,
    /// The kernel side's diagnostics, with `--verbose`.
    log: Option<LogReader>,
    verbose: bool,
    /// No call counts any more.
    closed: bool,
    armed_at: Instant,
    /// Before this they are not read because of a notice.
    rescan_after: Instant,
    /// Before this nobody asks for who came instead of an ended target, but once a second.
    look_after: Instant,
    /// When a notice that came too soon is followed.
    rescan_due: Option<Instant>,
    /// The same, of `CLOCK_MONOTONIC`.
    armed_ns: u64,
}

impl Session {
    /// Facts → plan → kernel side loaded, with the tables of what is mapped. Attaches nothing.
    fn prepare(args: &RecordArgs, mut target: Target) -> Result<Self> {
        let pid = target.process.pid();
        let host = gather_plain_host();
        let mut tables = Tables::default();
        let opened_ns = monotonic_ns();
        let process = Process::open(pid)?;
        let first = ImageNumber::first(1);
        let mut image =
            TracedImage::of(process, first, opened_ns, Came::AtStart, &host, &mut tables)?;
        for warning in &image.space.mappings.warnings {
            warn(visible(warning));
        }
        let mut planned = plan_for(&target.process, &image.space.mappings.files, &host);
        let mut mmaps = Mmaps::from(args.mmap_source);
        mmaps.choose(&mut planned);
        if !planned.has_allocator() && planned.plan.system_calls {
            say("no allocator was found that can be probed: only what is mapped is traced");
        } else if !planned.has_allocator() {
            let comm = visible(&target.process.comm).into_owned();
            return Err(SessionError::NothingToProbe {
                pid,
                comm,
                reasons: reasons(&planned.plan.not_probed),
            }
            .into());
        }
        image.go_version = planned.go_version();
        let rows = u32::try_from(tables.store.rows().len()).unwrap_or(u32::MAX);
        let defaults = KernelConfig::default();
        if args.follow_forks && target.scope == Scope::One {
            target.scope = Scope::Children;
        }
        let room = if target.scope == Scope::One { 1 } else { 2 };
        let mut kernel = Kernel::load(&KernelConfig {
            max_blocks: args.limits.max_blocks,
            max_stacks: args.limits.max_stacks,
            max_threads: args.limits.max_threads,
            ring_bytes: args.limits.ring_bytes,
            // As much again for libraries that arrive later, and for other programs.
            max_unwind_rows: rows.saturating_mul(2).max(defaults.max_unwind_rows) * room,
            verbose: args.verbose,
            ..defaults
        })?;
        let log = match args.verbose {
            true => kernel
                .take_log_reader()
                .inspect_err(|error| log::warn!("{error:#}; going on without"))
                .ok(),
            false => None,
        };
        let mut family = Family::new(target.scope.clone());
        family.add(pid, Came::AtStart, None);
        family.traced(pid, 1);
        kernel.add_member(pid, family.follows_children())?;
        if family.follows_children() {
            kernel.follow_forks()?;
            if !kernel.knows_forks() {
                warn(
                    "the kernel's types (/sys/kernel/btf/vmlinux) cannot be read: new processes \
                     are found by looking once a second",
                );
            }
        }
        image.space.publish(&mut kernel, pid, &mut tables)?;
        let session = Self {
            go: (1, go_reader(args, &target.process)),
            memory: (pid, ContainerMemory::of(pid, target.container.as_ref(), &args.go_profile)),
            own: Process::open(std::process::id())?,
            log,
            verbose: args.verbose,
            closed: false,
            armed_at: Instant::now(),
            rescan_after: Instant::now(),
            look_after: Instant::now(),
            rescan_due: None,
            armed_ns: monotonic_ns(),
            images: vec![image],
            next_image: 2,
            most_processes: args.limits.max_processes as usize,
            family,
            target,
            host,
            tables,
            planned,
            probes: Probes::default(),
            mmaps,
            kernel,
        };
        Ok(session)
    }

    /// Attaches, arms, lets a command of our own go, says so.
    fn arm(&mut self, args: &RecordArgs, sink: Option<Sink>) -> Result<Recorder> {
        let pid = self.target.process.pid();
        let blind = match self.images.first() {
            Some(image) => image.space.watch_loader(&mut self.kernel, pid)?,
            None => None,
        };
        self.probes.attach(&mut self.kernel, pid, &self.planned)?;
        // What came or went before the loader told of it.
        self.rescan(|_| true);
        let unreadable = self.images.iter().flat_map(|image| &image.space.mappings.unreadable);
        let unreadable: Vec<_> = unreadable.cloned().collect();
        self.probes.not_probed(unreadable);
        self.probes.not_probed(self.tables.failures());
        self.probes.not_probed(blind);
        if self.probes.count() == 0 {
            let reasons = reasons(&self.probes.take_new().not_probed);
            return Err(match self.target.process.has_exited() {
                true => SessionError::ExitedEarly { pid },
                false if self.probes.any_denied() => SessionError::AttachDenied { pid, reasons },
                false => SessionError::NothingAttached { pid, reasons },
            }
            .into());
        }
        for other in std::mem::take(&mut self.target.others) {
            self.meet(other, Came::AtStart, None);
        }
        self.start_ready();
        let probes = self.probes.take_new();
        if self.verbose {
            explain(&probes);
        }
        self.kernel.arm()?;
        self.armed_at = Instant::now();
        self.armed_ns = monotonic_ns();
        let count = probes.attached.len();
        let recorder = Recorder::start(&self.header(args, probes), sink, self.armed_at)?;
        if let Some(spawned) = &mut self.target.spawned {
            spawned.resume()?;
        }
        let comm = visible(&self.target.process.comm);
        let others = match self.images.len() - 1 {
            0 => String::new(),
            1 => " and 1 other process".to_owned(),
            others => format!(" and {others} other processes"),
        };
        say(format_args!("tracing PID {pid} ({comm}){others} ({count} probes armed)"));
        Ok(recorder)
    }

    fn header(&self, args: &RecordArgs, probes: ProbeReport) -> Header {
        let process = &self.target.process;
        let first = self.images.first();
        Header {
            schema: SCHEMA_VERSION,
            memtrace: env!("CARGO_PKG_VERSION").to_owned(),
            armed_at_unix_ns: unix_ns(),
            min_age_ns: args.min_age.map_or(0, as_ns),
            host: HostSummary {
                kernel_release: self.host.kernel_release.clone(),
                architecture: self.host.architecture.clone(),
                cpus: self.host.cpus,
                page_size_bytes: self.host.page_size_bytes,
            },
            tracee: Tracee {
                id: process.id(),
                comm: process.comm.clone(),
                executable: process.executable.clone(),
                command_line: process.command_line.clone(),
                container: self.target.container.clone(),
                go_version: first.and_then(|image| image.go_version.clone()),
                objects: first.map(|image| image.space.objects.clone()).unwrap_or_default(),
            },
            probes,
        }
    }

    /// Until something ends it; the reason why.
    async fn watch(
        &mut self,
        args: &RecordArgs,
        recorder: &mut Recorder,
        signals: &mut Signals,
        mut control: Option<&mut Control>,
    ) -> Result<String> {
        let pidfd = self.target.process.pidfd().try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by what is registered, so it stays open as long.
        let exit = unsafe { AsyncFd::register(pidfd) }.context("failed to watch the process")?;
        let end = async {
            match args.duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        let mut drain = tokio::time::interval(DRAIN_EVERY);
        let mut rescan = tokio::time::interval(RESCAN_EVERY);
        // The first one at once: growth counts from it.
        let mut snapshots = args.interval.map(tokio::time::interval);
        if let Some(interval) = &mut snapshots {
            // After a stop (a suspended host, SIGSTOP) those that were missed are not made up for.
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        let next_snapshot = async |snapshots: &mut Option<tokio::time::Interval>| match snapshots {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        };
        let next_request = async |control: &mut Option<&mut Control>| match control {
            Some(control) => control.next().await,
            None => std::future::pending().await,
        };
        // SAFETY: as above; the kernel side's ring is open for longer.
        let notices = unsafe { AsyncFd::register(self.kernel.ring_descriptor()?) }
            .context("failed to watch the ring")?;
        let mut progress = Progress::new();
        let mut marks = Marks::new(&args.mark, self.armed_at);
        let mut main_runs = true;
        let ended = loop {
            let due = self.rescan_due;
            tokio::select! {
                biased;
                event = signals.event() => match event {
                    Event::End(reason) => break reason.to_owned(),
                    Event::Mark(name) => self.take(args, recorder, Some(name), None).await?,
                },
                () = &mut end => break "the duration is over".to_owned(),
                () = at(marks.due()) => {
                    // The first one is the first snapshot, too.
                    if recorder.snapshots() == 0 && let Some(interval) = &mut snapshots {
                        interval.reset();
                    }
                    self.take(args, recorder, marks.next(), None).await?;
                }
                _ = exit.readable(), if main_runs => {
                    main_runs = false;
                    self.drain();
                    if let Some(reason) = self.over(args) {
                        break reason;
                    }
                }
                told = notices.readable() => {
                    told.context("failed to wait for the ring")?.clear_ready();
                    self.drain();
                    if let Some(reason) = self.over(args) {
                        break reason;
                    }
                }
                () = at(due) => self.rescan(|_| true),
                () = next_snapshot(&mut snapshots) => self.take(args, recorder, None, None).await?,
                asked = next_request(&mut control) => {
                    if self.obey(args, recorder, asked).await? {
                        break "stopped over the control socket".to_owned();
                    }
                }
                _ = rescan.tick() => {
                    self.look(args).await;
                    self.rescan(|_| true);
                    self.close_ended(recorder)?;
                    self.show(&mut progress, args)?;
                }
                _ = drain.tick() => {
                    self.drain();
                    // Who restarts allocates most in its first second.
                    if args.follow && self.is_over() && Instant::now() >= self.look_after {
                        self.look(args).await;
                    }
                    self.start_ready();
                    if let Some(reason) = self.over(args) {
                        break reason;
                    }
                    let young = monotonic_ns().saturating_sub(YOUNG_NS);
                    self.rescan(|image| image.opened_ns > young && image.number > 1);
                }
            }
        };
        progress.clear();
        Ok(ended)
    }

    /// Does what was asked for over the control socket; whether that is to stop.
    async fn obey(
        &mut self,
        args: &RecordArgs,
        recorder: &mut Recorder,
        asked: Asked,
    ) -> Result<bool> {
        let Asked { request, answer } = asked;
        let mark = match request {
            Request::Stop => {
                // Who asked may be gone.
                let _ = answer.send("ok stopping".to_owned());
                return Ok(true);
            }
            Request::Mark(name) => Some(name),
            Request::Snapshot => None,
        };
        let number = recorder.snapshots();
        self.take(args, recorder, mark, None).await?;
        let _ = answer.send(format!("ok snapshot {number}"));
        Ok(false)
    }

    /// Lets the calls in progress return, so that the last snapshot is of one instant.
    async fn close(&mut self) -> Result<()> {
        self.kernel.disarm()?;
        self.closed = true;
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }

    /// Reads everything and records one snapshot.
    async fn take(
        &mut self,
        args: &RecordArgs,
        recorder: &mut Recorder,
        mark: Option<String>,
        ended: Option<String>,
    ) -> Result<()> {
        let kernel =
            self.kernel.snapshot_by_birth(Some(recorder.min_age_ns()), recorder.births())?;
        self.drain();
        let processes = self
            .images
            .iter()
            .map(|image| match image.process.memory() {
                _ if image.process.has_exited() => Known::unknown("the process has exited"),
                _ if !image.is_running() => Known::unknown("the process runs another program"),
                Ok(memory) => Known::Value(memory),
                Err(error) => Known::unknown(error.to_string()),
            })
            .collect();
        let (go, memory) = self.go_and_memory(args, ended.is_some()).await;
        self.learn(recorder)?;
        let readings = Readings {
            hits: self.probes.of_attached(&kernel.hits),
            kernel,
            cost: self.kernel.own_cost()?,
            go,
            processes,
            memory,
            memory_cost: self.memory.1.cost(),
            own_memory: self.own.memory()?.rss,
            untraced: self.family.untraced(),
            ended,
            mark,
        };
        recorder.take(readings, &self.images, &self.tables);
        Ok(())
    }

    /// The Go runtime's books of the first Go program that runs, and the container's memory.
    async fn go_and_memory(
        &mut self,
        args: &RecordArgs,
        last: bool,
    ) -> (Known<GoBooks>, Known<Facts>) {
        let running = || self.images.iter().filter(|image| image.is_running());
        let chosen = running().find(|image| image.go_version.is_some()).or(running().next());
        let Some(image) = chosen else {
            return (Known::unknown("the process has exited"), exited_memory());
        };
        let pid = image.pid();
        let pids: Vec<u32> = running().map(TracedImage::pid).collect();
        if self.go.0 != image.number {
            self.go = (image.number, go_reader(args, &image.process));
        }
        let go = self.go.1.read(&image.space.mappings.files, || ports_of(pid)).await;
        if self.memory.0 != pid {
            let container = self.target.container.as_ref();
            self.memory = (pid, ContainerMemory::of(pid, container, &args.go_profile));
        }
        let traced = Traced { pids: &pids, go: &go };
        let memory = Known::Value(self.memory.1.read(traced, last).await);
        (go, memory)
    }

    fn show(&mut self, progress: &mut Progress, args: &RecordArgs) -> Result<()> {
        if !progress.enabled() {
            return Ok(());
        }
        let now = self.kernel.snapshot(None)?;
        let stacks = now.processes.iter().flat_map(|process| &process.stacks);
        let (bytes, blocks) = stacks.fold((0u64, 0u64), |(bytes, blocks), row| {
            (
                bytes.saturating_add(row.allocated_bytes.saturating_sub(row.freed_bytes)),
                blocks.saturating_add(row.allocated_blocks.saturating_sub(row.freed_blocks)),
            )
        });
        progress.show(&Status {
            elapsed: self.armed_at.elapsed(),
            total: args.duration,
            calls: now.hits.iter().sum(),
            outstanding_bytes: bytes,
            outstanding_blocks: blocks,
            losses: now.losses.iter().sum(),
        });
        Ok(())
    }

    /// A command of our own that has ended gives its exit code; one that still runs goes on.
    fn child_exit_code(&mut self) -> Result<ExitCode> {
        use std::os::unix::process::ExitStatusExt;
        let Some(spawned) = &mut self.target.spawned else { return Ok(ExitCode::SUCCESS) };
        let Some(status) = spawned.try_wait()? else {
            say(format_args!("the command goes on (PID {})", spawned.pid()));
            return Ok(ExitCode::SUCCESS);
        };
        // As a shell tells it.
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
    }
}

/// `None`: never.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

fn go_reader(args: &RecordArgs, process: &Process) -> GoReader {
    let pid = process.pid();
    let namespace = open_network_namespace(pid).unwrap_or_else(|reason| {
        if !process.has_exited() {
            warn(format_args!("{reason}: the Go profile is asked for from here"));
        }
        None
    });
    let profile = match args.go_profile_current {
        true => GoProfile::Current,
        false => GoProfile::Published,
    };
    GoReader::new(args.go_profile.clone(), namespace).with_memory(pid, profile)
}

fn exited_memory() -> Known<Facts> {
    Known::unknown("the process has exited")
}
