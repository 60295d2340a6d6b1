//! The cgroup's charge and its terms, alike for both versions of cgroups.
//!
//! ```text
//! v2  memory.current        = anon + file + kernel + sock + ε
//! v1  memory.usage_in_bytes = total_rss + total_cache + memory.kmem.usage_in_bytes + ε
//! ```
//!
//! ε is what the kernel charged ahead: it takes pages for a CPU's stock 64 at a time, and counts
//! what became of them 64 events per CPU late. Its bound is computed, not assumed: [`Bound`].

use serde::Serialize;

use crate::snapshot::Known;
use crate::snapshot::facts::{CgroupFacts, CgroupReading, CgroupVersion, Facts};

/// `MEMCG_CHARGE_BATCH` since Linux 5.19 (`include/linux/memcontrol.h`); 32 before.
pub const CHARGE_BATCH_PAGES: u64 = 64;
/// `NR_MEMCG_STOCK` since Linux 6.16 (`mm/memcontrol.c`): so many cgroups have a stock on one CPU.
const STOCKS_PER_CPU: u64 = 7;

/// One figure and where it was read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Term {
    pub bytes: Known<u64>,
    pub source: String,
}

impl Term {
    pub fn known(&self) -> u64 {
        self.bytes.value().copied().unwrap_or(0)
    }
}

/// Terms of the charge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Charge {
    pub version: CgroupVersion,
    pub usage: Term,
    pub anon: Term,
    pub anon_huge: Term,
    pub file: Term,
    pub shmem: Term,
    pub inactive_file: Term,
    pub active_file: Term,
    pub file_mapped: Term,
    pub file_dirty: Term,
    pub file_writeback: Term,
    pub unevictable: Term,
    pub kernel: Term,
    pub kernel_parts: Vec<(String, Term)>,
    /// v2; on v1 TCP's buffers are charged to a counter of their own, beside the usage.
    pub sock: Term,
    pub swap: Term,
    pub swap_cached: Term,
    /// Compressed: what zswap takes, which is part of `kernel`, and what it stands for.
    pub zswap: Term,
    pub zswapped: Term,
    /// `usage − anon − file − kernel − sock`
    pub epsilon: i128,
    pub bound: Bound,
}

/// How far ε may be from zero, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// Charged ahead: CPUs × 64 pages for this cgroup and for each below it (at most 7 a CPU).
    pub stock: u64,
    /// Counted late: CPUs × 64 pages.
    pub lag: u64,
    /// How far the charge moved while the files were read.
    pub moved: u64,
    /// Swap cache that nobody has mapped is charged, and neither anonymous nor cache: in a cgroup's
    /// `file` it is not (`filemap_add_swapcache` in `mm/swap_state.c` counts it for the node alone).
    pub swap_cached: u64,
}

impl Bound {
    pub fn lowest(self) -> i128 {
        -i128::from(self.lag) - i128::from(self.moved)
    }

    pub fn highest(self) -> i128 {
        i128::from(self.stock)
            + i128::from(self.lag)
            + i128::from(self.moved)
            + i128::from(self.swap_cached)
    }

    pub fn holds(self, epsilon: i128) -> bool {
        (self.lowest()..=self.highest()).contains(&epsilon)
    }
}

impl Charge {
    /// Unknown where the charge itself is.
    pub fn of(cgroup: &CgroupFacts, facts: &Facts) -> Known<Self> {
        let reading = &cgroup.after;
        let v2 = cgroup.version == CgroupVersion::V2;
        let stat = |v2_key: &str, v1_key: &str| {
            let key = if v2 { v2_key } else { v1_key };
            term(reading, &format!("memory.stat {key}"))
        };
        let usage = term(reading, usage_file(cgroup.version));
        if let Some(reason) = usage.bytes.reason() {
            return Known::unknown(reason);
        }
        let anon = stat("anon", "total_rss");
        let file = stat("file", "total_cache");
        let (kernel, kernel_parts) = kernel(reading, v2);
        let sock = match v2 {
            true => term(reading, "memory.stat sock"),
            false => term(reading, "memory.kmem.tcp.usage_in_bytes"),
        };
        let swap_cached = stat("swapcached", "total_swapcached");
        let counted =
            i128::from(anon.known()) + i128::from(file.known()) + i128::from(kernel.known());
        let epsilon =
            i128::from(usage.known()) - counted - if v2 { sock.known().into() } else { 0 };
        let per_cpu = u64::from(facts.host.cpus) * CHARGE_BATCH_PAGES * facts.host.page_size_bytes;
        let stocks = (1 + cgroup.nested.len() as u64).min(STOCKS_PER_CPU);
        let bound = Bound {
            stock: per_cpu * stocks,
            lag: per_cpu,
            moved: reading.usage_before.abs_diff(usage.known()),
            swap_cached: swap_cached.known(),
        };
        Known::Value(Self {
            version: cgroup.version,
            anon_huge: stat("anon_thp", "total_rss_huge"),
            shmem: stat("shmem", "total_shmem"),
            inactive_file: stat("inactive_file", "total_inactive_file"),
            active_file: stat("active_file", "total_active_file"),
            file_mapped: stat("file_mapped", "total_mapped_file"),
            file_dirty: stat("file_dirty", "total_dirty"),
            file_writeback: stat("file_writeback", "total_writeback"),
            unevictable: stat("unevictable", "total_unevictable"),
            swap: match v2 {
                true => term(reading, "memory.swap.current"),
                false => term(reading, "memory.stat total_swap"),
            },
            zswap: stat("zswap", "zswap"),
            zswapped: stat("zswapped", "zswapped"),
            usage,
            anon,
            file,
            kernel,
            kernel_parts,
            sock,
            swap_cached,
            epsilon,
            bound,
        })
    }

