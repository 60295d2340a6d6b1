//! Loading: the object, its limits, its programs, its maps.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Instant;

use aya::maps::{Map, MapData, ProgramArray, RingBuf};
use aya::programs::{Program, UProbe};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfLoader};
use memtrace_common::rows::{AFTER_CALL_WALK, AFTER_RANGE_WALK, ConfigRow, WALK_FRAMES};

use super::sys::{Plain, RawMap};
use super::tables::RowsMapping;
use super::{Kernel, KernelConfig, KernelError, attach, family, features, ring, verified};

/// The committed object; see `memtrace.bpf.json` for the sources and tools that made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("memtrace.bpf.o");

/// Names an object to load instead of the built-in one: for tests of a fresh build.
const OBJECT_VARIABLE: &str = "MEMTRACE_BPF_OBJECT";

/// Uprobe programs that are the same on every kernel.
const UPROBES: [&str; 3] = ["free_entry", "call_return", "range_return"];

/// `chained` has stacks walked as on kernels without `bpf_loop`: for tests on others.
const WALK_VARIABLE: &str = "MEMTRACE_WALK";

/// The programs that walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) call: &'static str,
    pub(super) range: &'static str,
    /// Place in the map `CHAIN` → program.
    chained: &'static [(u32, &'static str)],
}

const LOOPING: Entries = Entries { call: "call_entry", range: "range_entry", chained: &[] };
const CHAINED: Entries = Entries {
    call: "call_entry_chained",
    range: "range_entry_chained",
    chained: &[
        (WALK_FRAMES, "walk_frames"),
        (AFTER_CALL_WALK, "after_call_walk"),
        (AFTER_RANGE_WALK, "after_range_walk"),
    ],
};

/// The only one that a self-check loads; it needs `bpf_loop`.
pub(super) const SELFTEST: &str = "selftest_entry";
const SELFTEST_WALKERS: Entries = Entries { call: SELFTEST, range: SELFTEST, chained: &[] };

fn walkers() -> Entries {
    let is_chained = std::env::var_os(WALK_VARIABLE).is_some_and(|walk| walk == "chained");
    if !is_chained && features::bpf_loop().is_ok() { LOOPING } else { CHAINED }
}

const TRACEPOINTS: [(&str, &str); 2] =
    [("thread_exit", "sched_process_exit"), ("exec", "sched_process_exec")];

impl Kernel {
    /// Loads programs and maps. Nothing is attached to the tracee yet.
    ///
    /// Needs `CAP_BPF` and `CAP_PERFMON`, and Linux 5.15 (attach cookies).
    pub fn load(config: &KernelConfig) -> Result<Kernel, KernelError> {
        raise_memlock_limit();
        Self::load_all(config).map_err(KernelError::explained)
    }

    fn load_all(config: &KernelConfig) -> Result<Kernel, KernelError> {
        let object = object()?;
        let start = Instant::now();
        let log_level = if config.verbose { 0xff_u8 } else { 0 };
        let task_tgid_offset = family::task_tgid_offset();
        let selftest_interval_ns = config.selftest_interval_ns.unwrap_or(0);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("BLOCKS", config.max_blocks.max(1))
            .map_max_entries("STACKS", config.max_stacks.max(1))
            // Each process has its reserved stacks as well.
            .map_max_entries("TOTALS", config.max_stacks.saturating_add(1024))
            .map_max_entries("THREADS", config.max_threads.max(1))
            .map_max_entries("ROWS", config.max_unwind_rows.max(1))
            .map_max_entries("RING", config.ring_bytes.max(4096).next_power_of_two())
            .override_global("AYA_LOG_LEVEL", &log_level, false)
            .override_global("SELFTEST_INTERVAL_NS", &selftest_interval_ns, false)
            .override_global("TASK_TGID_OFFSET", &task_tgid_offset.unwrap_or(0), false)
            .load(&object)
            .map_err(KernelError::load)?;
        let walkers = match config.selftest_interval_ns {
            None => walkers(),
            Some(_) => SELFTEST_WALKERS,
        };
        let others: &[&'static str] =
            if config.selftest_interval_ns.is_some() { &[] } else { &UPROBES };
        let entries = BTreeSet::from([walkers.call, walkers.range]);
        for &name in others.iter().chain(&entries) {
            load_uprobe(&mut ebpf, name)?;
        }
        let chain = load_chain(&mut ebpf, walkers.chained)?;
        let mut tracepoints = Vec::new();
        for (name, tracepoint) in TRACEPOINTS {
            tracepoints.push(attach_tracepoint(&mut ebpf, name, tracepoint)?);
        }
        if config.verbose {
            verified::tell(&ebpf, start.elapsed());
        }
        let ring = take_map(&mut ebpf, "RING")?;
        let ring = RingBuf::try_from(ring).map_err(KernelError::open_map("RING"))?;
        let rows = RowsMapping::new(map_fd(&ebpf, "ROWS")?, config.max_unwind_rows.max(1))?;
        let config_row = ConfigRow { seed: random(), check_seed: random(), ..ConfigRow::default() };
        Ok(Kernel {
            walkers,
            _chain: chain,
            entries: Vec::new(),
            returns: Vec::new(),
            places: attach::Places::default(),
            tracepoints,
            ring,
            held: ring::Held::default(),
            config: raw_map(&ebpf, "CONFIG")?,
            config_row,
            processes: raw_map(&ebpf, "PROCESSES")?,
            set_before: Default::default(),
            changes: raw_map(&ebpf, "CHANGES")?,
            followed: Default::default(),
            family: raw_map(&ebpf, "FAMILY")?,
            knows_forks: task_tgid_offset.is_some(),
            follows_forks: false,
            blocks: raw_map(&ebpf, "BLOCKS")?,
            stacks: raw_map(&ebpf, "STACKS")?,
            totals: raw_map(&ebpf, "TOTALS")?,
            noticed: raw_map(&ebpf, "NOTICED")?,
            rows,
            generation: 0,
            wanted_stacks: Default::default(),
            delivered_stacks: Default::default(),
            // Not being able to count the time is no reason not to trace.
            stats: config.count_bpf_time.then(|| enable_stats(Stats::RunTime).ok()).flatten(),
            ebpf,
        })
    }

    /// The kernel side's diagnostics, to `log`; poll its descriptor, then flush. Once.
    pub fn take_log_reader(&mut self) -> Result<LogReader, KernelError> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
            .map(|logger| LogReader { logger })
            .map_err(|error| KernelError::Log { reason: error.to_string() })
    }
}

