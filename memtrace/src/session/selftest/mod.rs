//! `memtrace selftest`: resolve, plan, sample, compare, tell. Nothing is booked and nothing is
//! written but the answer.
//!
//! Each sample is walked three times: by the kernel side when the call was made, by the same rows
//! over the copied memory, and by framehop over the copied memory.

mod render;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use memtrace_common::unwind::{CfaKind, WalkEnd};
use tokio::io::unix::AsyncFd;

use super::exit::SessionError;
use super::probes::{Planned, plan_for, reasons};
use super::say::{say, warn};
use super::signals::Signals;
use super::space::{AddressSpace, Tables};
use super::target::{Target, resolve};
use super::to_stdout;
use crate::cli::SelftestArgs;
use crate::doctor::gather_plain_host;
use crate::kernel::{
    AttachOutcome, ImageNumber, Kernel, KernelConfig, Notice, Sample, SelftestCounters,
};
use crate::plan::host::HostFacts;
use crate::report::visible;
use crate::snapshot::NotProbed;
use crate::stacks::compare::opinion::ReferenceWalk;
use crate::stacks::compare::summary::{Compared, Dispute};
use crate::stacks::compare::{
    CopiedMemory, SecondOpinion, Summary, Verdict, compare, compare_with_reference,
};
use crate::stacks::walk::{Registers, UnwindSpace};
use render::{Frame, Report, ToldDispute};

/// Said by the exit code: the walk contradicts the object's own unwind information.
pub const CONTRADICTED: u8 = 7;

/// The mean time between two samples of one thread.
const INTERVAL: Duration = Duration::from_micros(250);
/// Room for some three hundred samples.
const RING_BYTES: u32 = 32 << 20;
/// How often the ring is emptied, and how many samples are compared before signals are looked at.
const DRAIN_EVERY: Duration = Duration::from_millis(2);
const DRAIN_AT_ONCE: usize = 256;
/// How often the mappings are compared with what is known, without a notice.
const RESCAN_EVERY: Duration = Duration::from_secs(1);

pub async fn run(args: SelftestArgs) -> Result<ExitCode> {
    let target = resolve(&args.target).await?;
    let mut check = Check::prepare(target)?;
    let mut signals = Signals::taken()?;
    check.arm()?;
    let ended = check.watch(&args, &mut signals).await?;
    signals.give_back();
    check.kernel.disarm()?;
    let report = check.report(ended)?;
    let detaching = check.kernel.detach_meanwhile();
    let text = if args.json { report.json()? } else { report.text() };
    let told = to_stdout(text.as_bytes());
    drop(detaching);
    told?;
    Ok(exit_code(&report)?.into())
}

/// Everything that lives as long as the probes.
struct Check {
    target: Target,
    host: HostFacts,
    space: AddressSpace,
    tables: Tables,
    planned: Planned,
    kernel: Kernel,
    second: SecondOpinion,
    /// Of the process, as the kernel side knows them.
    mappings: Vec<memtrace_common::unwind::UnwindMapping>,
    summary: Summary,
    /// Samples whose mappings were replaced before they could be compared.
    outdated: u64,
    probes: usize,
    not_probed: Vec<NotProbed>,
    any_denied: bool,
    armed_at: Instant,
}

impl Check {
    /// Facts → plan → kernel side loaded, with the tables of what is mapped. Attaches nothing.
    fn prepare(target: Target) -> Result<Self> {
        let pid = target.process.pid();
        let host = gather_plain_host();
        let mut tables = Tables::default();
        let space = AddressSpace::of(&target.process, ImageNumber::first(1), &mut tables)?;
        for warning in &space.mappings.warnings {
            warn(visible(warning));
        }
        let planned = plan_for(&target.process, &space.mappings.files, &host);
        if !planned.plan.probes.iter().any(|probe| probe.signature.is_simple()) {
            let comm = visible(&target.process.comm).into_owned();
            let reasons = reasons(&planned.plan.not_probed);
            return Err(SessionError::NothingToProbe { pid, comm, reasons }.into());
        }
        let rows = u32::try_from(tables.store.rows().len()).unwrap_or(u32::MAX);
        let defaults = KernelConfig::default();
        let kernel = Kernel::load(&KernelConfig {
            // There are no books.
            max_blocks: 1,
            max_stacks: 1,
            ring_bytes: RING_BYTES,
            max_unwind_rows: rows.saturating_mul(2).max(defaults.max_unwind_rows),
            selftest_interval_ns: u32::try_from(INTERVAL.as_nanos()).ok(),
            ..defaults
        })?;
        let mut check = Self {
            target,
            host,
            space,
            tables,
            planned,
            kernel,
            second: SecondOpinion::new(),
            mappings: Vec::new(),
            summary: Summary::default(),
            outdated: 0,
            probes: 0,
            not_probed: Vec::new(),
            any_denied: false,
            armed_at: Instant::now(),
        };
        check.publish()?;
        Ok(check)
    }

