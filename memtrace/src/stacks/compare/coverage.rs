//! The unwind information of an object as framehop reads it: which code it describes, and how.
//!
//! framehop steps by frame pointer, which is a guess, where nothing is described or the
//! description is an expression that reads memory. So what it can speak of is decided here, from
//! the same bytes and by the same search table; expressions are evaluated here, by gimli.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use framehop::ExplicitModuleSectionInfo;
use gimli::{
    BaseAddresses, CieOrFde, DebugFrame, EhFrame, EhFrameHdr, Encoding, EndianSlice,
    FrameDescriptionEntry, LittleEndian, UnwindContext, UnwindOffset, UnwindSection,
    UnwindTableRow,
};

use super::evaluate::{Evaluated, evaluate, needs_memory};
use crate::stacks::elf::{ByteSource, Elf, ElfSegments};
use crate::stacks::go_object::find_go_functions;
use crate::stacks::pclntab::PclnTable;
use crate::stacks::rules::Bytes;
use crate::stacks::table::find_eh_frame;
use crate::stacks::walk::Registers;

/// Who can step from an address to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    Framehop,
    /// An expression that reads memory: a signal's frame, a realigned one.
    Expression,
    /// Go's own table of frame sizes.
    Go,
    /// Nothing describes the code, or in a way that neither understands.
    Nobody,
}

/// A longer description is taken for none: each look-up runs through it.
const MAX_DESCRIPTION_BYTES: usize = 64 << 10;

/// Code that one description covers, in the object's virtual addresses.
#[derive(Clone, Copy, Debug)]
struct Covered {
    start: u64,
    end: u64,
    /// Of the description, in its section.
    offset: usize,
}

/// One object's unwind information.
#[derive(Debug)]
pub struct UnwindInformation {
    pub segments: ElfSegments,
    /// By start.
    covered: Vec<Covered>,
    eh_frame: Option<(u64, Arc<[u8]>)>,
    eh_frame_hdr: Option<(u64, Arc<[u8]>)>,
    debug_frame: Option<Arc<[u8]>>,
    text: Option<Range<u64>>,
    got: Option<Range<u64>>,
    go: Option<PclnTable<'static>>,
}

impl UnwindInformation {
    /// Reads that of an object. Nothing described is no error: hostile bytes describe nothing.
    pub fn of<S: ByteSource + ?Sized>(elf: Elf<'_, S>) -> Self {
        let range = |name| elf.section(name).map(|s| s.vaddr..s.vaddr.saturating_add(s.size));
        let eh_frame = find_eh_frame(&elf).map(|frame| (frame.vaddr, Arc::from(&*frame.bytes)));
        let eh_frame_hdr = elf
            .eh_frame_hdr
            .and_then(|(vaddr, size)| Some((vaddr, Arc::from(&*elf.bytes_at(vaddr, size)?))));
        let debug_frame = match eh_frame {
            Some(_) => None,
            None => elf
                .section(".debug_frame")
                .and_then(|section| elf.section_contents(section))
                .map(|bytes| Arc::from(&*bytes)),
        };
        let (text, got) = (range(".text"), range(".got"));
        let is_go = elf.is_go();
        let go = is_go.then(|| find_go_functions(&elf).map(PclnTable::into_owned)).flatten();
        let segments = elf.segments;
        let covered = Vec::new();
        let mut found =
            Self { segments, covered, eh_frame, eh_frame_hdr, debug_frame, text, got, go };
        found.covered = found.list();
        found
    }

    /// Who can step from an address of the object.
    pub fn speaker(&self, vaddr: u64) -> Speaker {
        let described = match self.frame() {
            Some(Frame::Eh(section)) => self.speaker_in(&section, vaddr),
            Some(Frame::Debug(section)) => self.speaker_in(&section, vaddr),
            None => Speaker::Nobody,
        };
        match described {
            Speaker::Nobody if self.go_frame_bytes(vaddr).is_some() => Speaker::Go,
            described => described,
        }
    }

    /// How far RSP stands below the return address in compiled Go.
    fn go_frame_bytes(&self, vaddr: u64) -> Option<u64> {
        self.go.as_ref()?.frame_bytes(vaddr)
    }

