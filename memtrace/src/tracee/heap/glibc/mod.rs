//! glibc's malloc, read from outside: arenas, free lists, tops, blocks mapped on their own.
//!
//! Nothing is stopped, so what is read moves. An arena counts as read when two readings in a row
//! agree and its state was the same before and after; one that never stands still is told with
//! how far its readings lay apart, and one that never satisfied glibc's invariants with why not.

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

use super::census::{
    Arena, Chunks, Depth, Free, HeapCensus, Reading, ThreadCaches, ToldBy, Totals,
};
use super::memory::{MemoryReader, ReadError};
use super::regions::Regions;
use crate::snapshot::Known;
use state::{Heaps, State};
use view::{Ahead, Budget, View};

/// Readings of an arena before it is said to move.
const ATTEMPTS: u32 = 8;
/// The pause after the first reading that failed; doubled each time.
const PAUSE: Duration = Duration::from_micros(50);
/// An arena whose lists are read faster with all of it than chunk by chunk.
const SMALL_ARENA: u64 = 16 << 20;

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

/// Reads the heap once through.
pub(super) fn census<M: MemoryReader>(
    memory: &M,
    regions: &Regions,
    libc: &Libc,
    depth: Depth,
) -> Result<HeapCensus, Refusal> {
    let start = Instant::now();
    let view = View::of(memory, regions, budget(depth));
    let mut found = locate::main_arena(&view, libc);
    for _ in 1..ATTEMPTS {
        if !found.as_ref().is_err_and(Refusal::can_pass) {
            break;
        }
        std::thread::sleep(PAUSE);
        view.forget();
        found = locate::main_arena(&view, libc);
    }
    let (main, found_by) = found?;
    let mut reader = Reader {
        view: &view,
        depth,
        mangled: libc.release.map(|release| release >= (2, 32)),
        cache_chunk: caches::layout(libc.release).map(|layout| layout.chunk),
        attempts: 0,
        cache_places: Vec::new(),
    };
    let mut arenas = vec![reader.arena(&main, true)];
    let others = locate::ring(&view, &main)?;
    for address in others {
        match State::read(&view, address, main.layout) {
            Ok(state) => arenas.push(reader.arena(&state, false)),
            Err(refusal) => return Err(refusal),
        }
    }
    let Reader { attempts, mut cache_places, .. } = reader;

    view.forget();
    let main = State::read(&view, main.address, main.layout)?;
    let base = match main.top_size(&view) {
        Ok(_) if main.is_unused() => Some(0),
        Ok(top) => main_base(&main, top),
        Err(_) => None,
    };
    let parameters = parameters::read(&view, libc, base);
    let capacity = parameters.as_ref().ok().and_then(|found| found.cache_count);
    if depth == Depth::Books {
        let base = base.filter(|base| *base > 0);
        cache_places = first_chunks(&view, &main, base, &arenas);
    }
    let thread_caches = thread_caches(&view, libc, &arenas, &cache_places, capacity, depth);
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

/// One reading of an arena.
struct Once {
    state: State,
    heaps: u64,
    free: Free,
    /// `None`: not looked at.
    chunks: Option<Result<Chunks, Refusal>>,
    told_by: ToldBy,
    /// The state was the same before and after.
    still: bool,
}

impl Once {
    /// The same figures. How much is resident is the kernel's doing, not the allocator's.
    fn agrees(&self, other: &Self) -> bool {
        let of_allocator = |free: &Free| Free {
            whole_page_resident_bytes: Known::Value(0),
            top_page_resident_bytes: Known::Value(0),
            ..free.clone()
        };
        self.still
            && other.still
            && self.state.is_same(&other.state)
            && of_allocator(&self.free) == of_allocator(&other.free)
            && self.chunks == other.chunks
    }
}

struct Reader<'r, 'a, M> {
    view: &'r View<'a, M>,
    depth: Depth,
    mangled: Option<bool>,
    cache_chunk: Option<u64>,
    attempts: u64,
    /// Chunks that have the size of a thread cache.
    cache_places: Vec<u64>,
}

impl<M: MemoryReader> Reader<'_, '_, M> {
    fn arena(&mut self, found: &State, main: bool) -> Arena {
        let mut last: Option<Once> = None;
        let mut refused = None;
        // Free bytes, least and most, and the same of what is got from the system.
        let mut spread: Option<(Range<u64>, Range<u64>)> = None;
        let mut readings = 0;
        let mut agreed = false;
        let places = self.cache_places.len();
        for attempt in 0..ATTEMPTS {
            self.attempts += 1;
            self.cache_places.truncate(places);
            self.view.forget();
            match self.view.check_time().and_then(|()| self.once(found, main)) {
                Ok(once) => {
                    readings += 1;
                    let (free, system) = (once.free.bytes, once.state.system());
                    spread = Some(match spread {
                        None => (free..free, system..system),
                        Some((f, s)) => (
                            f.start.min(free)..f.end.max(free),
                            s.start.min(system)..s.end.max(system),
                        ),
                    });
                    agreed = last.as_ref().is_some_and(|last| last.agrees(&once));
                    last = Some(once);
                    if agreed {
                        break;
                    }
                }
                Err(refusal) => {
                    let is_final = !refusal.can_pass();
                    refused = Some(refusal);
                    if is_final {
                        break;
                    }
                }
            }
            if attempt > 0 {
                std::thread::sleep(PAUSE * (1 << attempt));
            }
        }
        let drift = spread
            .map_or(0, |(free, system)| (free.end - free.start).max(system.end - system.start));
        let by_tags = || self.by_tags(found, main);
        match last {
            Some(once) if agreed => arena_of(once, main, None),
            // One reading alone says nothing about how far it can be off.
            Some(once) if readings > 1 => arena_of(once, main, Some(drift)),
            _ if let Some((once, drift)) = by_tags() => arena_of(once, main, Some(drift)),
            _ => {
                let reason = refused.map_or_else(
                    || "it was read only once".to_owned(),
                    |refusal| refusal.to_string(),
                );
                unread_arena(found, main, &reason)
            }
        }
    }

    /// Readings of an arena whose lists never held still, by its boundary tags, and how far they
    /// lay apart.
    fn by_tags(&self, found: &State, main: bool) -> Option<(Once, u64)> {
        let once = || {
            self.view.check_time()?;
            self.view.forget();
            let state = State::read(self.view, found.address, found.layout)?;
            let heaps = if main { None } else { Some(Heaps::of(self.view, &state)?) };
            let (free, chunks) = chunks::read_free(self.view, &state, heaps.as_ref(), main)?;
            let heaps = heaps.map_or(1, |heaps| heaps.heaps.len() as u64);
            Ok::<_, Refusal>(Once {
                state,
                heaps,
                free,
                chunks: Some(Ok(chunks)),
                told_by: ToldBy::Tags,
                still: false,
            })
        };
        let readings: Vec<Once> = (0..ATTEMPTS).filter_map(|_| once().ok()).take(3).collect();
        let in_use = |once: &Once| once.state.system().saturating_sub(once.free.bytes);
        let least = readings.iter().map(in_use).min()?;
        let most = readings.iter().map(in_use).max()?;
        let enough = readings.len() > 1;
        readings.into_iter().last().filter(|_| enough).map(|last| (last, most - least))
    }

    fn once(&mut self, found: &State, main: bool) -> Result<Once, Refusal> {
        let state = State::read(self.view, found.address, found.layout)?;
        let heaps = if main { None } else { Some(Heaps::of(self.view, &state)?) };
        let is_small = state.system() <= SMALL_ARENA;
        self.view.read_ahead(if is_small { Ahead::WhenMany } else { Ahead::Never });
        let free = bins::read(self.view, &state, main, self.mangled);
        self.view.read_ahead(Ahead::Never);
        let free = free?;
        let chunks = match self.depth {
            Depth::Books => None,
            Depth::Chunks => {
                let mut visit = |chunk, size| {
                    if Some(size) == self.cache_chunk {
                        self.cache_places.push(chunk);
                    }
                };
                match chunks::read(self.view, &state, heaps.as_ref(), &free, &mut visit) {
                    // The lists hold; only the walk cannot be done here.
                    Err(refusal) if !refusal.can_pass() => Some(Err(refusal)),
                    walked => Some(Ok(walked?)),
                }
            }
        };
        let after = State::read(self.view, found.address, found.layout)?;
        Ok(Once {
            heaps: heaps.map_or(1, |heaps| heaps.heaps.len() as u64),
            still: state.is_same(&after),
            state,
            free,
            chunks,
            told_by: ToldBy::Lists,
        })
    }
}

/// `drift_bytes` of a moving arena.
fn arena_of(once: Once, main: bool, drift_bytes: Option<u64>) -> Arena {
    let state = &once.state;
    Arena {
        address: state.address,
        main,
        attached_threads: attached(state),
        heaps: once.heaps,
        system_bytes: state.system(),
        peak_system_bytes: state.peak_system(),
        in_use_bytes: Known::Value(state.system().saturating_sub(once.free.bytes)),
        free: Known::Value(once.free),
        chunks: match once.chunks {
            None => Known::unknown("not every chunk was looked at"),
            Some(Ok(chunks)) => Known::Value(chunks),
            Some(Err(refusal)) => Known::unknown(refusal.to_string()),
        },
        told_by: once.told_by,
        moving: drift_bytes.is_some(),
        drift_bytes: drift_bytes.unwrap_or(0),
    }
}

fn unread_arena(state: &State, main: bool, reason: &str) -> Arena {
    Arena {
        address: state.address,
        main,
        attached_threads: attached(state),
        heaps: 1,
        system_bytes: state.system(),
        peak_system_bytes: state.peak_system(),
        free: Known::unknown(reason),
        in_use_bytes: Known::unknown(reason),
        chunks: Known::unknown(reason),
        told_by: ToldBy::Lists,
        moving: true,
        drift_bytes: 0,
    }
}

fn attached(state: &State) -> Known<u64> {
    match state.attached_threads() {
        Some(threads) => Known::Value(threads),
        None => Known::unknown("this release does not count them"),
    }
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
    let of_free = |arena: &Arena, part: &dyn Fn(&Free) -> Known<u64>| match &arena.free {
        Known::Value(free) => part(free),
        Known::Unknown { reason } => Known::unknown(reason.clone()),
    };
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

/// The first chunk of each arena: mostly the cache of the thread that it was made for.
fn first_chunks<M: MemoryReader>(
    view: &View<'_, M>,
    main: &State,
    base: Option<u64>,
    arenas: &[Arena],
) -> Vec<u64> {
    let mut places: Vec<u64> = base.map(|base| base.next_multiple_of(16)).into_iter().collect();
    for arena in arenas.iter().filter(|arena| !arena.main) {
        if view.step().is_err() {
            break;
        }
        places.push((arena.address + main.layout.size as u64).next_multiple_of(16));
    }
    places
}

/// Reads the caches at these places. Complete only if there is one for each thread.
fn thread_caches<M: MemoryReader>(
    view: &View<'_, M>,
    libc: &Libc,
    arenas: &[Arena],
    places: &[u64],
    capacity: Option<u64>,
    depth: Depth,
) -> Known<ThreadCaches> {
    let Some(layout) = caches::layout(libc.release) else {
        return match libc.release {
            Some(_) => Known::Value(ThreadCaches::default()),
            None => Known::unknown("the C library does not say its version"),
        };
    };
    let mangled = libc.release.is_some_and(|release| release >= (2, 32));
    let mut sum = ThreadCaches::default();
    for place in places {
        if let Some(found) = caches::read(view, layout, *place, mangled, capacity) {
            sum.caches += found.caches;
            sum.chunks += found.chunks;
            sum.bytes += found.bytes;
        }
    }
    let threads: u64 =
        arenas.iter().filter_map(|arena| arena.attached_threads.value()).copied().sum();
    let walked = arenas.iter().all(|arena| arena.chunks.value().is_some() && !arena.moving);
    match depth {
        // Since 2.42 a thread has none before its first free.
        _ if sum.caches == threads => Known::Value(sum),
        Depth::Chunks if walked && sum.caches < threads && layout.is_lazy() => Known::Value(sum),
        Depth::Chunks if sum.caches <= threads => Known::unknown(format!(
            "of {threads} threads that allocate, the caches of {} were found; they hold {} bytes",
            sum.caches, sum.bytes
        )),
        Depth::Chunks => Known::unknown(format!(
            "{} chunks look like thread caches, but {threads} threads allocate",
            sum.caches
        )),
        Depth::Books => Known::unknown(format!(
            "of {threads} threads that allocate, the caches of {} are where they mostly are and \
             hold {} bytes; looking at every chunk finds the others",
            sum.caches, sum.bytes
        )),
    }
}

#[cfg(test)]
mod tests;
