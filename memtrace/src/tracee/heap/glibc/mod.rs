//! glibc's malloc, read from outside: arenas, free lists, tops, blocks mapped on their own.
//!
//! Nothing is stopped, so what is read moves. An arena counts as read when two readings in a row
//! agree and its state was the same before and after; one that never stands still is told with
//! how far its readings lay apart, and one that never satisfied glibc's invariants with why not.

mod arena;
mod bins;
mod caches;
mod chunks;
mod layout;
mod locate;
mod parameters;
mod state;
mod view;

use std::ops::Range;
use std::time::{Duration, Instant};

use super::census::{Arena, Depth, Free, HeapCensus, Reading, Totals};
use super::memory::{MemoryReader, ReadError};
use super::regions::Regions;
use crate::snapshot::Known;
use arena::{ATTEMPTS, PAUSE, Reader};
use state::State;
use view::{Budget, View};

/// What is known of the C library in a process, as far as its heap is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Libc {
    /// (2, 36); `None` if it does not say.
    pub release: Option<(u32, u32)>,
    /// Where its variables lie: `.data` and `.bss`, as mapped.
    pub data: Vec<Range<u64>>,
    /// Address of `main_arena`, where it has a symbol.
    pub main_arena: Option<u64>,
    /// Address of `mp_`, where it has a symbol.
    pub parameters: Option<u64>,
}

/// Why a heap, or a part of it, could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Read(ReadError),
    #[error("a pointer leads to {address:#x}, where no heap is")]
    Outside { address: u64 },
    #[error(
        "{what} (at {address:#x}): the process was in the midst of changing it, or has damaged it"
    )]
    Broken { what: &'static str, address: u64 },
    #[error("there are more than {limit} chunks to look at")]
    TooMany { limit: u64 },
    #[error("it took too long")]
    TooLong,
    #[error("the data of the C library is not mapped")]
    NoData,
    #[error("glibc's malloc was never used in it")]
    Unused,
    #[error(
        "glibc's main arena was not found: its malloc was never used, or its layout is not known"
    )]
    NotFound,
    #[error("glibc's settings (`mp_`) were not found: {why}")]
    NoParameters { why: &'static str },
    #[error(
        "the memory of the main arena is not in one piece: the program moves the break itself, or the break could not grow"
    )]
    NotOnePiece,
}

impl Refusal {
    /// Another try, perhaps with newer mappings, can succeed.
    pub(super) fn can_pass(&self) -> bool {
        matches!(
            self,
            Self::Outside { .. }
                | Self::Broken { .. }
                | Self::NotFound
                | Self::Read(ReadError::NotMapped { .. })
        )
    }
}

/// The budget of a depth.
fn budget(depth: Depth) -> Budget {
    let (steps, time) = match depth {
        Depth::Books => (1 << 21, Duration::from_secs(3)),
        Depth::Chunks => (1 << 28, Duration::from_secs(20)),
    };
    Budget { steps, until: Instant::now() + time }
}

/// Reads again what was in the midst of a change.
fn retry<M: MemoryReader, T>(
    view: &View<'_, M>,
    read: impl Fn() -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    for _ in 1..ATTEMPTS {
        match read() {
            Err(refusal) if refusal.can_pass() => std::thread::sleep(PAUSE),
            done => return done,
        }
        view.check_time()?;
        view.forget();
    }
    read()
}

