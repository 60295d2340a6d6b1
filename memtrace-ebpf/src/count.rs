//! Counting: the only way out of a failing probe.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use memtrace_common::calls::MAX_PROBES;
use memtrace_common::counters::{Loss, Tally};
use memtrace_common::rows::CountersRow;

use crate::maps::COUNTERS;

/// The counters of the CPU the program started on. Another program may run here by preemption,
/// so all adding is atomic.
#[derive(Clone, Copy)]
pub struct Counters(*mut CountersRow);

impl Counters {
    #[inline(always)]
    pub fn get() -> Option<Self> {
        COUNTERS.get_ptr_mut(0).map(Self)
    }

    /// Counts a loss.
    #[inline(always)]
    pub fn lose(self, loss: Loss) {
        // SAFETY: the map value outlives the program, and `Loss` numbers are below `Loss::COUNT`.
        unsafe { add(&raw mut (*self.0).losses[loss as usize], 1) }
    }

    /// Counts a fact.
    #[inline(always)]
    pub fn tally(self, tally: Tally) {
        self.tally_by(tally, 1);
    }

    #[inline(always)]
    pub fn tally_by(self, tally: Tally, by: u64) {
        // SAFETY: as in `lose`.
        unsafe { add(&raw mut (*self.0).tallies[tally as usize], by) }
    }

    /// Counts a call of the probe.
    #[inline(always)]
    pub fn hit(self, probe: usize) {
        if probe < MAX_PROBES {
            // SAFETY: the map value outlives the program; `probe` was checked.
            unsafe { add((&raw mut (*self.0).hits).cast::<u64>().add(probe), 1) }
        }
    }
}

/// `*to += by`, seen by every CPU.
///
/// # Safety
/// `to` points into a live map value, at eight aligned bytes.
#[inline(always)]
pub unsafe fn add(to: *mut u64, by: u64) {
    // SAFETY: the caller's promise; all who write the word do so atomically.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(to, by) };
}
