//! What the walk needs: unwind rows, appended through one mapping of the map, and the mappings of
//! each process, replaced whole.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use memtrace_common::rows::{
    NoticedKey, ProcessRow, STACK_COLLISION, STACK_STORE_FULL, StackRow, TotalsKey, TotalsRow,
};
use memtrace_common::unwind::{MAX_MAPPINGS, UnwindMapping};

use super::{Kernel, KernelError};

/// The map of unwind rows, mapped into this process. Rows in use are never rewritten.
#[derive(Debug)]
pub(super) struct RowsMapping {
    start: NonNull<AtomicU64>,
    capacity: usize,
    used: usize,
    _map: OwnedFd,
}

// SAFETY: the mapping is owned, and its words are atomic.
unsafe impl Send for RowsMapping {}

impl RowsMapping {
    pub(super) fn new(map: OwnedFd, capacity: u32) -> Result<Self, KernelError> {
        let capacity = capacity as usize;
        // SAFETY: a fresh shared mapping of a map made with BPF_F_MMAPABLE, at no given address.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                capacity * 8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(KernelError::map("map into memory", "ROWS", io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| {
            KernelError::map("map into memory", "ROWS", io::ErrorKind::Other.into())
        })?;
        Ok(Self { start, capacity, used: 0, _map: map })
    }

    fn append(&mut self, rows: &[u64]) -> Result<u32, KernelError> {
        let first = self.used;
        if rows.len() > self.capacity - first {
            return Err(KernelError::RowsFull {
                wanted: rows.len(),
                used: first,
                capacity: self.capacity,
            });
        }
        for (at, row) in (first..).zip(rows) {
            // SAFETY: `at` is below the capacity, which the mapping has.
            unsafe { self.start.add(at).as_ref() }.store(*row, Ordering::Relaxed);
        }
        self.used += rows.len();
        Ok(first as u32)
    }
}

impl Drop for RowsMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, with its length; no reference to it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.capacity * 8) };
    }
}

/// Whose books: a number for each program that a process runs, from 1 on. `exec` starts another
/// image in the same process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageNumber {
    pub number: u32,
    /// The image that it was forked from, whose blocks it inherited; 0: none that is traced.
    pub parent: u32,
}

impl ImageNumber {
    /// Of an image that was not forked while it was traced.
    pub const fn first(number: u32) -> Self {
        Self { number, parent: 0 }
    }
}

impl Kernel {
    /// Appends one object's unwind rows, sorted by pc. Returns the index of the first, for
    /// [`UnwindMapping::first_row`].
    pub fn append_unwind_rows(&mut self, rows: &[u64]) -> Result<u32, KernelError> {
        self.rows.append(rows)
    }

    /// How many unwind rows are in use.
    pub fn unwind_rows(&self) -> usize {
        self.rows.used
    }

    /// Sets the executable mappings of a process, sorted by start and disjoint, and traces the
    /// process from now on. Walks see the old mappings or the new ones, never both.
    ///
    /// A process that `exec` has taken out meanwhile stays out, as its notice will tell: these are
    /// mappings of the image that it was, or of one that has no probes. After
    /// [`Kernel::remove_process`] it may be set anew.
    pub fn set_process(
        &mut self,
        tgid: u32,
        image: ImageNumber,
        mappings: &[UnwindMapping],
    ) -> Result<(), KernelError> {
        check(mappings, self.rows.used)
            .map_err(|reason| KernelError::BadMappings { tgid, reason })?;
        // Unknown pages of the old mappings may be told again.
        let old = self
            .processes
            .get(&tgid)
            .map_err(|source| KernelError::map("read", "PROCESSES", source))?;
        if let Some(old) = old {
            self.forget_noticed(old.generation)?;
        }
        for stack in [STACK_STORE_FULL, STACK_COLLISION] {
            let key = TotalsKey { stack, image: image.number, zero: 0 };
            let known = self.totals.get(&key);
            let known = known.map_err(|source| KernelError::map("read", "TOTALS", source))?;
            if known.is_none() {
                self.totals
                    .insert(&key, &TotalsRow::default())
                    .map_err(|source| KernelError::map("fill", "TOTALS", source))?;
            }
        }
        self.generation = self.generation.wrapping_add(1).max(1);
        let (slot, changes, beyond) = self.changes_to_set(tgid)?;
        let mut row = ProcessRow {
            generation: self.generation,
            count: mappings.len() as u32,
            slot,
            image: image.number,
            changes,
            beyond,
            parent: image.parent,
            zero: 0,
            mappings: [UnwindMapping::default(); MAX_MAPPINGS],
        };
        row.mappings[..mappings.len()].copy_from_slice(mappings);
        let set = match self.set_before.contains(&tgid) {
            true => self.processes.replace(&tgid, &row).map(drop),
            false => self.processes.insert(&tgid, &row),
        };
        self.set_before.insert(tgid);
        set.map_err(|source| KernelError::map("fill", "PROCESSES", source))
    }

