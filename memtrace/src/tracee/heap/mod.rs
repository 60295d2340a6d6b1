//! The C heap of a process, read from outside: nothing is stopped, injected or probed.
//!
//! ```text
//! mappings ─► Regions ─┐
//! C library ─► Libc ───┼─► census ─► HeapCensus (data)
//! /proc/PID/mem ───────┘   (pure over a memory reader)
//! ```
//!
//! What is read is hostile and moves: lists are bounded, pointers are checked against the
//! mappings, and figures count only if glibc's own invariants hold; otherwise there is a reason.
//! Limits: glibc 2.17 and later on x86-64. Other allocators are named, not read.

mod census;
mod glibc;
mod libc;
mod memory;
mod regions;

pub use census::{
    Arena, Chunks, Depth, FoundBy, Free, HeapCensus, MappedChunks, Reading, Settings, SizeClass,
    ThreadCaches, ToldBy, Totals,
};
pub use glibc::{Libc, Refusal};
pub use libc::LibcFacts;
pub use memory::{MemoryReader, ProcessMemory, ReadError};
pub use regions::Regions;

use super::mappings::{Mappings, read_maps};
use super::process::Process;
use crate::snapshot::Known;

/// How often the mappings are read anew when the heap has left them.
const ATTEMPTS: u32 = 4;

/// Reads a heap once. `regions` are the writable mappings at this time.
///
/// Pure but for `memory`, the clock (a reading ends after 3 s, or 20 s for every chunk) and short
/// pauses when the heap moves.
pub fn census(
    memory: &impl MemoryReader,
    regions: &Regions,
    libc: &LibcFacts,
    depth: Depth,
) -> Known<HeapCensus> {
    match glibc::census(memory, regions, &libc.glibc, depth) {
        Ok(mut census) => {
            census.beside.clone_from(&libc.beside);
            Known::Value(census)
        }
        Err(refusal) => Known::unknown(explain(&refusal, &libc.beside)),
    }
}

fn explain(refusal: &Refusal, beside: &[String]) -> String {
    match (refusal, beside) {
        (Refusal::NotFound | Refusal::Unused, [_, ..]) => format!(
            "glibc's malloc was never used, or was not found: the process has {}, whose books cannot \
             be read from outside",
            beside.join(" and ")
        ),
        _ => refusal.to_string(),
    }
}

/// Finds the C library of a live process and reads its heap.
///
/// Needs the right to trace it (`CAP_SYS_PTRACE` for others' processes), but does not trace it.
/// When the heap leaves the mappings meanwhile, they are read anew, up to four times.
pub fn read(process: &Process, depth: Depth) -> Known<HeapCensus> {
    let files = match Mappings::of(process) {
        Ok(files) => files,
        Err(error) => return Known::unknown(error.to_string()),
    };
    read_with(process, &files, depth)
}

/// The same, where the mapped files are already known.
pub fn read_with(process: &Process, files: &Mappings, depth: Depth) -> Known<HeapCensus> {
    let memory = match ProcessMemory::open(process) {
        Ok(memory) => memory,
        Err(error) => return Known::unknown(error.to_string()),
    };
    let mut libc = None;
    let mut best: Option<Known<HeapCensus>> = None;
    for _ in 0..ATTEMPTS {
        let lines = match read_maps(process) {
            Ok((lines, _)) => lines,
            Err(error) => return Known::unknown(error.to_string()),
        };
        if libc.is_none() {
            match LibcFacts::find(process, files, &lines) {
                Ok(found) => libc = Some(found),
                Err(reason) => return Known::unknown(reason),
            }
        }
        let Some(libc) = &libc else { break };
        let found = census(&memory, &Regions::writable(&lines), libc, depth);
        let is_better = best.as_ref().is_none_or(|best| unread(&found) <= unread(best));
        if is_better {
            best = Some(found);
        }
        if best.as_ref().is_some_and(|best| unread(best) == 0) {
            break;
        }
    }
    best.unwrap_or_else(|| Known::unknown("the heap was not read"))
}

/// Arenas without figures; more than any number of them where there is no census.
fn unread(census: &Known<HeapCensus>) -> usize {
    match census {
        Known::Value(census) => census.arenas.iter().filter(|a| a.free.value().is_none()).count(),
        Known::Unknown { .. } => usize::MAX,
    }
}
