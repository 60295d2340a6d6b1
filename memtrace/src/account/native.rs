//! glibc's own headers as parts of what is resident in its heaps.
//!
//! ```text
//! main heap, arenas = in use + free chunks + tops + residual
//! ```
//!
//! The residual is negative where chunks are not touched, positive by what a page holds beyond its
//! chunks. Without a reading of the headers there are no parts, and the reason stands beside.

use super::row::Row;
use crate::snapshot::facts::{ArenaFacts, ProcessFacts};

fn arenas(process: &ProcessFacts, main: bool) -> Vec<&ArenaFacts> {
    let census = process.heap.value();
    census
        .map(|census| census.arenas.iter().filter(|arena| arena.is_main == main).collect())
        .unwrap_or_default()
}

/// Parts of the main heap (`main`) or of all other arenas together.
pub(super) fn heap_rows(process: &ProcessFacts, main: bool) -> Vec<Row> {
    let arenas = arenas(process, main);
    let Some(census) = process.heap.value().filter(|_| !arenas.is_empty()) else {
        return Vec::new();
    };
    let sum = |of: fn(&ArenaFacts) -> u64| -> i128 {
        arenas.iter().map(|arena| i128::from(of(arena))).sum()
    };
    let row = |key: &str, label: &str, bytes: i128| {
        Row::derived(
            key,
            label,
            bytes,
            format!("Σ over {} arenas ({})", arenas.len(), census.source),
        )
    };
    vec![
        row("c_in_use", "chunks in use", sum(|arena| arena.in_use_bytes)),
        row("c_free", "free chunks, kept by malloc", sum(|arena| arena.free_bytes)),
        row("c_top", "tops: free ends, kept by malloc", sum(|arena| arena.top_bytes)),
    ]
}

/// Free and kept by malloc in all arenas: chunks and tops; `None` when the headers were not read.
pub(super) fn kept(process: &ProcessFacts) -> Option<u64> {
    let census = process.heap.value()?;
    let of = |arena: &ArenaFacts| arena.free_bytes.saturating_add(arena.top_bytes);
    Some(census.arenas.iter().map(of).fold(0, u64::saturating_add))
}

/// Whole free pages in all arenas; `None` when not every arena tells.
pub(super) fn trimmable(process: &ProcessFacts) -> Option<u64> {
    let census = process.heap.value()?;
    let mut each = census.arenas.iter().map(|arena| arena.trimmable_bytes.value().copied());
    each.try_fold(0u64, |sum, bytes| Some(sum.saturating_add(bytes?)))
}
