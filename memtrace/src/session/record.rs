//! `memtrace record`: resolve, plan, attach, watch, report. Reads as the architecture.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::unix::AsyncFd;

use super::control::{Asked, Control, Request};
use super::exit::SessionError;
use super::explain::ContainerMemory;
use super::outputs::{Outputs, Sink};
use super::probes::{Mmaps, Planned, Probes, explain, plan_for, reasons};
use super::progress::{Progress, Status};
use super::range_events::range_event;
use super::recorder::{Readings, Recorder, as_ns, unix_ns};
use super::say::{say, warn};
use super::signals::{Event, Signals};
use super::space::AddressSpace;
use super::target::{Target, resolve};
use crate::cli::RecordArgs;
use crate::doctor::gather_plain_host;
use crate::go::{GoReader, open_network_namespace};
use crate::kernel::{Kernel, KernelConfig, LogReader, Notice};
use crate::outstanding::ranges::RangeMap;
use crate::plan::host::HostFacts;
use crate::report::visible;
use crate::snapshot::facts::Facts;
use crate::snapshot::{GoProfile, Header, HostSummary, Known, ProbeReport, SCHEMA_VERSION, Tracee};
use crate::tracee::ports::{connectable, listening_ports};
use crate::tracee::process::Process;

/// How often range events and notices are taken from the ring.
const DRAIN_EVERY: Duration = Duration::from_millis(100);
/// How long a call may still take to return after the end.
const SETTLE: Duration = Duration::from_millis(30);
/// How often the mappings are compared with what is known, without a notice.
const RESCAN_EVERY: Duration = Duration::from_secs(1);
/// After they were read, notices wait for so many times the CPU time that it took: a program that maps
/// and unmaps code all the time must not keep memtrace busy.
const RESCAN_PAUSES: u32 = 3;

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
    session.take(&mut recorder, None, Some(ended.clone())).await?;
    // Seconds, in which the report is written.
    let detaching = session.kernel.detach_meanwhile();

    let (recording, written) = recorder.finish(&ended)?;
    let rendered = outputs.render(&recording, &args.formats, None);
    drop(detaching);
    let code = session.child_exit_code()?;
    rendered.and(written)?;
    Ok(code)
}

/// Everything that lives as long as the probes.
struct Session {
    target: Target,
    host: HostFacts,
    space: AddressSpace,
    planned: Planned,
    probes: Probes,
    mmaps: Mmaps,
    kernel: Kernel,
    ranges: RangeMap,
    go: GoReader,
    memory: ContainerMemory,
    own: Process,
    /// The kernel side's diagnostics, with `--verbose`.
    log: Option<LogReader>,
    verbose: bool,
    /// No call counts any more.
    closed: bool,
    armed_at: Instant,
    /// Before this they are not read because of a notice.
    rescan_after: Instant,
    /// When a notice that came too soon is followed.
    rescan_due: Option<Instant>,
}

