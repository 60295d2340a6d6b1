//! What is probed: from mapped files to attached probes, at the start and when libraries arrive.

use std::collections::HashSet;

use anyhow::Result;
use memtrace_common::calls::SYSTEM_CALLS;

use super::say::say;
use crate::kernel::features::bpf_loop;
use crate::kernel::{AttachOutcome, Kernel};
use crate::plan::decide::{decide, is_wanted};
use crate::plan::host::HostFacts;
use crate::plan::system_calls::{KERNEL, MmapSource, raw_caller, take_from_kernel};
use crate::plan::{PlannedProbe, ProbePlan};
use crate::report::visible;
use crate::snapshot::{AttachedProbe, NotProbed, ProbeReport};
use crate::tracee::MappedFile;
use crate::tracee::allocators::{Objects, read_some};
use crate::tracee::process::Process;

/// A plan with the open files that it stands on: they must live until it is attached.
#[derive(Default)]
pub struct Planned {
    pub plan: ProbePlan,
    pub objects: Objects,
}

pub fn plan_for(process: &Process, files: &[MappedFile], host: &HostFacts) -> Planned {
    let objects = read_some(process, files, &is_wanted);
    let plan = decide(&objects.objects, host);
    Planned { plan, objects }
}

impl Planned {
    /// Whether calls to an allocator would be seen.
    pub fn has_allocator(&self) -> bool {
        self.plan.probes.iter().any(|probe| probe.signature.is_simple())
    }

    pub fn go_version(&self) -> Option<String> {
        let go = self.objects.objects.iter().filter_map(|object| object.elf.go.as_ref());
        go.filter_map(|go| go.version.clone()).next()
    }
}

/// Where the mmap family is seen, of one recording: decided once, as no call may be seen twice.
#[derive(Debug)]
pub struct Mmaps {
    source: MmapSource,
    in_kernel: bool,
}

impl Mmaps {
    pub fn from(source: MmapSource) -> Self {
        Self { source, in_kernel: false }
    }

    /// At the start: chooses by what the process is, and by what the kernel can.
    pub fn choose(&mut self, planned: &mut Planned) {
        let why = match self.source {
            MmapSource::Libc => None,
            MmapSource::Kernel => Some("--mmap-source kernel".to_owned()),
            MmapSource::Auto => raw_caller(&planned.objects.objects),
        };
        let Some(why) = why else { return };
        match bpf_loop() {
            Ok(()) => {
                take_from_kernel(&mut planned.plan, &why);
                self.in_kernel = true;
            }
            Err(error) => planned.plan.not_probed.push(NotProbed {
                object: KERNEL.to_owned(),
                function: None,
                reason: format!(
                    "system calls made without libc are not seen ({why}): it takes bpf_loop, Linux \
                     5.17 ({error})"
                ),
            }),
        }
    }

    /// Libraries that came later do not change what was chosen.
    pub fn keep(&self, planned: &mut Planned) {
        if self.in_kernel {
            take_from_kernel(&mut planned.plan, "as at the start");
            // They stand already.
            planned.plan.system_calls = false;
        } else if self.source == MmapSource::Auto
            && let Some(why) = raw_caller(&planned.objects.objects)
        {
            planned.plan.not_probed.push(NotProbed {
                object: KERNEL.to_owned(),
                function: None,
                reason: format!(
                    "system calls made without libc are not seen: {why}, which came after libc's \
                     functions were probed; start again with --mmap-source kernel"
                ),
            });
        }
    }

    /// Whether the mmap family is seen where it enters the kernel.
    pub fn are_in_kernel(&self) -> bool {
        self.in_kernel
    }
}

/// The probes of one recording.
#[derive(Default)]
pub struct Probes {
    /// The kernel side's numbers of attached probes, in the order of [`ProbeReport::attached`].
    numbers: Vec<usize>,
    known: HashSet<usize>,
    /// What is not probed is told once, however many processes it is not probed in.
    told: HashSet<(String, Option<String>, String)>,
    /// Attached since they were last taken.
    new: ProbeReport,
    any_denied: bool,
}

