//! The unwind row of a program counter: from the cache, or by two binary searches.
//!
//! The searches run in `bpf_loop` where the kernel has it, as the verifier then follows one step
//! instead of all of them; otherwise in plain loops with a fixed number of steps.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use memtrace_common::rows::{CACHED_ROWS, ProcessRow, TRUST_ALL, TRUST_WHAT_STAYS, WalkRow};
use memtrace_common::unwind::{
    CfaKind, MAX_MAPPINGS, OWNER_UNKNOWN, UnwindMapping, UnwindRow, WalkEnd,
};

use crate::maps::{CACHE, ROWS};

/// How the steps of a search follow one another.
pub trait Steps {
    /// Calls `halve` up to `most` times, or until the search has ended.
    fn repeat<T: Elements>(most: u32, search: &mut Search<T>);
}

/// By `bpf_loop`, Linux 5.17.
pub struct Looping;

impl Steps for Looping {
    #[inline(always)]
    fn repeat<T: Elements>(most: u32, search: &mut Search<T>) {
        // SAFETY: `halve` has the signature that the helper calls; `search` outlives it.
        unsafe { bpf_loop(most, halve::<T> as *mut c_void, (&raw mut *search).cast(), 0) };
    }
}

/// By a loop that the verifier follows to its end.
pub struct Bounded;

impl Steps for Bounded {
    #[inline(always)]
    fn repeat<T: Elements>(most: u32, search: &mut Search<T>) {
        // Verifiers before Linux 5.16 forget what they knew of a spilled register of 32 bits: the
        // loop would have no end.
        for _ in 0..u64::from(most) {
            if !search.halve() {
                break;
            }
        }
    }
}

/// What is searched: sorted, and read one at a time.
pub trait Elements {
    fn at(&self, index: u32) -> Option<u64>;
}

/// A search for the last element at or below `wanted`: it is the one before `low`, if there is one.
pub struct Search<T> {
    elements: T,
    low: u32,
    high: u32,
    wanted: u64,
}

impl<T: Elements> Search<T> {
    /// Whether there is more to be done.
    #[inline(always)]
    fn halve(&mut self) -> bool {
        if self.low >= self.high {
            return false;
        }
        let middle = self.low + (self.high - self.low) / 2;
        let Some(found) = self.elements.at(middle) else { return false };
        if found <= self.wanted {
            self.low = middle + 1;
        } else {
            self.high = middle;
        }
        true
    }
}

