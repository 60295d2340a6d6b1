//! Where the runtime's variables are: by symbols, else by what the runtime's own functions refer
//! to, else by what lies in the data.
//!
//! Whatever the way, a place is taken only when what stands there proves itself: the statistics by
//! the runtime's cross-checks, the buckets by their hashes, the cycle by the number of collections.
//! A way that gives several answers gives none.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::access::Memory;
use super::buckets::{self, Buckets};
use super::heap_profile::ProfileAt;
use super::layout::{DELTAS, Layout};
use super::object::GoObject;
use super::references::Reference;
use super::statistics::{self, Statistics, StatisticsAt, StatisticsError};
use crate::stacks::elf::{u32_at, u64_at};

/// Most bytes of data searched for structures: Go 1.26 and later have 32 MiB of other things there.
const MAX_SEARCHED: usize = 128 << 20;
/// A search of memory that moves is repeated.
const SEARCHES: u32 = 5;

/// How something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Symbols,
    Code,
    Search,
}

/// Why something was not found: what each way gave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct NotFound(pub Vec<String>);

/// The statistics' variables, and the reading that proved them.
pub fn find_statistics(
    memory: &dyn Memory,
    object: &GoObject,
    layout: &Layout,
    ways: &[Way],
) -> Result<(StatisticsAt, Way, Statistics), NotFound> {
    let mut tried = Vec::new();
    for way in ways {
        let found = match way {
            Way::Symbols => statistics_by_symbols(object),
            Way::Code => statistics_by_code(memory, object, layout),
            Way::Search => search_statistics(memory, object, layout),
        };
        let proved = found.and_then(|at| {
            statistics::read(memory, at, layout)
                .map(|read| (at, *way, read))
                .map_err(|error: StatisticsError| error.to_string())
        });
        match proved {
            Ok(found) => return Ok(found),
            Err(why) => tried.push(format!("{}: {why}", way.label())),
        }
    }
    Err(NotFound(tried))
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Symbols, Self::Code, Self::Search];

    fn label(self) -> &'static str {
        match self {
            Self::Symbols => "by symbols",
            Self::Code => "by the runtime's code",
            Self::Search => "by searching the data",
        }
    }
}

fn statistics_by_symbols(object: &GoObject) -> Result<StatisticsAt, String> {
    let symbol = |name: &str| object.symbol(name).ok_or_else(|| format!("no symbol `{name}`"));
    Ok(StatisticsAt {
        statistics: symbol("runtime.memstats")?,
        controller: symbol("runtime.gcController")?,
        heap: symbol("runtime.mheap_")?,
    })
}

/// `readmemstats_m` refers to all of them, and to fields side by side: of the bases that fit, the
/// cross-checks hold for one.
fn statistics_by_code(
    memory: &dyn Memory,
    object: &GoObject,
    layout: &Layout,
) -> Result<StatisticsAt, String> {
    const FUNCTION: &str = "runtime.readmemstats_m";
    let references = object.references_of(FUNCTION).ok_or(format!("no function `{FUNCTION}`"))?;
    let targets: BTreeSet<u64> = references.iter().map(|reference| reference.target).collect();
    let bases = |what: &str, anchors: &[usize]| {
        let fits = |base: &u64| {
            let refers = |offset: &usize| targets.contains(&base.wrapping_add(*offset as u64));
            object.is_data(*base) && anchors.iter().all(refers)
        };
        let first = anchors.first().map_or(0, |offset| *offset as u64);
        let bases = targets.iter().map(|target| target.wrapping_sub(first));
        let bases: Vec<u64> = bases.filter(fits).collect();
        match bases.len() {
            0 => Err(format!("`{FUNCTION}` does not refer to {what}")),
            1..=32 => Ok(bases),
            _ => Err(format!("`{FUNCTION}` refers to many like {what}")),
        }
    };
    let (s, c, h) = (&layout.statistics, &layout.controller, &layout.heap);
    let system = [s.stacks_sys, s.mspan_sys, s.mcache_sys, s.buckhash_sys, s.other_sys, s.numgc];
    let statistics = bases("memstats", &system)?;
    let controllers = bases("gcController", &[c.heap_in_use, c.heap_free, c.heap_released])?;
    let heaps = bases("mheap_", &[h.span_alloc_in_use, h.cache_alloc_in_use])?;
    let mut found = Vec::new();
    for statistics in statistics {
        for &controller in &controllers {
            let with = |&heap: &u64| StatisticsAt { statistics, controller, heap };
            found.extend(heaps.iter().map(with));
        }
    }
    the_proved(memory, &found, layout)
}

/// The only one of these for which the cross-checks hold.
fn the_proved(
    memory: &dyn Memory,
    candidates: &[StatisticsAt],
    layout: &Layout,
) -> Result<StatisticsAt, String> {
    // A wrong one fails every time: the right one is looked for first with few attempts.
    for attempts in [1, 4, 12] {
        let proves_itself =
            |at: &&StatisticsAt| statistics::read_with(memory, **at, layout, attempts).is_ok();
        let mut proved = candidates.iter().filter(proves_itself);
        match (proved.next(), proved.next()) {
            (Some(at), None) => return Ok(*at),
            (Some(_), Some(_)) => {
                return Err("several places satisfy the runtime's cross-checks".to_owned());
            }
            (None, _) => {}
        }
    }
    Err("nothing there satisfies the runtime's cross-checks".to_owned())
}