/// Reads the heap once through.
pub(super) fn census<M: MemoryReader>(
    memory: &M,
    regions: &Regions,
    libc: &Libc,
    depth: Depth,
) -> Result<HeapCensus, Refusal> {
    let start = Instant::now();
    let view = View::of(memory, regions, budget(depth));
    let (main, found_by) = retry(&view, || locate::main_arena(&view, libc))?;
    let mut reader = Reader {
        view: &view,
        depth,
        mangled: libc.release.map(|release| release >= (2, 32)),
        cache_chunk: caches::layout(libc.release).map(|layout| layout.chunk),
        attempts: 0,
        cache_places: Vec::new(),
    };
    let mut arenas = vec![reader.arena(&main, true)];
    let read_main = || State::read(&view, main.address, main.layout);
    let others = retry(&view, || read_main().and_then(|main| locate::ring(&view, &main)))?;
    for address in others {
        let state = retry(&view, || State::read(&view, address, main.layout))?;
        arenas.push(reader.arena(&state, false));
    }
    let Reader { attempts, mut cache_places, .. } = reader;

    view.forget();
    let main = retry(&view, read_main)?;
    let base = match main.top_size(&view) {
        Ok(_) if main.is_unused() => Some(0),
        Ok(top) => main_base(&main, top),
        Err(_) => None,
    };
    let parameters = parameters::read(&view, libc, base);
    let capacity = parameters.as_ref().ok().and_then(|found| found.cache_count);
    if depth == Depth::Books {
        let base = base.filter(|base| *base > 0);
        cache_places = caches::first_chunks(&view, &main, base, &arenas);
    }
    let thread_caches = caches::all(&view, libc, &arenas, &cache_places, capacity, depth);
    let (reads, read_bytes) = view.counted();
    let moving_arenas = arenas.iter().filter(|arena| arena.moving).count() as u64;
    let (mapped, settings) = match parameters {
        Ok(found) => (Known::Value(found.mapped), Known::Value(found.settings)),
        Err(refusal) => (Known::unknown(refusal.to_string()), Known::unknown(refusal.to_string())),
    };
    Ok(HeapCensus {
        allocator: "glibc".to_owned(),
        version: match libc.release {
            Some((major, minor)) => Known::Value(format!("{major}.{minor}")),
            None => Known::unknown("the C library does not say its version"),
        },
        layout: main.layout.releases.to_owned(),
        found_by,
        depth,
        beside: Vec::new(),
        totals: totals(&arenas),
        arenas,
        mapped,
        settings,
        thread_caches,
        reading: Reading {
            attempts,
            moving_arenas,
            read_bytes,
            reads,
            elapsed_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
        },
    })
}

/// The start of the main arena's memory, if that is one piece: it ends where the top ends.
fn main_base(main: &State, top: u64) -> Option<u64> {
    let end = main.top().checked_add(top)?;
    (main.is_contiguous() && !main.is_unused()).then(|| end.checked_sub(main.system())).flatten()
}

/// Sums, unknown as soon as one part is.
fn totals(arenas: &[Arena]) -> Totals {
    let sum = |part: &dyn Fn(&Arena) -> Known<u64>| {
        let mut sum = 0;
        for arena in arenas {
            match part(arena) {
                Known::Value(value) => sum += value,
                unknown => return unknown,
            }
        }
        Known::Value(sum)
    };
    let of_free = |arena: &Arena, part: &dyn Fn(&Free) -> Known<u64>| arena.free.and_then(part);
    let plus = |a: Known<u64>, b: Known<u64>| match (a, b) {
        (Known::Value(a), Known::Value(b)) => Known::Value(a + b),
        (Known::Value(_), unknown) | (unknown, _) => unknown,
    };
    Totals {
        arenas: arenas.len() as u64,
        system_bytes: arenas.iter().map(|arena| arena.system_bytes).sum(),
        free_bytes: sum(&|arena| of_free(arena, &|free| Known::Value(free.bytes))),
        in_use_bytes: sum(&|arena| arena.in_use_bytes.clone()),
        top_bytes: sum(&|arena| of_free(arena, &|free| Known::Value(free.top_bytes))),
        trimmable_bytes: sum(&|arena| {
            of_free(arena, &|free| {
                let top = if arena.main { free.top_page_bytes } else { 0 };
                Known::Value(free.whole_page_bytes + top)
            })
        }),
        trimmable_resident_bytes: sum(&|arena| {
            of_free(arena, &|free| {
                let top = free.top_page_resident_bytes.clone();
                let top = if arena.main { top } else { Known::Value(0) };
                plus(free.whole_page_resident_bytes.clone(), top)
            })
        }),
        other_tops_resident_bytes: sum(&|arena| match arena.main {
            true => Known::Value(0),
            false => of_free(arena, &|free| free.top_page_resident_bytes.clone()),
        }),
        drift_bytes: arenas.iter().map(|arena| arena.drift_bytes).sum(),
    }
}

#[cfg(test)]
mod tests;