unsafe extern "C" fn halve<T: Elements>(_: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` passes what `Looping::repeat` gave it.
    let search = unsafe { &mut *context.cast::<Search<T>>() };
    i64::from(!search.halve())
}

/// The index of the last of `count` elements at or below `wanted`.
#[inline(always)]
fn last_at_or_below<S: Steps, T: Elements>(
    elements: T,
    count: u32,
    most_steps: u32,
    wanted: u64,
) -> Option<u32> {
    let mut search = Search { elements, low: 0, high: count, wanted };
    S::repeat(most_steps, &mut search);
    search.low.checked_sub(1)
}

/// A row and whose it is, as the cache holds it: see [`memtrace_common::rows::CachedRow`].
#[derive(Clone, Copy)]
pub struct Found {
    data: u64,
    /// [`WalkEnd`] where there is no row; [`FOUND`] where there is one. Not a `Result`: of that the
    /// compiler keeps halves that hold nothing, and verifiers before Linux 6.3 let nobody read them.
    end: u32,
}

const FOUND: u32 = u32::MAX;

const OWNER_SHIFT: u32 = 32;
const GENERATION_SHIFT: u32 = 40;

impl Found {
    #[inline(always)]
    pub fn row(self) -> UnwindRow {
        UnwindRow::unpack(self.data << 32)
    }

    #[inline(always)]
    pub fn owner(self) -> u8 {
        (self.data >> OWNER_SHIFT) as u8
    }

    /// Why there is no row.
    #[inline(always)]
    pub fn end(self) -> Option<u32> {
        if self.end == FOUND { None } else { Some(self.end) }
    }

    #[inline(always)]
    fn nothing(end: WalkEnd) -> Self {
        Self { data: (OWNER_UNKNOWN as u64) << OWNER_SHIFT | NO_ROW >> 32, end: end as u32 }
    }

    #[inline(always)]
    fn of(data: u64) -> Self {
        Self { data, end: FOUND }
    }
}

/// A mapping without a row at an address.
const NO_ROW: u64 = UnwindRow { pc: 0, kind: CfaKind::None, offset_by_8: 0, rbp: 0 }.pack();

/// The unwind row of a pc of a walk; one of [`CfaKind::None`] where its mapping has none there.
#[inline(always)]
pub fn find_row<S: Steps>(walk: &WalkRow, process: *const ProcessRow, pc: u64) -> Found {
    let slot = (pc.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 % CACHED_ROWS as u32;
    let Some(cached) = CACHE.get_ptr_mut(slot) else {
        return Found::nothing(WalkEnd::NoUnwindRow);
    };
    let generation = u64::from(walk.generation) << GENERATION_SHIFT;
    // What the cache holds does not say whether its mapping may go.
    if walk.distrust == TRUST_ALL {
        // SAFETY: a live map value; other CPUs write it, which the key reveals.
        let (key, data) = unsafe {
            (
                core::ptr::read_volatile(&raw const (*cached).key),
                core::ptr::read_volatile(&raw const (*cached).data),
            )
        };
        if key == pc ^ scrambled(data) && (data ^ generation) >> GENERATION_SHIFT == 0 {
            return Found::of(data);
        }
    }
    let Some(mapping) = find_mapping::<S>(process, pc) else {
        return Found::nothing(WalkEnd::UnknownMapping);
    };
    if walk.distrust > TRUST_WHAT_STAYS || (walk.distrust != TRUST_ALL && mapping.may_go != 0) {
        return Found::nothing(WalkEnd::MappingsChanged);
    }
    let row = find_in_table::<S>(mapping, pc).unwrap_or(NO_ROW);
    let data = generation | u64::from(mapping.owner) << OWNER_SHIFT | row >> 32;
    // SAFETY: as above.
    unsafe {
        core::ptr::write_volatile(&raw mut (*cached).key, pc ^ scrambled(data));
        core::ptr::write_volatile(&raw mut (*cached).data, data);
    }
    Found::of(data)
}

/// What a range has in common with the mappings of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    None,
    OfWhatMayGo,
    OfWhatStays,
}

/// Whether mapped code lies in `start..end`.
#[inline(always)]
pub fn overlapped<S: Steps>(process: *const ProcessRow, start: u64, end: u64) -> Overlap {
    // SAFETY: the process row is live for as long as the program.
    let count = unsafe { (*process).count };
    let last = end.wrapping_sub(1);
    let Some(at) =
        last_at_or_below::<S, _>(Mappings(process), count, MAX_MAPPINGS.ilog2() + 1, last)
    else {
        return Overlap::None;
    };
    // SAFETY: as above.
    let mapping = unsafe { &*Mappings(process).get(at) };
    if mapping.end <= start {
        return Overlap::None;
    }
    // SAFETY: as above; below the first there is itself.
    let below = unsafe { &*Mappings(process).get(at.saturating_sub(1)) };
    if mapping.may_go != 0 && (at == 0 || below.end <= start) {
        Overlap::OfWhatMayGo
    } else {
        // Of several some may be to stay.
        Overlap::OfWhatStays
    }
}

#[inline(always)]
fn scrambled(data: u64) -> u64 {
    data.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// The starts of a process's mappings.
struct Mappings(*const ProcessRow);

impl Mappings {
    #[inline(always)]
    fn get(&self, at: u32) -> *const UnwindMapping {
        // SAFETY: the process row is live for as long as the program; masked below the length.
        unsafe {
            let mappings = (&raw const (*self.0).mappings).cast::<UnwindMapping>();
            mappings.add(at as usize & (MAX_MAPPINGS - 1))
        }
    }
}

impl Elements for Mappings {
    #[inline(always)]
    fn at(&self, index: u32) -> Option<u64> {
        // SAFETY: read only; replaced rows are noticed at the end of the walk.
        Some(unsafe { (*self.get(index)).start })
    }
}

/// The last mapping that starts at or below `pc`, if it holds it.
#[inline(always)]
fn find_mapping<S: Steps>(process: *const ProcessRow, pc: u64) -> Option<&'static UnwindMapping> {
    // SAFETY: the process row is live for as long as the program.
    let count = unsafe { (*process).count };
    let at = last_at_or_below::<S, _>(Mappings(process), count, MAX_MAPPINGS.ilog2() + 1, pc)?;
    // SAFETY: as above.
    let mapping = unsafe { &*Mappings(process).get(at) };
    (pc >= mapping.start && pc < mapping.end).then_some(mapping)
}

/// The row-pcs of one table.
struct Table {
    first: u32,
}

impl Elements for Table {
    #[inline(always)]
    fn at(&self, index: u32) -> Option<u64> {
        Some(u64::from(*ROWS.get(self.first.wrapping_add(index))? as u32))
    }
}

/// A table of this many steps has at most 16 million rows: LLVM's has one million.
const TABLE_STEPS: u32 = 24;

/// The last row of the mapping's table at or below `pc`, packed.
#[inline(always)]
fn find_in_table<S: Steps>(mapping: &UnwindMapping, pc: u64) -> Option<u64> {
    let wanted = pc.checked_sub(mapping.bias)?;
    if wanted > u64::from(u32::MAX) || mapping.row_count >> TABLE_STEPS != 0 {
        return None;
    }
    let first = mapping.first_row;
    let at = last_at_or_below::<S, _>(Table { first }, mapping.row_count, TABLE_STEPS, wanted)?;
    ROWS.get(first.wrapping_add(at)).copied()
}