/// A copy of a part of the data.
struct Piece {
    base: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.base)?).ok()?;
        (at.checked_add(8)? <= self.bytes.len()).then(|| u64_at(&self.bytes, at))
    }
}

fn copy_data(memory: &dyn Memory, object: &GoObject) -> Result<Vec<Piece>, String> {
    let mut left = MAX_SEARCHED;
    let mut pieces = Vec::new();
    for &(start, end) in object.data_ranges() {
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        left = left
            .checked_sub(length)
            .ok_or_else(|| format!("more than {MAX_SEARCHED} bytes of data"))?;
        let mut bytes = vec![0; length];
        memory.read(start, &mut bytes).map_err(|error| error.to_string())?;
        pieces.push(Piece { base: start, bytes });
    }
    Ok(pieces)
}

/// The three by their contents alone: no other words of the data satisfy the cross-checks.
fn search_statistics(
    memory: &dyn Memory,
    object: &GoObject,
    layout: &Layout,
) -> Result<StatisticsAt, String> {
    let mut result = Err("nothing was searched".to_owned());
    for _ in 0..SEARCHES {
        let pieces = copy_data(memory, object)?;
        result = the_proved(memory, &candidates(&pieces, layout), layout);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn candidates(pieces: &[Piece], layout: &Layout) -> Vec<StatisticsAt> {
    const PAGE_BYTES: u64 = 8192;
    const MOST: usize = 256;
    let (s, c, h) = (&layout.statistics, &layout.controller, &layout.heap);
    // (in use, released) → controllers
    let mut controllers: HashMap<(u64, u64), Vec<u64>> = HashMap::new();
    for piece in pieces {
        let span = c.mapped_ready + 8;
        for at in (0..piece.bytes.len().saturating_sub(span)).step_by(8) {
            let word = |offset: usize| u64_at(&piece.bytes, at + offset);
            let in_use = word(c.heap_in_use);
            if in_use == 0 || in_use % PAGE_BYTES != 0 || in_use >= 1 << 47 {
                continue;
            }
            let (released, free) = (word(c.heap_released), word(c.heap_free));
            let (alloc, freed, ready) =
                (word(c.total_alloc), word(c.total_free), word(c.mapped_ready));
            let percent = u32_at(&piece.bytes, at + c.gc_percent).cast_signed();
            if released % PAGE_BYTES == 0
                && free % PAGE_BYTES == 0
                && released < 1 << 47
                && free < 1 << 47
                && ready >= in_use.saturating_add(free)
                && ready < 1 << 47
                && alloc >= freed
                && alloc - freed <= in_use
                && percent >= -1
                && word(c.memory_limit) <= i64::MAX.cast_unsigned()
            {
                let same = controllers.entry((in_use, released)).or_default();
                if same.len() < 16 {
                    same.push(piece.base + at as u64);
                }
            }
        }
    }
    let mut found = Vec::new();
    for piece in pieces {
        let span = s.deltas + DELTAS * s.delta_bytes;
        for at in (0..piece.bytes.len().saturating_sub(span)).step_by(8) {
            let delta = |offset: usize| {
                (0..DELTAS)
                    .map(|i| u64_at(&piece.bytes, at + s.deltas + i * s.delta_bytes + offset))
                    .fold(0u64, u64::wrapping_add)
            };
            let in_heap = delta(s.in_heap);
            if in_heap == 0 || in_heap % PAGE_BYTES != 0 {
                continue;
            }
            let Some(controllers) = controllers.get(&(in_heap, delta(s.released))) else {
                continue;
            };
            let statistics = piece.base + at as u64;
            for &controller in controllers {
                let heaps = heaps(pieces, in_heap / PAGE_BYTES, h);
                found.extend(heaps.map(|heap| StatisticsAt { statistics, controller, heap }));
                if found.len() >= MOST {
                    return found;
                }
            }
        }
    }
    found
}

fn heaps<'p>(
    pieces: &'p [Piece],
    pages: u64,
    h: &'p super::layout::Heap,
) -> impl Iterator<Item = u64> + 'p {
    pieces.iter().flat_map(move |piece| {
        let words = piece.bytes.chunks_exact(8).enumerate();
        words.filter(move |(_, word)| u64_at(word, 0) == pages).filter_map(move |(index, _)| {
            let heap = (piece.base + 8 * index as u64).checked_sub(h.pages_in_use as u64)?;
            let word = |offset: usize| piece.word(heap.wrapping_add(offset as u64));
            let (list, length) = (word(h.arenas)?, word(h.arenas + 8)?);
            let capacity = word(h.arenas + 16)?;
            let spans = word(h.span_alloc_in_use)?;
            (list != 0
                && list % 8 == 0
                && (1..=capacity).contains(&length)
                && capacity < 1 << 20
                && spans > 0
                && spans < 1 << 40)
                .then_some(heap)
        })
    })
}

