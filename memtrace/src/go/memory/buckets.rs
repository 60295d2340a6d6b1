//! The heap profile's buckets, read from the runtime's list while the process runs.
//!
//! A bucket's header and stack never change and are never freed, and new buckets come at the head
//! of the list: what was read once is kept, and a later reading walks only what is new. The counts
//! behind the header do change.
//!
//! Hostile input: the list is bounded, a cycle is detected, every header must carry the hash that
//! the runtime computes over its stack, no two buckets may overlap, and every count must be
//! possible. Anything else is an error, never a figure. Pure over [`Memory`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::access::{Memory, Unreadable};
use super::layout::{FUTURE_CYCLES, Layout};
use crate::stacks::elf::u64_at;

/// `memProfile`
const MEMORY_PROFILE: u64 = 1;
/// Deepest stack that any release keeps, and a little.
const MAX_STACK: u64 = 1030;
/// Most buckets; services have some thousands.
const MAX_BUCKETS: usize = 1 << 18;
/// Most program counters of all buckets together: 256 MiB.
const MAX_COUNTERS: usize = 32 << 20;
/// Larger than any object: the address space.
const MAX_BYTES: u64 = 1 << 47;

/// Why there is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("the list of buckets leads to {address:#x}, which is no bucket: {why}")]
    NoBucket { address: u64, why: &'static str },
    #[error("the list of buckets runs in a circle at {address:#x}")]
    Cycle { address: u64 },
    #[error("more than {limit} {what} in the list")]
    TooMany { what: &'static str, limit: usize },
    #[error("the buckets at {first:#x} and {second:#x} overlap: the layout is another one")]
    Overlap { first: u64, second: u64 },
    #[error("a record at {address:#x} is impossible: {why}")]
    Record { address: u64, why: &'static str },
    #[error("the list of buckets lost its older part")]
    Forgotten,
}

/// One call stack that allocates objects of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub address: u64,
    pub object_bytes: u64,
    /// Leaf first; return addresses, one per logical frame.
    pub stack: Arc<[u64]>,
}

/// Objects and bytes, of one cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub allocs: u64,
    pub frees: u64,
    pub alloc_bytes: u64,
    pub free_bytes: u64,
}

impl Counts {
    pub fn plus(self, other: Self) -> Self {
        Self {
            allocs: self.allocs.wrapping_add(other.allocs),
            frees: self.frees.wrapping_add(other.frees),
            alloc_bytes: self.alloc_bytes.wrapping_add(other.alloc_bytes),
            free_bytes: self.free_bytes.wrapping_add(other.free_bytes),
        }
    }

    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

/// What stands behind a bucket's stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub active: Counts,
    pub future: [Counts; FUTURE_CYCLES],
}

/// The buckets read so far, oldest first.
#[derive(Debug, Default)]
pub struct Buckets {
    buckets: Vec<Bucket>,
    known: HashSet<u64>,
    counters: usize,
}

/// A header and where the list goes on.
struct Header {
    next: u64,
    object_bytes: u64,
    stack: Vec<u64>,
}

