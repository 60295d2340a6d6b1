//! The Go runtime's books as parts of what is resident in its mappings.
//!
//! ```text
//! heap mappings = live + garbage + slack + idle, not released + goroutine stacks + residual
//! ```
//!
//! The residual is what the runtime counts and has not touched (negative), or gave back and the
//! kernel has not taken yet (positive).

use super::row::{How, Row};
use crate::snapshot::facts::{GoFacts, ProcessFacts};
use crate::snapshot::{GoMemory, Known};

/// `MSpanSys + MCacheSys + BuckHashSys + GCSys + OtherSys`, with the stacks of threads that the
/// runtime takes from the system (`StackSys − StackInuse`).
pub(super) fn tables(memory: &GoMemory) -> i128 {
    let parts = [
        memory.mspan_sys,
        memory.mcache_sys,
        memory.buck_hash_sys,
        memory.gc_sys,
        memory.other_sys,
    ];
    parts.iter().map(|part| i128::from(*part)).sum::<i128>() + i128::from(memory.stack_sys)
        - i128::from(memory.stack_inuse)
}

/// `Sys − HeapReleased`: what GOMEMLIMIT bounds.
pub(super) fn retained(memory: &GoMemory) -> i128 {
    i128::from(memory.sys) - i128::from(memory.heap_released)
}

pub(super) fn memory(process: &ProcessFacts) -> Option<(&GoFacts, &GoMemory)> {
    let go = process.go.value()?;
    go.memory.value().map(|memory| (go, memory))
}

/// Parts of the heap's mappings; none without the runtime's statistics.
pub(super) fn heap_rows(process: &ProcessFacts) -> Vec<Row> {
    let Some((go, memory)) = memory(process) else { return Vec::new() };
    let wide = |bytes: u64| i128::from(bytes);
    let source = |formula: &str| format!("{formula} ({})", go.source);
    let mut rows = Vec::new();
    match go.inuse.value() {
        Some(inuse) => {
            rows.push(Row::new(
                "go_live",
                "live at the last collection (pprof inuse_space)",
                Known::Value(wide(*inuse)),
                if go.sample_rate == 1 { How::Measured } else { How::Sampled },
                source("inuse_space"),
            ));
            rows.push(Row::derived(
                "go_garbage",
                "garbage and newer, and the sampling's error",
                wide(memory.heap_alloc) - wide(*inuse),
                source("HeapAlloc − inuse_space"),
            ));
        }
        None => rows.push(Row::derived(
            "go_allocated",
            "allocated, live or not swept",
            wide(memory.heap_alloc),
            source("HeapAlloc"),
        )),
    }
    rows.push(Row::derived(
        "go_slack",
        "rounding to size classes, free slots",
        wide(memory.heap_inuse) - wide(memory.heap_alloc),
        source("HeapInuse − HeapAlloc"),
    ));
    rows.push(Row::derived(
        "go_idle",
        "idle spans, kept from the system",
        wide(memory.heap_idle) - wide(memory.heap_released),
        source("HeapIdle − HeapReleased"),
    ));
    rows.push(Row::derived(
        "go_stacks",
        "goroutine stacks",
        wide(memory.stack_inuse),
        source("StackInuse"),
    ));
    rows
}

/// Parts of the tables' mappings, where the kernel names them.
pub(super) fn table_rows(process: &ProcessFacts) -> Vec<Row> {
    let Some((go, memory)) = memory(process) else { return Vec::new() };
    let row = |key: &str, label: &str, bytes: u64, field: &str| {
        Row::derived(key, label, bytes.into(), format!("{field} ({})", go.source))
    };
    vec![
        row("go_spans", "span descriptors", memory.mspan_sys, "MSpanSys"),
        row("go_caches", "per-processor caches", memory.mcache_sys, "MCacheSys"),
        row("go_buckets", "profile buckets", memory.buck_hash_sys, "BuckHashSys"),
        row("go_gc", "collector's bitmaps and work", memory.gc_sys, "GCSys"),
        row("go_other", "other", memory.other_sys, "OtherSys"),
    ]
}