/// The profile's variables. `collections` proves the cycle.
pub fn find_profile(
    memory: &dyn Memory,
    object: &GoObject,
    layout: &Layout,
    collections: u64,
    ways: &[Way],
) -> Result<(ProfileAt, [Way; 3]), NotFound> {
    let buckets = find(
        ways,
        "the list of buckets",
        &mut |way| match way {
            Way::Symbols => object.symbol("runtime.mbuckets").into_iter().collect(),
            Way::Code => variables(object, &["runtime.mProf_FlushLocked"], 8),
            Way::Search => search_buckets(memory, object, layout),
        },
        &|address| match memory.word(address) {
            Ok(0) => true,
            Ok(head) => buckets::is_bucket(memory, head, layout),
            Err(_) => false,
        },
    )?;
    let cycle = find(
        ways,
        "the profile's cycle",
        &mut |way| match way {
            Way::Symbols => object.symbol("runtime.mProfCycle").into_iter().collect(),
            Way::Code => variables(object, &["runtime.mProf_NextCycle", "runtime.mProf_Flush"], 4),
            Way::Search => Vec::new(),
        },
        &|address| {
            memory.half_word(address).is_ok_and(|value| {
                let cycle = u64::from(value >> 1);
                cycle <= 2 * collections + 2 && cycle + 1 >= collections
            })
        },
    )?;
    const RATE_READERS: [&str; 3] =
        ["runtime/pprof.writeHeapInternal", "runtime.nextSample", "runtime.profilealloc"];
    let rate = find(
        ways,
        "the sampling rate",
        &mut |way| match way {
            Way::Symbols => object.symbol("runtime.MemProfileRate").into_iter().collect(),
            Way::Code => variables(object, &RATE_READERS, 8),
            Way::Search => Vec::new(),
        },
        &|address| memory.word(address).is_ok_and(|rate| rate < 1 << 40),
    )?;
    let at = ProfileAt { buckets: buckets.0, cycle: cycle.0, rate: rate.0 };
    Ok((at, [buckets.1, cycle.1, rate.1]))
}

/// The first way that gives exactly one place which proves itself.
fn find(
    ways: &[Way],
    what: &str,
    candidates: &mut dyn FnMut(Way) -> Vec<u64>,
    proves_itself: &dyn Fn(u64) -> bool,
) -> Result<(u64, Way), NotFound> {
    let mut tried = Vec::new();
    for way in ways {
        let candidates = candidates(*way);
        let proved: Vec<u64> =
            candidates.iter().copied().filter(|address| proves_itself(*address)).collect();
        match (&proved[..], candidates.len()) {
            ([address], _) => return Ok((*address, *way)),
            ([], 0) => tried.push(format!("{} not found {}", what, way.label())),
            ([], _) => tried.push(format!("{} {} is something else", what, way.label())),
            _ => tried.push(format!("{} {} could be several", what, way.label())),
        }
    }
    Err(NotFound(tried))
}

/// The only variable of that size that one of these functions refers to; the first that has one.
fn variables(object: &GoObject, functions: &[&str], bytes: usize) -> Vec<u64> {
    let of = |function: &&str| {
        let references = object.references_of(function)?;
        let sized =
            |reference: &&Reference| reference.bytes == bytes && object.is_data(reference.target);
        let targets: BTreeSet<u64> =
            references.iter().filter(sized).map(|reference| reference.target).collect();
        (!targets.is_empty()).then(|| targets.into_iter().collect::<Vec<_>>())
    };
    let found: Vec<Vec<u64>> = functions.iter().filter_map(of).collect();
    found.iter().find(|targets| targets.len() == 1).or(found.first()).cloned().unwrap_or_default()
}

fn search_buckets(memory: &dyn Memory, object: &GoObject, layout: &Layout) -> Vec<u64> {
    let Ok(pieces) = copy_data(memory, object) else { return Vec::new() };
    let heads = pieces
        .iter()
        .flat_map(|piece| buckets::find_heads(memory, &piece.bytes, piece.base, layout));
    let heads: Vec<(u64, u64)> = heads.collect();
    // Other variables may point into the list: its head is the one from which all are reached.
    let leads = |head: u64| {
        let mut list = Buckets::default();
        list.follow(memory, head, layout).ok()?;
        let reached: HashSet<u64> = list.all().iter().map(|bucket| bucket.address).collect();
        heads.iter().all(|(_, other)| reached.contains(other)).then_some(())
    };
    let mut places: Vec<u64> =
        heads.iter().filter(|(_, head)| leads(*head).is_some()).map(|(place, _)| *place).collect();
    places.sort_unstable();
    places
}

/// Whether cgo is linked: `runtime.mmap` then goes through libc, at the address that is returned.
pub fn find_cgo_mmap(memory: &dyn Memory, object: &GoObject) -> Option<u64> {
    let place =
        object.symbol("_cgo_mmap").or_else(
            || match variables(object, &["runtime.mmap"], 8)[..] {
                [place] => Some(place),
                _ => None,
            },
        )?;
    memory.word(place).ok()
}