/// Readable when the kernel side has something to say.
pub struct LogReader {
    logger: aya_log::EbpfLogger<&'static dyn log::Log>,
}

impl LogReader {
    /// Hands what was said to the logger of `log`.
    pub fn flush(&mut self) {
        self.logger.flush();
    }
}

impl AsRawFd for LogReader {
    fn as_raw_fd(&self) -> RawFd {
        self.logger.as_raw_fd()
    }
}

fn object() -> Result<Cow<'static, [u8]>, KernelError> {
    match std::env::var_os(OBJECT_VARIABLE) {
        None => Ok(Cow::Borrowed(OBJECT)),
        Some(path) => {
            let path = PathBuf::from(path);
            fs::read(&path)
                .map(Cow::Owned)
                .map_err(|source| KernelError::ReadObject { path, source })
        }
    }
}

pub(super) fn uprobe<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut UProbe, KernelError> {
    match ebpf.program_mut(name) {
        Some(Program::UProbe(program)) => Ok(program),
        _ => Err(KernelError::Incomplete { kind: "uprobe", name }),
    }
}

pub(super) fn load_uprobe(ebpf: &mut Ebpf, name: &'static str) -> Result<(), KernelError> {
    uprobe(ebpf, name)?.load().map_err(|error| KernelError::load_program(name, error))
}

/// Loads the programs that others call, and gives them their places. The map forgets them when its
/// last descriptor is closed, so it is kept.
fn load_chain(
    ebpf: &mut Ebpf,
    programs: &[(u32, &'static str)],
) -> Result<ProgramArray<MapData>, KernelError> {
    const MAP: &str = "CHAIN";
    let map = take_map(ebpf, MAP)?;
    let mut chain = ProgramArray::try_from(map).map_err(KernelError::open_map(MAP))?;
    for &(place, name) in programs {
        load_uprobe(ebpf, name)?;
        let program =
            uprobe(ebpf, name)?.fd().map_err(|error| KernelError::load_program(name, error))?;
        chain.set(place, program, 0).map_err(KernelError::open_map(MAP))?;
    }
    Ok(chain)
}

pub(super) fn attach_tracepoint(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &'static str,
) -> Result<aya::programs::raw_trace_point::RawTracePointLink, KernelError> {
    let Some(Program::RawTracePoint(program)) = ebpf.program_mut(name) else {
        return Err(KernelError::Incomplete { kind: "raw tracepoint", name });
    };
    program.load().map_err(|error| KernelError::load_program(name, error))?;
    program
        .attach(tracepoint)
        .and_then(|id| program.take_link(id))
        .map_err(|error| KernelError::attach_tracepoint(name, tracepoint, &error))
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::Incomplete { kind: "map", name })
}

fn raw_map<K: Plain, V: Plain>(
    ebpf: &Ebpf,
    name: &'static str,
) -> Result<RawMap<K, V>, KernelError> {
    map_fd(ebpf, name).map(RawMap::new)
}

fn map_fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let data: &MapData = match ebpf.map(name) {
        Some(Map::Array(data) | Map::HashMap(data)) => data,
        _ => return Err(KernelError::Incomplete { kind: "map", name }),
    };
    data.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| KernelError::map("duplicate the descriptor of", name, source))
}

/// Before Linux 5.11 maps count against this limit. That it cannot be raised matters only when a
/// map cannot be made, which says so.
fn raise_memlock_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        let error = std::io::Error::last_os_error();
        log::debug!(
            "the limit of locked memory stays as it is ({error}): it matters before Linux 5.11"
        );
    }
}

/// A seed that the tracee does not know.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Keys of `RandomState` come from the kernel.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
