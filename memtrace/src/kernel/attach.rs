//! Attaching: each probe of the plan, in an order that loses nothing, with what became of it.
//!
//! Deallocators first, so that no block is booked whose free would be missed; entries before
//! returns, so that an entry sees the return address before the kernel replaces it. Detached in
//! reverse. A probe that cannot be attached is data: the rest still works.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::JoinHandle;

use aya::programs::ProgramError;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use memtrace_common::calls::{Cookie, MAX_PROBES, SYSTEM_CALLS};

use super::error::advice;
use super::load::{attach_tracepoint, load_uprobe, uprobe};
use super::{Kernel, KernelError};
use crate::plan::{PlannedProbe, ProbePlan, Signature};

/// An attached probe; dropping it detaches.
pub(super) struct ProbeLink {
    _link: UProbeLink,
    /// Of the process whose hits it lets through, and of its thread that the kernel's filter is
    /// tied to.
    tgid: u32,
    thread: u32,
    /// Its number; none of one that tells of the loader.
    index: Option<usize>,
}

/// Where a probe stands, whoever runs it: device and inode of the file, place in it, what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    device: u64,
    inode: u64,
    offset: u64,
    signature: Signature,
}

/// The probes of all processes, numbered: a function of one file has one number, however many
/// processes are probed there.
#[derive(Debug, Default)]
pub(super) struct Places {
    numbers: HashMap<Place, usize>,
    count: usize,
}

impl Places {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// A number of its own.
    pub(super) fn add(&mut self) -> usize {
        self.count += 1;
        self.count - 1
    }

    fn number_of(&mut self, probe: &PlannedProbe) -> usize {
        let next = self.count;
        // A file that cannot be looked at cannot be attached to, either.
        let number = match fs::metadata(&probe.attach_path) {
            Ok(file) => *self
                .numbers
                .entry(Place {
                    device: file.dev(),
                    inode: file.ino(),
                    offset: probe.function_file_offset.saturating_add(probe.entry_site),
                    signature: probe.signature,
                })
                .or_insert(next),
            Err(_) => next,
        };
        self.count = self.count.max(number + 1);
        number
    }
}

/// Detaching waits for the kernel's grace periods, a tenth of a second and more for each probe: this
/// many wait together, which takes half as long as one after the other (the other half is spent
/// under one lock of the kernel; see docs/decisions/0005).
const DETACH_TOGETHER: usize = 64;

/// Probes that are being detached; dropping it waits until none remains.
#[derive(Debug)]
#[must_use = "dropping it waits"]
pub struct Detaching(Option<JoinHandle<()>>);

impl Drop for Detaching {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take()
            && thread.join().is_err()
        {
            // The panic was told already, and its unwinding has dropped the links.
            log::debug!("detaching panicked");
        }
    }
}

/// Detaches while others go on; without a thread for it, here.
fn drop_aside(links: Vec<ProbeLink>) {
    if !links.is_empty() {
        let aside = std::thread::Builder::new().name("detach-ended".to_owned());
        // Without a thread the closure is dropped at once, and with it the links.
        drop(aside.spawn(move || links.into_iter().for_each(drop)));
    }
}

/// Detaches all, together.
fn detach_all(mut links: Vec<ProbeLink>) {
    while !links.is_empty() {
        let together = links.split_off(links.len().saturating_sub(DETACH_TOGETHER));
        std::thread::scope(|scope| {
            for link in together {
                scope.spawn(|| drop(link));
            }
        });
    }
}

/// What became of each probe of the plan, in the plan's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachReport {
    pub probes: Vec<AttachOutcome>,
    /// The number of each probe: its place in [`super::KernelSnapshot::hits`]. Probes of other
    /// processes at the same place have the same.
    pub numbers: Vec<usize>,
    /// Of the tracepoints, where the plan has them: what became of them, and their numbers.
    pub system_calls: Option<(AttachOutcome, Vec<usize>)>,
}

