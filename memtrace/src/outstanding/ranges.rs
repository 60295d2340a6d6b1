//! What is mapped and not unmapped: an interval map over ordered range events.
//!
//! Invariants: intervals are disjoint; bytes covered are conserved by split, shrink, move and
//! protection change. Only successful calls arrive here, in the order in which the kernel
//! performed them. Memory mapped before the first event is unknown and stays so: unmapping it does
//! nothing, moving it maps nothing, growing it maps the growth only.

use std::collections::BTreeMap;

use crate::snapshot::{Range, RangeOwner};

/// `MREMAP_DONTUNMAP` of `<linux/mman.h>`: the old range stays mapped, empty.
const MREMAP_DONTUNMAP: u32 = 4;
/// `MAP_STACK` of `<asm-generic/mman.h>`, set by the C libraries for thread stacks.
const MAP_STACK: u32 = 0x20000;
const PROT_NONE: u32 = 0;

/// One successful call of the mmap family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeEvent {
    /// Any monotonic clock; ages are counted on the same one.
    pub time_ns: u64,
    pub op: RangeOp,
    /// Who called.
    pub stack: u64,
    /// The call was made inside an allocator call (malloc's own mmap or brk).
    pub allocator_internal: bool,
}

/// Lengths as the caller gave them: the map rounds to pages as the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeOp {
    /// `address` is the call's result.
    Map {
        address: u64,
        length: u64,
        prot: u32,
        flags: u32,
        is_file: bool,
    },
    Unmap {
        address: u64,
        length: u64,
    },
    /// `new_address` is the call's result.
    Remap {
        old_address: u64,
        old_length: u64,
        new_address: u64,
        new_length: u64,
        flags: u32,
    },
    /// The program break after `brk` or `sbrk`; the one before, where the caller told it.
    Brk {
        old_break: Option<u64>,
        new_break: u64,
    },
    Protect {
        address: u64,
        length: u64,
        prot: u32,
    },
}

/// Events that could not be applied as they stand. All zero in a run without losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeAnomalies {
    /// Address and length leave the address space: the event was not applied.
    pub malformed: u64,
    /// More than [`MAX_INTERVALS`] intervals: the mapping was not recorded.
    pub over_capacity: u64,
    /// A break moved whose position before was not known: its growth until then is not recorded.
    pub unknown_break: u64,
}

impl RangeAnomalies {
    /// Of each: its stable name as it stands in JSON, its count, and a sentence that a user can
    /// act on.
    pub fn counters(&self) -> [(&'static str, u64, &'static str); 3] {
        [
            (
                "range_malformed",
                self.malformed,
                "a mapping call named addresses that cannot exist: it was left out",
            ),
            (
                "range_over_capacity",
                self.over_capacity,
                "more than 1,048,576 mappings at once: those beyond are missing",
            ),
            (
                "range_unknown_break",
                self.unknown_break,
                "the program break moved from an unknown place: that one growth is missing",
            ),
        ]
    }
}

/// The kernel's own default limit is 65,530 mappings per process; splitting here follows its.
pub const MAX_INTERVALS: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    end: u64,
    stack: u64,
    since_ns: u64,
    kind: Kind,
    reserved: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Anonymous,
    ThreadStack,
    AllocatorInternal,
    File,
}

/// The intervals mapped since the first event.
#[derive(Clone, Debug)]
pub struct RangeMap {
    /// By start; disjoint; neighbours that differ in nothing are one.
    intervals: BTreeMap<u64, Interval>,
    current_break: Option<u64>,
    page_size_bytes: u64,
    anomalies: RangeAnomalies,
}

impl RangeMap {
    /// `page_size_bytes` must be a power of two; 4096 is taken where it is not.
    pub fn new(page_size_bytes: u64) -> Self {
        let page_size_bytes =
            if page_size_bytes.is_power_of_two() { page_size_bytes } else { 4096 };
        Self {
            intervals: BTreeMap::new(),
            current_break: None,
            page_size_bytes,
            anomalies: RangeAnomalies::default(),
        }
    }

    /// Tells where the program break is before the first event, e.g. the end of `[heap]`.
    pub fn set_break(&mut self, at: u64) {
        self.current_break = Some(at);
    }

