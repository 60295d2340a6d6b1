//! The text of `/debug/pprof/heap?debug=1`: the heap profile and, in its trailer,
//! `runtime.MemStats`, both from one request.
//!
//! The text carries raw sampled counts where the protobuf carries estimates; they are scaled here
//! as `runtime/pprof` scales them, so that both forms give the same figures:
//! `estimate = n / (1 − exp(−size / rate))`, per record, rounded towards zero.

use super::profile::{Budget, Limits, ProfileError, Values, assemble};
use crate::snapshot::{GoBooks, GoMemory, Name};

/// Longest line looked at; longer ones are cut there (Go prints 256 pauses on one line).
const LONGEST_LINE: usize = 64 << 10;

pub(super) fn parse(body: &[u8], source: &str, limits: &Limits) -> Result<GoBooks, ProfileError> {
    let mut stacks: Vec<(Vec<Name>, Values)> = Vec::new();
    let mut rate = None;
    let mut memory = Memory::default();
    let mut budget = Budget::new(limits);
    for (at, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let number = at + 1;
        let failed = |why| ProfileError::Text { line: number, why };
        let line = String::from_utf8_lossy(&line[..line.len().min(LONGEST_LINE)]);
        let Some(rate) = rate else {
            rate = Some(header_rate(&line).ok_or(failed("expected `… @ heap/RATE`"))?);
            continue;
        };
        if let Some(comment) = line.strip_prefix("# ") {
            memory.take(comment);
        } else if let Some(frame) = line.strip_prefix("#\t") {
            let (frames, _) = stacks.last_mut().ok_or(failed("a frame without a record"))?;
            if frames.len() >= limits.frames {
                let (what, limit) = ("frames in one stack", limits.frames);
                return Err(ProfileError::TooMany { what, limit });
            }
            let name = frame_name(frame);
            budget.take(&name)?;
            frames.push(name);
        } else if !line.trim().is_empty() {
            if stacks.len() >= limits.rows {
                return Err(ProfileError::TooMany { what: "records", limit: limits.rows });
            }
            let values = record(&line, rate).ok_or(failed("expected `N: BYTES [N: BYTES] @ …`"))?;
            stacks.push((Vec::new(), values));
        }
    }
    let rate = rate.ok_or(ProfileError::Empty)?;
    let mut books = assemble(source, rate, stacks)?;
    books.memory = memory.complete();
    Ok(books)
}

/// `heap profile: 75: 7029824 [81: 9569344] @ heap/1048576`: twice the rate, by an old custom.
fn header_rate(line: &str) -> Option<u64> {
    let (_, rate) = line.rsplit_once("@ heap/")?;
    Some(rate.trim().parse::<u64>().ok()? / 2)
}

/// `1: 8192 [2: 16384] @ 0x48a005 0x48a1be`
fn record(line: &str, rate: u64) -> Option<Values> {
    let (counts, _) = line.split_once(" @")?;
    let (inuse, alloc) = counts.split_once('[')?;
    let pair = |text: &str| {
        let (count, bytes) = text.split_once(':')?;
        Some((count.trim().parse::<u64>().ok()?, bytes.trim().parse::<u64>().ok()?))
    };
    let (inuse, alloc) = (pair(inuse)?, pair(alloc.strip_suffix(']')?)?);
    let (inuse_objects, inuse_bytes) = scaled(inuse, rate);
    let (alloc_objects, alloc_bytes) = scaled(alloc, rate);
    Some([inuse_bytes, inuse_objects, alloc_bytes, alloc_objects])
}

pub(super) fn scaled((count, bytes): (u64, u64), rate: u64) -> (u64, u64) {
    if count == 0 || bytes == 0 {
        return (0, 0);
    }
    if rate <= 1 {
        return (count, bytes);
    }
    let size = (bytes / count) as f64;
    let scale = 1.0 / (1.0 - (-size / rate as f64).exp());
    // Both casts saturate: a size below one byte gives an infinite scale.
    ((count as f64 * scale) as u64, (bytes as f64 * scale) as u64)
}

/// `0x6dfb2b⇥main.grow+0x16b⇥⇥/src/main.go:18`, or the address alone.
fn frame_name(text: &str) -> Name {
    let mut columns = text.split('\t').filter(|column| !column.is_empty());
    let address = columns.next().unwrap_or("?");
    let Some(function) = columns.next() else {
        return Name { function: address.to_owned(), file: None, line: None, inlined: false };
    };
    let function = function.rsplit_once("+0x").map_or(function, |(name, _)| name);
    let place = columns.next().and_then(|place| place.rsplit_once(':'));
    Name {
        function: function.to_owned(),
        file: place.map(|(file, _)| file.to_owned()),
        line: place.and_then(|(_, line)| line.trim().parse().ok()).filter(|line| *line > 0),
        // The text does not tell.
        inlined: false,
    }
}

/// The trailer, until it is seen whether it is whole.
#[derive(Default)]
struct Memory {
    figures: GoMemory,
    seen: u32,
}

/// Fields without which the figures would not add up.
const NEEDED: u32 = 13;

impl Memory {
    /// `Sys = 54962456`, or `Stack = 294912 / 294912` (in use / from the system).
    fn take(&mut self, comment: &str) {
        let Some((key, values)) = comment.split_once(" = ") else { return };
        let mut values = values.split(" / ").map(|value| value.trim().parse::<u64>().ok());
        let Some(Some(first)) = values.next() else { return };
        let second = values.next().flatten();
        let figures = &mut self.figures;
        let (field, value) = match (key, second) {
            ("Sys", _) => (&mut figures.sys, first),
            ("HeapAlloc", _) => (&mut figures.heap_alloc, first),
            ("HeapSys", _) => (&mut figures.heap_sys, first),
            ("HeapIdle", _) => (&mut figures.heap_idle, first),
            ("HeapInuse", _) => (&mut figures.heap_inuse, first),
            ("HeapReleased", _) => (&mut figures.heap_released, first),
            ("Stack", Some(sys)) => {
                figures.stack_inuse = first;
                (&mut figures.stack_sys, sys)
            }
            ("MSpan", Some(sys)) => (&mut figures.mspan_sys, sys),
            ("MCache", Some(sys)) => (&mut figures.mcache_sys, sys),
            ("BuckHashSys", _) => (&mut figures.buck_hash_sys, first),
            ("GCSys", _) => (&mut figures.gc_sys, first),
            ("OtherSys", _) => (&mut figures.other_sys, first),
            ("NextGC", _) => (&mut figures.next_gc, first),
            ("NumGC", _) => (&mut figures.num_gc, first),
            _ => return,
        };
        *field = value;
        // `NumGC` is news, not a part of the sum.
        self.seen += u32::from(key != "NumGC");
    }

    fn complete(self) -> Option<GoMemory> {
        (self.seen == NEEDED).then_some(self.figures)
    }
}

#[cfg(test)]
#[path = "debug1_tests.rs"]
mod tests;
