//! The container's tree: its charge, down to the mappings and to the runtimes' books.

use super::charge::{Charge, Term};
use super::overhead_bytes;
use super::process::ProcessLedger;
use super::row::{How, Kind, Row, wide};
use crate::snapshot::Known;
use crate::snapshot::facts::{CgroupVersion, Facts};

/// Processes that have a row of their own; the others share one.
const SHOWN_PROCESSES: usize = 12;
/// `THREAD_SIZE` on x86-64 (`arch/x86/include/asm/page_64_types.h`).
const KERNEL_STACK_BYTES: u64 = 16 << 10;

fn row_of(key: &str, label: &str, term: &Term) -> Row {
    Row::measured(key, label, term.bytes.clone(), term.source.clone())
}

pub(super) fn charge_row(charge: &Charge, facts: &Facts, processes: &[ProcessLedger]) -> Row {
    let mut whole = row_of("charge", "charged to the container", &charge.usage);
    whole.rows.push(anonymous(charge, facts, processes));
    whole.rows.push(cache(charge, processes));
    whole.rows.push(kernel(charge, facts));
    if charge.version == CgroupVersion::V2 {
        whole.rows.push(row_of("sock", "network buffers", &charge.sock));
    }
    let whole = whole.sorted();
    let bound = charge.bound;
    let note = format!(
        "the kernel charges a CPU's stock of 64 pages ahead and counts late; bound here {} to +{} B",
        bound.lowest(),
        bound.highest()
    );
    whole.closed("epsilon", "charged ahead, counted late (ε)", &note)
}

fn anonymous(charge: &Charge, facts: &Facts, processes: &[ProcessLedger]) -> Row {
    let mut row = row_of("anon", "anonymous memory", &charge.anon);
    let mut shares: Vec<Row> = Vec::new();
    let mut unknown = facts.unread.len();
    for process in processes {
        match &process.anonymous {
            Known::Value(share) => shares.push(share.clone()),
            Known::Unknown { .. } => unknown += 1,
        }
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.value()));
    let others = shares.split_off(shares.len().min(SHOWN_PROCESSES));
    row.rows = shares;
    if !others.is_empty() {
        let sum = others.iter().filter_map(Row::value).sum();
        let label = format!("{} more processes", others.len());
        row.rows.push(Row::derived("other_processes", label, sum, "Σ smaps_rollup Pss_Anon"));
    }
    if unknown > 0 {
        row.rows.push(Row::new(
            "unread_processes",
            format!("{unknown} processes that could not be read"),
            Known::unknown("their smaps_rollup was not readable"),
            How::Measured,
            "/proc/PID/smaps_rollup",
        ));
    }
    row.closed(
        "anon_residual",
        "in no process's share",
        "shared with processes outside, charged before a process moved here, or of one that has ended",
    )
    .with([row_of("anon_huge", "of it in huge pages", &charge.anon_huge).within()])
}

fn cache(charge: &Charge, processes: &[ProcessLedger]) -> Row {
    let known_shmem: u64 = processes
        .iter()
        .filter_map(|process| process.pss_shmem.value())
        .fold(0, |sum, it| sum.saturating_add(*it));
    let shmem = row_of("shmem", "shared memory and tmpfs", &charge.shmem);
    let shmem = match charge.shmem.bytes.value() {
        Some(bytes) if *bytes > 0 || known_shmem > 0 => shmem
            .with([Row::derived(
                "shmem_mapped",
                "mapped by the processes",
                known_shmem.into(),
                "Σ /proc/PID/smaps_rollup Pss_Shmem",
            )])
            .closed("shmem_unmapped", "not mapped: files in tmpfs", ""),
        _ => shmem,
    };
    row_of("file", "page cache", &charge.file)
        .with([
            row_of("inactive_file", "files, not used lately (first to go)", &charge.inactive_file),
            row_of("active_file", "files, used lately", &charge.active_file),
            shmem,
        ])
        .sorted()
        .closed("file_residual", "on no list: locked, in flight", "")
        .with([
            row_of("file_mapped", "of it mapped by any process", &charge.file_mapped).within(),
            row_of("file_dirty", "of it not written back yet", &charge.file_dirty).within(),
            row_of("file_writeback", "of it being written back", &charge.file_writeback).within(),
        ])
}

