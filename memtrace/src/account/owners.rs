//! The container's memory by owner: the ledger's tree cut into bands that add up to the charge, for
//! a picture over time. Where no charge is known the bands add up to the processes' resident memory.
//!
//! A band may be negative where the ledger's residuals are; none is ever dropped.

use serde::Serialize;

use super::Ledger;
use super::row::{Kind, Row};
use crate::snapshot::Known;

/// Who holds memory. The order is that of the picture, from pprof's side outwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    GoHeap,
    GoRuntime,
    CHeap,
    Allocator,
    RuntimeHeap,
    NativeAnonymous,
    ThreadStacks,
    Programs,
    OtherAnonymous,
    SharedMemory,
    PageCache,
    Network,
    Kernel,
    Late,
}

impl Owner {
    pub const ALL: [Self; 14] = [
        Self::GoHeap,
        Self::GoRuntime,
        Self::CHeap,
        Self::Allocator,
        Self::RuntimeHeap,
        Self::NativeAnonymous,
        Self::ThreadStacks,
        Self::Programs,
        Self::OtherAnonymous,
        Self::SharedMemory,
        Self::PageCache,
        Self::Network,
        Self::Kernel,
        Self::Late,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::GoHeap => "Go heap and goroutine stacks",
            Self::GoRuntime => "Go runtime's own tables",
            Self::CHeap => "C heap (glibc)",
            Self::Allocator => "regions of another allocator",
            Self::RuntimeHeap => "heaps of language runtimes",
            Self::NativeAnonymous => "anonymous mappings",
            Self::ThreadStacks => "thread stacks",
            Self::Programs => "data and bss of programs, libraries",
            Self::OtherAnonymous => "other anonymous memory",
            Self::SharedMemory => "shared memory and tmpfs",
            Self::PageCache => "page cache",
            Self::Network => "network buffers",
            Self::Kernel => "kernel memory",
            Self::Late => "charged ahead, counted late (ε)",
        }
    }

    /// The owner of the row with this key and of all below it; `None` where its parts have owners
    /// of their own.
    fn of(key: &str) -> Option<Self> {
        Some(match key {
            "go_heap" => Self::GoHeap,
            "go_runtime" => Self::GoRuntime,
            "c_main_heap" | "c_arenas" | "c_mapped_chunks" => Self::CHeap,
            "allocator_regions" => Self::Allocator,
            "runtime_heap" => Self::RuntimeHeap,
            "native_anonymous" => Self::NativeAnonymous,
            "thread_stacks" => Self::ThreadStacks,
            "elf_data" | "elf_bss" | "elf_read_only" | "elf_text" => Self::Programs,
            "shmem" | "shared_memory" => Self::SharedMemory,
            "mapped_files" | "inactive_file" | "active_file" | "file_residual" => Self::PageCache,
            "sock" => Self::Network,
            "kernel" => Self::Kernel,
            "epsilon" => Self::Late,
            _ => return None,
        })
    }

    /// Whose a row is that has neither an owner nor parts: that of the level it stands on.
    fn by_default(key: &str, above: Self) -> Self {
        match key {
            "anon" | "rss" => Self::OtherAnonymous,
            "file" => Self::PageCache,
            _ => above,
        }
    }
}

/// One instant: a figure per owner, which add up to the whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Bands {
    pub whole: i128,
    /// What the whole is, and where it was read.
    pub label: String,
    pub source: String,
    bytes: [i128; Owner::ALL.len()],
}

impl Bands {
    pub fn of(ledger: &Ledger) -> Known<Self> {
        let charge = match &ledger.charge {
            Known::Value(charge) => charge,
            Known::Unknown { reason } => return resident(ledger, reason),
        };
        let Some(whole) = charge.value() else {
            return Known::unknown(charge.bytes.reason().unwrap_or("the charge is not known"));
        };
        let mut bands = Self {
            whole,
            label: charge.label.clone(),
            source: charge.source.clone(),
            bytes: [0; Owner::ALL.len()],
        };
        bands.spread(charge, Owner::Late);
        Known::Value(bands)
    }

    pub fn bytes(&self, owner: Owner) -> i128 {
        self.bytes[owner as usize]
    }

