//! The tracee's memory as the readers of glibc's books see it: words by address, each checked
//! against the mappings, page by page through a small cache, within a budget of reads and time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Instant;

use super::Refusal;
use crate::tracee::heap::memory::{MemoryReader, PAGE};
use crate::tracee::heap::regions::Regions;

const PAGE_BYTES: usize = PAGE as usize;
/// Most pages kept: 32 MiB.
const MAX_PAGES: usize = 8192;
/// Pages read at a time where all of a stretch is wanted: 256 KiB.
const AHEAD: u64 = 64;
/// How often the clock is looked at, in steps.
const STEPS_PER_LOOK: u64 = 256;

/// What a census may spend.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Chunks looked at, over all attempts.
    pub steps: u64,
    pub until: Instant,
}

pub struct View<'a, M> {
    pub memory: &'a M,
    pub regions: &'a Regions,
    pages: RefCell<Pages>,
    budget: Budget,
    steps: Cell<u64>,
    reads: Cell<u64>,
    read_bytes: Cell<u64>,
    ahead: Cell<Ahead>,
    loads: Cell<u64>,
}

/// Whether the resident pages around a wanted one are read with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    Never,
    Always,
    /// Once so many pages were wanted that the rest is likely to be, too.
    WhenMany,
}

/// Pages wanted of a small arena before all of it is read.
const MANY: u64 = 128;

#[derive(Default)]
struct Pages {
    bytes: Vec<[u8; PAGE_BYTES]>,
    index: HashMap<u64, usize>,
    last: Option<(u64, usize)>,
}

impl<'a, M: MemoryReader> View<'a, M> {
    pub fn of(memory: &'a M, regions: &'a Regions, budget: Budget) -> Self {
        Self {
            memory,
            regions,
            pages: RefCell::default(),
            budget,
            steps: Cell::new(0),
            reads: Cell::new(0),
            read_bytes: Cell::new(0),
            ahead: Cell::new(Ahead::Never),
            loads: Cell::new(0),
        }
    }

    /// Lets go of everything read so far: what comes next is read anew.
    pub fn forget(&self) {
        let mut pages = self.pages.borrow_mut();
        pages.bytes.clear();
        pages.index.clear();
        pages.last = None;
    }

    pub fn read_ahead(&self, ahead: Ahead) {
        self.ahead.set(ahead);
        self.loads.set(0);
    }

    /// Counts one chunk looked at.
    pub fn step(&self) -> Result<(), Refusal> {
        let steps = self.steps.get() + 1;
        self.steps.set(steps);
        if steps > self.budget.steps {
            return Err(Refusal::TooMany { limit: self.budget.steps });
        }
        if steps.is_multiple_of(STEPS_PER_LOOK) { self.check_time() } else { Ok(()) }
    }

    pub fn check_time(&self) -> Result<(), Refusal> {
        if Instant::now() > self.budget.until { Err(Refusal::TooLong) } else { Ok(()) }
    }

    /// `N` words at a multiple of eight inside one mapping.
    pub fn words<const N: usize>(&self, address: u64) -> Result<[u64; N], Refusal> {
        let length = (N * 8) as u64;
        if !address.is_multiple_of(8) || !self.regions.hold(address, length) {
            return Err(Refusal::Outside { address });
        }
        let mut words = [0; N];
        for (at, word) in words.iter_mut().enumerate() {
            *word = self.cached(address + at as u64 * 8)?;
        }
        Ok(words)
    }

    pub fn word(&self, address: u64) -> Result<u64, Refusal> {
        self.words::<1>(address).map(|[word]| word)
    }

    /// Reads past the cache, in one piece.
    pub fn fresh(&self, address: u64, buffer: &mut [u8]) -> Result<(), Refusal> {
        if !self.regions.hold(address, buffer.len() as u64) {
            return Err(Refusal::Outside { address });
        }
        self.read(address, buffer)
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Refusal> {
        self.reads.set(self.reads.get() + 1);
        self.read_bytes.set(self.read_bytes.get() + buffer.len() as u64);
        self.memory.read(address, buffer).map_err(Refusal::Read)
    }

    /// Pieces and bytes read so far.
    pub fn counted(&self) -> (u64, u64) {
        (self.reads.get(), self.read_bytes.get())
    }

    /// A word that does not cross a page.
    fn cached(&self, address: u64) -> Result<u64, Refusal> {
        let (page, offset) = (address / PAGE, (address % PAGE) as usize);
        let mut pages = self.pages.borrow_mut();
        let index = match pages.last {
            Some((last, index)) if last == page => index,
            _ => self.load(&mut pages, page)?,
        };
        pages.last = Some((page, index));
        let bytes = pages.bytes.get(index).and_then(|bytes| bytes.get(offset..offset + 8));
        let word = bytes.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        word.map(u64::from_le_bytes).ok_or(Refusal::Outside { address })
    }

    fn load(&self, pages: &mut Pages, page: u64) -> Result<usize, Refusal> {
        if let Some(index) = pages.index.get(&page) {
            return Ok(*index);
        }
        if pages.bytes.len() >= MAX_PAGES {
            pages.bytes.clear();
            pages.index.clear();
            pages.last = None;
        }
        self.loads.set(self.loads.get() + 1);
        let (mut first, length) = self.stretch(page);
        let mut bytes = vec![0; length];
        if self.read(first * PAGE, &mut bytes).is_err() {
            // What was resident may have gone; the wanted page may be there still.
            first = page;
            bytes.truncate(PAGE_BYTES);
            self.read(first * PAGE, &mut bytes)?;
        }
        for (page, bytes) in (first..).zip(bytes.as_chunks().0) {
            pages.index.insert(page, pages.bytes.len());
            pages.bytes.push(*bytes);
        }
        pages.index.get(&page).copied().ok_or(Refusal::Outside { address: page * PAGE })
    }

    /// What to read for a page: its first page and length. More than the page only where all of it
    /// is resident; aligned, so that no page is read twice.
    fn stretch(&self, page: u64) -> (u64, usize) {
        let resident = || {
            let region = self.regions.around(page * PAGE)?;
            let aligned = page / AHEAD * AHEAD * PAGE;
            let (start, end) = (aligned.max(region.start), region.end.min(aligned + AHEAD * PAGE));
            let ranges = self.memory.resident(start, end)?;
            let range = ranges.iter().find(|range| range.contains(&(page * PAGE)))?;
            let length = usize::try_from(range.end - range.start).ok()?;
            Some((range.start / PAGE, length))
        };
        let ahead = match self.ahead.get() {
            Ahead::Never => false,
            Ahead::Always => true,
            Ahead::WhenMany => self.loads.get() > MANY,
        };
        ahead.then(resident).flatten().unwrap_or((page, PAGE_BYTES))
    }
}
