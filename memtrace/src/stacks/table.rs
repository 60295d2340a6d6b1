//! The unwind table of one object: from its ELF bytes to packed, sorted rows.
//!
//! ```text
//! .eh_frame ─┐                      Go text, the entry point, crosscall2 …
//! .eh_frame_hdr → .eh_frame         │
//! .debug_frame ─┴─► ranges with rules ─► rows (equal neighbours merged, gaps closed) ─► overlays
//! ```
//!
//! Pure and bounded: hostile bytes cost at most time proportional to their size and 32 MiB of
//! rows, and never a panic. Whatever a row cannot say is a [`CfaKind::None`] row, counted by
//! reason. Not covered: code mapped from elsewhere than the object (see [`super::space`]).
//!
//! [`CfaKind::None`]: memtrace_common::unwind::CfaKind::None

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::time::{Duration, Instant};

use gimli::{
    BaseAddresses, CieOrFde, DebugFrame, EhFrame, EhFrameHdr, EndianSlice, LittleEndian,
    UnwindContext, UnwindOffset, UnwindSection, X86_64,
};

use super::elf::{ByteSource, Elf, ElfError, ElfSegments, FileSource};
use super::layout::{self, Covered};
use super::rules::{Bytes, Meaning, Rule, Unsupported, classify};
use super::{go_rules, musl_rules};

/// Most bytes of call frame instructions executed per byte of the section: hostile tables make
/// every FDE repeat one huge CIE.
const WORK_PER_BYTE: usize = 64;
/// The longest procedure linkage table written out stub by stub.
const MAX_PLT_BYTES: u64 = 1 << 20;

/// Why an object has no unwind table at all.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error("failed to read the object's file")]
    Read(#[from] std::io::Error),
}

/// What building a table met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Functions described by the object.
    pub functions: u64,
    /// Descriptions that could not be parsed; their code is a gap.
    pub functions_malformed: u64,
    /// Ranges beyond 4 GiB from the object's base, or past the most rows allowed.
    pub ranges_lost: u64,
    /// A section ended in the middle, or cost more than it may: what follows is a gap.
    pub sections_cut: u64,
    /// Ranges of code that have unwind information which a row cannot hold.
    pub unsupported: [u64; Unsupported::ALL.len()],
    /// The Go toolchain linked it: text without unwind information steps by frame pointer.
    pub is_go: bool,
    /// Functions of Go's runtime that got a rule of their own.
    pub go_functions: u64,
    pub build: Duration,
}

impl TableStats {
    pub fn unsupported_by_reason(&self) -> impl Iterator<Item = (Unsupported, u64)> + '_ {
        Unsupported::ALL.into_iter().zip(self.unsupported).filter(|(_, count)| *count > 0)
    }
}

/// The rows of one object, independent of where it is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwindTable {
    /// Packed [`memtrace_common::unwind::UnwindRow`]s, sorted by pc.
    pub rows: Vec<u64>,
    /// The lowest `PT_LOAD` virtual address: row-pc 0.
    pub base_vaddr: u64,
    pub segments: ElfSegments,
    pub build_id: Option<String>,
    pub stats: TableStats,
}

/// Builds the table of an object whose bytes are in memory.
pub fn build_table(elf: &[u8]) -> Result<UnwindTable, TableError> {
    build_from(elf)
}

/// Builds the table of an object from its open file; reads only the parts that it needs.
///
/// The example `unwind_tables` prints what it costs per object.
pub fn build_table_of_file(file: &File) -> Result<UnwindTable, TableError> {
    build_from(&FileSource::new(file)?)
}