fn kernel(charge: &Charge, facts: &Facts) -> Row {
    let row = row_of("kernel", "kernel memory", &charge.kernel);
    if charge.version == CgroupVersion::V2 {
        let parts =
            charge.kernel_parts.iter().map(|(key, term)| row_of(key, kernel_label(key), term));
        return row.with(parts).sorted().closed("kernel_residual", "other kernel memory", "");
    }
    // v1 has no parts: what the processes tell of theirs is derived.
    let threads: u64 =
        facts.processes.iter().filter_map(|it| it.status.threads).fold(0, u64::saturating_add);
    let tables: u64 =
        facts.processes.iter().filter_map(|it| it.status.vm_pte).fold(0, u64::saturating_add);
    row.with([
        Row::derived(
            "kernel_stack",
            "stacks of threads",
            i128::from(threads) * i128::from(KERNEL_STACK_BYTES),
            format!("Σ status Threads ({threads}) × 16 KiB"),
        ),
        Row::derived("pagetables", "page tables", tables.into(), "Σ status VmPTE"),
    ])
    .sorted()
    .closed(
        "kernel_residual",
        "slab, per-cpu and the rest",
        "cgroup v1 does not tell them apart",
    )
}

fn kernel_label(key: &str) -> &str {
    match key {
        "kernel_stack" => "stacks of threads",
        "pagetables" => "page tables",
        "slab_reclaimable" => "slab that can be taken back (dentries, inodes)",
        "slab_unreclaimable" => "slab in use",
        "percpu" => "per-CPU",
        "vmalloc" => "vmalloc",
        "zswap" => "zswap's pool",
        other => other,
    }
}

/// What is there for the container, and not in its charge.
pub(super) fn beside(
    facts: &Facts,
    charge: Option<&Charge>,
    processes: &[ProcessLedger],
) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Some(row) = charge.and_then(|charge| charged_elsewhere(facts, charge, processes)) {
        rows.push(row);
    }
    if let Some(charge) = charge {
        if charge.version == CgroupVersion::V1 && charge.sock.known() > 0 {
            rows.push(row_of("tcp", "TCP buffers (a counter of its own on v1)", &charge.sock));
        }
        for (key, label, term) in [
            ("swap", "swapped out", &charge.swap),
            ("zswapped", "compressed by zswap, before compression", &charge.zswapped),
        ] {
            if term.known() > 0 {
                rows.push(row_of(key, label, term));
            }
        }
    }
    let huge: u64 = facts
        .processes
        .iter()
        .filter_map(|process| process.mappings.value())
        .flatten()
        .map(|mapping| mapping.hugetlb)
        .fold(0, u64::saturating_add);
    if huge > 0 {
        rows.push(Row::measured(
            "hugetlb",
            "explicit huge pages (hugetlb)",
            Known::Value(huge),
            "Σ smaps Private_Hugetlb + Shared_Hugetlb",
        ));
    }
    for process in &facts.overhead {
        rows.push(
            Row::new(
                "overhead",
                format!("{} (pid {})", process.comm, process.pid),
                overhead_bytes(process),
                How::Measured,
                format!("/proc/{}/smaps_rollup Pss", process.pid),
            )
            .note(format!("{}; charged to {}", process.evidence, process.cgroup_path)),
        );
    }
    for row in &mut rows {
        row.kind = Kind::Within;
    }
    rows
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Pages of files are charged to who read them first: an image's to its first container, or to the
/// one who pulled it. What is mapped beyond what is charged here must be charged elsewhere.
fn charged_elsewhere(facts: &Facts, charge: &Charge, processes: &[ProcessLedger]) -> Option<Row> {
    let looked_at = facts.cgroup.value().and_then(|cgroup| cgroup.mapped_file_pages.value());
    if let Some(pages) = looked_at {
        if pages.elsewhere_bytes == 0 {
            return None;
        }
        let row = Row::measured(
            "charged_elsewhere",
            "mapped files charged to other cgroups",
            Known::Value(pages.elsewhere_bytes),
            "/proc/kpagecgroup of each page in /proc/PID/pagemap",
        );
        let others = pages.other_cgroups;
        return Some(row.note(format!(
            "who read a page of a file first is charged for it; here {others} other cgroups, and \
             {:.1} of {:.1} MiB mapped are charged to this container",
            mib(pages.here_bytes),
            mib(pages.here_bytes.saturating_add(pages.elsewhere_bytes))
        )));
    }
    let share = |process: &ProcessLedger| {
        Some(process.pss_file.value()?.saturating_add(*process.pss_shmem.value()?))
    };
    let mapped: u64 = processes.iter().filter_map(share).fold(0, u64::saturating_add);
    let here = wide(&charge.file_mapped.bytes);
    let here = here.value()?;
    let elsewhere = i128::from(mapped) - here;
    (elsewhere > 0).then(|| {
        Row::derived(
            "charged_elsewhere",
            "mapped files charged to another cgroup, at least",
            elsewhere,
            format!("Σ Pss_File + Pss_Shmem − {}", charge.file_mapped.source),
        )
    })
}