    /// The step from a call in compiled Go to its caller: `CFA = RSP + frame + 8` by Go's table of
    /// frame sizes, with the caller's RBP below the return address. Frame pointers are not used.
    pub fn go_step(
        &self,
        vaddr: u64,
        at: Registers,
        read: &mut dyn FnMut(u64) -> Option<u64>,
    ) -> Evaluated {
        let Some(bytes) = self.go_frame_bytes(vaddr) else { return Evaluated::Failed };
        let slot = at.sp.wrapping_add(bytes);
        let saved_at = slot.wrapping_sub(8);
        match (read(slot), read(saved_at)) {
            (None, _) => Evaluated::CannotRead(slot),
            (_, None) => Evaluated::CannotRead(saved_at),
            (Some(pc), Some(bp)) => {
                Evaluated::Caller(Registers { pc, sp: slot.wrapping_add(8), bp })
            }
        }
    }

    fn speaker_in<'d, S: UnwindSection<Bytes<'d>>>(&self, section: &S, vaddr: u64) -> Speaker
    where
        S::Offset: UnwindOffset<usize>,
    {
        match self.row(section, vaddr) {
            None => Speaker::Nobody,
            Some((row, encoding)) if needs_memory(section, encoding, &row) => Speaker::Expression,
            Some(_) => Speaker::Framehop,
        }
    }

    /// The step from an address to its caller, by gimli.
    pub fn evaluate(
        &self,
        vaddr: u64,
        at: Registers,
        read: &mut dyn FnMut(u64) -> Option<u64>,
    ) -> Evaluated {
        match self.frame() {
            Some(Frame::Eh(section)) => self.evaluate_in(&section, vaddr, at, read),
            Some(Frame::Debug(section)) => self.evaluate_in(&section, vaddr, at, read),
            None => Evaluated::Failed,
        }
    }

    fn evaluate_in<'d, S: UnwindSection<Bytes<'d>>>(
        &self,
        section: &S,
        vaddr: u64,
        at: Registers,
        read: &mut dyn FnMut(u64) -> Option<u64>,
    ) -> Evaluated
    where
        S::Offset: UnwindOffset<usize>,
    {
        match self.row(section, vaddr) {
            Some((row, encoding)) => evaluate(section, encoding, &row, at, read),
            None => Evaluated::Failed,
        }
    }

    /// The row in force at an address: of the last description that starts at or below it.
    fn row<'d, S: UnwindSection<Bytes<'d>>>(
        &self,
        section: &S,
        vaddr: u64,
    ) -> Option<(UnwindTableRow<usize>, Encoding)>
    where
        S::Offset: UnwindOffset<usize>,
    {
        let after = self.covered.partition_point(|covered| covered.start <= vaddr);
        let covered = self.covered.get(after.checked_sub(1)?)?;
        if vaddr >= covered.end {
            return None;
        }
        let bases = self.bases();
        let offset = S::Offset::from(covered.offset);
        let fde = section.fde_from_offset(&bases, offset, S::cie_from_offset).ok()?;
        let length = fde.entry_len().saturating_add(fde.cie().entry_len());
        if length > MAX_DESCRIPTION_BYTES {
            return None;
        }
        let mut context = UnwindContext::new();
        let row = fde.unwind_info_for_address(section, &bases, &mut context, vaddr).ok()?;
        Some((row.clone(), fde.cie().encoding()))
    }