    /// What `docker stats` and its kin call used: the charge without the cold cache.
    pub fn working_set(&self) -> u64 {
        self.usage.known().saturating_sub(self.inactive_file.known())
    }

    /// What the kernel cannot take back to make room, swap aside.
    pub fn unreclaimable(&self) -> u64 {
        let reclaimable = self.term_of_kernel("slab_reclaimable").map_or(0, Term::known);
        self.anon
            .known()
            .saturating_add(self.shmem.known())
            .saturating_add(self.kernel.known().saturating_sub(reclaimable))
            .saturating_add(if self.version == CgroupVersion::V2 { self.sock.known() } else { 0 })
    }

    pub fn term_of_kernel(&self, key: &str) -> Option<&Term> {
        self.kernel_parts.iter().find(|(name, _)| name == key).map(|(_, term)| term)
    }
}

pub fn usage_file(version: CgroupVersion) -> &'static str {
    match version {
        CgroupVersion::V1 => "memory.usage_in_bytes",
        CgroupVersion::V2 => "memory.current",
    }
}

/// `memory.stat anon`, by its name in the reading.
pub fn term(reading: &CgroupReading, name: &str) -> Term {
    let bytes = match reading.figures.get(name) {
        Some(bytes) => Known::Value(*bytes),
        None => {
            let file = name.split(' ').next().unwrap_or(name);
            Known::unknown(match reading.absent.get(file) {
                Some(reason) => reason.clone(),
                None => format!("this kernel's `{file}` does not tell `{name}`"),
            })
        }
    };
    Term { bytes, source: name.to_owned() }
}

/// Keys of `memory.stat` that the kernel's part consists of.
const KERNEL_KEYS: [&str; 6] =
    ["kernel_stack", "pagetables", "slab_reclaimable", "slab_unreclaimable", "percpu", "vmalloc"];

fn kernel(reading: &CgroupReading, v2: bool) -> (Term, Vec<(String, Term)>) {
    if !v2 {
        return (term(reading, "memory.kmem.usage_in_bytes"), Vec::new());
    }
    let mut parts: Vec<(String, Term)> = KERNEL_KEYS
        .iter()
        .map(|key| ((*key).to_owned(), term(reading, &format!("memory.stat {key}"))))
        .filter(|(_, term)| term.bytes.value().is_some())
        .collect();
    let zswap = term(reading, "memory.stat zswap");
    if zswap.bytes.value().is_some() {
        parts.push(("zswap".to_owned(), zswap));
    }
    let whole = term(reading, "memory.stat kernel");
    if whole.bytes.value().is_some() {
        return (whole, parts);
    }
    // Before Linux 5.18 there is no sum; the rest of the kernel's part is in ε then.
    let sum = parts.iter().fold(0u64, |sum, (_, part)| sum.saturating_add(part.known()));
    let bytes = match parts.is_empty() {
        true => whole.bytes,
        false => Known::Value(sum),
    };
    (Term { bytes, source: format!("memory.stat {}", KERNEL_KEYS.join(" + ")) }, parts)
}

/// How far the charge moved between the two readings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drift {
    pub between_ns: u64,
    /// By name of the figure: bytes, signed.
    pub moved: Vec<(String, i128)>,
}

impl Drift {
    pub fn of(cgroup: &CgroupFacts) -> Self {
        let (before, after) = (&cgroup.before, &cgroup.after);
        let names: [&str; 4] = match cgroup.version {
            CgroupVersion::V1 => [
                usage_file(cgroup.version),
                "memory.stat total_rss",
                "memory.stat total_cache",
                "memory.kmem.usage_in_bytes",
            ],
            CgroupVersion::V2 => [
                usage_file(cgroup.version),
                "memory.stat anon",
                "memory.stat file",
                "memory.stat kernel",
            ],
        };
        let moved = names.iter().filter_map(|name| {
            let (old, new) = (before.figures.get(*name)?, after.figures.get(*name)?);
            Some(((*name).to_owned(), i128::from(*new) - i128::from(*old)))
        });
        Self { between_ns: after.at_ns.saturating_sub(before.at_ns), moved: moved.collect() }
    }

    pub fn of_anon(&self) -> u64 {
        let anon =
            self.moved.iter().find(|(name, _)| name.ends_with(" anon") || name.ends_with("rss"));
        anon.map_or(0, |(_, bytes)| u64::try_from(bytes.unsigned_abs()).unwrap_or(u64::MAX))
    }
}
