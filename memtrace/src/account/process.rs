//! One process: its resident memory by class of mapping, each mapping in exactly one.
//!
//! ```text
//! RSS (smaps_rollup) = Σ classes (smaps) + residual        the residual is zero when nothing moves
//! ```

use std::collections::HashSet;

use serde::Serialize;

use super::classes::{Class, ClassTotals, other_allocator, totals};
use super::probed::Outstanding;
use super::row::Row;
use super::runtimes::{self, RuntimeHeap};
use super::{go, native};
use crate::snapshot::Known;
use crate::snapshot::facts::{Facts, ProcessFacts, Rollup};
use crate::snapshot::runtimes::Runtime;

#[derive(Clone, Debug, Serialize)]
pub struct ProcessLedger {
    pub pid: u32,
    pub comm: String,
    pub executable: String,
    pub threads: Option<u64>,
    pub go_version: Option<String>,
    /// An allocator other than glibc's that is mapped.
    pub allocator: Option<&'static str>,
    /// `smaps_rollup Rss`, `Pss`; `Private_Clean + Private_Dirty`.
    pub rss: Known<u64>,
    pub pss: Known<u64>,
    pub uss: Known<u64>,
    pub pss_anon: Known<u64>,
    pub pss_file: Known<u64>,
    pub pss_shmem: Known<u64>,
    pub swap: Known<u64>,
    /// `status VmRSS`, `VmHWM`: what `ps` and `top` show.
    pub vm_rss: Option<u64>,
    pub vm_hwm: Option<u64>,
    pub vm_pte: Option<u64>,
    pub classes: Vec<ClassTotals>,
    /// Language runtimes whose objects are mapped.
    pub runtimes: Vec<Runtime>,
    /// Their heaps, as far as they are known.
    pub runtime_heaps: Vec<RuntimeHeap>,
    /// Resident memory by class.
    pub resident: Known<Row>,
    /// Anonymous memory by class, as far as it is this process's share.
    pub anonymous: Known<Row>,
}

impl ProcessLedger {
    pub fn of(process: &ProcessFacts, facts: &Facts, seen: Option<&Outstanding>) -> Self {
        let rollup = &process.rollup_after;
        let field = |of: fn(&Rollup) -> u64| rollup.map(of);
        let since_5_4 = |of: fn(&Rollup) -> Option<u64>| {
            rollup.and_then(|rollup| match of(rollup) {
                Some(bytes) => Known::Value(bytes),
                None => Known::unknown("this kernel's smaps_rollup does not tell it (Linux 5.4)"),
            })
        };
        let mut ledger = Self {
            pid: process.id.pid,
            comm: process.comm.clone(),
            executable: process.executable.clone(),
            threads: process.status.threads,
            go_version: process.go_version.clone(),
            allocator: process.mappings.value().and_then(|mappings| other_allocator(mappings)),
            rss: field(|rollup| rollup.rss),
            pss: field(|rollup| rollup.pss),
            uss: field(|rollup| rollup.private_clean.saturating_add(rollup.private_dirty)),
            pss_anon: since_5_4(|rollup| rollup.pss_anon),
            pss_file: since_5_4(|rollup| rollup.pss_file),
            pss_shmem: since_5_4(|rollup| rollup.pss_shmem),
            swap: field(|rollup| rollup.swap),
            vm_rss: process.status.vm_rss,
            vm_hwm: process.status.vm_hwm,
            vm_pte: process.status.vm_pte,
            classes: totals(process),
            runtimes: process.mappings.value().map_or(Vec::new(), |all| Runtime::of_process(all)),
            runtime_heaps: runtimes::heaps(process),
            resident: Known::unknown(""),
            anonymous: Known::unknown(""),
        };
        ledger.resident = ledger.resident_row(process, facts, seen);
        ledger.anonymous = ledger.anonymous_row(process, seen);
        ledger
    }

    pub fn class(&self, class: Class) -> Option<&ClassTotals> {
        self.classes.iter().find(|totals| totals.class == class)
    }

    /// Resident bytes of the classes that `wanted` holds for.
    pub fn resident_of(&self, wanted: impl Fn(Class) -> bool) -> u64 {
        let of_class = self.classes.iter().filter(|totals| wanted(totals.class));
        of_class.map(|totals| totals.rss).fold(0, u64::saturating_add)
    }