impl Buckets {
    pub fn all(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Walks from `head` to what is known already.
    pub fn follow(
        &mut self,
        memory: &dyn Memory,
        head: u64,
        layout: &Layout,
    ) -> Result<(), BucketError> {
        let mut new: Vec<Bucket> = Vec::new();
        let mut seen = HashSet::new();
        let mut counters = self.counters;
        let mut window = Window::of(64 << 10);
        let mut at = head;
        while at != 0 && !self.known.contains(&at) {
            if !seen.insert(at) {
                return Err(BucketError::Cycle { address: at });
            }
            if self.buckets.len() + new.len() >= MAX_BUCKETS {
                return Err(BucketError::TooMany { what: "buckets", limit: MAX_BUCKETS });
            }
            let header = read_header(memory, &mut window, at, layout)?;
            counters += header.stack.len();
            if counters > MAX_COUNTERS {
                return Err(BucketError::TooMany { what: "stack entries", limit: MAX_COUNTERS });
            }
            new.push(Bucket {
                address: at,
                object_bytes: header.object_bytes,
                stack: header.stack.into(),
            });
            at = header.next;
        }
        // The head of the last reading is on every later list.
        match self.buckets.last() {
            Some(newest) if at != newest.address => return Err(BucketError::Forgotten),
            None if at != 0 => return Err(BucketError::Cycle { address: at }),
            _ => {}
        }
        if !new.is_empty() {
            check_places(self.buckets.iter().chain(&new), layout)?;
        }
        new.reverse();
        self.known.extend(seen);
        self.counters = counters;
        self.buckets.extend(new);
        Ok(())
    }

    /// The records of all buckets, as they are now, in the same order.
    pub fn records(
        &self,
        memory: &dyn Memory,
        layout: &Layout,
    ) -> Result<Vec<Record>, BucketError> {
        let record_bytes = layout.record.bytes;
        let mut bytes = vec![0; self.buckets.len() * record_bytes];
        let mut parts: Vec<(u64, &mut [u8])> = self
            .buckets
            .iter()
            .map(|bucket| record_at(bucket, layout))
            .zip(bytes.chunks_exact_mut(record_bytes))
            .collect();
        memory.read_many(&mut parts)?;
        let records = self.buckets.iter().zip(bytes.chunks_exact(record_bytes));
        records.map(|(bucket, bytes)| record(bucket, bytes, layout)).collect()
    }

    /// How many buckets stand directly behind the one allocated before them: with the right size of
    /// a record that is most of them.
    pub fn adjacent(&self, layout: &Layout) -> usize {
        let follows =
            |pair: &[Bucket]| pair[0].address + extent(&pair[0], layout) == pair[1].address;
        self.buckets.windows(2).filter(|pair| follows(pair)).count()
    }
}

fn record_at(bucket: &Bucket, layout: &Layout) -> u64 {
    let offset = layout.bucket.bytes + 8 * bucket.stack.len();
    bucket.address.wrapping_add(offset as u64)
}

fn extent(bucket: &Bucket, layout: &Layout) -> u64 {
    (layout.bucket.bytes + 8 * bucket.stack.len() + layout.record.bytes) as u64
}

fn check_places<'b>(
    buckets: impl Iterator<Item = &'b Bucket>,
    layout: &Layout,
) -> Result<(), BucketError> {
    let mut places: Vec<(u64, u64)> =
        buckets.map(|bucket| (bucket.address, extent(bucket, layout))).collect();
    places.sort_unstable();
    for pair in places.windows(2) {
        let ((first, bytes), (second, _)) = (pair[0], pair[1]);
        if second - first < bytes {
            return Err(BucketError::Overlap { first, second });
        }
    }
    Ok(())
}

/// Whether a bucket of the heap profile stands there.
pub fn is_bucket(memory: &dyn Memory, address: u64, layout: &Layout) -> bool {
    read_header(memory, &mut Window::of(1), address, layout).is_ok()
}

/// A copy of the memory around the bucket read last: most stand side by side, and to copy many costs
/// little more than to copy one. Headers and stacks that a list leads to never change, so a copy
/// that was made after its head was read stays right.
struct Window {
    /// A power of two: the boundaries of what is copied along.
    alignment: u64,
    base: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// With an alignment of 1 only what is asked for is copied.
    fn of(alignment: u64) -> Self {
        Self { alignment, base: 0, bytes: Vec::new() }
    }

    /// As many of these bytes as are here already.
    fn at(&self, address: u64) -> &[u8] {
        address
            .checked_sub(self.base)
            .and_then(|at| self.bytes.get(usize::try_from(at).ok()?..))
            .unwrap_or_default()
    }

    /// These bytes, copied with what stands around them where that can be read.
    fn read(
        &mut self,
        memory: &dyn Memory,
        address: u64,
        length: usize,
    ) -> Result<&[u8], Unreadable> {
        if self.at(address).len() < length {
            let base = address & !(self.alignment - 1);
            let needed = (address - base).saturating_add(length as u64);
            self.fill(memory, base, needed.max(self.alignment))
                .or_else(|_| self.fill(memory, address, length as u64))?;
        }
        Ok(&self.at(address)[..length])
    }

    fn fill(&mut self, memory: &dyn Memory, base: u64, length: u64) -> Result<(), Unreadable> {
        self.base = base;
        self.bytes.clear();
        self.bytes.resize(length as usize, 0);
        memory.read(base, &mut self.bytes).inspect_err(|_| self.bytes.clear())
    }
}

