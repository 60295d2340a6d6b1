//! Every chunk of an arena in the order of addresses, by the boundary tags alone.
//!
//! The walk must arrive exactly at the top (or at the fenceposts of a full heap), and what it
//! finds free must add up to what the bins hold: otherwise it is refused.

use super::Refusal;
use super::bins::Sizes;
use super::state::{Heaps, IS_MAPPED, MIN_CHUNK, PREV_IN_USE, State, chunk_size};
use super::view::View;
use crate::tracee::heap::census::{Chunks, Free};
use crate::tracee::heap::memory::MemoryReader;

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

/// Walks them all. `visit` is told of chunks in use: address and size.
pub fn read<M: MemoryReader>(
    view: &View<'_, M>,
    state: &State,
    heaps: Option<&Heaps>,
    free: &Free,
    visit: &mut dyn FnMut(u64, u64),
) -> Result<Chunks, Refusal> {
    let mut walk = Walk { view, chunks: Chunks::default(), sizes: Sizes::default(), free: (0, 0) };
    for stretch in stretches(state, heaps, free.top_bytes)? {
        walk.chunks.book_bytes += stretch.books;
        walk.stretch(&stretch, visit)?;
    }
    let Walk { mut chunks, sizes, free: (count, bytes), .. } = walk;
    chunks.in_use_by_size = sizes.classes();
    let broken = |what| Refusal::Broken { what, address: state.address };
    if (count, bytes) != (free.binned_chunks, free.binned_bytes) {
        return Err(broken("the chunks found free are not those in the bins"));
    }
    let sum = chunks.in_use_bytes + chunks.book_bytes + bytes + free.top_bytes;
    if sum != state.system() {
        return Err(broken("the chunks of an arena do not add up to it"));
    }
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
    /// Chunks and bytes.
    free: (u64, u64),
}

impl<M: MemoryReader> Walk<'_, '_, M> {
    fn stretch(
        &mut self,
        stretch: &Stretch,
        visit: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Refusal> {
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
            let [repeated, next] = self.view.words(chunk + size)?;
            if next & PREV_IN_USE != 0 {
                self.chunks.in_use += 1;
                self.chunks.in_use_bytes += size;
                self.sizes.add(size);
                visit(chunk, size);
            } else if repeated == size {
                self.free.0 += 1;
                self.free.1 += size;
            } else {
                return Err(broken("a free chunk's end says another size than its start", chunk));
            }
            chunk += size;
        }
        Ok(())
    }
}