    fn resident_row(
        &self,
        process: &ProcessFacts,
        facts: &Facts,
        seen: Option<&Outstanding>,
    ) -> Known<Row> {
        let pid = self.pid;
        if let Some(reason) = process.mappings.reason() {
            return Known::unknown(reason);
        }
        let rss = match &self.rss {
            Known::Value(rss) => *rss,
            Known::Unknown { reason } => return Known::unknown(reason.clone()),
        };
        let source = format!("/proc/{pid}/smaps_rollup Rss");
        let whole = Row::measured("rss", "resident memory (RSS)", Known::Value(rss), source);
        let rows = self
            .classes
            .iter()
            .filter(|totals| totals.rss > 0 || totals.class.is_c_heap())
            .map(|totals| (totals.class, self.class_row(totals, totals.rss, "Rss", process)));
        let row = whole.with(self.with_probes(rows.collect(), process, seen)).sorted().closed(
            "rss_residual",
            "moved between two readings",
            "smaps and smaps_rollup are read one after the other",
        );
        let page = facts.host.page_size_bytes.max(1);
        Known::Value(match process.mappings_lost {
            0 => row,
            lost => row
                .note(format!("{lost} mappings were not understood or not kept ({page} B pages)")),
        })
    }

    /// The share of the cgroup's anonymous memory: `Pss_Anon = Σ Anonymous − shared with others`.
    fn anonymous_row(&self, process: &ProcessFacts, seen: Option<&Outstanding>) -> Known<Row> {
        let pid = self.pid;
        let pss_anon = match &self.pss_anon {
            Known::Value(bytes) => *bytes,
            Known::Unknown { reason } => return Known::unknown(reason.clone()),
        };
        let label = format!("{} (pid {pid})", self.comm);
        let source = format!("/proc/{pid}/smaps_rollup Pss_Anon");
        let row = Row::measured("process_anon", &label, Known::Value(pss_anon), source);
        let field = "Anonymous";
        let rows =
            self.classes.iter().filter(|totals| totals.anonymous > 0).map(|totals| {
                (totals.class, self.class_row(totals, totals.anonymous, field, process))
            });
        Known::Value(row.with(self.with_probes(rows.collect(), process, seen)).sorted().closed(
            "anon_shared",
            "less what is shared with other processes",
            "after fork, pages are one's own only once written; each sharer counts its share",
        ))
    }

    /// With what probes saw, the classes of the C heap are one row: a block's stack is known, and
    /// not its address.
    fn with_probes(
        &self,
        rows: Vec<(Class, Row)>,
        process: &ProcessFacts,
        seen: Option<&Outstanding>,
    ) -> Vec<Row> {
        let Some(seen) = seen else { return rows.into_iter().map(|(_, row)| row).collect() };
        let is_heap =
            |(class, _): &(Class, Row)| class.is_c_heap() || *class == Class::AllocatorRegion;
        let (heap, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_heap);
        let mut rows: Vec<Row> = others.into_iter().map(|(_, row)| row).collect();
        if !heap.is_empty() {
            let heap = heap.into_iter().map(|(_, row)| row).collect();
            let mut row = seen.heap_row(heap, native::free_rows(process), self.allocator);
            if let Some(reason) = process.heap.reason() {
                row = row.note(format!("how much of it malloc keeps free is unknown: {reason}"));
            }
            rows.push(row);
        }
        rows
    }

