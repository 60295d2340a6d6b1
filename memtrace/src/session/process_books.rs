//! The runtimes' own books of one process, Go's and malloc's, as the account takes them.

use std::net::IpAddr;

use super::say::warn;
use crate::go::{GoProfileSource, GoReader, open_network_namespace};
use crate::snapshot::facts::{ArenaFacts, GoFacts, HeapCensus, NO_LIMIT, ProcessFacts};
use crate::snapshot::{GoArena, GoBooks, GoProfile, Known};
use crate::tracee::MappedFile;
use crate::tracee::heap::{self, Depth};
use crate::tracee::mappings::Mappings;
use crate::tracee::ports::{connectable, listening_ports};
use crate::tracee::process::Process;

/// Go programs besides the main process whose books are read, the largest first.
pub const MOST_OTHER_GO: usize = 4;

/// Reads the Go books of a process that is not recorded, again and again.
#[derive(Debug)]
pub struct GoProcess {
    pid: u32,
    /// `Err`: it cannot be read, and why.
    reader: Result<(GoReader, Vec<MappedFile>), String>,
}

impl GoProcess {
    pub fn open(pid: u32, source: &GoProfileSource) -> Self {
        let files = Process::open(pid).and_then(|process| Mappings::of(&process));
        let reader = files.map(|mappings| {
            // Entering the namespace is for asking; a reading of memory needs none.
            let namespace = match source {
                GoProfileSource::Memory | GoProfileSource::File(_) => None,
                _ => open_network_namespace(pid).unwrap_or_else(|reason| {
                    warn(format_args!("{reason}: the Go profile is asked for from here"));
                    None
                }),
            };
            let reader = GoReader::new(source.clone(), namespace);
            (reader.with_memory(pid, GoProfile::Published), mappings.files)
        });
        Self { pid, reader: reader.map_err(|error| error.to_string()) }
    }

    pub async fn read(&mut self) -> Known<GoBooks> {
        match &mut self.reader {
            Ok((reader, files)) => reader.read(files, || ports_of(self.pid)).await,
            Err(reason) => Known::unknown(reason.clone()),
        }
    }
}

pub async fn read_go(pid: u32, source: &GoProfileSource) -> Known<GoBooks> {
    GoProcess::open(pid, source).read().await
}

/// Where the process listens, without the wildcards that nobody can connect to.
pub fn ports_of(pid: u32) -> Vec<(IpAddr, u16)> {
    let listening = listening_ports(pid).unwrap_or_default();
    listening.into_iter().flat_map(connectable).map(|at| (at.ip(), at.port())).collect()
}

/// glibc's own books of a process, from its memory.
pub fn read_heap(pid: u32) -> Known<HeapCensus> {
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
pub fn take_books(process: &mut ProcessFacts, books: &Known<GoBooks>) {
    process.go = books.map(without_stacks);
    take_arenas(process, books);
}

pub fn take_arenas(process: &mut ProcessFacts, books: &Known<GoBooks>) {
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
