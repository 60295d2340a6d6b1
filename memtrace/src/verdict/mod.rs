//! What the books say over time: a leak, a cache, churn, memory that the allocator keeps, or memory
//! that is not C's at all. Pure; each verdict with its figures, what would refute it, and the remedy.
//!
//! Limit: reachability is not known here. What grows and is never freed is a leak *candidate*, never
//! definitely lost. The method, with its thresholds: `docs/verdicts.md`.

pub mod check;
pub mod owners;
pub mod remedy;
pub mod series;
pub mod stacks;
pub mod suppress;
pub mod trend;

mod heap;

#[cfg(test)]
mod scenarios_tests;

use crate::outstanding::books::Librarian;
use crate::snapshot::Known;
use crate::verdict::owners::OwnerVerdict;
use crate::verdict::series::{Series, Window};
use crate::verdict::stacks::{Behaviour, StackVerdict};

/// Fewer snapshots under load than this say nothing about time.
pub const FEWEST_SNAPSHOTS: usize = 8;
/// Growth below this, over all of the load, is not told: caches of libraries warm up.
pub const SMALLEST_GROWTH: u64 = 64 << 10;

/// One figure that a verdict rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Stable, for programs.
    pub key: &'static str,
    /// For people.
    pub label: &'static str,
    pub value: f64,
    pub unit: Unit,
    pub how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    BytesPerSecond,
    Blocks,
    /// 0 to 1.
    Share,
    /// 0 to 1.
    Probability,
    Count,
    Seconds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Measured,
    Sampled,
    Derived,
}

/// What is found, in the order in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Blocks of one call site outlive the load, in every interval.
    LeakCandidate,
    /// Freed, and kept by the C allocator.
    HeapRetention,
    /// Native code maps more and more itself.
    NativeMappingsGrowth,
    GoHeapGrowth,
    GoroutineGrowth,
    GoIdle,
    ThreadGrowth,
    PageCacheGrowth,
    TmpfsGrowth,
    KernelGrowth,
    OtherProcessesGrowth,
}

impl Kind {
    pub fn key(self) -> &'static str {
        match self {
            Self::LeakCandidate => "leak_candidate",
            Self::HeapRetention => "heap_retention",
            Self::NativeMappingsGrowth => "native_mappings_growth",
            Self::GoHeapGrowth => "go_heap_growth",
            Self::GoroutineGrowth => "goroutine_growth",
            Self::GoIdle => "go_idle",
            Self::ThreadGrowth => "thread_growth",
            Self::PageCacheGrowth => "page_cache_growth",
            Self::TmpfsGrowth => "tmpfs_growth",
            Self::KernelGrowth => "kernel_growth",
            Self::OtherProcessesGrowth => "other_processes_growth",
        }
    }

    fn rank(self) -> u8 {
        match self {
            Self::LeakCandidate => 0,
            Self::HeapRetention => 1,
            Self::NativeMappingsGrowth => 2,
            // A number, not bytes: what follows from it is beside it.
            Self::ThreadGrowth => 3,
            _ => 4,
        }
    }

    /// Whether it accuses the program's C code.
    pub fn is_native(self) -> bool {
        matches!(self, Self::LeakCandidate | Self::NativeMappingsGrowth)
    }
}

/// One thing that is worth acting on.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub kind: Kind,
    /// One sentence with the figure that matters.
    pub what: String,
    /// Growth over the load, bytes; for what is kept, how much.
    pub bytes: i128,
    pub figures: Vec<Figure>,
    pub refuted_by: String,
    pub remedy: String,
    /// Position in [`Verdict::sites`], where it is about one.
    pub site: Option<usize>,
}

/// All that a recording says over time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    pub window: Option<Window>,
    /// What accuses the program's C code first; the rest by bytes.
    pub findings: Vec<Finding>,
    /// The program's own calls, by what they hold or grew.
    pub sites: Vec<StackVerdict>,
    /// Every stack, in the order of its ids.
    pub stacks: Vec<StackVerdict>,
    /// All native blocks together.
    pub native: Option<StackVerdict>,
    pub owners: Vec<OwnerVerdict>,
    /// What makes the series itself doubtful: gaps, losses, clocks.
    pub doubts: Vec<String>,
}

/// Judges a recording; unknown where it holds too little.
pub fn judge(librarian: &Librarian<'_>) -> Known<Verdict> {
    let recording = librarian.recording();
    let window = match Window::of(&recording.snapshots) {
        Known::Value(window) => window,
        Known::Unknown { reason } => return Known::unknown(reason),
    };
    let series = Series::of(librarian);
    let judged = |line: &series::Line| stacks::judge(line, &series, &window);
    let stacks: Vec<StackVerdict> = series.stacks.iter().map(judged).collect();
    let mut sites: Vec<StackVerdict> = series.sites.iter().map(judged).collect();
    sites.sort_by(|a, b| {
        let rank = |site: &StackVerdict| {
            (
                site.behaviour != Behaviour::Growing,
                std::cmp::Reverse((site.growth_bytes, site.last)),
            )
        };
        rank(a).cmp(&rank(b))
    });
    let native = judged(&series.native);
    let readings = owners::read(recording);
    let owners = owners::judge(recording, &readings, &window);

    let mut findings: Vec<Finding> = sites
        .iter()
        .enumerate()
        .filter(|(_, site)| site.behaviour == Behaviour::Growing)
        .map(|(at, site)| remedy::leak_candidate(at, site))
        .collect();
    findings.extend(heap::retention(recording, &readings));
    findings.extend(owners.iter().filter_map(remedy::growth));
    findings.sort_by_key(|it| (it.kind.rank(), std::cmp::Reverse(it.bytes), it.kind));
    Known::Value(Verdict {
        doubts: series::doubts(&recording.snapshots, &window),
        window: Some(window),
        findings,
        sites,
        stacks,
        native: Some(native),
        owners,
    })
}
