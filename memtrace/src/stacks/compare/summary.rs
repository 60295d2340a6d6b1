//! Sums over many comparisons. Pure.

use std::collections::{BTreeMap, BTreeSet};

use memtrace_common::unwind::WalkEnd;

use super::{Contradiction, Opinion, Stop, Verdict};

/// Most contradictions that are kept whole.
const MAX_DISPUTES: usize = 5;

/// Why a walk is not complete, and in which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Truncation {
    pub reason: &'static str,
    /// Of the last frame that was reached.
    pub object: String,
}

/// A contradiction, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    pub tid: u32,
    pub contradiction: Contradiction,
    pub walk: Vec<u64>,
    pub walk_end: WalkEnd,
    pub framehop: Opinion,
}

/// One comparison's outcome, for the sums.
#[derive(Clone, Debug)]
pub struct Compared {
    pub tid: u32,
    pub verdict: Verdict,
    pub walk: Vec<u64>,
    pub walk_end: WalkEnd,
    pub framehop: Opinion,
}

#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub compared: u64,
    pub identical: u64,
    /// Of the identical ones, those with unchecked steps.
    pub identical_in_part: u64,
    pub framehop_ended_early: BTreeMap<Stop, u64>,
    pub walk_ended_early: BTreeMap<&'static str, u64>,
    pub contradictions: u64,
    /// The first ones.
    pub disputes: Vec<Dispute>,
    /// Steps from a frame to its caller that were confirmed, and those that no unwind
    /// information describes.
    pub checked_steps: u64,
    pub unchecked_steps: u64,
    /// Of the confirmed steps, those that gimli took in place of framehop.
    pub evaluated_steps: u64,
    /// And those by Go's own table of frame sizes.
    pub go_steps: u64,
    /// Walks that reached the end of the stack.
    pub complete: u64,
    pub truncated: BTreeMap<Truncation, u64>,
    pub frames: u64,
    pub most_frames: usize,
    threads: BTreeSet<u32>,
}

impl Summary {
    /// Adds one comparison. `object_at`: the object at an address, asked for truncated walks.
    pub fn add(&mut self, compared: Compared, object_at: impl FnOnce(u64) -> String) {
        let Compared { tid, verdict, walk, walk_end, framehop } = compared;
        self.compared += 1;
        self.threads.insert(tid);
        self.frames += walk.len() as u64;
        self.most_frames = self.most_frames.max(walk.len());
        if walk_end == WalkEnd::Complete {
            self.complete += 1;
        } else {
            let object = walk.last().map_or_else(String::new, |last| object_at(*last));
            let truncation = Truncation { reason: reason(walk_end), object };
            *self.truncated.entry(truncation).or_default() += 1;
        }
        let unchecked = u64::from(framehop.unchecked_steps);
        let taken = (framehop.frames.len() as u64).saturating_sub(1);
        match verdict {
            Verdict::Identical => {
                self.identical += 1;
                self.identical_in_part += u64::from(unchecked > 0);
            }
            Verdict::FramehopEndedEarly(stop) => {
                *self.framehop_ended_early.entry(stop).or_default() += 1;
            }
            Verdict::WalkEndedEarly(end) => {
                *self.walk_ended_early.entry(reason(end)).or_default() += 1;
            }
            Verdict::Contradiction(contradiction) => {
                self.contradictions += 1;
                if self.disputes.len() < MAX_DISPUTES {
                    self.disputes.push(Dispute { tid, contradiction, walk, walk_end, framehop });
                }
                return;
            }
        }
        self.unchecked_steps += unchecked;
        self.evaluated_steps += u64::from(framehop.evaluated_steps);
        self.go_steps += u64::from(framehop.go_steps);
        self.checked_steps += taken.saturating_sub(unchecked);
    }

    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Mean frames of a walk. `None`: nothing was compared.
    pub fn mean_frames(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.frames as f64 / self.compared as f64)
    }
}

/// Why a walk ended.
pub const fn reason(end: WalkEnd) -> &'static str {
    match end {
        WalkEnd::Complete => "the end of the stack",
        WalkEnd::TooDeep => "more frames than are kept",
        WalkEnd::UnknownMapping => "unknown mapping",
        WalkEnd::NoUnwindRow => "no unwind row",
        WalkEnd::Unreadable => "stack memory unreadable",
        WalkEnd::NoProgress => "broken frame",
        WalkEnd::StoreFull => "stack store full",
        WalkEnd::HashCollision => "hash collision",
        WalkEnd::MappingsChanged => "mappings changed",
    }
}
