//! `memtrace record`: resolve, plan, attach, watch, report. Reads as the architecture.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::SessionError;
use super::outputs::{Outputs, Sink};
use super::progress::{Progress, Status};
use super::recorder::{Recorder, Surroundings, as_ns, unix_ns};
use super::space::AddressSpace;
use super::target::{Target, resolve};
use crate::cli::RecordArgs;
use crate::go;
use crate::kernel::{Kernel, KernelConfig, Notice};
use crate::outstanding::ranges::RangeMap;
use crate::plan::decide::decide;
use crate::plan::host::HostFacts;
use crate::plan::ProbePlan;
use crate::snapshot::file::RecordingWriter;
use crate::snapshot::{
    Header, HostSummary, Known, NotProbed, ProbeReport, Recording, SCHEMA_VERSION, Tracee,
};
use crate::stacks::symbolize::Symbolizer;
use crate::tracee::MappedFile;
use crate::tracee::allocators::object_facts;

/// How often range events and notices are taken from the ring.
const DRAIN_EVERY: Duration = Duration::from_millis(100);
/// How often the mappings are compared with what is known, without a notice.
const RESCAN_EVERY: Duration = Duration::from_secs(1);

pub async fn run(args: RecordArgs) -> Result<ExitCode> {
    let recording_path = args.output.as_deref();
    let mut outputs = Outputs::open(&args.formats, recording_path.as_slice())?;
    let sink = recording_path.map(Sink::open).transpose()?;

    let target = resolve(&args.target).await?;
    let mut session = Session::prepare(&args, target)?;
    let mut recorder = session.arm(&args, sink)?;
    let ended = session.watch(&args, &mut recorder).await?;
    session.take(&args, &mut recorder, Some(ended.clone())).await?;
    session.kernel.detach();

    let recording = recorder.finish(&ended)?;
    outputs.render(&recording, &args.formats)?;
    session.child_exit_code()
}

/// Everything that lives as long as the probes.
struct Session {
    target: Target,
    host: HostFacts,
    space: AddressSpace,
    plan: ProbePlan,
    kernel: Kernel,
    ranges: RangeMap,
    verbose: bool,
    armed_at: Instant,
}

impl Session {
    /// Facts → plan → kernel side loaded, with the tables of what is mapped. Attaches nothing.
    fn prepare(args: &RecordArgs, target: Target) -> Result<Self> {
        let pid = target.process.pid();
        let host = HostFacts::gather();
        let mut space = AddressSpace::default();
        let files = space.refresh(pid)?;
        let plan = plan_for(&files, &host);
        if !plan.probes.iter().any(|probe| probe.signature.is_simple()) {
            return Err(SessionError::NothingToProbe {
                pid,
                comm: target.process.comm.clone(),
                reasons: reasons(&plan.not_probed),
            }
            .into());
        }
        let mut kernel = Kernel::load(&KernelConfig {
            max_blocks: args.limits.max_blocks,
            max_stacks: args.limits.max_stacks,
            max_threads: args.limits.max_threads,
            ring_bytes: args.limits.ring_bytes,
            ..KernelConfig::default()
        })?;
        space.publish(&mut kernel, pid)?;
        let ranges = RangeMap::new(host.page_size_bytes);
        let armed_at = Instant::now();
        let verbose = args.verbose;
        Ok(Self { target, host, space, plan, kernel, ranges, verbose, armed_at })
    }

    /// Attaches, arms, says so, lets a command of our own go.
    fn arm(&mut self, args: &RecordArgs, sink: Option<Sink>) -> Result<Recorder> {
        let pid = self.target.process.pid();
        let attached = self.kernel.attach(pid, &self.plan)?;
        let mut probes = ProbeReport { attached: attached.attached, not_probed: Vec::new() };
        probes.not_probed.extend(self.plan.not_probed.iter().cloned());
        probes.not_probed.extend(attached.failed);
        if probes.attached.is_empty() {
            return Err(match self.target.process.has_exited() {
                true => SessionError::ExitedEarly { pid },
                false => {
                    SessionError::NothingAttached { pid, reasons: reasons(&probes.not_probed) }
                }
            }
            .into());
        }
        if self.verbose {
            explain(&probes, &self.space);
        }
        let header = self.header(args, probes);
        let armed_probes = header.probes.attached.len();
        let writer = sink
            .map(|sink| RecordingWriter::create(sink, &header))
            .transpose()
            .context("failed to start the recording")?;
        self.kernel.arm()?;
        self.armed_at = Instant::now();
        let recording = Recording {
            header: Header { armed_at_unix_ns: unix_ns(), ..header },
            new_objects: Vec::new(),
            stacks: Vec::new(),
            names: Vec::new(),
            snapshots: Vec::new(),
        };
        if let Some(spawned) = &mut self.target.spawned {
            spawned.resume()?;
        }
        eprintln!(
            "tracing PID {pid} ({}) ({armed_probes} probes armed)",
            crate::report::sanitize::printable(&self.target.process.comm),
        );
        Ok(Recorder::new(recording, writer, Symbolizer::new(pid), self.armed_at))
    }

