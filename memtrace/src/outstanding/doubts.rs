//! What the probes may have missed although nothing was lost: signs in the figures themselves. Pure.
//!
//! A doubt is no proof: it names the figures that do not fit together, and the likely reason.

use crate::snapshot::{RangeOwner, Recording, Snapshot};

/// Movements below are of the process's start, or of nothing.
const MOVED: u64 = 1 << 20;
/// Less than this is an allocator's ordinary reserve.
const RESERVE: u64 = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Stable, as it stands in JSON.
    pub name: &'static str,
    pub text: String,
}

/// The doubts at the snapshot at `position`.
pub(crate) fn doubts(recording: &Recording, position: usize) -> Vec<Doubt> {
    let Some(at) = recording.snapshots.get(position) else { return Vec::new() };
    let before = &recording.snapshots[..position];
    [never_hit(before, at), grows_unseen(before, at)].into_iter().flatten().collect()
}

/// Armed probes that nobody runs into, while the process's memory moves.
fn never_hit(before: &[Snapshot], at: &Snapshot) -> Option<Doubt> {
    let calls =
        |snapshot: &Snapshot| snapshot.native.hits.iter().fold(0, |a: u64, b| a.saturating_add(*b));
    let anon = |snapshot: &Snapshot| Some(snapshot.process.value()?.rss_anon);
    if calls(at) > 0 || at.native.hits.is_empty() {
        return None;
    }
    let now = anon(at)?;
    let moved = before.iter().filter_map(anon).map(|then| then.abs_diff(now)).max()?;
    (moved >= MOVED).then(|| Doubt {
        name: "never_hit",
        text: format!(
            "No probe was hit while {moved} bytes of anonymous memory came or went: the library that \
             is probed is likely not the one that runs (replaced or copied up since it was mapped), \
             or the program has an allocator without symbols, or calls the kernel itself"
        ),
    })
}

/// Memory that the allocator took since the attach, for blocks that nobody saw.
fn grows_unseen(before: &[Snapshot], at: &Snapshot) -> Option<Doubt> {
    let taken = |snapshot: &Snapshot| {
        let own = snapshot
            .native
            .ranges
            .iter()
            .filter(|range| range.owner == RangeOwner::AllocatorInternal && !range.reserved);
        own.fold(0, |sum: u64, range| sum.saturating_add(range.length_bytes))
    };
    let outstanding = |snapshot: &Snapshot| {
        snapshot.native.stacks.iter().fold(0, |sum: u64, row| {
            sum.saturating_add(row.allocated_bytes.saturating_sub(row.freed_bytes))
        })
    };
    let (taken, live) = (taken(at), outstanding(at));
    if taken < RESERVE || live >= taken / 4 {
        return None;
    }
    let peak = before.iter().chain([at]).map(outstanding).max().unwrap_or(live);
    let likely = if peak >= taken / 2 {
        format!(
            "{peak} bytes were outstanding before: it keeps what was freed (caches, fragmentation)"
        )
    } else {
        "it keeps what was freed (caches, fragmentation, arenas of many threads), or blocks are taken \
         on a way that no probe is on: a fast path inlined into the program"
            .to_owned()
    };
    Some(Doubt {
        name: "grows_unseen",
        text: format!(
            "The allocator has mapped {taken} bytes since the attach, and {live} are outstanding: {likely}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::synthetic::recording;
    use crate::snapshot::{Known, ProcessMemory};

    fn with_anon(snapshot: &mut Snapshot, rss_anon: u64) {
        snapshot.process = Known::Value(ProcessMemory { rss_anon, ..ProcessMemory::default() });
    }

    #[test]
    fn an_ordinary_recording_raises_no_doubt() {
        let recording = recording();
        for position in 0..recording.snapshots.len() {
            assert_eq!(doubts(&recording, position), []);
        }
        assert_eq!(doubts(&recording, 99), []);
    }

    #[test]
    fn probes_that_are_never_hit_while_memory_moves_are_doubted() {
        let mut recording = recording();
        for (snapshot, anon) in recording.snapshots.iter_mut().zip([10 << 20, 11 << 20, 30 << 20]) {
            snapshot.native.hits.fill(0);
            snapshot.native.ranges.clear();
            with_anon(snapshot, anon);
        }
        let found = doubts(&recording, 2);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "never_hit");
        assert!(found[0].text.contains("20971520 bytes"), "{}", found[0].text);
        assert_eq!(doubts(&recording, 0), [], "nothing to compare with");
        recording.snapshots[2].native.hits[0] = 1;
        assert_eq!(doubts(&recording, 2), []);
    }

    #[test]
    fn an_allocator_that_grows_for_nothing_is_doubted_with_the_likelier_reason() {
        let mut recording = recording();
        let last = &mut recording.snapshots[2];
        for row in &mut last.native.stacks {
            row.freed_bytes = row.allocated_bytes;
        }
        for range in &mut last.native.ranges {
            range.owner = RangeOwner::AllocatorInternal;
            range.reserved = false;
            range.length_bytes = 1 << 30;
        }
        let text = |found: &[Doubt]| found[0].text.clone();
        assert!(text(&doubts(&recording, 2)).contains("inlined into the program"));
        recording.snapshots[1].native.stacks[0].allocated_bytes = 1 << 40;
        assert!(text(&doubts(&recording, 2)).contains("were outstanding before"));
    }
}