    pub fn anomalies(&self) -> RangeAnomalies {
        self.anomalies
    }

    /// Bytes covered, whoever owns them, reserved ones included.
    pub fn covered_bytes(&self) -> u64 {
        self.intervals.iter().map(|(start, interval)| interval.end - start).sum()
    }

    /// Applies one event. Events must come in the order of the calls.
    pub fn apply(&mut self, event: &RangeEvent) {
        let applied = match event.op {
            RangeOp::Map { address, length, prot, flags, is_file } => {
                let kind = match () {
                    () if is_file => Kind::File,
                    () if event.allocator_internal => Kind::AllocatorInternal,
                    () if flags & MAP_STACK != 0 => Kind::ThreadStack,
                    () => Kind::Anonymous,
                };
                self.map(event, address, length, kind, prot == PROT_NONE)
            }
            RangeOp::Unmap { address, length } => self.unmap(address, length),
            RangeOp::Remap { old_address, old_length, new_address, new_length, flags } => {
                self.remap(event, (old_address, old_length), (new_address, new_length), flags)
            }
            RangeOp::Brk { old_break, new_break } => self.brk(event, old_break, new_break),
            RangeOp::Protect { address, length, prot } => {
                self.protect(address, length, prot == PROT_NONE)
            }
        };
        if applied.is_none() {
            self.anomalies.malformed += 1;
        }
    }

    /// The intervals as rows, by address. `owner_of` tells by the stack who mapped it, where that
    /// is neither the program nor one of its libraries.
    pub fn ranges(&self, now_ns: u64, owner_of: &dyn Fn(u64) -> Option<RangeOwner>) -> Vec<Range> {
        self.intervals
            .iter()
            .map(|(&start, interval)| Range {
                start,
                length_bytes: interval.end - start,
                stack: interval.stack,
                age_ns: now_ns.saturating_sub(interval.since_ns),
                owner: match interval.kind {
                    Kind::File => RangeOwner::File,
                    Kind::AllocatorInternal => RangeOwner::AllocatorInternal,
                    Kind::ThreadStack => {
                        owner_of(interval.stack).unwrap_or(RangeOwner::ThreadStack)
                    }
                    Kind::Anonymous => owner_of(interval.stack).unwrap_or(RangeOwner::Native),
                },
                reserved: interval.reserved,
                image: 0,
            })
            .collect()
    }

    /// The pages that `length` bytes at `address` touch; `None` outside the address space.
    fn pages(&self, address: u64, length: u64) -> Option<(u64, u64)> {
        let mask = self.page_size_bytes - 1;
        let end = address.checked_add(length)?.checked_add(mask)? & !mask;
        Some((address & !mask, end))
    }

    fn map(
        &mut self,
        event: &RangeEvent,
        address: u64,
        length: u64,
        kind: Kind,
        reserved: bool,
    ) -> Option<()> {
        let (start, end) = self.pages(address, length)?;
        self.cut(start, end);
        let (stack, since_ns) = (event.stack, event.time_ns);
        self.insert(start, Interval { end, stack, since_ns, kind, reserved });
        Some(())
    }

    fn unmap(&mut self, address: u64, length: u64) -> Option<()> {
        let (start, end) = self.pages(address, length)?;
        self.cut(start, end);
        Some(())
    }