    fn header(&self, args: &RecordArgs, probes: ProbeReport) -> Header {
        let process = &self.target.process;
        Header {
            schema: SCHEMA_VERSION,
            memtrace: env!("CARGO_PKG_VERSION").to_owned(),
            armed_at_unix_ns: unix_ns(),
            min_age_ns: args.formats.min_age.map_or(0, as_ns),
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
                go_version: self.space.go_version(),
                objects: self.space.objects.clone(),
            },
            probes,
        }
    }

    /// Until something ends it; the reason why.
    async fn watch(&mut self, args: &RecordArgs, recorder: &mut Recorder) -> Result<String> {
        let pidfd = self.target.process.pidfd().try_clone_to_owned()?;
        let exit = AsyncFd::new(pidfd).context("failed to watch the process")?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let end = async {
            match args.duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        let mut drain = tokio::time::interval(DRAIN_EVERY);
        let mut rescan = tokio::time::interval(RESCAN_EVERY);
        let mut snapshots = args.interval.map(|every| {
            tokio::time::interval_at(tokio::time::Instant::now() + every, every)
        });
        let next_snapshot = async |snapshots: &mut Option<tokio::time::Interval>| match snapshots {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        };
        let mut progress = Progress::new();
        let ended = loop {
            tokio::select! {
                biased;
                _ = interrupt.recv() => break "interrupted (SIGINT)".to_owned(),
                _ = terminate.recv() => break "terminated (SIGTERM)".to_owned(),
                () = &mut end => break "the duration is over".to_owned(),
                _ = exit.readable() => break "the process exited".to_owned(),
                () = next_snapshot(&mut snapshots) => self.take(args, recorder, None).await?,
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

    /// Applies what the ring holds; the reason to end, where there is one.
    fn drain(&mut self) -> Option<String> {
        let drained = self.kernel.drain_ring();
        for event in &drained.ranges {
            self.ranges.apply(event);
        }
        let mut ended = None;
        for notice in drained.notices {
            match notice {
                Notice::Exec => ended = Some("the process replaced its program (exec)".to_owned()),
                Notice::UnknownMapping { .. } => self.rescan(),
                Notice::Exit => {}
            }
        }
        ended
    }

    /// Libraries that arrived get their unwind tables. A process that is gone is no error here.
    fn rescan(&mut self) {
        let pid = self.target.process.pid();
        match self.space.refresh(pid) {
            Ok(new) if new.is_empty() => {}
            Ok(_) => {
                if let Err(error) = self.space.publish(&mut self.kernel, pid) {
                    eprintln!("memtrace: {error:#}");
                }
            }
            Err(error) if self.verbose => eprintln!("memtrace: {error:#}"),
            Err(_) => {}
        }
    }

    async fn take(
        &mut self,
        args: &RecordArgs,
        recorder: &mut Recorder,
        ended: Option<String>,
    ) -> Result<()> {
        let read = self.kernel.snapshot(Some(args.formats.min_age.map_or(0, as_ns)))?;
        self.drain();
        let pid = self.target.process.pid();
        let process = match self.target.process.memory() {
            Ok(memory) if !self.target.process.has_exited() => Known::Value(memory),
            Ok(_) => Known::unknown("the process has exited"),
            Err(error) => Known::unknown(error.to_string()),
        };
        let go = match self.target.process.has_exited() {
            true => Known::unknown("the process has exited"),
            false => go::read(&args.go_profile, pid).await,
        };
        let around = Surroundings { go, process, ended };
        recorder.take(&mut self.kernel, &self.space, &self.ranges, read, around)
    }

    fn show(&mut self, progress: &mut Progress, args: &RecordArgs) -> Result<()> {
        if progress.enabled() {
            let now = self.kernel.glance()?;
            progress.show(&Status {
                elapsed: self.armed_at.elapsed(),
                total: args.duration,
                calls: now.calls,
                outstanding_bytes: now.outstanding_bytes,
                outstanding_blocks: now.outstanding_blocks,
                losses: now.losses,
            });
        }
        Ok(())
    }

    /// A command of our own that has ended gives its exit code; one that still runs goes on.
    fn child_exit_code(&mut self) -> Result<ExitCode> {
        let Some(spawned) = &mut self.target.spawned else { return Ok(ExitCode::SUCCESS) };
        match spawned.try_wait()? {
            None => {
                eprintln!("the command goes on (PID {})", spawned.pid());
                Ok(ExitCode::SUCCESS)
            }
            Some(status) => Ok(ExitCode::from(status.shell_code())),
        }
    }
}

fn plan_for(files: &[MappedFile], host: &HostFacts) -> ProbePlan {
    let objects: Vec<_> = files.iter().map(object_facts).collect();
    decide(&objects, host)
}

fn reasons(not_probed: &[NotProbed]) -> String {
    not_probed
        .iter()
        .map(|missing| {
            let function = missing.function.as_deref().map(|f| format!(" {f}")).unwrap_or_default();
            format!("  {}{function}: {}", missing.object, missing.reason)
        })
        .collect::<Vec<_>>()
        .join("\n")
}
