//! From buckets to the profile: which counts are published, how old they are, and the estimate.
//!
//! The published profile is what `runtime.MemProfile` would give at this instant, without the
//! flush that it does: `active + future[C mod 3]`, and, when that is empty everywhere, the sum of
//! all cycles (no collection has published anything yet). It is read twice and accepted when both
//! readings agree: between collections it does not change, while one publishes it does.
//! Pure over [`Memory`].

use std::sync::Arc;
use std::time::Duration;

use super::access::{Memory, Unreadable};
use super::buckets::{BucketError, Buckets, Counts, Record};
use super::layout::{FUTURE_CYCLES, Layout};
use crate::go::debug1::scaled;
use crate::snapshot::GoProfile;

const ATTEMPTS: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_micros(200);
/// Fewer buckets than this say nothing about their places.
const ENOUGH_TO_BE_ADJACENT: usize = 16;

/// Where the runtime's variables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfileAt {
    /// `runtime.mbuckets`
    pub buckets: u64,
    /// `runtime.mProfCycle`
    pub cycle: u64,
    /// `runtime.MemProfileRate`
    pub rate: u64,
}

/// One bucket's part of the profile, estimated from its samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub stack: Arc<[u64]>,
    pub inuse_objects: u64,
    pub inuse_bytes: u64,
    pub alloc_objects: u64,
    pub alloc_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapProfile {
    pub samples: Vec<Sample>,
    /// Mean bytes between samples, 1 for every allocation.
    pub rate: u64,
    /// How many collections before the last one it is of.
    pub collections_old: u32,
}

/// Why there is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error(
        "the program keeps none: MemProfileRate is 0 (set so, or by the linker because nothing \
         in the program asks for a heap profile)"
    )]
    Off,
    #[error("MemProfileRate cannot be {rate}")]
    Rate { rate: i64 },
    #[error("the profile's cycle {cycle} does not belong to {collections} collections")]
    Cycle { cycle: u64, collections: u64 },
    #[error("it kept changing: collections follow each other too fast ({ATTEMPTS} attempts)")]
    Moving,
    #[error("more objects were freed than allocated by the stack at {bucket:#x}")]
    Negative { bucket: u64 },
    #[error("{sampled} B sampled are more than the {allocated} B ever allocated")]
    TooMuch { sampled: u64, allocated: u64 },
    #[error("its buckets do not stand side by side, as they do with a known layout")]
    NotAdjacent,
}

/// What the runtime's statistics say, to check the profile against.
#[derive(Clone, Copy, Debug)]
pub struct Checks {
    pub collections: u64,
    pub total_alloc: u64,
    /// The layout was made for an older release.
    pub on_trial: bool,
}

pub fn read(
    memory: &dyn Memory,
    at: ProfileAt,
    layout: &Layout,
    kind: GoProfile,
    buckets: &mut Buckets,
    checks: Checks,
) -> Result<HeapProfile, ProfileError> {
    let rate = memory.word(at.rate)?.cast_signed();
    if !(0..1 << 40).contains(&rate) {
        return Err(ProfileError::Rate { rate });
    }
    check_cycle(memory.half_word(at.cycle)?, checks.collections)?;
    let mut pause = FIRST_PAUSE;
    let mut before = None;
    let mut last_error = ProfileError::Moving;
    for attempt in 0..ATTEMPTS {
        if attempt > 1 {
            std::thread::sleep(pause);
            pause *= 2;
        }
        let reading = match read_once(memory, at, layout, kind, buckets) {
            Ok(reading) => reading,
            // Half of an update is seen now and then; the next attempt sees the whole.
            Err(error @ ProfileError::Bucket(BucketError::Record { .. })) => {
                last_error = error;
                continue;
            }
            Err(error) => return Err(error),
        };
        // The current profile never stands still; each of its counts is right.
        if kind == GoProfile::Current || before.as_ref() == Some(&reading) {
            if rate == 0 && reading.counts.iter().all(|(_, counts)| counts.is_zero()) {
                return Err(ProfileError::Off);
            }
            check(&reading, buckets, layout, checks)?;
            return Ok(estimate(&reading, buckets, rate.cast_unsigned()));
        }
        before = Some(reading);
    }
    Err(last_error)
}