    fn class_row(
        &self,
        totals: &ClassTotals,
        bytes: u64,
        field: &str,
        process: &ProcessFacts,
    ) -> Row {
        let class = totals.class;
        let count = totals.mappings;
        let mappings = if count == 1 { "mapping" } else { "mappings" };
        let source = format!("/proc/{}/smaps {field}, {count} {mappings}", self.pid);
        let label = match (class, self.allocator) {
            (Class::AllocatorRegion, Some(allocator)) => {
                format!("regions of {allocator}, and own mappings")
            }
            (Class::Arena, _) => match arenas(process) {
                Some(arenas) => format!("C heap: {arenas} other arenas of glibc ({count} heaps)"),
                None => format!("C heap: {count} heaps of other glibc arenas"),
            },
            (Class::ThreadStack, _) => format!("thread stacks ({count})"),
            (Class::RuntimeHeap, _) => runtimes::label(&self.runtime_heaps),
            (Class::NativeAnonymous, _) if !self.runtimes.is_empty() && !self.is_go_unnamed() => {
                format!("anonymous mappings: native, or {}", runtimes::possessive(&self.runtimes))
            }
            (Class::NativeAnonymous, _) if self.is_go_unnamed() => {
                "anonymous mappings: native, or Go's tables".to_owned()
            }
            _ => class.label().to_owned(),
        };
        let row = Row::measured(class.key(), &label, Known::Value(bytes), source);
        match class {
            Class::GoHeap => row.with(go::heap_rows(process)).closed(
                "go_residual",
                "counted by Go and not touched (−), or given back and still here (+)",
                "",
            ),
            Class::GoRuntime => row.with(go::table_rows(process)).closed(
                "go_tables_residual",
                "reserved or untouched",
                "",
            ),
            Class::RuntimeHeap => {
                let source = format!("/proc/{}/smaps {field}", self.pid);
                let rows =
                    runtimes::rows(&self.runtime_heaps, &source, |heap| match field == "Rss" {
                        true => heap.rss,
                        false => heap.anonymous,
                    });
                row.with(rows)
            }
            Class::NativeAnonymous => {
                let row = match self.runtimes.is_empty() {
                    true => row,
                    false => runtimes::maybe_theirs(row, &self.runtimes, process),
                };
                let row = match self.is_go_unnamed() {
                    true => self.native_or_go(row, bytes, process),
                    false => row,
                };
                row.with(self.merged_chunks(process))
            }
            Class::MainHeap | Class::Arena => {
                let rows = native::heap_rows(process, class == Class::MainHeap);
                match (rows.is_empty(), process.heap.reason()) {
                    (true, Some(reason)) => {
                        row.note(format!("how much of it is in use is unknown: {reason}"))
                    }
                    _ => row.with(rows).closed(
                        "c_residual",
                        "untouched chunks (−), page ends (+)",
                        "",
                    ),
                }
            }
            _ => row,
        }
    }
}

impl ProcessLedger {
    /// A Go program on a kernel, or of a release, that does not name its mappings.
    fn is_go_unnamed(&self) -> bool {
        self.go_version.is_some() && self.class(Class::GoRuntime).is_none()
    }

    /// Blocks that malloc mapped one by one and that no class holds: the kernel has merged their
    /// mappings with neighbours of others, and only malloc's count of them is left.
    fn merged_chunks(&self, process: &ProcessFacts) -> Option<Row> {
        let census = process.heap.value()?;
        let told = i128::from(*census.mapped_bytes.value()?);
        let apart = self.class(Class::MappedChunk).map_or(0, |class| i128::from(class.size));
        let merged = told - apart;
        (merged > 0).then(|| {
            let source = format!("mmapped_mem − mappings of such blocks ({})", census.source);
            let label = "of it blocks that malloc mapped, merged with neighbours, at most";
            Row::derived("c_merged_chunks", label, merged, source).within()
        })
    }

    /// Nothing at an address says whose an unnamed mapping is. What Go counts as its tables bounds
    /// its part; what is beyond that is surely not Go's.
    fn native_or_go(&self, row: Row, bytes: u64, process: &ProcessFacts) -> Row {
        let unnamed = "these mappings have no names (Go names its own from 1.25 on, where the kernel \
                       has CONFIG_ANON_VMA_NAME), so native ones and the Go runtime's tables are not \
                       told apart";
        let Some((go, memory)) = go::memory(process) else { return row.note(unnamed) };
        let tables = go::tables(memory);
        let source = format!(
            "MSpanSys + MCacheSys + BuckHashSys + GCSys + OtherSys + StackSys − StackInuse ({})",
            go.source
        );
        let beyond = (i128::from(bytes) - tables).max(0);
        row.note(unnamed).with([
            Row::derived("go_tables", "of it Go runtime's own tables, at most", tables, source)
                .within(),
            Row::derived(
                "native_at_least",
                "of it surely not Go's",
                beyond,
                "these mappings − Go's tables",
            )
            .within(),
        ])
    }
}

/// How many arenas besides the main one, as the heaps' headers tell.
fn arenas(process: &ProcessFacts) -> Option<usize> {
    let heaps = process.glibc_heaps.value()?;
    let arenas: HashSet<u64> = heaps.iter().map(|heap| heap.arena).collect();
    Some(arenas.len())
}
