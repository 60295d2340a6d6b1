//! Every chunk of an arena in the order of addresses, by the boundary tags alone.
//!
//! The walk must arrive exactly at the top, or at the fenceposts of a full heap. Of an arena that
//! stands still, what it finds free must be what the bins hold. Of one that moves it is the better
//! reading: a list is broken by every chunk taken from it, a tag only by its neighbours' merging.

use super::Refusal;
use super::bins::{Sizes, Tally};
use super::state::{Heaps, IS_MAPPED, MIN_CHUNK, PREV_IN_USE, State, chunk_size};
use super::view::{Ahead, View};
use crate::tracee::heap::census::{Chunks, Free};
use crate::tracee::heap::memory::{MemoryReader, PAGE};

/// Most bytes that fenceposts at the end of a full heap take.
const MAX_FENCEPOSTS: u64 = 64;

/// A stretch of chunks, and the bytes before it that are the allocator's own.
struct Stretch {
    start: u64,
    end: u64,
    books: u64,
    /// It ends at the top; otherwise at fenceposts.
    to_top: bool,
}

/// Walks them all, which must agree with what the lists say. `visit` is told of chunks in use:
/// address and size.
pub fn read<M: MemoryReader>(
    view: &View<'_, M>,
    state: &State,
    heaps: Option<&Heaps>,
    free: &Free,
    visit: &mut dyn FnMut(u64, u64),
) -> Result<Chunks, Refusal> {
    let (mut chunks, mut bytes) = (0, 0);
    let mut count = |_, size| {
        chunks += 1;
        bytes += size;
    };
    let found = walk(view, state, heaps, free.top_bytes, visit, &mut count)?;
    let broken = |what| Refusal::Broken { what, address: state.address };
    if (chunks, bytes) != (free.binned_chunks, free.binned_bytes) {
        return Err(broken("the chunks found free are not those in the bins"));
    }
    if found.in_use_bytes + found.book_bytes + bytes + free.top_bytes != state.system() {
        return Err(broken("the chunks of an arena do not add up to it"));
    }
    Ok(found)
}

/// What is free, told by the tags alone: chunks in fast bins look as if they were in use.
pub fn read_free<M: MemoryReader>(
    view: &View<'_, M>,
    state: &State,
    heaps: Option<&Heaps>,
    main: bool,
) -> Result<(Free, Chunks), Refusal> {
    let top = state.top_size(view)?;
    let mut tally = Tally::default();
    let mut add = |chunk, size| tally.binned(view, chunk, size);
    let found = walk(view, state, heaps, top, &mut |_, _| {}, &mut add)?;
    let free = tally.with_top(view, state, top, main);
    if found.in_use_bytes + found.book_bytes + free.bytes != state.system() {
        let what = "the chunks of an arena do not add up to it";
        return Err(Refusal::Broken { what, address: state.address });
    }
    Ok((free, found))
}

fn walk<M: MemoryReader>(
    view: &View<'_, M>,
    state: &State,
    heaps: Option<&Heaps>,
    top: u64,
    in_use: &mut dyn FnMut(u64, u64),
    free: &mut dyn FnMut(u64, u64),
) -> Result<Chunks, Refusal> {
    let mut walk = Walk { view, chunks: Chunks::default(), sizes: Sizes::default(), in_use, free };
    let walked = stretches(state, heaps, top)?.iter().try_for_each(|stretch| {
        walk.chunks.book_bytes += stretch.books;
        walk.stretch(stretch)
    });
    view.read_ahead(Ahead::Never);
    walked?;
    let Walk { mut chunks, sizes, .. } = walk;
    chunks.in_use_by_size = sizes.classes();
    Ok(chunks)
}

fn stretches(state: &State, heaps: Option<&Heaps>, top: u64) -> Result<Vec<Stretch>, Refusal> {
    if state.is_unused() {
        return Ok(Vec::new());
    }
    let Some(heaps) = heaps else {
        let base = super::main_base(state, top).ok_or(Refusal::NotOnePiece)?;
        let start = base.next_multiple_of(16);
        return Ok(vec![Stretch { start, end: state.top(), books: start - base, to_top: true }]);
    };
    let stretch = |(at, (heap, size)): (usize, &(u64, u64))| {
        // The arena itself lies in its first heap, which is the last of the chain.
        let is_first = at + 1 == heaps.heaps.len();
        let own = if is_first { state.layout.size as u64 } else { 0 };
        let start = (heap + heaps.head + own).next_multiple_of(16);
        let end = if at == 0 { state.top() } else { heap + size };
        Stretch { start, end, books: start - heap, to_top: at == 0 }
    };
    Ok(heaps.heaps.iter().enumerate().map(stretch).collect())
}

struct Walk<'w, 'a, M> {
    view: &'w View<'a, M>,
    chunks: Chunks,
    sizes: Sizes,
    in_use: &'w mut dyn FnMut(u64, u64),
    free: &'w mut dyn FnMut(u64, u64),
}

impl<M: MemoryReader> Walk<'_, '_, M> {
    fn stretch(&mut self, stretch: &Stretch) -> Result<(), Refusal> {
        let mut chunk = stretch.start;
        let broken = |what, address| Refusal::Broken { what, address };
        while chunk != stretch.end {
            self.view.step()?;
            let field = self.view.word(chunk + 8)?;
            let size = chunk_size(field);
            let room = stretch.end.saturating_sub(chunk);
            if size <= 16 {
                // Fenceposts: no chunk is that small.
                if stretch.to_top {
                    return Err(Refusal::NotOnePiece);
                }
                if room > MAX_FENCEPOSTS {
                    return Err(broken("a fencepost stands in the midst of a heap", chunk));
                }
                self.chunks.book_bytes += room;
                return Ok(());
            }
            if size < MIN_CHUNK || !size.is_multiple_of(16) || field & IS_MAPPED != 0 || size > room
            {
                return Err(broken("a chunk has an impossible size", chunk));
            }
            // Small chunks mostly have small neighbours.
            let ahead = if size < 2 * PAGE { Ahead::Always } else { Ahead::Never };
            self.view.read_ahead(ahead);
            let [repeated, next] = self.view.words(chunk + size)?;
            if next & PREV_IN_USE != 0 {
                self.chunks.in_use += 1;
                self.chunks.in_use_bytes += size;
                self.sizes.add(size);
                (self.in_use)(chunk, size);
            } else if repeated == size {
                (self.free)(chunk, size);
            } else {
                return Err(broken("a free chunk's end says another size than its start", chunk));
            }
            chunk += size;
        }
        Ok(())
    }
}