    /// The process is traced no more: its probe hits count as foreign. Its books stay.
    pub fn remove_process(&mut self, tgid: u32) -> Result<(), KernelError> {
        self.set_before.remove(&tgid);
        self.followed.remove(&tgid);
        match self.processes.remove(&tgid) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                Err(KernelError::map("remove from", "PROCESSES", error))
            }
            _ => Ok(()),
        }
    }

    /// Takes the books of images that have ended out of the maps: blocks, totals and stacks. Read
    /// them before. No program looks at them any more.
    pub fn forget_images(&mut self, images: &[u32]) -> Result<(), KernelError> {
        let mut blocks = Vec::new();
        self.blocks
            .for_each(|key, _, _| blocks.extend(images.contains(&key.image).then_some(*key)))
            .map_err(|source| KernelError::map("read", "BLOCKS", source))?;
        let mut totals = Vec::new();
        self.totals
            .for_each(|key, _, _| totals.extend(images.contains(&key.image).then_some(*key)))
            .map_err(|source| KernelError::map("read", "TOTALS", source))?;
        for key in &blocks {
            // Gone already is as good, here and below.
            let _ = self.blocks.remove(key);
        }
        for key in &totals {
            let _ = self.totals.remove(key);
            let is_theirs = |row: StackRow| images.contains(&row.image);
            if self.stacks.get(&key.stack).ok().flatten().is_some_and(is_theirs) {
                let _ = self.stacks.remove(&key.stack);
            }
        }
        Ok(())
    }

    fn forget_noticed(&self, generation: u32) -> Result<(), KernelError> {
        let mut old: Vec<NoticedKey> = Vec::new();
        self.noticed
            .for_each(|key, _, _| old.extend((key.generation == generation).then_some(*key)))
            .map_err(|source| KernelError::map("read", "NOTICED", source))?;
        for key in old {
            // Gone already is as good.
            let _ = self.noticed.remove(&key);
        }
        Ok(())
    }
}

fn check(mappings: &[UnwindMapping], rows: usize) -> Result<(), String> {
    if mappings.len() > MAX_MAPPINGS {
        return Err(format!(
            "{} executable mappings, {MAX_MAPPINGS} are known at most",
            mappings.len()
        ));
    }
    for (at, mapping) in mappings.iter().enumerate() {
        let name = format!("mapping {at} ({:#x}-{:#x})", mapping.start, mapping.end);
        if mapping.start >= mapping.end {
            return Err(format!("{name} is empty"));
        }
        if mappings.get(at + 1).is_some_and(|next| next.start < mapping.end) {
            return Err(format!("{name} is not below the next one"));
        }
        if mapping.first_row as usize + mapping.row_count as usize > rows {
            return Err(format!("{name} has rows beyond the {rows} appended"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, first_row: u32, row_count: u32) -> UnwindMapping {
        let bias = start;
        UnwindMapping { start, end, bias, first_row, row_count, ..UnwindMapping::default() }
    }

    #[test]
    fn sorted_disjoint_mappings_with_rows_are_right() {
        assert_eq!(check(&[], 0), Ok(()));
        assert_eq!(check(&[mapping(1, 9, 0, 4), mapping(9, 12, 4, 1)], 5), Ok(()));
    }

    #[test]
    fn wrong_mappings_are_refused() {
        assert!(check(&[mapping(9, 9, 0, 0)], 5).is_err());
        assert!(check(&[mapping(1, 9, 0, 0), mapping(8, 12, 0, 0)], 5).is_err());
        assert!(check(&[mapping(1, 9, 4, 2)], 5).is_err());
        let many: Vec<_> = (0..257).map(|i| mapping(i * 2 + 1, i * 2 + 2, 0, 0)).collect();
        assert!(check(&many, 5).is_err());
    }
}
