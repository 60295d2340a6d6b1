//! What is probed: from mapped files to attached probes, at the start and when libraries arrive.

use anyhow::Result;

use super::say::say;
use crate::kernel::{AttachOutcome, Kernel};
use crate::plan::decide::{decide, is_wanted};
use crate::plan::host::HostFacts;
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

/// The probes of one recording.
#[derive(Default)]
pub struct Probes {
    /// By the kernel side's number of a probe: was it attached?
    is_attached: Vec<bool>,
    /// Attached since they were last taken.
    new: ProbeReport,
    any_denied: bool,
}

impl Probes {
    /// Attaches a plan. What could not be attached stays listed, with its reason.
    pub fn attach(&mut self, kernel: &mut Kernel, pid: u32, planned: &Planned) -> Result<()> {
        let outcome = kernel.attach(pid, &planned.plan)?;
        for (probe, outcome) in planned.plan.probes.iter().zip(outcome.probes) {
            self.is_attached.push(outcome == AttachOutcome::Attached);
            match outcome {
                AttachOutcome::Attached => self.new.attached.push(attached(probe)),
                AttachOutcome::Failed { reason, denied } => {
                    self.any_denied |= denied;
                    self.new.not_probed.push(NotProbed {
                        object: probe.object.clone(),
                        function: Some(probe.function.clone()),
                        reason,
                    });
                }
            }
        }
        self.new.not_probed.extend(planned.plan.not_probed.iter().cloned());
        self.new.not_probed.extend(planned.objects.unreadable.iter().cloned());
        Ok(())
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
        let counted = self.is_attached.iter().zip(hits);
        counted.filter(|(is_attached, _)| **is_attached).map(|(_, &hits)| hits).collect()
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

/// The plan as it was carried out, for `--verbose`.
pub fn explain(probes: &ProbeReport) {
    for probe in &probes.attached {
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