    fn remap(
        &mut self,
        event: &RangeEvent,
        old: (u64, u64),
        new: (u64, u64),
        flags: u32,
    ) -> Option<()> {
        let (old_start, old_end) = self.pages(old.0, old.1)?;
        let (new_start, new_end) = self.pages(new.0, new.1)?;
        let (stack, since_ns) = (event.stack, event.time_ns);

        if old.1 == 0 || flags & MREMAP_DONTUNMAP != 0 {
            // A second mapping of the same pages, or an empty old one left behind.
            let model = self.at(old_start);
            let kind = model.map_or(fresh_kind(event), |interval| interval.kind);
            let reserved = model.is_some_and(|interval| interval.reserved);
            self.cut(new_start, new_end);
            self.insert(new_start, Interval { end: new_end, stack, since_ns, kind, reserved });
            return Some(());
        }

        let pieces = self.cut(old_start, old_end);
        let last = pieces.last().map(|(_, interval)| *interval);
        self.cut(new_start, new_end);
        let new_length = new_end - new_start;
        for (start, interval) in pieces {
            // What lies beyond the new length was unmapped by the shrink.
            let from = (start - old_start).min(new_length);
            let to = (interval.end - old_start).min(new_length);
            self.insert(new_start + from, Interval { end: new_start + to, ..interval });
        }
        let grown_from = new_start + (old_end - old_start).min(new_length);
        let kind = last.map_or(fresh_kind(event), |interval| interval.kind);
        let reserved = last.is_some_and(|interval| interval.reserved);
        self.insert(grown_from, Interval { end: new_end, stack, since_ns, kind, reserved });
        Some(())
    }

    fn brk(&mut self, event: &RangeEvent, told: Option<u64>, new_break: u64) -> Option<()> {
        let (_, new_end) = self.pages(new_break, 0)?;
        let Some(old_break) = told.or(self.current_break) else {
            self.anomalies.unknown_break += 1;
            self.current_break = Some(new_break);
            return Some(());
        };
        let (_, old_end) = self.pages(old_break, 0)?;
        self.current_break = Some(new_break);
        if new_end < old_end {
            self.cut(new_end, old_end);
        } else if new_end > old_end {
            self.cut(old_end, new_end);
            let kind = fresh_kind(event);
            let (stack, since_ns) = (event.stack, event.time_ns);
            let grown = Interval { end: new_end, stack, since_ns, kind, reserved: false };
            self.insert(old_end, grown);
        }
        Some(())
    }

    fn protect(&mut self, address: u64, length: u64, reserved: bool) -> Option<()> {
        let (start, end) = self.pages(address, length)?;
        for (at, interval) in self.cut(start, end) {
            self.insert(at, Interval { reserved, ..interval });
        }
        Some(())
    }

    fn at(&self, address: u64) -> Option<Interval> {
        let (_, interval) = self.intervals.range(..=address).next_back()?;
        (address < interval.end).then_some(*interval)
    }

    /// Takes everything in `[start, end)` out, splitting at both ends, and returns it in order.
    fn cut(&mut self, start: u64, end: u64) -> Vec<(u64, Interval)> {
        if start >= end {
            return Vec::new();
        }
        let mut taken = Vec::new();
        // Starts left of the cut and reaches into it.
        if let Some((&at, &interval)) = self.intervals.range(..start).next_back()
            && interval.end > start
        {
            self.intervals.insert(at, Interval { end: start, ..interval });
            self.intervals.insert(start, interval);
        }
        while let Some((&at, &interval)) = self.intervals.range(start..end).next() {
            self.intervals.remove(&at);
            if interval.end > end {
                self.intervals.insert(end, interval);
                taken.push((at, Interval { end, ..interval }));
            } else {
                taken.push((at, interval));
            }
        }
        taken
    }

    /// `[start, interval.end)` must be free. Joins neighbours that differ in nothing.
    fn insert(&mut self, start: u64, interval: Interval) {
        if start >= interval.end {
            return;
        }
        if self.intervals.len() >= MAX_INTERVALS {
            self.anomalies.over_capacity += 1;
            return;
        }
        let (mut start, mut interval) = (start, interval);
        let joins = |a: &Interval, b: &Interval| Interval { end: b.end, ..*a } == *b;
        if let Some((&left, before)) = self.intervals.range(..start).next_back()
            && before.end == start
            && joins(before, &interval)
        {
            self.intervals.remove(&left);
            start = left;
        }
        if let Some(after) = self.intervals.get(&interval.end).copied()
            && joins(&interval, &after)
        {
            self.intervals.remove(&interval.end);
            interval.end = after.end;
        }
        self.intervals.insert(start, interval);
    }
}

fn fresh_kind(event: &RangeEvent) -> Kind {
    if event.allocator_internal { Kind::AllocatorInternal } else { Kind::Anonymous }
}

#[cfg(test)]
#[path = "ranges_tests.rs"]
mod tests;
