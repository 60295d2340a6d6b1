//! Facts for tests: recorded texts of both cgroup versions, and processes built by hand.

use std::collections::BTreeMap;

use crate::snapshot::facts::*;
use crate::snapshot::{GoMemory, HostSummary, Known, ProcessId};

pub const MIB: u64 = 1 << 20;
pub const PAGE: u64 = 4096;

/// `memory.stat` and its like as they stood in a container of redis on cgroup v1 (Linux 6.18).
pub const V1: &[(&str, &str)] = &[
    ("memory.usage_in_bytes", "5058560\n"),
    ("memory.max_usage_in_bytes", "6385664\n"),
    ("memory.kmem.usage_in_bytes", "544768\n"),
    ("memory.kmem.tcp.usage_in_bytes", "0\n"),
    ("memory.failcnt", "0\n"),
    ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"),
    (
        "memory.stat",
        "cache 98304\nrss 4145152\nrss_huge 0\nshmem 0\nmapped_file 0\ndirty 0\nwriteback 0\nswap 0\n\
         inactive_anon 0\nactive_anon 4145152\ninactive_file 90112\nactive_file 8192\nunevictable 0\n\
         hierarchical_memory_limit 67108864\ntotal_cache 98304\ntotal_rss 4145152\n\
         total_rss_huge 0\ntotal_shmem 0\ntotal_mapped_file 0\ntotal_dirty 0\ntotal_writeback 0\n\
         total_swap 0\ntotal_swapcached 0\ntotal_inactive_anon 0\ntotal_active_anon 4145152\n\
         total_inactive_file 90112\ntotal_active_file 8192\ntotal_unevictable 0\n",
    ),
];

/// The same of a container in a guest with cgroup v2 (Linux 6.1).
pub const V2: &[(&str, &str)] = &[
    ("memory.current", "26169344\n"),
    ("memory.peak", "26316800\n"),
    ("memory.swap.current", "0\n"),
    ("memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"),
    (
        "memory.stat",
        "anon 25268224\nfile 249856\nkernel 339968\nkernel_stack 16384\npagetables 81920\n\
         sec_pagetables 0\npercpu 0\nsock 0\nvmalloc 0\nshmem 0\nzswap 0\nzswapped 0\n\
         file_mapped 0\nfile_dirty 0\nfile_writeback 0\nswapcached 0\nanon_thp 0\nfile_thp 0\n\
         shmem_thp 0\ninactive_anon 0\nactive_anon 25268224\ninactive_file 249856\nactive_file 0\n\
         unevictable 0\nslab_reclaimable 86408\nslab_unreclaimable 118432\nslab 204840\n",
    ),
];

pub fn reading(files: &[(&str, &str)]) -> CgroupReading {
    let mut figures = BTreeMap::new();
    for (file, text) in files {
        crate::tracee::cgroup::parse_file(file, text, &mut figures);
    }
    let usage = ["memory.current", "memory.usage_in_bytes"];
    let usage_before = usage.iter().find_map(|file| figures.get(*file)).copied().unwrap_or(0);
    CgroupReading { at_ns: 0, figures, usage_before, absent: BTreeMap::new(), pressure: None }
}

pub fn cgroup(version: CgroupVersion, files: &[(&str, &str)]) -> CgroupFacts {
    let file = match version {
        CgroupVersion::V1 => "memory.limit_in_bytes",
        CgroupVersion::V2 => "memory.max",
    };
    let usage = match version {
        CgroupVersion::V1 => "memory.usage_in_bytes",
        CgroupVersion::V2 => "memory.current",
    };
    let after = reading(files);
    let charged = after.figures.get(usage).copied().unwrap_or(0);
    let limits = vec![
        LimitFacts {
            path: "/docker/id".to_owned(),
            figures: BTreeMap::from([(file.to_owned(), 64 * MIB), (usage.to_owned(), charged)]),
        },
        LimitFacts {
            path: "/docker".to_owned(),
            figures: BTreeMap::from([(file.to_owned(), NO_LIMIT), (usage.to_owned(), charged * 2)]),
        },
    ];
    CgroupFacts {
        version,
        path: "/docker/id".to_owned(),
        directory: "/sys/fs/cgroup/docker/id".to_owned(),
        before: after.clone(),
        after,
        limits,
        ancestors_hidden: false,
        nested: Vec::new(),
        nested_beyond: 0,
        mapped_file_pages: Known::unknown("not looked at"),
    }
}

