//! Reads what the ledger of a container's memory is made of: the cgroup's files, its processes'
//! `smaps`, limits of ancestors, and the runtime's own processes. Infers nothing, stops nobody
//! unless asked to ([`freeze`]), allocates nothing in the tracee.
//!
//! The order keeps the skew small: cgroup, processes, cgroup again. Limits: [`MOST_PROCESSES`]
//! processes, mappings of the [`MOST_SMAPS`] largest of them.

mod files;
pub mod freeze;
mod go_version;
mod layout;
mod locate;
mod overhead;
mod pages;
mod processes;
mod runtimes;
mod smaps;
mod stat;

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[cfg(test)]
pub(crate) use files::parse as parse_file;
pub use locate::{LocateError, Place, place_at, place_of_path, place_of_process};
pub use overhead::overhead_of;

use crate::snapshot::facts::{FACTS_SCHEMA, Facts, ProcessFacts, Subject};
use crate::snapshot::{HostSummary, Known};
use crate::tracee::container::cgroup::{read_bounded, read_processes_below};
use freeze::Frozen;

/// Most processes of one container that are read.
pub const MOST_PROCESSES: usize = 4096;
/// Most processes of which every mapping is read, the largest first.
pub const MOST_SMAPS: usize = 32;

/// Who is to be read.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub subject: Subject,
    /// The cgroup, or why there is none.
    pub place: Known<Place>,
    /// Processes to read where there is no cgroup, or none of them can be listed in it.
    pub pids: Vec<u32>,
    /// Those whose mappings are read before the mappings of larger ones.
    pub first: Vec<u32>,
    /// Processes of which every mapping is read: the main one, then [`Wanted::first`], then the
    /// largest; [`MOST_SMAPS`] where nothing speaks against it.
    pub most_smaps: usize,
}

impl Wanted {
    pub fn new(subject: Subject, place: Known<Place>, pids: Vec<u32>) -> Self {
        Self { subject, place, pids, first: Vec::new(), most_smaps: MOST_SMAPS }
    }
}

/// Reads everything. With `frozen`, the processes stand still meanwhile, and `within`, which reads
/// the processes' own books, too; then they are let go of.
pub async fn gather(
    wanted: &Wanted,
    frozen: Option<Frozen>,
    within: impl AsyncFnOnce(&mut [ProcessFacts]),
) -> Facts {
    let start = Instant::now();
    let unix_ns = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    let place = wanted.place.value();
    let before = place.map(|place| files::read(place, start));
    let mut pids = match place {
        Some(place) => read_processes_below(&place.directory),
        None => Vec::new(),
    };
    pids.extend(&wanted.pids);
    pids.sort_unstable();
    pids.dedup();
    let (mut processes, unread) = processes::read(&pids, wanted);
    let cgroup = match (&wanted.place, before) {
        (Known::Value(place), Some(before)) => {
            let mut read = files::complete(place, before, start);
            if let Known::Value(cgroup) = &mut read {
                cgroup.mapped_file_pages = pages::charged(&place.directory, &processes);
            }
            read
        }
        (Known::Unknown { reason }, _) => Known::unknown(reason.clone()),
        (Known::Value(_), None) => Known::unknown("the cgroup was not read"),
    };
    let read_ns = nanoseconds(start);
    within(&mut processes).await;
    let books_read_ns = nanoseconds(start).saturating_sub(read_ns);
    let freeze = frozen.map(Frozen::thaw);
    let first = wanted.subject.main_pid.or_else(|| pids.first().copied());
    Facts {
        schema: FACTS_SCHEMA,
        memtrace: env!("CARGO_PKG_VERSION").to_owned(),
        unix_ns,
        read_ns,
        books_read_ns,
        host: HostSummary::default(),
        host_memory: host_memory(),
        subject: wanted.subject.clone(),
        cgroup,
        processes,
        unread,
        overhead: first.map(|pid| overhead_of(Path::new("/proc"), pid)).unwrap_or_default(),
        freeze,
    }
}

/// The first process in a cgroup or below it, by pid.
pub fn first_process_in(place: &Place) -> Option<u32> {
    read_processes_below(&place.directory).into_iter().min()
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn host_memory() -> Known<u64> {
    let text = match read_bounded(Path::new("/proc/meminfo"), 64 << 10) {
        Ok(text) => text,
        Err(error) => return Known::unknown(format!("failed to read `/proc/meminfo`: {error}")),
    };
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    match line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok()) {
        Some(kib) => Known::Value(kib.saturating_mul(1024)),
        None => Known::unknown("`/proc/meminfo` has no `MemTotal`"),
    }
}
