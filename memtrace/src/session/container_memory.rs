//! The memory around what is recorded, read once for each snapshot, at a bounded part of the time.

use std::path::Path;
use std::time::{Duration, Instant};

use super::explain::{host, place};
use super::process_books::{GoProcess, MOST_OTHER_GO, read_heap, take_books};
use crate::go::GoProfileSource;
use crate::snapshot::facts::{Facts, ProcessFacts, Subject};
use crate::snapshot::{Container, GoBooks, Known, ProcessId};
use crate::tracee::cgroup::{MOST_SMAPS, Wanted, gather, place_of_process};

/// The part of the time between two snapshots that malloc's books may take, and the mappings.
const SHARE: u32 = 20;

#[derive(Debug)]
pub struct ContainerMemory {
    wanted: Wanted,
    heap: HeapPace,
    mappings: MappingsPace,
    /// Go programs beside the main process, read again at each snapshot.
    others: Vec<(ProcessId, GoProcess)>,
    /// Whether they are to be read.
    reads_others: bool,
    cost: MemoryCost,
}

/// What a reading took.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryCost {
    pub whole: Duration,
    /// Of it malloc's books, where they were read.
    pub heap: Option<Duration>,
}

/// Who is traced at an instant.
#[derive(Clone, Copy, Debug)]
pub struct Traced<'a> {
    /// Every process that runs.
    pub pids: &'a [u32],
    /// What is known of the main one's Go runtime.
    pub go: &'a Known<GoBooks>,
}

impl ContainerMemory {
    /// `pid` is the main process; it stays that.
    pub fn of(pid: u32, container: Option<&Container>, source: &GoProfileSource) -> Self {
        let id = container.map(|container| container.id.as_str());
        let subject = Subject {
            asked: format!("process {pid}"),
            container: container.cloned(),
            pod_uid: None,
            main_pid: Some(pid),
        };
        let place = place(place_of_process(Path::new("/proc"), pid, id));
        Self {
            wanted: Wanted::new(subject, place, vec![pid]),
            heap: HeapPace::default(),
            mappings: MappingsPace::default(),
            others: Vec::new(),
            reads_others: matches!(source, GoProfileSource::Auto | GoProfileSource::Memory),
            cost: MemoryCost::default(),
        }
    }

    /// The last snapshot has everything at any cost.
    pub async fn read(&mut self, traced: Traced<'_>, last: bool) -> Facts {
        let start = Instant::now();
        let Self { wanted, heap, mappings, others, reads_others, .. } = self;
        wanted.first = traced.pids.to_vec();
        if wanted.place.value().is_none() {
            wanted.pids = traced.pids.to_vec();
        }
        // Who shares a cgroup with a process outside of a container is a stranger.
        let related = match wanted.subject.container {
            Some(_) => MOST_SMAPS,
            None => traced.pids.len().max(1),
        };
        wanted.most_smaps = mappings.most(last).min(related);
        let mut heap_cost = None;
        let books = async |processes: &mut [ProcessFacts]| {
            let main = wanted.subject.main_pid;
            for process in processes.iter_mut().filter(|it| Some(it.id.pid) == main) {
                take_books(process, traced.go);
            }
            if *reads_others {
                read_other_go(others, processes, main).await;
            }
            let read = processes.iter_mut().filter(|it| it.mappings.value().is_some());
            if let Some(reason) = heap.too_early(start, last) {
                read.for_each(|process| process.heap = Known::unknown(reason.clone()));
                return;
            }
            let begin = Instant::now();
            read.for_each(|process| process.heap = read_heap(process.id.pid));
            heap_cost = Some(begin.elapsed());
            heap.was_read(start, begin.elapsed());
        };
        let mut facts = gather(wanted, None, books).await;
        facts.host = host();
        mappings.was_read(start, Duration::from_nanos(facts.read_ns));
        self.cost = MemoryCost { whole: start.elapsed(), heap: heap_cost };
        facts
    }

    /// Of the last reading; nothing where there was none since.
    pub fn cost(&mut self) -> MemoryCost {
        std::mem::take(&mut self.cost)
    }
}