pub fn facts(cgroup: Known<CgroupFacts>, processes: Vec<ProcessFacts>) -> Facts {
    Facts {
        schema: FACTS_SCHEMA,
        memtrace: "test".to_owned(),
        unix_ns: 1_790_000_000_000_000_000,
        read_ns: 5_000_000,
        books_read_ns: 0,
        host: HostSummary {
            kernel_release: "6.18".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 2,
            page_size_bytes: PAGE,
        },
        host_memory: Known::Value(16 << 30),
        subject: Subject { asked: "container c".to_owned(), ..Subject::default() },
        cgroup,
        processes,
        unread: Vec::new(),
        overhead: Vec::new(),
        freeze: None,
    }
}

/// A process with these mappings whose rollup is their sum.
pub fn process(pid: u32, mappings: Vec<MappingFacts>) -> ProcessFacts {
    let sum = |of: fn(&MappingFacts) -> u64| mappings.iter().map(of).fold(0, u64::saturating_add);
    let anonymous = sum(|mapping| mapping.anonymous);
    let rss = sum(|mapping| mapping.rss);
    let rollup = Rollup {
        rss,
        pss: sum(|mapping| mapping.pss),
        pss_anon: Some(anonymous),
        pss_file: Some(rss.saturating_sub(anonymous)),
        pss_shmem: Some(0),
        anonymous,
        ..Rollup::default()
    };
    ProcessFacts {
        id: ProcessId { pid, start_time_ticks: 1 },
        comm: format!("program-{pid}"),
        executable: "/program".to_owned(),
        status: StatusFigures {
            vm_rss: Some(rss),
            rss_anon: Some(anonymous),
            rss_file: Some(rss.saturating_sub(anonymous)),
            rss_shmem: Some(0),
            threads: Some(3),
            vm_pte: Some(45_056),
            ..StatusFigures::default()
        },
        oom_score: Some(0),
        oom_score_adj: Some(0),
        rollup_before: Known::Value(rollup),
        rollup_after: Known::Value(rollup),
        attempts: 1,
        mappings: Known::Value(mappings),
        mappings_lost: 0,
        stack_pointers: Vec::new(),
        threads_without_pointer: 0,
        tmpfs_devices: vec![(0, 44)],
        go_version: None,
        go: Known::unknown("not asked for"),
        go_ranges: Known::unknown("not read"),
        glibc_heaps: Known::unknown("not read"),
        runtime_ranges: Vec::new(),
        runtime_places_beyond: 0,
        heap: Known::unknown("not read"),
    }
}

/// `rw-p` and the like; resident and anonymous as given.
pub fn mapping(start: u64, bytes: u64, permissions: &str, name: &str, rss: u64) -> MappingFacts {
    let has = |c: char| permissions.contains(c);
    let is_file = name.starts_with('/') && !name.starts_with("/memfd");
    MappingFacts {
        start,
        end: start + bytes,
        readable: has('r'),
        writable: has('w'),
        executable: has('x'),
        shared: has('s'),
        device: if is_file { (8, 1) } else { (0, 0) },
        inode: if is_file { 100 + name.len() as u64 } else { 0 },
        name: name.to_owned(),
        rss,
        pss: rss,
        anonymous: if is_file && !has('w') { 0 } else { rss },
        ..MappingFacts::default()
    }
}

/// A Go program's statistics that obey their own laws.
pub fn go_memory() -> GoMemory {
    GoMemory {
        sys: 70 * MIB,
        heap_alloc: 30 * MIB,
        heap_sys: 60 * MIB,
        heap_idle: 24 * MIB,
        heap_inuse: 36 * MIB,
        heap_released: 10 * MIB,
        stack_inuse: 4 * MIB,
        stack_sys: 4 * MIB,
        mspan_sys: MIB,
        mcache_sys: MIB / 2,
        buck_hash_sys: MIB,
        gc_sys: 3 * MIB,
        other_sys: MIB / 2,
        next_gc: 60 * MIB,
        num_gc: 7,
        ..GoMemory::default()
    }
}