fn read_header(
    memory: &dyn Memory,
    window: &mut Window,
    at: u64,
    layout: &Layout,
) -> Result<Header, BucketError> {
    let b = &layout.bucket;
    let no_bucket = |why| BucketError::NoBucket { address: at, why };
    if !at.is_multiple_of(8) || at >= MAX_BYTES {
        return Err(no_bucket("not an address of an object"));
    }
    let bytes = window.read(memory, at, b.bytes)?;
    let (kind, depth) = (u64_at(bytes, b.typ), u64_at(bytes, b.nstk));
    if kind != MEMORY_PROFILE {
        return Err(no_bucket("not of the heap profile"));
    }
    if depth == 0 || depth > MAX_STACK {
        return Err(no_bucket("the depth of its stack is impossible"));
    }
    let object_bytes = u64_at(bytes, b.size);
    if object_bytes >= MAX_BYTES {
        return Err(no_bucket("its objects are larger than the address space"));
    }
    let (hash, next) = (u64_at(bytes, b.hash), u64_at(bytes, b.allnext));
    let end = b.bytes + 8 * depth as usize;
    let bytes = window.read(memory, at, end)?;
    let stack: Vec<u64> = bytes[b.bytes..end].chunks_exact(8).map(|word| u64_at(word, 0)).collect();
    if stack_hash(&stack, object_bytes) != hash {
        return Err(no_bucket("its hash is not that of its stack"));
    }
    Ok(Header { next, object_bytes, stack })
}

/// The hash of `runtime.stkbucket`.
pub fn stack_hash(stack: &[u64], object_bytes: u64) -> u64 {
    let mix = |hash: u64, value: u64| {
        let hash = hash.wrapping_add(value);
        let hash = hash.wrapping_add(hash << 10);
        hash ^ (hash >> 6)
    };
    let hash = stack.iter().fold(0, |hash, pc| mix(hash, *pc));
    let hash = mix(hash, object_bytes);
    let hash = hash.wrapping_add(hash << 3);
    hash ^ (hash >> 11)
}

fn record(bucket: &Bucket, bytes: &[u8], layout: &Layout) -> Result<Record, BucketError> {
    let r = &layout.record;
    let address = bucket.address;
    let impossible = |why| BucketError::Record { address, why };
    let counts = |at: usize| {
        let (allocs, frees) =
            (u64_at(bytes, at + r.cycle_allocs), u64_at(bytes, at + r.cycle_frees));
        let of = |count: u64, stored: Option<usize>| {
            let derived = count
                .checked_mul(bucket.object_bytes)
                .filter(|bytes| *bytes <= u64::MAX / 16)
                .ok_or(impossible("more bytes than 60 bits hold"))?;
            match stored.map(|offset| u64_at(bytes, at + offset)) {
                Some(stored) if stored != derived => {
                    Err(impossible("its bytes are not its objects times their size"))
                }
                _ => Ok(derived),
            }
        };
        Ok::<_, BucketError>(Counts {
            allocs,
            frees,
            alloc_bytes: of(allocs, r.cycle_alloc_bytes)?,
            free_bytes: of(frees, r.cycle_free_bytes)?,
        })
    };
    let mut record = Record { active: counts(r.active)?, ..Record::default() };
    for (index, cycle) in record.future.iter_mut().enumerate() {
        *cycle = counts(r.future + index * r.cycle_bytes)?;
    }
    Ok(record)
}

/// Where buckets could start: every word in `bytes` that points to one.
pub fn find_heads(
    memory: &dyn Memory,
    bytes: &[u8],
    base: u64,
    layout: &Layout,
) -> HashMap<u64, u64> {
    const MOST: usize = 16;
    let mut heads = HashMap::new();
    for (index, word) in bytes.chunks_exact(8).enumerate() {
        let pointer = u64_at(word, 0);
        if pointer.is_multiple_of(8)
            && (1 << 16..MAX_BYTES).contains(&pointer)
            && is_bucket(memory, pointer, layout)
        {
            heads.insert(base + 8 * index as u64, pointer);
            if heads.len() >= MOST {
                break;
            }
        }
    }
    heads
}

#[cfg(test)]
#[path = "buckets_tests.rs"]
pub(super) mod tests;