impl Probes {
    /// Attaches a plan; how many of its probes stand. What could not be attached stays listed, with
    /// its reason.
    pub fn attach(&mut self, kernel: &mut Kernel, pid: u32, planned: &Planned) -> Result<usize> {
        let outcome = kernel.attach(pid, &planned.plan)?;
        let numbered = planned.plan.probes.iter().zip(outcome.numbers);
        let mut standing = 0;
        for ((probe, number), outcome) in numbered.zip(outcome.probes) {
            match outcome {
                AttachOutcome::Attached => {
                    standing += 1;
                    if self.known.insert(number) {
                        self.numbers.push(number);
                        self.new.attached.push(attached(probe));
                    }
                }
                AttachOutcome::Failed { reason, denied } => {
                    self.any_denied |= denied;
                    self.not_probed([NotProbed {
                        object: probe.object.clone(),
                        function: Some(probe.function.clone()),
                        reason,
                    }]);
                }
            }
        }
        if let Some((outcome, numbers)) = outcome.system_calls {
            match outcome {
                AttachOutcome::Attached => {
                    standing += numbers.len();
                    self.numbers.extend(numbers);
                    self.new.attached.extend(SYSTEM_CALLS.map(|(_, name, _)| system_call(name)));
                }
                AttachOutcome::Failed { reason, denied } => {
                    self.any_denied |= denied;
                    let (object, function) = (KERNEL.to_owned(), None);
                    self.not_probed([NotProbed { object, function, reason }]);
                }
            }
        }
        self.not_probed(planned.plan.not_probed.iter().cloned());
        self.not_probed(planned.objects.unreadable.iter().cloned());
        Ok(standing)
    }

    /// What is not probed, beside the functions of plans.
    pub fn not_probed(&mut self, things: impl IntoIterator<Item = NotProbed>) {
        let told = &mut self.told;
        let is_new = |it: &NotProbed| {
            told.insert((it.object.clone(), it.function.clone(), it.reason.clone()))
        };
        self.new.not_probed.extend(things.into_iter().filter(is_new));
    }

    /// How many stand.
    pub fn count(&self) -> usize {
        self.numbers.len()
    }

    /// Whether a probe was refused for lack of privileges.
    pub fn any_denied(&self) -> bool {
        self.any_denied
    }

    /// What came since this was last asked.
    pub fn take_new(&mut self) -> ProbeReport {
        std::mem::take(&mut self.new)
    }

    /// The kernel side's hits, of attached probes only: the order of [`ProbeReport::attached`].
    pub fn of_attached(&self, hits: &[u64]) -> Vec<u64> {
        self.numbers.iter().map(|&number| hits.get(number).copied().unwrap_or(0)).collect()
    }
}

fn attached(probe: &PlannedProbe) -> AttachedProbe {
    AttachedProbe {
        object: probe.object.clone(),
        allocator: probe.allocator.clone(),
        function: probe.function.clone(),
        function_file_offset: probe.function_file_offset,
        entry_site: probe.entry_site,
        entry_instruction: probe.entry_instruction.clone(),
        entry_is_emulated: probe.entry_is_emulated,
        return_site: probe.return_site,
    }
}

/// A tracepoint has no site in the process.
fn system_call(name: &str) -> AttachedProbe {
    AttachedProbe {
        object: KERNEL.to_owned(),
        allocator: "system calls".to_owned(),
        function: name.to_owned(),
        function_file_offset: 0,
        entry_site: 0,
        entry_instruction: String::new(),
        entry_is_emulated: true,
        return_site: None,
    }
}

/// The plan as it was carried out, for `--verbose`.
pub fn explain(probes: &ProbeReport) {
    let (traced, probed): (Vec<_>, Vec<_>) =
        probes.attached.iter().partition(|probe| probe.object == KERNEL);
    if !traced.is_empty() {
        let names: Vec<_> = traced.iter().map(|probe| probe.function.as_str()).collect();
        say(format_args!(
            "tracepoints on the system calls {}: each system call of this host takes about 0.3 µs \
             longer meanwhile",
            names.join(", ")
        ));
    }
    for probe in probed {
        let cost = if probe.entry_is_emulated { "one trap" } else { "single-stepped" };
        let back = probe.return_site.map(|at| format!(", return at +{at}")).unwrap_or_default();
        say(format_args!(
            "probe {} {} ({}): entry at +{} `{}` ({cost}){back}",
            visible(&probe.object),
            visible(&probe.function),
            probe.allocator,
            probe.entry_site,
            probe.entry_instruction,
        ));
    }
    for missing in &probes.not_probed {
        say(format_args!("not probed: {}", reason(missing)));
    }
}

/// One line for each thing that is not probed.
pub fn reasons(not_probed: &[NotProbed]) -> String {
    let lines: Vec<_> = not_probed.iter().map(|missing| format!("  {}", reason(missing))).collect();
    lines.join("\n")
}

fn reason(missing: &NotProbed) -> String {
    let function = missing.function.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
    visible(&format!("{}{function}: {}", missing.object, missing.reason)).into_owned()
}