fn build_from<S: ByteSource + ?Sized>(source: &S) -> Result<UnwindTable, TableError> {
    let started = Instant::now();
    let elf = Elf::parse(source)?;
    let base_vaddr = elf.segments.base_vaddr();
    let mut collector = Collector::default();
    collector.stats.is_go = elf.is_go();

    if let Some(frame) = find_eh_frame(&elf) {
        let bases = BaseAddresses::default()
            .set_eh_frame(frame.vaddr)
            .set_eh_frame_hdr(elf.eh_frame_hdr.map_or(0, |(vaddr, _)| vaddr))
            .set_text(elf.section(".text").map_or(0, |text| text.vaddr))
            .set_got(elf.section(".got").map_or(0, |got| got.vaddr));
        collector.read(&EhFrame::new(&frame.bytes, LittleEndian), &bases, frame.bytes.len());
    }
    // Go's .debug_frame knows the CFA but not the caller's RBP: its text goes by frame pointer.
    if !collector.stats.is_go
        && let Some(section) = elf.section(".debug_frame")
        && let Some(bytes) = elf.section_contents(section)
    {
        collector.only_uncovered();
        let mut frame = DebugFrame::new(&bytes, LittleEndian);
        frame.set_address_size(8);
        collector.read(&frame, &BaseAddresses::default(), bytes.len());
    }
    collector.add_entry_point(elf.entry, &elf.segments);

    let Collector { covered, mut stats, .. } = collector;
    let gap = if stats.is_go { Rule::FRAME_POINTER } else { Rule::NONE };
    let layout::Rows { mut rows, ranges_lost } = layout::write_rows(covered, base_vaddr, gap);
    stats.ranges_lost += ranges_lost;
    if stats.is_go {
        for over in go_rules::overlays(&elf) {
            layout::overlay(&mut rows, base_vaddr, over);
            stats.go_functions += 1;
        }
    }
    let rule_at = |vaddr: u64| {
        let pc = u32::try_from(vaddr.checked_sub(base_vaddr)?).ok()?;
        layout::rule_at(&rows, pc)
    };
    let ends = musl_rules::stack_ends(&elf, |vaddr| rule_at(vaddr) == Some(gap));
    for over in ends {
        layout::overlay(&mut rows, base_vaddr, over);
    }
    stats.build = started.elapsed();
    let build_id = elf.build_id();
    Ok(UnwindTable { rows, base_vaddr, segments: elf.segments, build_id, stats })
}

pub(crate) struct Frame<'s> {
    pub(crate) vaddr: u64,
    pub(crate) bytes: Cow<'s, [u8]>,
}

/// `.eh_frame` by its section, or where `.eh_frame_hdr` points to.
pub(crate) fn find_eh_frame<'s, S: ByteSource + ?Sized>(elf: &Elf<'s, S>) -> Option<Frame<'s>> {
    if let Some(section) = elf.section(".eh_frame")
        && let Some(bytes) = elf.section_contents(section)
    {
        return Some(Frame { vaddr: section.vaddr, bytes });
    }
    let (hdr_vaddr, hdr_size) = elf.eh_frame_hdr?;
    // The pointer to .eh_frame is one of the first 12 bytes; the search table is not needed.
    let hdr = elf.bytes_at(hdr_vaddr, hdr_size.min(64))?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(hdr_vaddr);
    let parsed = EhFrameHdr::new(&hdr, LittleEndian).parse(&bases, 8).ok()?;
    let vaddr = parsed.eh_frame_ptr().direct().ok()?;
    Some(Frame { vaddr, bytes: elf.bytes_from(vaddr)? })
}

#[derive(Default)]
struct Collector {
    covered: Vec<Covered>,
    stats: TableStats,
    /// Sorted, disjoint ranges that functions read from now on must not touch.
    taken: Vec<(u64, u64)>,
}

impl Collector {
    /// From now on functions count only where nothing is known yet.
    fn only_uncovered(&mut self) {
        self.covered.sort_by_key(|range| (range.start, range.end));
        self.taken = self.covered.iter().map(|range| (range.start, range.end)).collect();
    }

    fn is_taken(&self, start: u64, end: u64) -> bool {
        let before_end = self.taken.partition_point(|range| range.0 < end);
        before_end > 0 && self.taken[before_end - 1].1 > start
    }

    fn read<'d, S>(&mut self, section: &S, bases: &BaseAddresses, size: usize)
    where
        S: UnwindSection<Bytes<'d>>,
        S::Offset: UnwindOffset<usize>,
    {
        let mut context = UnwindContext::new();
        let mut cies = HashMap::new();
        let mut work_left = size.saturating_mul(WORK_PER_BYTE);
        let mut entries = section.entries(bases);
        loop {
            let partial = match entries.next() {
                Ok(Some(CieOrFde::Fde(partial))) => partial,
                Ok(Some(CieOrFde::Cie(_))) => continue,
                Ok(None) => return,
                Err(_) => {
                    self.stats.sections_cut += 1;
                    return;
                }
            };
            self.stats.functions += 1;
            let fde = partial.parse(|section, bases, offset| {
                let at = UnwindOffset::into(offset);
                if let Some(cie) = cies.get(&at) {
                    return Ok(gimli::CommonInformationEntry::clone(cie));
                }
                let cie = section.cie_from_offset(bases, offset)?;
                cies.insert(at, cie.clone());
                Ok(cie)
            });
            let Ok(fde) = fde else {
                self.stats.functions_malformed += 1;
                continue;
            };
            let cost = fde.entry_len().saturating_add(fde.cie().entry_len());
            let Some(left) = work_left.checked_sub(cost) else {
                self.stats.sections_cut += 1;
                return;
            };
            work_left = left;
            if self.read_function(section, bases, &mut context, &fde).is_none() {
                self.stats.functions_malformed += 1;
            }
        }
    }