    fn spread(&mut self, row: &Row, above: Owner) {
        let own = Owner::by_default(&row.key, above);
        if let Some(owner) = Owner::of(&row.key) {
            self.bytes[owner as usize] += row.value().unwrap_or(0);
            return;
        }
        let parts = || row.rows.iter().filter(|part| part.kind != Kind::Within);
        if parts().next().is_none() {
            self.bytes[own as usize] += row.value().unwrap_or(0);
            return;
        }
        parts().for_each(|part| self.spread(part, own));
        // A row whose residual was not drawn keeps its sum all the same.
        let told: i128 = parts().filter_map(Row::value).sum();
        self.bytes[own as usize] += row.value().unwrap_or(told) - told;
    }
}

/// Without a charge: Σ resident memory of the processes, each by its own mappings.
fn resident(ledger: &Ledger, reason: &str) -> Known<Bands> {
    let mut bands = Bands {
        whole: 0,
        label: "resident memory of the processes (RSS)".to_owned(),
        source: "Σ /proc/PID/smaps_rollup Rss".to_owned(),
        bytes: [0; Owner::ALL.len()],
    };
    let mut read = false;
    for process in &ledger.processes {
        if let Known::Value(row) = &process.resident {
            bands.whole += row.value().unwrap_or(0);
            bands.spread(row, Owner::OtherAnonymous);
            read = true;
        }
    }
    if read { Known::Value(bands) } else { Known::unknown(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::fixtures::{self, MIB};
    use crate::snapshot::facts::CgroupVersion;

    fn processes() -> Vec<crate::snapshot::facts::ProcessFacts> {
        vec![fixtures::process(
            7,
            vec![
                fixtures::mapping(0x1000_0000, 4 * MIB, "rw-p", "[heap]", 3 * MIB),
                fixtures::mapping(0xc0_0000_0000, 64 * MIB, "rw-p", "[anon: Go: heap]", 2 * MIB),
                fixtures::mapping(0x7f00_0000_0000, 4 * MIB, "rw-p", "", MIB),
            ],
        )]
    }

    fn sum(bands: &Bands) -> i128 {
        Owner::ALL.iter().map(|owner| bands.bytes(*owner)).sum()
    }

    #[test]
    fn the_bands_add_up_to_the_charge_in_both_versions() {
        for (version, files) in
            [(CgroupVersion::V1, fixtures::V1), (CgroupVersion::V2, fixtures::V2)]
        {
            let cgroup = Known::Value(fixtures::cgroup(version, files));
            let ledger = Ledger::of(&fixtures::facts(cgroup, processes()));
            let Known::Value(bands) = Bands::of(&ledger) else { panic!("no bands") };
            assert_eq!(Some(bands.whole), ledger.charge.value().and_then(Row::value));
            assert_eq!(sum(&bands), bands.whole, "{version:?}: {bands:?}");
            assert_eq!(bands.bytes(Owner::CHeap), 3 * i128::from(MIB));
            assert_eq!(bands.bytes(Owner::GoHeap), 2 * i128::from(MIB));
        }
    }

    #[test]
    fn without_a_charge_they_add_up_to_what_is_resident() {
        let ledger = Ledger::of(&fixtures::facts(Known::unknown("no cgroup"), processes()));
        let Known::Value(bands) = Bands::of(&ledger) else { panic!("no bands") };
        assert_eq!(bands.whole, 6 * i128::from(MIB));
        assert_eq!(sum(&bands), bands.whole);
        let nothing = Ledger::of(&fixtures::facts(Known::unknown("no cgroup"), Vec::new()));
        assert_eq!(Bands::of(&nothing).reason(), Some("no cgroup"));
    }

    #[test]
    fn a_row_without_an_owner_falls_to_its_level() {
        let cgroup = Known::Value(fixtures::cgroup(CgroupVersion::V2, fixtures::V2));
        let ledger = Ledger::of(&fixtures::facts(cgroup, Vec::new()));
        let Known::Value(bands) = Bands::of(&ledger) else { panic!("no bands") };
        // No process could be read: all anonymous memory is in nobody's share.
        assert_eq!(bands.bytes(Owner::OtherAnonymous), 25_268_224);
        assert_eq!(sum(&bands), bands.whole);
    }
}
