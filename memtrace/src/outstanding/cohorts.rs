//! Into which intervals the time of a recording is cut, so that survivors can be counted by when
//! they were allocated. Pure.
//!
//! Intervals end at snapshots. There are never more than [`MOST`]: then each two neighbours become
//! one, and from then on an interval spans twice as many snapshots, so that a recording of any length
//! is cut evenly.

/// Most intervals kept.
const MOST: usize = 32;

/// The ends of the intervals, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intervals {
    ends_ns: Vec<u64>,
    /// Snapshots to an interval.
    stride: u64,
    snapshots: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { ends_ns: Vec::new(), stride: 1, snapshots: 0 }
    }
}

impl Intervals {
    pub fn ends_ns(&self) -> &[u64] {
        &self.ends_ns
    }

    /// A snapshot was taken at this instant, which ends an interval if enough are in it. An instant
    /// that is not after the last one counts for nothing.
    pub fn snapshot_at(&mut self, now_ns: u64) {
        if self.ends_ns.last().is_some_and(|last| *last >= now_ns) {
            return;
        }
        self.snapshots += 1;
        if !self.snapshots.is_multiple_of(self.stride) {
            return;
        }
        if self.ends_ns.len() >= MOST {
            // Every second end stays: those at multiples of the new stride.
            let mut at = 0usize;
            self.ends_ns.retain(|_| {
                at += 1;
                at.is_multiple_of(2)
            });
            self.stride = self.stride.saturating_mul(2);
            if !self.snapshots.is_multiple_of(self.stride) {
                return;
            }
        }
        self.ends_ns.push(now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_of_any_length_is_cut_evenly_into_few_intervals() {
        let mut intervals = Intervals::default();
        for at in 1..=10_000u64 {
            intervals.snapshot_at(at);
            let ends = intervals.ends_ns();
            assert!(ends.len() <= MOST && ends.is_sorted());
            assert!(at < 32 || ends.len() >= MOST / 2, "{at}: {}", ends.len());
            let width = ends[0];
            assert!(ends.windows(2).all(|pair| pair[1] - pair[0] == width), "{ends:?}");
            assert!(at - ends[ends.len() - 1] < width);
        }
    }

    #[test]
    fn an_interval_that_ended_is_never_cut_again() {
        let mut intervals = Intervals::default();
        let mut before: Vec<u64> = Vec::new();
        for at in 1..=500 {
            intervals.snapshot_at(at * 7);
            let new = intervals.ends_ns().iter().filter(|end| !before.contains(end));
            assert!(new.count() <= 1);
            before = intervals.ends_ns().to_vec();
        }
    }

    #[test]
    fn no_time_passed_is_no_interval() {
        let mut intervals = Intervals::default();
        for at in [5, 5, 4] {
            intervals.snapshot_at(at);
        }
        assert_eq!(intervals.ends_ns(), [5]);
    }
}
