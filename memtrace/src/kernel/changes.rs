//! Following the mappings of a process: what has changed since they were read last.
//!
//! The kernel side counts what may make its rows wrong, and walks distrust the rows of mappings that
//! may go until a row of `PROCESSES` comes that was made of mappings read after the last change. So:
//! [`Kernel::note_changes`], read the mappings, [`Kernel::set_process`].

use std::path::Path;

use memtrace_common::rows::{ChangesRow, LOADER_ADDS, LOADER_CONSISTENT, MAX_PROCESSES};

use super::attach::living_thread;
use super::load::{load_uprobe, uprobe};
use super::{AttachOutcome, Kernel, KernelError};

const PROGRAM: &str = "link_map_changed";

/// What is known of one process's changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Followed {
    pub(super) slot: u32,
    /// From [`Kernel::note_changes`] to [`Kernel::set_process`].
    noted: Option<ChangesRow>,
    /// What the process's row says, where it has one.
    set: Option<(u64, u64)>,
}

/// How the mappings stand to what was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Walks distrust what was set: it must be set again, even the same.
    pub is_behind: bool,
    /// Nothing is going at this moment.
    pub is_settled: bool,
    /// Grows with each change; its lower half stands in each stack.
    pub count: u64,
}

impl Kernel {
    /// Notes the changes so far: the mappings that are read next, and then set, know of them.
    pub fn note_changes(&mut self, tgid: u32) -> Result<Noted, KernelError> {
        let row = self.changes_of(tgid)?;
        let followed = self.followed.get_mut(&tgid);
        let set = followed.and_then(|followed| {
            followed.noted = Some(row);
            followed.set
        });
        Ok(Noted {
            is_behind: set.is_some_and(|set| set != (row.count, row.beyond)),
            is_settled: row.count % 2 == 0,
            count: row.count,
        })
    }

    /// How many changes were counted since.
    pub fn changes_since(&mut self, tgid: u32, noted: &Noted) -> Result<u64, KernelError> {
        Ok(self.changes_of(tgid)?.count.saturating_sub(noted.count))
    }

    /// What the row of `PROCESSES` must say: slot, count, beyond.
    pub(super) fn changes_to_set(&mut self, tgid: u32) -> Result<(u32, u64, u64), KernelError> {
        let now = self.changes_of(tgid)?;
        let Some(followed) = self.followed.get_mut(&tgid) else { return Ok((0, 0, 0)) };
        let noted = followed.noted.take().unwrap_or(now);
        // What the loader is mapping it may unmap again, when it fails, without a word.
        let is_mapping = noted.state == LOADER_ADDS;
        let count = if is_mapping { noted.count.wrapping_sub(2) } else { noted.count };
        followed.set = Some((count, noted.beyond));
        Ok((followed.slot, count, noted.beyond))
    }

    /// A process gets a slot with the first question for it.
    fn changes_of(&mut self, tgid: u32) -> Result<ChangesRow, KernelError> {
        let read = |kernel: &Self, slot: u32| {
            let row = kernel.changes.get(&slot);
            row.map(Option::unwrap_or_default)
                .map_err(|source| KernelError::map("read", "CHANGES", source))
        };
        if let Some(followed) = self.followed.get(&tgid) {
            return read(self, followed.slot);
        }
        let is_free = |slot: &u32| self.followed.values().all(|other| other.slot != *slot);
        let slot = (0..MAX_PROCESSES as u32).find(is_free).ok_or_else(|| {
            let reason = format!("more than {MAX_PROCESSES} processes");
            KernelError::BadMappings { tgid, reason }
        })?;
        // A process before it may have ended while it was unloading.
        let mut row = read(self, slot)?;
        row.count = row.count.next_multiple_of(2);
        row.state = LOADER_CONSISTENT;
        self.changes
            .insert(&slot, &row)
            .map_err(|source| KernelError::map("fill", "CHANGES", source))?;
        self.followed.insert(tgid, Followed { slot, noted: None, set: None });
        Ok(row)
    }

    /// Has the process's loader tell of its changes: a probe at `offset` of `path`, where it calls
    /// before and after them; `state`: the address of its `r_state`, 0 where that is not known.
    pub fn attach_link_map(
        &mut self,
        pid: u32,
        path: &Path,
        offset: u64,
        state: u64,
    ) -> Result<AttachOutcome, KernelError> {
        // Each process has a loader of its own; the program is the same.
        if uprobe(&mut self.ebpf, PROGRAM)?.fd().is_err() {
            load_uprobe(&mut self.ebpf, PROGRAM)?;
        }
        let Some(scope) = living_thread(pid) else {
            let reason = format!("process {pid} has no living thread: it has ended");
            return Ok(AttachOutcome::Failed { reason, denied: false });
        };
        Ok(match self.attach_point(pid, scope, PROGRAM, path, offset, state) {
            Ok(link) => {
                self.entries.push(link);
                AttachOutcome::Attached
            }
            Err(refusal) => refusal.into(),
        })
    }
}