impl AttachReport {
    pub fn attached(&self) -> usize {
        self.probes.iter().filter(|probe| **probe == AttachOutcome::Attached).count()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachOutcome {
    /// Entry, and return where the function needs one.
    Attached,
    /// Neither.
    Failed {
        reason: String,
        /// For lack of privileges, not because it cannot be.
        denied: bool,
    },
}

/// Why one probe could not be attached.
pub(super) struct Refusal {
    reason: String,
    denied: bool,
}

impl<T: Into<String>> From<T> for Refusal {
    fn from(reason: T) -> Self {
        Self { reason: reason.into(), denied: false }
    }
}

impl From<Refusal> for AttachOutcome {
    fn from(Refusal { reason, denied }: Refusal) -> Self {
        Self::Failed { reason, denied }
    }
}

impl Kernel {
    /// Attaches the plan's probes to one process. A probe that stands in the process already (it
    /// outlives an `exec`) is left as it is.
    pub fn attach(&mut self, pid: u32, plan: &ProbePlan) -> Result<AttachReport, KernelError> {
        let numbers: Vec<usize> =
            plan.probes.iter().map(|probe| self.places.number_of(probe)).collect();
        let mut probes: Vec<Option<AttachOutcome>> = vec![None; plan.probes.len()];
        let Some(scope) = living_thread(pid) else {
            let reason = format!("process {pid} has no living thread: it has ended");
            let failed = AttachOutcome::Failed { reason, denied: false };
            let probes = vec![failed; plan.probes.len()];
            return Ok(AttachReport { probes, numbers, system_calls: None });
        };
        let standing = self.standing(pid);
        let mut order: Vec<usize> =
            (0..plan.probes.len()).filter(|&at| !standing.contains(&numbers[at])).collect();
        order.sort_by_key(|&at| plan.probes[at].signature != Signature::Free);
        let mut entries: Vec<Option<ProbeLink>> = Vec::new();
        entries.resize_with(plan.probes.len(), || None);
        for &at in &order {
            match self.attach_entry(pid, scope, &plan.probes[at], numbers[at]) {
                Ok(link) => entries[at] = Some(link),
                Err(refusal) => probes[at] = Some(refusal.into()),
            }
        }
        let mut returns = Vec::new();
        for &at in &order {
            if entries[at].is_none() {
                continue;
            }
            match self.attach_return(pid, scope, &plan.probes[at], numbers[at]) {
                Ok(link) => returns.extend(link),
                Err(refusal) => {
                    entries[at] = None;
                    probes[at] = Some(refusal.into());
                }
            }
        }
        self.entries.extend(entries.into_iter().flatten());
        self.returns.append(&mut returns);
        let probes = probes.into_iter().map(|p| p.unwrap_or(AttachOutcome::Attached)).collect();
        let system_calls = plan.system_calls.then(|| self.attach_system_calls());
        Ok(AttachReport { probes, numbers, system_calls })
    }

    /// The mmap family where it enters the kernel, with the calls' numbers in the order of
    /// [`SYSTEM_CALLS`].
    fn attach_system_calls(&mut self) -> (AttachOutcome, Vec<usize>) {
        let numbers: Vec<usize> = SYSTEM_CALLS.iter().map(|_| self.places.add()).collect();
        let outcome = self.attach_tracepoints(numbers[0]);
        (outcome, numbers)
    }

    fn attach_tracepoints(&mut self, first: usize) -> AttachOutcome {
        /// Leaving before entering: no call is taken for one whose end was missed.
        const PROGRAMS: [(&str, &str); 2] =
            [("syscall_exit", "sys_exit"), ("syscall_enter", "sys_enter")];
        let failed = |reason: String, denied| AttachOutcome::Failed { reason, denied };
        if self.places.count() > MAX_PROBES {
            return failed(format!("more than {MAX_PROBES} probes"), false);
        }
        let mut links = Vec::new();
        for (program, tracepoint) in PROGRAMS {
            match attach_tracepoint(&mut self.ebpf, program, tracepoint) {
                Ok(link) => links.push(link),
                Err(error) => {
                    let denied = error.is_permission();
                    return failed(KernelError::explained(error).to_string(), denied);
                }
            }
        }
        self.tracepoints.append(&mut links);
        // Every system call of the host runs both programs: to read the clock around each would cost
        // it as much again.
        self.stats = None;
        self.config_row.system_calls = u32::try_from(first + 1).unwrap_or(0);
        AttachOutcome::Attached
    }

    /// The probes that stand in a process. The kernel's filter is the memory of a thread: it goes
    /// on with an `exec`, but not where another thread than that one executes.
    fn standing(&mut self, pid: u32) -> HashSet<usize> {
        let dead = |link: &mut ProbeLink| link.tgid == pid && link.thread != pid;
        let has_died = |thread: u32| !is_living(pid, thread);
        let gone: Vec<ProbeLink> = self
            .returns
            .extract_if(.., |link| dead(link) && has_died(link.thread))
            .chain(self.entries.extract_if(.., |link| dead(link) && has_died(link.thread)))
            .collect();
        drop_aside(gone);
        let own = self.entries.iter().filter(|link| link.tgid == pid);
        own.filter_map(|link| link.index).collect()
    }

    /// Detaches what tells of a process's loader: after an `exec` it is another one's.
    pub fn detach_loader(&mut self, pid: u32) {
        let of_loader = |link: &mut ProbeLink| link.tgid == pid && link.index.is_none();
        drop_aside(self.entries.extract_if(.., of_loader).collect());
    }

    /// Detaches the probes of processes that have ended, aside: it takes a tenth of a second for
    /// each, in which others cannot be attached as quickly. How many there were.
    pub fn detach_ended(&mut self, has_ended: impl Fn(u32) -> bool) -> usize {
        let gone: Vec<ProbeLink> = self
            .returns
            .extract_if(.., |link| has_ended(link.tgid))
            .chain(self.entries.extract_if(.., |link| has_ended(link.tgid)))
            .collect();
        let count = gone.len();
        drop_aside(gone);
        count
    }

    /// How many links there are: two descriptors each.
    pub fn links(&self) -> usize {
        self.entries.len() + self.returns.len()
    }

    /// For the benchmark, in place of [`Kernel::attach`]: takes the stack at the entry of one
    /// allocator, and does nothing with it.
    pub fn attach_stack_only(
        &mut self,
        pid: u32,
        probe: &PlannedProbe,
    ) -> Result<AttachOutcome, KernelError> {
        const PROGRAM: &str = "stack_only";
        load_uprobe(&mut self.ebpf, PROGRAM)?;
        let link = living_thread(pid)
            .ok_or_else(|| Refusal::from(format!("process {pid} has ended")))
            .and_then(|scope| self.attach_at(pid, scope, probe, 0, PROGRAM, probe.entry_site));
        Ok(match link {
            Ok(link) => {
                self.entries.push(link);
                AttachOutcome::Attached
            }
            Err(refusal) => refusal.into(),
        })
    }

    fn attach_entry(
        &mut self,
        pid: u32,
        scope: NonZeroU32,
        probe: &PlannedProbe,
        index: usize,
    ) -> Result<ProbeLink, Refusal> {
        let kind = probe.signature;
        let program = match kind {
            Signature::Free => "free_entry",
            kind if kind.is_range() => self.walkers.range,
            _ => self.walkers.call,
        };
        self.attach_at(pid, scope, probe, index, program, probe.entry_site)
    }

    fn attach_return(
        &mut self,
        pid: u32,
        scope: NonZeroU32,
        probe: &PlannedProbe,
        index: usize,
    ) -> Result<Option<ProbeLink>, Refusal> {
        let kind = probe.signature;
        if !kind.needs_return() {
            return Ok(None);
        }
        let site = probe.return_site.ok_or("the plan has no site for its return probe")?;
        let program = if kind.is_range() { "range_return" } else { "call_return" };
        self.attach_at(pid, scope, probe, index, program, site).map(Some)
    }

    pub(super) fn attach_at(
        &mut self,
        pid: u32,
        scope: NonZeroU32,
        probe: &PlannedProbe,
        index: usize,
        program: &'static str,
        site: u64,
    ) -> Result<ProbeLink, Refusal> {
        let number = u16::try_from(index)
            .ok()
            .filter(|index| usize::from(*index) < MAX_PROBES)
            .ok_or_else(|| format!("more than {MAX_PROBES} probes"))?;
        let offset = probe
            .function_file_offset
            .checked_add(site)
            .ok_or("its place in the file overflows")?;
        let cookie = Cookie::new(number, probe.signature).of_process(pid).0;
        let mut link =
            self.attach_point(pid, scope, program, &probe.attach_path, offset, cookie)?;
        link.index = Some(index);
        Ok(link)
    }

    /// One probe at an offset of a file.
    pub(super) fn attach_point(
        &mut self,
        pid: u32,
        scope: NonZeroU32,
        program: &'static str,
        path: &Path,
        offset: u64,
        cookie: u64,
    ) -> Result<ProbeLink, Refusal> {
        // aya takes a bare name for a library to search for, and a path for a C string.
        if !path.is_absolute() || path.as_os_str().as_bytes().contains(&0) {
            return Err(format!("`{}` is no absolute path", path.display()).into());
        }
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(offset),
            cookie: Some(cookie),
        };
        let program = uprobe(&mut self.ebpf, program).map_err(|error| error.to_string())?;
        program
            .attach(point, path, UProbeScope::OneProcess(scope))
            .and_then(|id| program.take_link(id))
            .map(|link| ProbeLink { _link: link, tgid: pid, thread: scope.get(), index: None })
            .map_err(|error| explain(&error, path, offset))
    }

    /// Detaches every probe, returns before entries. Safe to repeat; also done on drop, and by the
    /// kernel itself when memtrace dies.
    pub fn detach(&mut self) {
        drop(self.detach_meanwhile());
    }

    /// The same while the caller does something else.
    pub fn detach_meanwhile(&mut self) -> Detaching {
        let returns = std::mem::take(&mut self.returns);
        let entries = std::mem::take(&mut self.entries);
        let tracepoints = std::mem::take(&mut self.tracepoints);
        if returns.is_empty() && entries.is_empty() && tracepoints.is_empty() {
            return Detaching(None);
        }
        let detach = move || {
            detach_all(returns);
            detach_all(entries);
            drop(tracepoints);
        };
        // Without a thread the closure is dropped at once, and with it the links.
        Detaching(std::thread::Builder::new().name("detach".to_owned()).spawn(detach).ok())
    }
}

fn explain(error: &ProgramError, path: &Path, offset: u64) -> Refusal {
    let mut denied = false;
    let cause = match error {
        ProgramError::SyscallError(failed) => {
            let errno = failed.io_error.raw_os_error();
            denied = matches!(errno, Some(libc::EPERM | libc::EACCES));
            let told = |more: &str| format!("{}: {more}", failed.io_error);
            let more = match errno {
                Some(libc::ENOENT) => told("the file is gone"),
                Some(libc::ESRCH) => told("the process has ended"),
                // 524: ENOTSUPP, the kernel's own.
                Some(libc::EINVAL | 524) => told("the kernel cannot probe the instruction there"),
                _ => advice(&failed.io_error),
            };
            format!("{}: {more}", failed.call)
        }
        other => other.to_string(),
    };
    let reason = format!("failed to attach at `{}`+{offset:#x}: {cause}", path.display());
    Refusal { reason, denied }
}

/// A thread of the process that has not ended: the kernel ties a probe's filter to the memory of
/// one thread, and a leader that has ended has none.
pub(super) fn living_thread(pid: u32) -> Option<NonZeroU32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let others = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    std::iter::once(pid).chain(others).find(|tid| is_living(pid, *tid)).and_then(NonZeroU32::new)
}

fn is_living(pid: u32, tid: u32) -> bool {
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
        stat.get(stat.rfind(") ")? + 2..)?.chars().next()
    };
    state().is_some_and(|state| !matches!(state, 'Z' | 'X' | 'x'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_has_no_living_thread() {
        assert_eq!(
            living_thread(std::process::id()).map(NonZeroU32::get),
            Some(std::process::id())
        );
        assert_eq!(living_thread(u32::MAX), None);
    }
}