    /// `None` when the description is malformed; what was read before that is kept.
    fn read_function<'d, S>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        context: &mut UnwindContext<usize>,
        fde: &gimli::FrameDescriptionEntry<EndianSlice<'d, LittleEndian>>,
    ) -> Option<()>
    where
        S: UnwindSection<Bytes<'d>>,
    {
        let (start, end) = (fde.initial_address(), fde.end_address());
        // Linkers leave the descriptions of discarded functions behind, at address 0.
        if start == 0 || start >= end || self.is_taken(start, end) {
            return Some(());
        }
        if fde.cie().return_address_register() != X86_64::RA {
            self.add(start, end, Err(Unsupported::ReturnAddress));
            return Some(());
        }
        let encoding = fde.cie().encoding();
        let is_signal = fde.is_signal_trampoline();
        let mut table = fde.rows(section, bases, context).ok()?;
        while let Some(row) = table.next_row().ok()? {
            let meaning = classify(section, encoding, is_signal, row);
            self.add(row.start_address(), row.end_address().min(end), meaning);
        }
        Some(())
    }

    fn add(&mut self, start: u64, end: u64, meaning: Result<Meaning, Unsupported>) {
        if start >= end {
            return;
        }
        match meaning {
            Ok(Meaning::Rule(rule)) => self.push(start, end, rule),
            Ok(Meaning::PltPushingAt(push_at)) if end - start <= MAX_PLT_BYTES => {
                self.write_out_plt(start, end, u64::from(push_at));
            }
            Ok(Meaning::PltPushingAt(_)) => {
                self.add(start, end, Err(Unsupported::CfaExpression));
            }
            Err(reason) => {
                self.stats.unsupported[reason as usize] += 1;
                self.push(start, end, Rule::NONE);
            }
        }
    }

    fn push(&mut self, start: u64, end: u64, rule: Rule) {
        let is_full = self.covered.len() >= 2 * layout::MAX_ROWS;
        match self.covered.last_mut() {
            Some(last) if last.end == start && last.rule == rule => last.end = end,
            _ if is_full => self.stats.ranges_lost += 1,
            _ => self.covered.push(Covered { start, end, rule }),
        }
    }

    /// `CFA = RSP + 8 + (pc & 15 >= push_at) · 8`, stub by stub.
    fn write_out_plt(&mut self, start: u64, end: u64, push_at: u64) {
        use memtrace_common::unwind::CfaKind::Rsp;
        let mut at = start;
        while at < end {
            let stub = at & !15;
            let (until, pushed) = match at - stub {
                inside if inside < push_at => (stub.saturating_add(push_at), 1),
                _ => (stub.saturating_add(16), 2),
            };
            let until = until.min(end);
            self.push(at, until, Rule::new(Rsp, pushed, 0));
            at = until;
        }
    }

    /// Nothing called the entry point: where no unwind information says so, the stack ends there.
    fn add_entry_point(&mut self, entry: u64, segments: &ElfSegments) {
        /// More than the longest known `_start`.
        const ENTRY_BYTES: u64 = 64;
        if entry == 0 || !segments.is_executable(entry) {
            return;
        }
        self.only_uncovered();
        let next = self.taken.partition_point(|range| range.0 <= entry);
        let is_covered = next > 0 && self.taken[next - 1].1 > entry;
        let limit = self.taken.get(next).map_or(u64::MAX, |range| range.0);
        if !is_covered {
            let end = entry.saturating_add(ENTRY_BYTES).min(limit);
            self.covered.push(Covered { start: entry, end, rule: Rule::END });
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "compiled_tests.rs"]
mod compiled_tests;
