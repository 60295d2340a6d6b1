//! One arena read until two readings agree; or, if it never stands still, by its tags.

use std::ops::Range;
use std::time::Duration;

use super::state::{Heaps, State};
use super::view::{Ahead, View};
use super::{Refusal, bins, chunks};
use crate::snapshot::Known;
use crate::tracee::heap::census::{Arena, Chunks, Depth, Free, ToldBy};
use crate::tracee::heap::memory::MemoryReader;

/// Readings of an arena before it is said to move.
pub const ATTEMPTS: u32 = 8;
/// The pause after the first reading that failed; doubled each time.
pub const PAUSE: Duration = Duration::from_micros(50);
/// An arena whose lists are read faster with all of it than chunk by chunk.
const SMALL_ARENA: u64 = 16 << 20;

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

/// Reads arenas one after the other.
pub struct Reader<'r, 'a, M> {
    pub view: &'r View<'a, M>,
    pub depth: Depth,
    /// How fast bins are linked, where the release is known.
    pub mangled: Option<bool>,
    /// The size of a thread cache's chunk, where the release is known.
    pub cache_chunk: Option<u64>,
    pub attempts: u64,
    /// Chunks in use of that size.
    pub cache_places: Vec<u64>,
}

impl<M: MemoryReader> Reader<'_, '_, M> {
    /// Reads until two readings agree, or what moves has been read often enough.
    pub fn arena(&mut self, found: &State, main: bool) -> Arena {
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