    /// The mappings as they are now, to the kernel side and to framehop.
    fn publish(&mut self) -> Result<()> {
        let pid = self.target.process.pid();
        self.space.publish(&mut self.kernel, pid, &mut self.tables)?;
        self.tell_second();
        Ok(())
    }

    fn tell_second(&mut self) {
        self.mappings = self.space.current(&mut self.tables).mappings;
        self.second.set_files(&self.space.mappings.files);
    }

    fn attach(&mut self, planned: &Planned) -> Result<()> {
        let outcome = self.kernel.attach_selftest(self.target.process.pid(), &planned.plan)?;
        for (probe, outcome) in planned.plan.probes.iter().zip(outcome.probes) {
            match outcome {
                AttachOutcome::Attached => self.probes += 1,
                AttachOutcome::Failed { reason, denied } => {
                    self.any_denied |= denied;
                    self.not_probed.push(NotProbed {
                        object: probe.object.clone(),
                        function: Some(probe.function.clone()),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }

    fn arm(&mut self) -> Result<()> {
        let pid = self.target.process.pid();
        let blind = self.space.watch_loader(&mut self.kernel, pid)?;
        self.not_probed.extend(blind);
        let planned = std::mem::take(&mut self.planned);
        self.attach(&planned)?;
        self.rescan();
        if self.probes == 0 {
            let reasons = reasons(&self.not_probed);
            return Err(match self.target.process.has_exited() {
                true => SessionError::ExitedEarly { pid },
                false if self.any_denied => SessionError::AttachDenied { pid, reasons },
                false => SessionError::NothingAttached { pid, reasons },
            }
            .into());
        }
        self.kernel.arm()?;
        self.armed_at = Instant::now();
        if let Some(spawned) = &mut self.target.spawned {
            spawned.resume()?;
        }
        let comm = visible(&self.target.process.comm);
        say(format_args!("checking PID {pid} ({comm}) ({} probes armed)", self.probes));
        Ok(())
    }

    /// Until something ends it; the reason why.
    async fn watch(&mut self, args: &SelftestArgs, signals: &mut Signals) -> Result<String> {
        let pidfd = self.target.process.pidfd().try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by what is registered, so it stays open as long.
        let exit = unsafe { AsyncFd::register(pidfd) }.context("failed to watch the process")?;
        let end = tokio::time::sleep(args.duration);
        tokio::pin!(end);
        let mut drain = tokio::time::interval(DRAIN_EVERY);
        let mut rescan = tokio::time::interval(RESCAN_EVERY);
        loop {
            tokio::select! {
                biased;
                reason = signals.next() => return Ok(reason.to_owned()),
                () = &mut end => return Ok("the duration is over".to_owned()),
                _ = exit.readable() => {
                    self.drain(args.stacks);
                    return Ok("the process exited".to_owned());
                }
                _ = rescan.tick() => self.rescan(),
                _ = drain.tick() => {
                    if let Some(reason) = self.drain(args.stacks) {
                        return Ok(reason);
                    }
                    if self.summary.compared >= args.stacks {
                        return Ok("as many stacks were compared as asked for".to_owned());
                    }
                }
            }
        }
    }

    /// Compares what the ring holds; the reason to end, where there is one.
    fn drain(&mut self, stacks: u64) -> Option<String> {
        let Self { kernel, space, tables, second, mappings, summary, outdated, .. } = self;
        let left = stacks.saturating_sub(summary.compared);
        let limit = usize::try_from(left).unwrap_or(usize::MAX).min(DRAIN_AT_ONCE);
        let generation = kernel.mappings_generation();
        let rows = UnwindSpace { mappings, rows: tables.store.rows() };
        let pid = self.target.process.pid();
        let notices = kernel.drain_selftest(limit, |sample| {
            let is_distrusted = sample.end == WalkEnd::MappingsChanged;
            if sample.tgid != pid || sample.generation != generation || is_distrusted {
                *outdated += 1;
                return;
            }
            let files = &space.mappings.files;
            summary.add(compare_sample(&sample, rows, second), |address| {
                let holds = |file: &&crate::tracee::MappedFile| {
                    file.mappings.iter().any(|m| (m.start..m.end).contains(&address))
                };
                match files.iter().find(holds) {
                    Some(file) => file.path.clone(),
                    None => "no file".to_owned(),
                }
            });
        });
        let mut ended = None;
        let mut changed = false;
        for notice in notices {
            match notice {
                Notice::Exec { tgid, .. } if tgid == pid => {
                    ended = Some("the process replaced its program (exec)".to_owned());
                }
                Notice::UnknownMapping { tgid, .. } | Notice::MappingsChanged { tgid } => {
                    changed |= tgid == pid;
                }
                Notice::Exec { .. } | Notice::Fork { .. } | Notice::Exit { .. } => {}
            }
        }
        if changed {
            self.rescan();
        }
        ended
    }

    /// Libraries that arrived get their tables and their probes.
    fn rescan(&mut self) {
        if let Err(error) = self.follow_mappings()
            && !self.target.process.has_exited()
        {
            warn(format_args!("{error:#}"));
        }
    }

    fn follow_mappings(&mut self) -> Result<()> {
        let process = &self.target.process;
        let Some(files) = self.space.follow(process, &mut self.kernel, &mut self.tables)? else {
            return Ok(());
        };
        self.tell_second();
        let planned = plan_for(&self.target.process, &files, &self.host);
        self.attach(&planned)
    }

    fn report(&mut self, ended: String) -> Result<Report> {
        let disputes = std::mem::take(&mut self.summary.disputes);
        let disputes = disputes.into_iter().map(|dispute| self.tell(dispute)).collect();
        let process = &self.target.process;
        let counters: SelftestCounters = self.kernel.selftest_counters()?;
        Ok(Report {
            pid: process.pid(),
            comm: process.comm.clone(),
            kernel: self.host.kernel_release.clone(),
            ended,
            duration: self.armed_at.elapsed(),
            probes: self.probes,
            summary: std::mem::take(&mut self.summary),
            outdated: self.outdated,
            counters,
            disputes,
        })
    }

    /// A contradiction with names, and with the rows of the walk.
    fn tell(&mut self, dispute: Dispute) -> ToldDispute {
        let Dispute { tid, contradiction, walk, walk_end, framehop } = dispute;
        let stacks = [walk.as_slice(), framehop.frames.as_slice()];
        let names = self.space.symbolizer.name_stacks(stacks);
        let rows = UnwindSpace { mappings: &self.mappings, rows: self.tables.store.rows() };
        let frame = |index: usize, address: u64| {
            let found = names.iter().find(|names| names.address == address);
            let name = found.and_then(|names| names.names.last()).map(|name| name.function.clone());
            let row = rows.row_at(if index == 0 { address } else { address.wrapping_sub(1) });
            let row = row.ok().map(|row| match row.kind {
                CfaKind::Rsp => format!("CFA = RSP+{}, RBP {}", row.offset_by_8 * 8, row.rbp),
                CfaKind::Rbp => format!("CFA = RBP+{}, RBP {}", row.offset_by_8 * 8, row.rbp),
                kind => format!("{kind:?}"),
            });
            Frame { address, name: name.unwrap_or_default(), row }
        };
        let told = |frames: &[u64]| -> Vec<Frame> {
            frames.iter().enumerate().map(|(index, address)| frame(index, *address)).collect()
        };
        ToldDispute {
            tid,
            kind: contradiction.kind.label(),
            frame: contradiction.frame,
            walk: told(&walk),
            walk_end: crate::stacks::compare::summary::reason(walk_end),
            framehop: told(&framehop.frames),
            framehop_end: framehop.end.label(),
        }
    }
}

/// Silence is no agreement.
fn exit_code(report: &Report) -> Result<u8, SessionError> {
    match (report.summary.compared, report.summary.contradictions) {
        (0, _) => {
            Err(SessionError::NothingCompared { pid: report.pid, ended: report.ended.clone() })
        }
        (_, 0) => Ok(0),
        _ => Ok(CONTRADICTED),
    }
}

fn compare_sample(
    sample: &Sample<'_>,
    rows: UnwindSpace<'_>,
    second: &mut SecondOpinion,
) -> Compared {
    let [stack, top] = sample.memory;
    let memory = CopiedMemory { stack, top, word: sample.word };
    let entry = Registers { pc: sample.pc, sp: sample.sp, bp: sample.bp };
    let reference = ReferenceWalk::of(rows, entry, memory);
    let framehop = second.ask(&reference, memory);
    let frames = reference.frames();
    let differs = compare_with_reference(&sample.frames, sample.end, &frames, reference.end);
    let verdict = match differs {
        Some(contradiction) => Verdict::Contradiction(contradiction),
        None => compare(&sample.frames, sample.end, &framehop),
    };
    Compared {
        tid: sample.tid,
        verdict,
        walk: sample.frames.clone(),
        walk_end: sample.end,
        framehop,
    }
}
