//! `memtrace explain`: who is meant, read it once, account, tell. No probes; nobody is stopped
//! unless `--freeze` asks for it.

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::exit::SessionError;
use super::outputs::{Sink, is_coloured, terminal_width};
use super::say::warn;
use crate::account::Ledger;
use crate::cli::{ExplainArgs, ExplainTarget};
use crate::doctor::gather_plain_host;
use crate::go::{GoProfileSource, GoReader, open_network_namespace};
use crate::report::ledger::{LedgerOptions, render_json, render_text};
use crate::snapshot::facts::{
    ArenaFacts, FACTS_SCHEMA, Facts, GoFacts, HeapCensus, NO_LIMIT, ProcessFacts, Subject,
};
use crate::snapshot::{Container, GoArena, GoBooks, GoProfile, HostSummary, Known};
use crate::tracee::cgroup::freeze::freeze;
use crate::tracee::cgroup::{
    LocateError, MOST_SMAPS, Place, Wanted, gather, place_at, place_of_path, place_of_process,
};
use crate::tracee::container::pod::{find_container_in, find_pod};
use crate::tracee::container::{container_of, find_container};
use crate::tracee::heap::{self, Depth};
use crate::tracee::mappings::Mappings;
use crate::tracee::ports::{connectable, listening_ports};
use crate::tracee::process::{Process, ProcessError};

/// Go programs besides the main process whose books are read, the largest first.
const MOST_OTHER_GO: usize = 4;
/// Saved facts are smaller: 131,060 mappings of 32 processes are 1.3 GB at worst.
const FACTS_BYTES: u64 = 2 << 30;

