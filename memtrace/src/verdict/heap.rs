//! Whether the C allocator keeps what the program freed: retention, not a leak. Pure.
//!
//! ```text
//! leak        outstanding rises, and resident with it
//! retention   outstanding fell or stays, resident stays: free chunks in arenas that cannot shrink
//! ```

use super::owners::{Owner, OwnerVerdict};
use super::{Figure, Finding, How, Kind, Unit};
use crate::snapshot::facts::{ArenaFacts, HeapCensus};
use crate::snapshot::{Known, Recording};

/// Less than this is an allocator's ordinary reserve.
const SMALLEST: u64 = 8 << 20;
/// glibc rounds a block up to 16 bytes with 8 of header: what a block takes beyond what was asked
/// for, at most on the mean.
const OVERHEAD: u64 = 24;

pub(super) fn retention(recording: &Recording, owners: &[OwnerVerdict]) -> Option<Finding> {
    let heap = owners.iter().find(|it| it.owner == Owner::CHeap)?;
    let snapshots = &recording.snapshots;
    // At the end of everything: what an idle process still holds counts most.
    let (at, resident) = (0..snapshots.len()).rev().find_map(|at| Some((at, heap.values[at]?)))?;
    let outstanding = |at: usize| {
        let rows = &snapshots[at].native.stacks;
        rows.iter().fold((0u64, 0u64), |sum, row| {
            (
                sum.0.saturating_add(row.allocated_bytes.saturating_sub(row.freed_bytes)),
                sum.1.saturating_add(row.allocated_blocks.saturating_sub(row.freed_blocks)),
            )
        })
    };
    let (live, blocks) = outstanding(at);
    let (peak_at, peak) = (0..snapshots.len())
        .map(|at| (at, outstanding(at).0))
        .max_by_key(|(at, bytes)| (*bytes, std::cmp::Reverse(*at)))?;
    let census = census(recording, at);
    let unseen = resident.saturating_sub(live.saturating_add(blocks.saturating_mul(OVERHEAD)));
    // Kept for the last quarter of the recording: a program that breathes has it in use again.
    let quarter = at - at / 4;
    let freed_since_peak = peak.saturating_sub(live);
    let by_census: Option<u64> =
        (quarter..=at).filter_map(|at| free_bytes(self::census(recording, at)?)).min();
    let kept = match by_census {
        Some(free) => free.min(unseen),
        // Without malloc's own books the rest may also be older than the attach, or between two
        // snapshots: what was seen to be freed bounds it.
        None if freed_since_peak >= SMALLEST && live.saturating_mul(2) <= peak => {
            unseen.min(freed_since_peak)
        }
        None => 0,
    };
    if kept < SMALLEST || kept.saturating_mul(2) < resident {
        return None;
    }
    let arenas = census.map(|census| census.arenas.len());
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let mut figures = vec![
        figure(
            "resident",
            "resident in the C heap now",
            resident as f64,
            Unit::Bytes,
            How::Measured,
        ),
        figure("resident_peak", "resident at most", heap.peak as f64, Unit::Bytes, How::Measured),
        figure("outstanding", "not freed now", live as f64, Unit::Bytes, How::Measured),
        figure("outstanding_peak", "not freed at most", peak as f64, Unit::Bytes, How::Measured),
        figure(
            "outstanding_peak_at",
            "when it was most",
            snapshots[peak_at].elapsed_ns as f64 / 1e9,
            Unit::Seconds,
            How::Measured,
        ),
        figure(
            "kept",
            "freed and kept by malloc",
            kept as f64,
            Unit::Bytes,
            if by_census.is_some() { How::Measured } else { How::Derived },
        ),
    ];
    figures.extend(
        arenas.map(|arenas| figure("arenas", "arenas", arenas as f64, Unit::Count, How::Measured)),
    );
    figures.extend(census.and_then(|census| census.trimmable_resident.value()).map(|bytes| {
        figure(
            "trimmable",
            "malloc_trim(0) would give back",
            *bytes as f64,
            Unit::Bytes,
            How::Measured,
        )
    }));
    let many = arenas.is_none_or(|arenas| arenas > 2);
    Some(Finding {
        kind: Kind::HeapRetention,
        what: format!(
            "the C allocator keeps {} that the program has freed: {} resident, {} not freed{}",
            mib(kept),
            mib(resident),
            mib(live),
            arenas.map(|arenas| format!(", {arenas} arenas")).unwrap_or_default()
        ),
        bytes: kept.into(),
        figures,
        refuted_by: "resident memory of the C heap falling by itself once the process is idle, or \
                     blocks older than the attach that explain it"
            .to_owned(),
        remedy: if many {
            "fewer arenas (MALLOC_ARENA_MAX=2, or M_ARENA_MAX), malloc_trim(0) after the burst, or \
             an allocator that gives back by itself (jemalloc, mimalloc)"
                .to_owned()
        } else {
            "malloc_trim(0) after the burst, a lower M_TRIM_THRESHOLD, or an allocator that gives \
             back by itself (jemalloc, mimalloc)"
                .to_owned()
        },
        site: None,
    })
}

fn figure(key: &'static str, label: &'static str, value: f64, unit: Unit, how: How) -> Figure {
    Figure { key, label, value, unit, how }
}

fn census(recording: &Recording, at: usize) -> Option<&HeapCensus> {
    let pid = recording.header.tracee.id.pid;
    let facts = recording.snapshots[at].memory.value()?;
    facts.processes.iter().find(|process| process.id.pid == pid)?.heap.value()
}

/// Free chunks and tops of all arenas; `None` when one of them does not tell.
fn free_bytes(census: &HeapCensus) -> Option<u64> {
    let of = |arena: &ArenaFacts| {
        let (Known::Value(free), Known::Value(top)) = (&arena.free, &arena.top) else {
            return None;
        };
        Some(free.saturating_add(*top))
    };
    census.arenas.iter().try_fold(0u64, |sum, arena| Some(sum.saturating_add(of(arena)?)))
}