    /// The sections, for framehop.
    pub fn section_info(&self) -> ExplicitModuleSectionInfo<Arc<[u8]>> {
        let range = |section: &(u64, Arc<[u8]>)| {
            section.0..section.0.saturating_add(section.1.len() as u64)
        };
        ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: self.text.clone(),
            got_svma: self.got.clone(),
            eh_frame_svma: self.eh_frame.as_ref().map(range),
            eh_frame: self.eh_frame.as_ref().map(|(_, bytes)| Arc::clone(bytes)),
            eh_frame_hdr_svma: self.eh_frame_hdr.as_ref().map(range),
            eh_frame_hdr: self.eh_frame_hdr.as_ref().map(|(_, bytes)| Arc::clone(bytes)),
            debug_frame: self.debug_frame.clone(),
            ..ExplicitModuleSectionInfo::default()
        }
    }

    fn frame(&self) -> Option<Frame<'_>> {
        match (&self.eh_frame, &self.debug_frame) {
            (Some((_, bytes)), _) => Some(Frame::Eh(EhFrame::new(bytes, LittleEndian))),
            (None, Some(bytes)) => {
                let mut section = DebugFrame::new(bytes, LittleEndian);
                section.set_address_size(8);
                Some(Frame::Debug(section))
            }
            (None, None) => None,
        }
    }

    fn bases(&self) -> BaseAddresses {
        BaseAddresses::default()
            .set_eh_frame(self.eh_frame.as_ref().map_or(0, |(vaddr, _)| *vaddr))
            .set_eh_frame_hdr(self.eh_frame_hdr.as_ref().map_or(0, |(vaddr, _)| *vaddr))
            .set_text(self.text.as_ref().map_or(0, |text| text.start))
            .set_got(self.got.as_ref().map_or(0, |got| got.start))
    }

    fn list(&self) -> Vec<Covered> {
        let bases = self.bases();
        let mut covered = match (self.frame(), &self.eh_frame_hdr) {
            (Some(Frame::Eh(section)), Some((_, hdr))) => by_search_table(&section, hdr, &bases),
            (Some(Frame::Eh(section)), None) => by_entries(&section, &bases),
            (Some(Frame::Debug(section)), _) => by_entries(&section, &bases),
            (None, _) => None,
        }
        .unwrap_or_default();
        covered.sort_by_key(|covered| covered.start);
        covered
    }
}

enum Frame<'d> {
    Eh(EhFrame<Bytes<'d>>),
    Debug(DebugFrame<Bytes<'d>>),
}

type Fde<'d> = FrameDescriptionEntry<EndianSlice<'d, LittleEndian>>;

fn covered(fde: &Fde<'_>) -> Covered {
    Covered { start: fde.initial_address(), end: fde.end_address(), offset: fde.offset() }
}

/// What the search table leads to. `None`: it cannot be read, and framehop finds nothing by it.
fn by_search_table(
    section: &EhFrame<Bytes<'_>>,
    hdr: &[u8],
    bases: &BaseAddresses,
) -> Option<Vec<Covered>> {
    let hdr = EhFrameHdr::new(hdr, LittleEndian).parse(bases, 8).ok()?;
    let table = hdr.table()?;
    let mut found = Vec::new();
    let mut cies = HashMap::new();
    let mut entries = table.iter(bases);
    while let Ok(Some((_, pointer))) = entries.next() {
        let Ok(offset) = table.pointer_to_offset(pointer) else { continue };
        let fde = section.fde_from_offset(bases, offset, |section, bases, offset| {
            cie_of(&mut cies, section, bases, offset)
        });
        found.extend(fde.ok().map(|fde| covered(&fde)));
    }
    Some(found)
}

/// All descriptions in their order; as framehop, none where one of them is damaged.
fn by_entries<'d, S>(section: &S, bases: &BaseAddresses) -> Option<Vec<Covered>>
where
    S: UnwindSection<Bytes<'d>>,
    S::Offset: UnwindOffset<usize>,
{
    let mut found = Vec::new();
    let mut cies = HashMap::new();
    let mut entries = section.entries(bases);
    while let Some(entry) = entries.next().ok()? {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(|section, bases, offset| cie_of(&mut cies, section, bases, offset));
        found.push(covered(&fde.ok()?));
    }
    Some(found)
}

type Cies<'d> = HashMap<usize, gimli::CommonInformationEntry<Bytes<'d>>>;

/// Each is parsed once, however many descriptions name it.
fn cie_of<'d, S>(
    cies: &mut Cies<'d>,
    section: &S,
    bases: &BaseAddresses,
    offset: S::Offset,
) -> gimli::Result<gimli::CommonInformationEntry<Bytes<'d>>>
where
    S: UnwindSection<Bytes<'d>>,
    S::Offset: UnwindOffset<usize>,
{
    let at = UnwindOffset::into(offset);
    if let Some(cie) = cies.get(&at) {
        return Ok(cie.clone());
    }
    let cie = section.cie_from_offset(bases, offset)?;
    cies.insert(at, cie.clone());
    Ok(cie)
}