/// The counts of the buckets that have any (bucket's index, counts), of one instant or nearly.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    cycle: u32,
    collections_old: u32,
    counts: Vec<(usize, Counts)>,
}

fn read_once(
    memory: &dyn Memory,
    at: ProfileAt,
    layout: &Layout,
    kind: GoProfile,
    buckets: &mut Buckets,
) -> Result<Reading, ProfileError> {
    let cycle = memory.half_word(at.cycle)?;
    buckets.follow(memory, memory.word(at.buckets)?, layout)?;
    let records = buckets.records(memory, layout)?;
    let slot = |ahead: u32| ((cycle >> 1).wrapping_add(ahead) as usize) % FUTURE_CYCLES;
    let published = |record: &Record| record.active.plus(record.future[slot(0)]);
    let all = |record: &Record| record.future.iter().fold(record.active, |sum, c| sum.plus(*c));
    let nothing_yet = records.iter().all(|record| published(record).is_zero());
    let take_all = kind == GoProfile::Current || nothing_yet;
    // What the last collection will publish: nothing left of it means that it has.
    let is_latest = || records.iter().all(|record| record.future[slot(1)].is_zero());
    let collections_old = u32::from(!take_all && !is_latest());
    let counts = records
        .iter()
        .map(|record| if take_all { all(record) } else { published(record) })
        .enumerate()
        .filter(|(_, counts)| !counts.is_zero())
        .collect();
    Ok(Reading { cycle, collections_old, counts })
}

/// One cycle begins with each collection, two with those that stop the world to sweep.
fn check_cycle(value: u32, collections: u64) -> Result<(), ProfileError> {
    let cycle = u64::from(value >> 1);
    if cycle > 2 * collections + 2 || cycle + 1 < collections {
        return Err(ProfileError::Cycle { cycle, collections });
    }
    Ok(())
}

fn check(
    reading: &Reading,
    buckets: &Buckets,
    layout: &Layout,
    checks: Checks,
) -> Result<(), ProfileError> {
    let mut sampled = 0u64;
    for (index, counts) in &reading.counts {
        if counts.frees > counts.allocs {
            return Err(ProfileError::Negative { bucket: buckets.all()[*index].address });
        }
        sampled = sampled.saturating_add(counts.alloc_bytes);
    }
    // What the processors' caches hold is sampled before it is counted.
    const SLACK: u64 = 256 << 20;
    let allocated = checks.total_alloc;
    if sampled > allocated.saturating_add(SLACK) {
        return Err(ProfileError::TooMuch { sampled, allocated });
    }
    let enough = buckets.all().len() >= ENOUGH_TO_BE_ADJACENT;
    if checks.on_trial && enough && buckets.adjacent(layout) == 0 {
        return Err(ProfileError::NotAdjacent);
    }
    Ok(())
}

/// Buckets without any counts yet, which `runtime/pprof` lists with zeros, are left out.
fn estimate(reading: &Reading, buckets: &Buckets, rate: u64) -> HeapProfile {
    let samples = reading.counts.iter().map(|(index, counts)| {
        let (alloc_objects, alloc_bytes) = scaled((counts.allocs, counts.alloc_bytes), rate);
        let inuse = (counts.allocs - counts.frees, counts.alloc_bytes - counts.free_bytes);
        let (inuse_objects, inuse_bytes) = scaled(inuse, rate);
        let stack = Arc::clone(&buckets.all()[*index].stack);
        Sample { stack, inuse_objects, inuse_bytes, alloc_objects, alloc_bytes }
    });
    HeapProfile { samples: samples.collect(), rate, collections_old: reading.collections_old }
}

#[cfg(test)]
#[path = "heap_profile_tests.rs"]
mod tests;