/// From their memory, which asks nobody; the largest.
async fn read_other_go(
    others: &mut Vec<(ProcessId, GoProcess)>,
    processes: &mut [ProcessFacts],
    main: Option<u32>,
) {
    let is_other = |process: &&mut ProcessFacts| {
        Some(process.id.pid) != main
            && process.go_version.is_some()
            && process.mappings.value().is_some()
    };
    let mut read = Vec::new();
    for process in processes.iter_mut().filter(is_other).take(MOST_OTHER_GO) {
        let id = process.id;
        let mut reader = match others.iter().position(|(other, _)| *other == id) {
            Some(at) => others.swap_remove(at).1,
            None => GoProcess::open(id.pid, &GoProfileSource::Memory),
        };
        take_books(process, &reader.read().await);
        read.push((id, reader));
    }
    *others = read;
}

/// How often malloc's books are read: so that it takes at most a twentieth of the time, whatever
/// the interval.
#[derive(Clone, Copy, Debug, Default)]
struct HeapPace(Option<(Instant, Duration)>);

impl HeapPace {
    /// Why they are left out now, if they are.
    fn too_early(&self, now: Instant, last: bool) -> Option<String> {
        let (at, took) = self.0?;
        let since = now.saturating_duration_since(at);
        (!last && took.saturating_mul(SHARE) > since).then(|| {
            format!(
                "glibc's books were left out of this snapshot: reading them took {} ms, more than \
                 1/{SHARE} of the {} ms since; take snapshots less often (--interval)",
                took.as_millis(),
                since.as_millis()
            )
        })
    }

    fn was_read(&mut self, at: Instant, took: Duration) {
        self.0 = Some((at, took));
    }
}

/// Of how many processes every mapping is read: fewer where that takes more than a twentieth of
/// the time, more again where there is room for twice as much.
#[derive(Clone, Copy, Debug)]
struct MappingsPace {
    most: usize,
    before: Option<Instant>,
}

impl Default for MappingsPace {
    fn default() -> Self {
        Self { most: MOST_SMAPS, before: None }
    }
}

impl MappingsPace {
    fn most(&self, last: bool) -> usize {
        if last { MOST_SMAPS } else { self.most }
    }

    fn was_read(&mut self, at: Instant, took: Duration) {
        let Some(before) = self.before.replace(at) else { return };
        let since = at.saturating_duration_since(before);
        if took.saturating_mul(SHARE) > since {
            self.most = (self.most / 2).max(1);
        } else if took.saturating_mul(2 * SHARE) < since {
            self.most = (self.most * 2).min(MOST_SMAPS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn malloc_s_books_take_at_most_a_twentieth_of_a_recording() {
        let start = Instant::now();
        let at = |count| start + milliseconds(count);
        let mut pace = HeapPace::default();
        assert_eq!(pace.too_early(at(0), false), None);
        pace.was_read(at(0), milliseconds(45));
        let reason = pace.too_early(at(500), false).unwrap();
        assert!(reason.contains("45 ms") && reason.contains("500 ms"), "{reason}");
        assert_eq!(pace.too_early(at(500), true), None);
        assert_eq!(pace.too_early(at(900), false), None);
    }

    #[test]
    fn mappings_of_fewer_processes_are_read_where_it_takes_long_and_of_all_in_the_end() {
        let start = Instant::now();
        let at = |second: u64| start + milliseconds(second * 1000);
        let mut pace = MappingsPace::default();
        // The first one has nothing to compare with.
        pace.was_read(at(0), milliseconds(900));
        assert_eq!(pace.most(false), MOST_SMAPS);
        pace.was_read(at(1), milliseconds(51));
        assert_eq!((pace.most(false), pace.most(true)), (MOST_SMAPS / 2, MOST_SMAPS));
        for second in 2..20 {
            pace.was_read(at(second), milliseconds(300));
        }
        assert_eq!(pace.most(false), 1);
        // Neither too long nor with room for twice as much: it stays.
        pace.was_read(at(20), milliseconds(26));
        assert_eq!(pace.most(false), 1);
        for second in 21..40 {
            pace.was_read(at(second), milliseconds(24));
        }
        assert_eq!(pace.most(false), MOST_SMAPS);
    }
}
