//! glibc's own books as parts of what is resident in its heaps.
//!
//! ```text
//! main heap, arenas = in use + free chunks + tops + residual
//! ```
//!
//! The residual is negative where chunks and tops are not touched: malloc counts what it took from
//! the system, the kernel what is resident. Without a reading of the books there are no parts, and
//! the reason stands beside.

use super::row::{How, Row, wide};
use crate::snapshot::Known;
use crate::snapshot::facts::{ArenaFacts, ProcessFacts};

/// The sum, or the first reason why there is none.
fn sum<'a>(
    arenas: impl IntoIterator<Item = &'a ArenaFacts>,
    of: fn(&ArenaFacts) -> &Known<u64>,
) -> Known<u64> {
    let mut sum = 0u64;
    for arena in arenas {
        match of(arena) {
            Known::Value(bytes) => sum = sum.saturating_add(*bytes),
            Known::Unknown { reason } => return Known::unknown(reason.clone()),
        }
    }
    Known::Value(sum)
}

/// Parts of the main heap (`main`) or of all other arenas together.
pub(super) fn heap_rows(process: &ProcessFacts, main: bool) -> Vec<Row> {
    let Some(census) = process.heap.value() else { return Vec::new() };
    let arenas: Vec<&ArenaFacts> =
        census.arenas.iter().filter(|arena| arena.is_main == main).collect();
    if arenas.is_empty() {
        return Vec::new();
    }
    let row = |key: &str, label: &str, of: fn(&ArenaFacts) -> &Known<u64>| {
        let source = match arenas.len() {
            1 => census.source.clone(),
            many => format!("Σ of {many} arenas ({})", census.source),
        };
        Row::new(key, label, wide(&sum(arenas.iter().copied(), of)), How::Measured, source)
    };
    vec![
        row("c_in_use", "chunks in use", |arena| &arena.in_use),
        row("c_free", "free chunks, kept by malloc", |arena| &arena.free),
        row("c_top", "tops: free ends, kept by malloc", |arena| &arena.top),
    ]
}

/// What malloc's books call free, in all arenas together.
pub(super) fn free_rows(process: &ProcessFacts) -> Vec<Row> {
    let Some(census) = process.heap.value() else { return Vec::new() };
    let row = |key: &str, label: &str, of: fn(&ArenaFacts) -> &Known<u64>| {
        let source = format!("Σ of {} arenas ({})", census.arenas.len(), census.source);
        Row::new(key, label, wide(&sum(&census.arenas, of)), How::Measured, source)
    };
    vec![
        row("c_free", "free chunks, kept by malloc", |arena| &arena.free),
        row("c_top", "tops: free ends, kept by malloc", |arena| &arena.top),
    ]
}

/// In use in all arenas but the main one; unknown when one of them does not tell.
pub(super) fn in_use_of_others(process: &ProcessFacts) -> Option<u64> {
    let census = process.heap.value()?;
    sum(census.arenas.iter().filter(|arena| !arena.is_main), |arena| &arena.in_use).value().copied()
}
