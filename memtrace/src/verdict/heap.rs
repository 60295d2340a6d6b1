//! Whether the C allocator keeps what the program freed: retention, not a leak. Pure.
//!
//! ```text
//! leak        outstanding rises, and resident with it
//! retention   outstanding fell or stays, resident stays: free chunks in arenas that cannot shrink
//! ```

use std::collections::BTreeMap;

use super::owners::Reading;
use super::{Figure, Finding, How, Kind, Unit};
use crate::snapshot::facts::{ArenaFacts, HeapCensus, ProcessFacts};
use crate::snapshot::{Known, OpenImage, ProcessId, Recording, Snapshot};

/// Less than this is an allocator's ordinary reserve.
const SMALLEST: u64 = 8 << 20;
/// glibc rounds a block up to 16 bytes with 8 of header: what a block takes beyond what was asked
/// for, at most on the mean.
const OVERHEAD: u64 = 24;

/// Of each process that was traced, by itself: what one keeps is no other's to use.
pub(super) fn retention(recording: &Recording, readings: &[Reading]) -> Vec<Finding> {
    let histories = histories(recording, readings);
    let several = histories.len() > 1;
    histories.iter().filter_map(|history| of_process(recording, history, several)).collect()
}

/// The C heap of one process, snapshot by snapshot.
struct History<'a> {
    id: ProcessId,
    comm: &'a str,
    /// Resident bytes; `None` where its mappings were not read.
    resident: Vec<Option<u64>>,
    /// Bytes and blocks not freed.
    outstanding: Vec<(u64, u64)>,
}

fn histories<'a>(recording: &'a Recording, readings: &[Reading]) -> Vec<History<'a>> {
    let tracee = &recording.header.tracee;
    let mut processes = BTreeMap::from([(tracee.id, &*tracee.comm)]);
    // The last of its programs names a process.
    processes.extend(recording.images.iter().map(|image| (image.id, &*image.comm)));
    let open: Vec<_> = recording.snapshots.iter().map(|at| recording.open_at(at)).collect();
    let history = |(id, comm)| {
        let outstanding = |open: &Vec<OpenImage>| {
            let own = open.iter().filter(|image| image.id == id).map(|image| image.totals);
            own.fold((0u64, 0u64), |(bytes, blocks), totals| {
                (
                    bytes.saturating_add(totals.outstanding_bytes()),
                    blocks.saturating_add(totals.outstanding_blocks()),
                )
            })
        };
        History {
            id,
            comm,
            resident: readings.iter().map(|at| at.c_heaps.get(&id).copied()).collect(),
            outstanding: open.iter().map(outstanding).collect(),
        }
    };
    processes.into_iter().map(history).collect()
}

fn process_at(at: &Snapshot, id: ProcessId) -> Option<&ProcessFacts> {
    at.memory.value()?.processes.iter().find(|process| process.id == id)
}

fn of_process(recording: &Recording, history: &History<'_>, several: bool) -> Option<Finding> {
    let snapshots = &recording.snapshots;
    // At the end of everything: what an idle process still holds counts most.
    let (at, resident) =
        (0..snapshots.len()).rev().find_map(|at| Some((at, history.resident[at]?)))?;
    let most_resident = history.resident.iter().flatten().max().copied()?;
    let (live, blocks) = history.outstanding[at];
    let (peak_at, peak) = (0..snapshots.len())
        .map(|at| (at, history.outstanding[at].0))
        .max_by_key(|(at, bytes)| (*bytes, std::cmp::Reverse(*at)))?;
    let census = |at: usize| process_at(&snapshots[at], history.id)?.heap.value();
    let unseen = resident.saturating_sub(live.saturating_add(blocks.saturating_mul(OVERHEAD)));
    // Kept for the last quarter of the recording: a program that breathes has it in use again.
    let quarter = at - at / 4;
    let freed_since_peak = peak.saturating_sub(live);
    let by_census: Option<u64> = (quarter..=at).filter_map(|at| free_bytes(census(at)?)).min();
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
    let census = census(at);
    let arenas = census.map(|census| census.arenas.len());
    let who = match several {
        true => format!(" of PID {} ({})", history.id.pid, history.comm),
        false => String::new(),
    };
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let mut figures = vec![
        figure(
            "resident",
            "resident in the C heap now",
            resident as f64,
            Unit::Bytes,
            How::Measured,
        ),
        figure(
            "resident_peak",
            "resident at most",
            most_resident as f64,
            Unit::Bytes,
            How::Measured,
        ),
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
            "the C allocator{who} keeps {} that the program has freed: {} resident, {} not freed{}",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::fixtures::{self, MIB};
    use crate::snapshot::{Came, Image, ImageBooks, ImageTotals, synthetic};

    const BUSY: u32 = 7;
    const KEEPER: u32 = 8;

    fn process(pid: u32, heap_mib: u64) -> ProcessFacts {
        let heap = fixtures::mapping(0x1000_0000, 64 * MIB, "rw-p", "[heap]", heap_mib * MIB);
        fixtures::process(pid, vec![heap])
    }

    fn found_in(recording: &Recording) -> Vec<Finding> {
        retention(recording, &crate::verdict::owners::read(recording))
    }

    fn books(pid: u32, allocated_mib: u64, freed_mib: u64) -> ImageBooks {
        let totals = ImageTotals {
            allocated_bytes: allocated_mib * MIB,
            allocated_blocks: allocated_mib,
            freed_bytes: freed_mib * MIB,
            freed_blocks: freed_mib,
        };
        ImageBooks { image: pid, totals, memory: Known::unknown("not read"), ended: false }
    }

    /// One process holds what it has allocated; the other one gave 40 MiB back to malloc, which
    /// keeps `kept_mib` of them.
    fn recorded(kept_mib: u64) -> Recording {
        let template = synthetic::recording();
        let snapshot = |sequence: u32, images: [ImageBooks; 2], keeper_mib: u64| {
            let mut at = template.snapshots[0].clone();
            at.sequence = sequence;
            at.images = images.to_vec();
            at.memory = Known::Value(fixtures::facts(
                Known::unknown("no cgroup"),
                vec![process(BUSY, 60), process(KEEPER, keeper_mib)],
            ));
            at
        };
        let image = |pid: u32| Image {
            number: pid,
            id: process(pid, 1).id,
            comm: format!("p{pid}"),
            executable: String::new(),
            command_line: Vec::new(),
            go_version: None,
            came: Came::AtStart,
            armed_elapsed_ns: 0,
            unseen_ns: None,
        };
        let mut header = template.header.clone();
        header.tracee.id = process(BUSY, 1).id;
        Recording {
            header,
            images: vec![image(BUSY), image(KEEPER)],
            snapshots: vec![
                snapshot(0, [books(BUSY, 60, 0), books(KEEPER, 40, 0)], 41),
                snapshot(1, [books(BUSY, 60, 0), books(KEEPER, 40, 40)], kept_mib),
            ],
            ..template
        }
    }

    #[test]
    fn what_one_process_keeps_is_not_made_up_for_by_what_another_one_holds() {
        let found = found_in(&recorded(41));
        let [finding] = &found[..] else { panic!("{found:#?}") };
        assert_eq!(finding.kind, Kind::HeapRetention);
        assert!(finding.what.contains("of PID 8 (p8)"), "{}", finding.what);
        assert_eq!(finding.bytes, i128::from(40 * MIB));
    }

    #[test]
    fn a_process_whose_heap_shrank_keeps_nothing() {
        let found = found_in(&recorded(2));
        assert!(found.is_empty(), "{found:#?}");
    }
}