impl Session {
    /// Facts → plan → kernel side loaded, with the tables of what is mapped. Attaches nothing.
    fn prepare(args: &RecordArgs, target: Target) -> Result<Self> {
        let pid = target.process.pid();
        let host = gather_plain_host();
        let mut space = AddressSpace::of(&target.process)?;
        for warning in &space.mappings.warnings {
            warn(visible(warning));
        }
        let mut planned = plan_for(&target.process, &space.mappings.files, &host);
        let mut mmaps = Mmaps::from(args.mmap_source);
        mmaps.choose(&mut planned);
        let has_allocator = planned.plan.probes.iter().any(|probe| probe.signature.is_simple());
        if !has_allocator && planned.plan.system_calls {
            say("no allocator was found that can be probed: only what is mapped is traced");
        } else if !has_allocator {
            let comm = visible(&target.process.comm).into_owned();
            return Err(SessionError::NothingToProbe {
                pid,
                comm,
                reasons: reasons(&planned.plan.not_probed),
            }
            .into());
        }
        let rows = u32::try_from(space.tables.rows().len()).unwrap_or(u32::MAX);
        let defaults = KernelConfig::default();
        let mut kernel = Kernel::load(&KernelConfig {
            max_blocks: args.limits.max_blocks,
            max_stacks: args.limits.max_stacks,
            max_threads: args.limits.max_threads,
            ring_bytes: args.limits.ring_bytes,
            // As much again for libraries that arrive later.
            max_unwind_rows: rows.saturating_mul(2).max(defaults.max_unwind_rows),
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
        space.publish(&mut kernel, pid)?;
        let namespace = open_network_namespace(pid).unwrap_or_else(|reason| {
            if !target.process.has_exited() {
                warn(format_args!("{reason}: the Go profile is asked for from here"));
            }
            None
        });
        let profile = match args.go_profile_current {
            true => GoProfile::Current,
            false => GoProfile::Published,
        };
        let mut ranges = RangeMap::new(host.page_size_bytes);
        if let Some(end) = space.heap_end {
            ranges.set_break(end);
        }
        Ok(Self {
            ranges,
            go: GoReader::new(args.go_profile.clone(), namespace).with_memory(pid, profile),
            memory: ContainerMemory::of(pid, target.container.as_ref()),
            own: Process::open(std::process::id())?,
            log,
            verbose: args.verbose,
            closed: false,
            armed_at: Instant::now(),
            rescan_after: Instant::now(),
            rescan_due: None,
            target,
            host,
            space,
            planned,
            probes: Probes::default(),
            mmaps,
            kernel,
        })
    }

    /// Attaches, arms, lets a command of our own go, says so.
    fn arm(&mut self, args: &RecordArgs, sink: Option<Sink>) -> Result<Recorder> {
        let pid = self.target.process.pid();
        let blind = self.space.watch_loader(&mut self.kernel, pid)?;
        self.probes.attach(&mut self.kernel, pid, &self.planned)?;
        // What came or went before the loader told of it.
        self.rescan();
        let mut probes = self.probes.take_new();
        probes.not_probed.extend(self.space.mappings.unreadable.iter().cloned());
        probes.not_probed.extend(self.space.without_table());
        probes.not_probed.extend(blind);
        if probes.attached.is_empty() {
            let reasons = reasons(&probes.not_probed);
            return Err(match self.target.process.has_exited() {
                true => SessionError::ExitedEarly { pid },
                false if self.probes.any_denied() => SessionError::AttachDenied { pid, reasons },
                false => SessionError::NothingAttached { pid, reasons },
            }
            .into());
        }
        if self.verbose {
            explain(&probes);
        }
        self.kernel.arm()?;
        self.armed_at = Instant::now();
        let count = probes.attached.len();
        let recorder = Recorder::start(&self.header(args, probes), sink, self.armed_at)?;
        if let Some(spawned) = &mut self.target.spawned {
            spawned.resume()?;
        }
        let comm = visible(&self.target.process.comm);
        say(format_args!("tracing PID {pid} ({comm}) ({count} probes armed)"));
        Ok(recorder)
    }

    fn header(&self, args: &RecordArgs, probes: ProbeReport) -> Header {
        let process = &self.target.process;
        let go = self.planned.objects.objects.iter().filter_map(|object| object.elf.go.as_ref());
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
                go_version: go.filter_map(|go| go.version.clone()).next(),
                objects: self.space.objects.clone(),
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
        let ended = loop {
            let due = self.rescan_due;
            tokio::select! {
                biased;
                event = signals.event() => match event {
                    Event::End(reason) => break reason.to_owned(),
                    Event::Mark(name) => self.take(recorder, Some(name), None).await?,
                },
                () = &mut end => break "the duration is over".to_owned(),
                _ = exit.readable() => break "the process exited".to_owned(),
                told = notices.readable() => {
                    told.context("failed to wait for the ring")?.clear_ready();
                    if let Some(reason) = self.drain() {
                        break reason;
                    }
                }
                () = at(due) => self.rescan(),
                () = next_snapshot(&mut snapshots) => self.take(recorder, None, None).await?,
                asked = next_request(&mut control) => {
                    if self.obey(recorder, asked).await? {
                        break "stopped over the control socket".to_owned();
                    }
                }
                _ = rescan.tick() => {
                    self.rescan();
                    self.show(&mut progress, args)?;
                }
                _ = drain.tick() => {
                    if let Some(reason) = self.drain() {
                        break reason;
                    }
                }
            }
        };
        progress.clear();
        Ok(ended)
    }

    /// Does what was asked for over the control socket; whether that is to stop.
    async fn obey(&mut self, recorder: &mut Recorder, asked: Asked) -> Result<bool> {
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
        self.take(recorder, mark, None).await?;
        let _ = answer.send(format!("ok snapshot {number}"));
        Ok(false)
    }

    /// Applies what the ring holds; the reason to end, where there is one.
    fn drain(&mut self) -> Option<String> {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let drained = match self.closed {
            true => self.kernel.drain_ring_fully(),
            false => self.kernel.drain_ring(),
        };
        let pid = self.target.process.pid();
        for event in drained.ranges.iter().filter(|event| event.tgid == pid) {
            if let Some(event) = range_event(event) {
                self.ranges.apply(&event);
            }
        }
        let mut ended = None;
        let mut changed = false;
        for notice in drained.notices {
            match notice {
                Notice::Exec { tgid } if tgid == pid => {
                    ended = Some("the process replaced its program (exec)".to_owned());
                }
                Notice::UnknownMapping { tgid, .. } | Notice::MappingsChanged { tgid } => {
                    changed |= tgid == pid;
                }
                // The pidfd tells when the whole process is gone.
                Notice::Exec { .. } | Notice::Exit { .. } => {}
            }
        }
        if changed {
            match Instant::now() < self.rescan_after {
                true => self.rescan_due = Some(self.rescan_after),
                false => self.rescan(),
            }
        }
        ended
    }

    /// Libraries that arrived get their unwind tables and their probes. That a process is gone is
    /// no error here.
    fn rescan(&mut self) {
        let before = thread_cpu_time();
        self.rescan_due = None;
        if let Err(error) = self.follow_mappings()
            && !self.target.process.has_exited()
        {
            warn(format_args!("{error:#}"));
        }
        let took = thread_cpu_time().saturating_sub(before);
        self.rescan_after = Instant::now() + took * RESCAN_PAUSES;
    }

    fn follow_mappings(&mut self) -> Result<()> {
        let process = &self.target.process;
        let Some(files) = self.space.follow(process, &mut self.kernel)? else { return Ok(()) };
        if files.is_empty() {
            return Ok(());
        }
        let mut planned = plan_for(process, &files, &self.host);
        self.mmaps.keep(&mut planned);
        self.probes.attach(&mut self.kernel, process.pid(), &planned)
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
        recorder: &mut Recorder,
        mark: Option<String>,
        ended: Option<String>,
    ) -> Result<()> {
        let kernel =
            self.kernel.snapshot_by_birth(Some(recorder.min_age_ns()), recorder.births())?;
        self.drain();
        let pid = self.target.process.pid();
        let exited = || Known::unknown("the process has exited");
        let process = match self.target.process.memory() {
            _ if self.target.process.has_exited() => exited(),
            Ok(memory) => Known::Value(memory),
            Err(error) => Known::unknown(error.to_string()),
        };
        let go = match self.target.process.has_exited() {
            true => Known::unknown("the process has exited"),
            false => self.go.read(&self.space.mappings.files, || ports_of(pid)).await,
        };
        let memory = match self.target.process.has_exited() {
            true => exited_memory(),
            false => Known::Value(self.memory.read(&go, ended.is_some()).await),
        };
        let stacks = self.kernel.new_stacks().context("failed to read the stacks")?;
        // Whose the code is that they met.
        self.rescan();
        let stacks = stacks.into_iter().map(|mut stored| {
            self.space.symbolizer.own_unknown(&mut stored.stack.frames, stored.changes);
            stored.stack
        });
        let stacks = stacks.collect();
        let readings = Readings {
            hits: self.probes.of_attached(&kernel.hits),
            new_probes: self.probes.take_new(),
            kernel,
            new_stacks: stacks,
            cost: self.kernel.own_cost()?,
            go,
            process,
            memory,
            memory_cost: self.memory.cost(),
            own_memory: self.own.memory()?.rss,
            ended,
            mark,
        };
        recorder.take(readings, &mut self.space, &self.ranges);
        Ok(())
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

/// Of the thread that asks; zero where the kernel does not tell.
fn thread_cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeVal;
    let of = |time: TimeVal| {
        let microseconds = time.tv_sec().saturating_mul(1_000_000).saturating_add(time.tv_usec());
        Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
    };
    getrusage(UsageWho::RUSAGE_THREAD)
        .map_or(Duration::ZERO, |usage| of(usage.user_time()) + of(usage.system_time()))
}

/// `None`: never.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

fn exited_memory() -> Known<Facts> {
    Known::unknown("the process has exited")
}

/// Where the process listens, without the wildcards that nobody can connect to.
fn ports_of(pid: u32) -> Vec<(IpAddr, u16)> {
    let listening = listening_ports(pid).unwrap_or_default();
    listening.into_iter().flat_map(connectable).map(|at| (at.ip(), at.port())).collect()
}
