//! Where the Go runtime keeps what is read: offsets within its structs, by Go minor release.
//!
//! The rows are data, generated from the debug information of real builds (`layout_data`). A
//! release newer than the newest row gets that row, on trial: its figures are accepted only where
//! the runtime's own invariants hold with it, as with every other row.

use super::layout_data::LAYOUTS;

/// All offsets in bytes, for linux/amd64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// 24 for Go 1.24.
    pub minor: u32,
    /// The release that it was generated from.
    pub release: &'static str,
    pub bucket: Bucket,
    pub record: Record,
    pub statistics: Statistics,
    pub controller: Controller,
    pub heap: Heap,
    pub module: Module,
}

/// `runtime.bucket`, followed by its stack and its `memRecord`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub allnext: usize,
    pub typ: usize,
    pub hash: usize,
    pub size: usize,
    pub nstk: usize,
    pub bytes: usize,
}

/// `runtime.memRecord` and the `memRecordCycle`s in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub active: usize,
    pub future: usize,
    pub bytes: usize,
    pub cycle_allocs: usize,
    pub cycle_frees: usize,
    /// Up to Go 1.26; later bytes are objects times the bucket's size.
    pub cycle_alloc_bytes: Option<usize>,
    pub cycle_free_bytes: Option<usize>,
    pub cycle_bytes: usize,
}

/// `runtime.mstats` with the `heapStatsDelta`s in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// The first of three.
    pub deltas: usize,
    pub delta_bytes: usize,
    pub committed: usize,
    pub released: usize,
    pub in_heap: usize,
    pub in_stacks: usize,
    pub in_work_bufs: usize,
    /// Up to Go 1.24.
    pub in_ptr_scalar_bits: Option<usize>,
    pub stacks_sys: usize,
    pub mspan_sys: usize,
    pub mcache_sys: usize,
    pub buckhash_sys: usize,
    pub gc_misc_sys: usize,
    pub other_sys: usize,
    pub last_gc_unix: usize,
    pub numgc: usize,
    pub numforcedgc: usize,
}

/// `runtime.gcControllerState`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controller {
    pub gc_percent: usize,
    pub memory_limit: usize,
    pub gc_percent_heap_goal: usize,
    pub sweep_dist_min_trigger: usize,
    pub triggered: usize,
    pub heap_marked: usize,
    pub heap_in_use: usize,
    pub heap_released: usize,
    pub heap_free: usize,
    pub total_alloc: usize,
    pub total_free: usize,
    pub mapped_ready: usize,
}

/// `runtime.mheap`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    pub pages_in_use: usize,
    /// The slice of arena indices: `allArenas`, `heapArenas` from Go 1.25 on.
    pub arenas: usize,
    pub span_alloc_in_use: usize,
    pub cache_alloc_in_use: usize,
    /// Pointers to `mspan_sys` and to `mcache_sys` of the statistics.
    pub span_alloc_stat: usize,
    pub cache_alloc_stat: usize,
}

/// `runtime.moduledata`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    pub text: usize,
    pub etext: usize,
    pub noptrdata: usize,
    pub enoptrdata: usize,
    pub data: usize,
    pub edata: usize,
    pub bss: usize,
    pub ebss: usize,
    pub noptrbss: usize,
    pub enoptrbss: usize,
    pub gofunc: usize,
}

/// Slots of the profile that is not published yet, in each record.
pub const FUTURE_CYCLES: usize = 3;
/// Slots of the consistent statistics.
pub const DELTAS: usize = 3;

/// The row for a release, and whether it is on trial (made for an older one).
pub fn layout_for(minor: u32) -> Result<(&'static Layout, bool), String> {
    let oldest = LAYOUTS.first().map_or(0, |layout| layout.minor);
    if let Some(layout) = LAYOUTS.iter().find(|layout| layout.minor == minor) {
        return Ok((layout, false));
    }
    match LAYOUTS.last() {
        Some(newest) if minor > newest.minor => Ok((newest, true)),
        _ => {
            Err(format!("Go 1.{minor} is older than 1.{oldest}, the oldest whose layout is known"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_without_gaps() {
        let minors: Vec<u32> = LAYOUTS.iter().map(|layout| layout.minor).collect();
        let first = minors[0];
        assert_eq!(minors, (first..first + minors.len() as u32).collect::<Vec<_>>());
        for layout in LAYOUTS {
            assert!(layout.release.starts_with(&format!("go1.{}.", layout.minor)), "{layout:?}");
        }
    }

    #[test]
    fn a_record_is_its_four_cycles_and_nothing_else() {
        for layout in LAYOUTS {
            let record = &layout.record;
            assert_eq!(record.bytes, (1 + FUTURE_CYCLES) * record.cycle_bytes, "{layout:?}");
            assert_eq!(record.cycle_alloc_bytes.is_some(), record.cycle_free_bytes.is_some());
        }
    }

    #[test]
    fn a_newer_release_gets_the_newest_row_on_trial_and_an_older_one_none() {
        let newest = LAYOUTS.last().unwrap();
        assert_eq!(layout_for(newest.minor), Ok((newest, false)));
        assert_eq!(layout_for(newest.minor + 1), Ok((newest, true)));
        assert!(layout_for(20).unwrap_err().contains("older than 1.21"));
    }
}