pub async fn run(args: ExplainArgs) -> Result<ExitCode> {
    let (json, save) = open_sinks(&args)?;
    let facts = match &args.from {
        Some(path) => load(path)?,
        None => read(&args).await?,
    };
    let ledger = Ledger::of(&facts);
    if let Some(mut sink) = save {
        let bytes = serde_json::to_vec(&facts).context("failed to encode what was read")?;
        sink.deliver(&bytes)?;
    }
    let to_stdout = |path: &Option<std::path::PathBuf>| path.as_deref() == Some(Path::new("-"));
    let text_to_stdout = !to_stdout(&args.json) && !to_stdout(&args.save);
    if let Some(mut sink) = json {
        sink.deliver(&render_json(&facts, &ledger)?)?;
    }
    if text_to_stdout {
        let options = LedgerOptions {
            width: terminal_width(),
            colour: is_coloured(args.color),
            exact: args.bytes,
        };
        let text = render_text(&facts, &ledger, options);
        Sink::open(Path::new("-"))?.deliver(text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn open_sinks(args: &ExplainArgs) -> Result<(Option<Sink>, Option<Sink>)> {
    if args.json.is_some() && args.json == args.save {
        if args.json.as_deref() == Some(Path::new("-")) {
            return Err(SessionError::TwoOnStdout.into());
        }
        let name = args.json.as_ref().map_or(String::new(), |path| format!("`{}`", path.display()));
        return Err(SessionError::SameFileTwice { name }.into());
    }
    let json = args.json.as_deref().map(Sink::open).transpose()?;
    let save = args.save.as_deref().map(Sink::open).transpose()?;
    Ok((json, save))
}

/// What `--save` wrote.
fn load(path: &Path) -> Result<Facts> {
    use std::io::Read;
    let failed = || format!("failed to read what was saved in `{}`", path.display());
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FACTS_BYTES).read_to_end(&mut bytes))
        .with_context(failed)?;
    let facts: Facts = serde_json::from_slice(&bytes).with_context(failed)?;
    if facts.schema != FACTS_SCHEMA {
        anyhow::bail!(
            "`{}` was saved by memtrace {} in form {}: this memtrace reads form {FACTS_SCHEMA}",
            path.display(),
            crate::report::visible(&facts.memtrace),
            facts.schema
        );
    }
    Ok(facts)
}

async fn read(args: &ExplainArgs) -> Result<Facts> {
    let wanted = resolve(&args.target).await?;
    // A frozen process answers nobody: it is asked before. Its memory is read with the rest.
    let asks = !matches!(args.go_profile, GoProfileSource::Off | GoProfileSource::Memory);
    let asked = match wanted.subject.main_pid {
        Some(pid) if asks => Some((pid, read_go(pid, &args.go_profile).await)),
        _ => None,
    };
    let frozen = match (args.freeze, freezable(&wanted)) {
        (true, Some((pid, id))) => Some(freeze(pid, id.as_deref())?),
        (true, None) => anyhow::bail!("nothing to freeze: no process is known"),
        (false, _) => None,
    };
    let books = async |processes: &mut [ProcessFacts]| {
        read_books(processes, wanted.subject.main_pid, &args.go_profile, asked.as_ref()).await;
    };
    let mut facts = gather(&wanted, frozen, books).await;
    facts.host = host();
    Ok(facts)
}

/// The runtimes' own books. From their memory, which asks nobody, but for what was asked before.
async fn read_books(
    processes: &mut [ProcessFacts],
    main: Option<u32>,
    source: &GoProfileSource,
    asked: Option<&(u32, Known<GoBooks>)>,
) {
    for process in processes.iter_mut().filter(|it| it.mappings.value().is_some()) {
        process.heap = read_heap(process.id.pid);
    }
    let from_memory = matches!(source, GoProfileSource::Memory | GoProfileSource::Auto);
    let mut others = 0;
    for process in processes.iter_mut() {
        let pid = process.id.pid;
        if let Some((_, books)) = asked.filter(|(asked, _)| *asked == pid) {
            take_books(process, books);
        } else if Some(pid) == main && matches!(source, GoProfileSource::Memory) {
            take_books(process, &read_go(pid, &GoProfileSource::Memory).await);
        } else if from_memory
            && process.go_version.is_some()
            && process.mappings.value().is_some()
            && others < MOST_OTHER_GO
        {
            others += 1;
            take_books(process, &read_go(pid, &GoProfileSource::Memory).await);
        }
    }
    // Go 1.26 and later put the heap at a random address: only the runtime can tell where it is.
    let unplaced = processes.iter_mut().filter(|it| it.mappings.value().is_some());
    let unplaced = unplaced.filter(|it| it.go_version.is_some() && it.go_ranges.value().is_none());
    for process in unplaced.take(1 + MOST_OTHER_GO) {
        let books = read_go(process.id.pid, &GoProfileSource::Memory).await;
        take_arenas(process, &books);
    }
}

fn freezable(wanted: &Wanted) -> Option<(u32, Option<String>)> {
    let pid = wanted.subject.main_pid.or_else(|| wanted.pids.first().copied())?;
    Some((pid, wanted.subject.container.as_ref().map(|container| container.id.clone())))
}

async fn resolve(target: &ExplainTarget) -> Result<Wanted> {
    if let Some(pid) = target.pid {
        return of_pid(pid).await;
    }
    if let Some(name) = &target.container {
        let found = match &target.pod {
            Some(pod) => find_container_in(pod, name).await?,
            None => find_container(name).await?,
        };
        let id = found.container.id.clone();
        return Ok(Wanted {
            place: place(place_of_process(Path::new("/proc"), found.first_pid, Some(&id))),
            subject: Subject {
                asked: name.clone(),
                container: Some(found.container),
                pod_uid: None,
                main_pid: Some(found.first_pid),
            },
            pids: found.all_pids,
            most_smaps: MOST_SMAPS,
        });
    }
    if let Some(asked) = &target.pod {
        let pod = find_pod(asked).await?;
        return Ok(Wanted {
            place: place(place_of_path(Path::new("/proc"), &pod.cgroup_path)),
            subject: Subject {
                asked: pod.name.unwrap_or_else(|| pod.uid.clone()),
                container: None,
                pod_uid: Some(pod.uid),
                main_pid: pod.pids.first().copied(),
            },
            pids: pod.pids,
            most_smaps: MOST_SMAPS,
        });
    }
    let asked = target.cgroup.clone().unwrap_or_default();
    let found = place_at(Path::new("/proc"), &asked)?;
    let first = crate::tracee::cgroup::first_process_in(&found);
    Ok(Wanted {
        subject: Subject {
            asked: format!("cgroup {}", found.path),
            container: None,
            pod_uid: None,
            main_pid: first,
        },
        place: Known::Value(found),
        pids: Vec::new(),
        most_smaps: MOST_SMAPS,
    })
}

async fn of_pid(pid: u32) -> Result<Wanted> {
    match Process::open(pid) {
        // Memory of a 32-bit program is told as well.
        Ok(_) | Err(ProcessError::NotX86_64 { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let container = container_of(pid).await;
    let id = container.as_ref().map(|container| container.id.as_str());
    Ok(Wanted {
        most_smaps: MOST_SMAPS,
        place: place(place_of_process(Path::new("/proc"), pid, id)),
        subject: Subject {
            asked: format!("process {pid}"),
            container,
            pod_uid: None,
            main_pid: Some(pid),
        },
        pids: vec![pid],
    })
}

/// A container whose cgroup cannot be seen still has processes.
fn place(found: Result<Place, LocateError>) -> Known<Place> {
    match found {
        Ok(place) => Known::Value(place),
        Err(error) => {
            let mut reason = error.to_string();
            if let Some(cause) = std::error::Error::source(&error) {
                reason.push_str(&format!(": {cause}"));
            }
            Known::unknown(reason)
        }
    }
}

async fn read_go(pid: u32, source: &GoProfileSource) -> Known<GoBooks> {
    let files = match Process::open(pid).and_then(|process| Mappings::of(&process)) {
        Ok(mappings) => mappings.files,
        Err(error) => return Known::unknown(error.to_string()),
    };
    // Entering the namespace is for asking; a reading of memory needs none.
    let namespace = match source {
        GoProfileSource::Memory | GoProfileSource::File(_) => None,
        _ => open_network_namespace(pid).unwrap_or_else(|reason| {
            warn(format_args!("{reason}: the Go profile is asked for from here"));
            None
        }),
    };
    let mut reader =
        GoReader::new(source.clone(), namespace).with_memory(pid, GoProfile::Published);
    let ports = || -> Vec<(IpAddr, u16)> {
        let found = listening_ports(pid).unwrap_or_default();
        found.into_iter().flat_map(connectable).map(|at| (at.ip(), at.port())).collect()
    };
    reader.read(&files, ports).await
}

/// glibc's own books of a process, from its memory.
fn read_heap(pid: u32) -> Known<HeapCensus> {
    let census = match Process::open(pid) {
        Ok(process) => heap::read(&process, Depth::Books),
        Err(error) => return Known::unknown(error.to_string()),
    };
    let census = match census {
        Known::Value(census) => census,
        Known::Unknown { reason } => return Known::unknown(reason),
    };
    let free = |arena: &heap::Arena, of: fn(&heap::Free) -> u64| arena.free.map(of);
    let mapped = |of: fn(&heap::MappedChunks) -> u64| census.mapped.map(of);
    let arenas = census.arenas.iter().map(|arena| ArenaFacts {
        address: arena.address,
        is_main: arena.main,
        system_bytes: arena.system_bytes,
        in_use: arena.in_use_bytes.clone(),
        free: free(arena, |free| free.bytes.saturating_sub(free.top_bytes)),
        top: free(arena, |free| free.top_bytes),
    });
    Known::Value(HeapCensus {
        source: format!("/proc/{pid}/mem, books of {}", census.allocator),
        arenas: arenas.collect(),
        mapped_chunks: mapped(|mapped| mapped.chunks),
        mapped_bytes: mapped(|mapped| mapped.bytes),
        thread_caches: census.thread_caches.map(|caches| caches.bytes),
        trimmable_resident: census.totals.trimmable_resident_bytes.clone(),
    })
}

/// Puts the runtime's books where they belong.
fn take_books(process: &mut ProcessFacts, books: &Known<GoBooks>) {
    process.go = books.map(without_stacks);
    take_arenas(process, books);
}

fn take_arenas(process: &mut ProcessFacts, books: &Known<GoBooks>) {
    let arenas = books.value().map(|books| books.arenas.as_slice()).unwrap_or_default();
    if !arenas.is_empty() {
        let range = |arena: &GoArena| (arena.start, arena.start.saturating_add(arena.length_bytes));
        process.go_ranges = Known::Value(arenas.iter().map(range).collect());
    }
}

/// What the account needs of the runtime's books.
fn without_stacks(books: &GoBooks) -> GoFacts {
    GoFacts {
        inuse: match &books.no_profile {
            Some(reason) => Known::unknown(reason.clone()),
            None => Known::Value(books.inuse_bytes),
        },
        sample_rate: books.sample_rate_bytes,
        memory: match books.memory {
            Some(memory) => Known::Value(memory),
            None => Known::unknown("the profile does not carry the runtime's statistics"),
        },
        memory_limit: match books.memory.and_then(|memory| memory.memory_limit) {
            // The runtime's own way to say that there is none.
            Some(limit) if limit >= i64::MAX as u64 => Known::Value(NO_LIMIT),
            Some(limit) => Known::Value(limit),
            None => Known::unknown("this source does not tell GOMEMLIMIT"),
        },
        source: books.source.clone(),
    }
}

/// Reads the memory around a process that is being recorded, once for each snapshot.
#[derive(Debug)]
pub struct ContainerMemory {
    wanted: Wanted,
    heap: HeapPace,
    cost: MemoryCost,
}

/// What a reading took.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryCost {
    pub whole: Duration,
    /// Of it malloc's books, where they were read.
    pub heap: Option<Duration>,
}

impl ContainerMemory {
    /// Every mapping of the process itself; of its container's others their sums.
    pub fn of(pid: u32, container: Option<&Container>) -> Self {
        let id = container.map(|container| container.id.as_str());
        let wanted = Wanted {
            subject: Subject {
                asked: format!("process {pid}"),
                container: container.cloned(),
                pod_uid: None,
                main_pid: Some(pid),
            },
            place: place(place_of_process(Path::new("/proc"), pid, id)),
            pids: vec![pid],
            most_smaps: 1,
        };
        Self { wanted, heap: HeapPace::default(), cost: MemoryCost::default() }
    }

    /// `go` is what this snapshot has of the runtime's books. The last snapshot has malloc's books
    /// at any cost.
    pub async fn read(&mut self, go: &Known<GoBooks>, last: bool) -> Facts {
        let start = Instant::now();
        let Self { wanted, heap, .. } = self;
        let mut heap_cost = None;
        let books = async |processes: &mut [ProcessFacts]| {
            let main = wanted.subject.main_pid;
            let Some(process) = processes.iter_mut().find(|it| Some(it.id.pid) == main) else {
                return;
            };
            take_books(process, go);
            process.heap = match heap.too_early(start, last) {
                Some(reason) => Known::unknown(reason),
                None => {
                    let begin = Instant::now();
                    let census = read_heap(process.id.pid);
                    heap_cost = Some(begin.elapsed());
                    heap.was_read(start, begin.elapsed());
                    census
                }
            };
        };
        let mut facts = gather(wanted, None, books).await;
        facts.host = host();
        self.cost = MemoryCost { whole: start.elapsed(), heap: heap_cost };
        facts
    }

    /// Of the last reading; nothing where there was none since.
    pub fn cost(&mut self) -> MemoryCost {
        std::mem::take(&mut self.cost)
    }
}

/// How often malloc's books are read in a recording: so that it takes at most a twentieth of the
/// time, whatever the interval.
#[derive(Clone, Copy, Debug, Default)]
struct HeapPace(Option<(Instant, Duration)>);

impl HeapPace {
    const SHARE: u32 = 20;

    /// Why they are left out now, if they are.
    fn too_early(&self, now: Instant, last: bool) -> Option<String> {
        let (at, took) = self.0?;
        let since = now.saturating_duration_since(at);
        (!last && took.saturating_mul(Self::SHARE) > since).then(|| {
            format!(
                "glibc's books were left out of this snapshot: reading them took {} ms, more than \
                 1/{} of the {} ms since; take snapshots less often (--interval)",
                took.as_millis(),
                Self::SHARE,
                since.as_millis()
            )
        })
    }

    fn was_read(&mut self, at: Instant, took: Duration) {
        self.0 = Some((at, took));
    }
}

fn host() -> HostSummary {
    let host = gather_plain_host();
    HostSummary {
        kernel_release: host.kernel_release,
        architecture: host.architecture,
        cpus: host.cpus,
        page_size_bytes: host.page_size_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malloc_s_books_take_at_most_a_twentieth_of_a_recording() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = HeapPace::default();
        assert_eq!(pace.too_early(at(0), false), None);
        pace.was_read(at(0), Duration::from_millis(45));
        let reason = pace.too_early(at(500), false).unwrap();
        assert!(reason.contains("45 ms") && reason.contains("500 ms"), "{reason}");
        assert_eq!(pace.too_early(at(500), true), None);
        assert_eq!(pace.too_early(at(900), false), None);
    }
}
