//! Finds Go's tables in an object: `gopclntab`, the start of the text, the inline trees.
//!
//! Works on the file alone, with or without symbols and section headers, position-independent or
//! not. What is found is checked; what does not fit is `None`, never a guess.

use std::borrow::Cow;

use super::elf::{ByteSource, Elf, SHT_RELA, u64_at};
use super::pclntab::{PclnTable, Version};

const R_X86_64_RELATIVE: u64 = 8;
/// Most relocations read of a position-independent executable.
const MAX_RELOCATIONS: u64 = 4 << 20;
/// Offsets of `text` and `etext` in `runtime.moduledata`, Go 1.16 to 1.27.
const MODULE_TEXT: u64 = 176;
/// Offsets of `gofunc`: Go 1.27, Go 1.20–1.26, Go 1.18–1.19.
const MODULE_GOFUNC: [u64; 3] = [344, 320, 304];

/// Reads words as the dynamic linker leaves them: file bytes, relative relocations applied.
struct Words<'e, 's, S: ByteSource + ?Sized> {
    elf: &'e Elf<'s, S>,
    /// (place, value), sorted by place.
    relocated: Vec<(u64, u64)>,
}

impl<'e, 's, S: ByteSource + ?Sized> Words<'e, 's, S> {
    fn new(elf: &'e Elf<'s, S>) -> Self {
        let mut relocated = Vec::new();
        if elf.is_dynamic {
            let sections: Vec<(u64, u64)> = elf
                .sections
                .iter()
                .filter(|section| section.kind == SHT_RELA && section.name.starts_with(".rela.dyn"))
                .map(|section| (section.offset, section.size))
                .collect();
            let places = if sections.is_empty() { elf.dynamic_relocations() } else { sections };
            for (offset, size) in places {
                let size = size.min(MAX_RELOCATIONS * 24);
                let Some(bytes) = elf.source().read(offset, size - size % 24) else { continue };
                for entry in bytes.chunks_exact(24) {
                    if u64_at(entry, 8) == R_X86_64_RELATIVE {
                        relocated.push((u64_at(entry, 0), u64_at(entry, 16)));
                    }
                }
            }
        }
        relocated.sort_unstable();
        Self { elf, relocated }
    }

    fn word(&self, vaddr: u64) -> Option<u64> {
        match self.relocated.binary_search_by_key(&vaddr, |(place, _)| *place) {
            Ok(at) => Some(self.relocated[at].1),
            Err(_) => self.elf.bytes_at(vaddr, 8).map(|bytes| u64_at(&bytes, 0)),
        }
    }

    /// Where a pointer to `target` stands in the object's data.
    fn pointers_to(&self, target: u64) -> Vec<u64> {
        const ENOUGH: usize = 64;
        let mut places: Vec<u64> = self
            .relocated
            .iter()
            .filter(|(_, value)| *value == target)
            .map(|(place, _)| *place)
            .take(ENOUGH)
            .collect();
        for load in self.elf.segments.loads.iter().filter(|load| load.writable) {
            let Some(bytes) = self.elf.bytes_from(load.vaddr) else { continue };
            let skip = (load.vaddr.wrapping_neg() & 7) as usize;
            let words = bytes.get(skip..).unwrap_or_default().chunks_exact(8);
            let hits = words.enumerate().filter(|(_, word)| u64_at(word, 0) == target);
            places.extend(hits.map(|(i, _)| load.vaddr + skip as u64 + 8 * i as u64).take(ENOUGH));
        }
        places
    }
}

/// What was found of Go's tables, with what it takes to find the inline trees.
struct Found<'s> {
    table: PclnTable<'s>,
    table_vaddr: u64,
    module: Option<u64>,
    inline_trees_at: Vec<u64>,
}

/// An object's Go table with the place of `runtime.firstmoduledata`.
#[derive(Debug)]
pub struct GoModule {
    pub table: PclnTable<'static>,
    /// Virtual address in the object.
    pub vaddr: u64,
}

/// The object's Go table and module data, free of what they were read from.
pub fn find_go_module<S: ByteSource + ?Sized>(elf: &Elf<'_, S>) -> Option<GoModule> {
    let mut found = find(elf)?;
    choose_inline_trees(elf, &mut found);
    Some(GoModule { vaddr: found.module?, table: found.table.into_owned() })
}

/// The object's Go table, ready for look-ups by the object's virtual addresses.
pub fn find_go_table<'s, S: ByteSource + ?Sized>(elf: &Elf<'s, S>) -> Option<PclnTable<'s>> {
    let mut found = find(elf)?;
    choose_inline_trees(elf, &mut found);
    Some(found.table)
}

/// The same without inline trees: functions only, at a fraction of the cost.
pub fn find_go_functions<'s, S: ByteSource + ?Sized>(elf: &Elf<'s, S>) -> Option<PclnTable<'s>> {
    find(elf).map(|found| found.table)
}

fn find<'s, S: ByteSource + ?Sized>(elf: &Elf<'s, S>) -> Option<Found<'s>> {
    let (table_vaddr, data) = find_pclntab(elf)?;
    let version = Version::of_magic(super::elf::u32_at(&data, 0))?;
    let words = Words::new(elf);
    let module = find_module_data(elf, &words, table_vaddr);
    let text = match (version, module) {
        (Version::Go116, _) => 0,
        (_, Some((_, text))) => text,
        (_, None) => text_start(elf, &data)?,
    };
    if version != Version::Go116 && !elf.segments.is_executable(text) {
        return None;
    }
    let inline_trees_at = match module {
        Some((module, _)) if version == Version::Go120 => {
            let places = MODULE_GOFUNC.iter().map(|at| module.wrapping_add(*at));
            places.filter_map(|at| words.word(at)).collect()
        }
        _ => Vec::new(),
    };
    let module = module.map(|(vaddr, _)| vaddr);
    Some(Found { table: PclnTable::parse(data, text)?, table_vaddr, module, inline_trees_at })
}

fn find_pclntab<'s, S: ByteSource + ?Sized>(elf: &Elf<'s, S>) -> Option<(u64, Cow<'s, [u8]>)> {
    const NAMES: [&str; 3] = [".gopclntab", ".data.rel.ro.gopclntab", ".go.pclntab"];
    for section in NAMES.iter().filter_map(|name| elf.section(name)) {
        if let Some(bytes) = elf.section_bytes(section)
            && looks_like_table(&bytes)
        {
            return Some((section.vaddr, bytes));
        }
    }
    // Linked by the system's linker as a PIE (up to Go 1.25) it has no section of its own.
    for load in elf.segments.loads.iter().filter(|load| !load.executable) {
        let Some(bytes) = elf.bytes_from(load.vaddr) else { continue };
        let skip = (load.vaddr.wrapping_neg() & 7) as usize;
        let mut at = skip;
        while at + 64 < bytes.len() {
            if looks_like_table(&bytes[at..]) {
                let table = match bytes {
                    Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[at..]),
                    Cow::Owned(mut bytes) => Cow::Owned(bytes.split_off(at)),
                };
                return Some((load.vaddr + at as u64, table));
            }
            at += 8;
        }
    }
    None
}

fn looks_like_table(bytes: &[u8]) -> bool {
    bytes.get(1..8).is_some_and(|b| b == [0xff, 0xff, 0xff, 0, 0, 1, 8])
        && PclnTable::parse(Cow::Borrowed(bytes), 0).is_some()
}

/// `runtime.firstmoduledata`: its address, and the start of the text that it tells.
fn find_module_data<S: ByteSource + ?Sized>(
    elf: &Elf<'_, S>,
    words: &Words<'_, '_, S>,
    table_vaddr: u64,
) -> Option<(u64, u64)> {
    let check = |module: u64| {
        let word = |offset: u64| words.word(module.wrapping_add(offset));
        let (low, high) = (word(MODULE_TEXT - 16)?, word(MODULE_TEXT - 8)?);
        let (text, end) = (word(MODULE_TEXT)?, word(MODULE_TEXT + 8)?);
        (word(0)? == table_vaddr
            && text <= low
            && low < high
            && high <= end
            && elf.segments.is_executable(text)
            && elf.segments.is_executable(end.wrapping_sub(1)))
        .then_some((module, text))
    };
    if let Some(section) = elf.section(".go.module")
        && let Some(found) = check(section.vaddr)
    {
        return Some(found);
    }
    words.pointers_to(table_vaddr).into_iter().find_map(check)
}

fn text_start<S: ByteSource + ?Sized>(elf: &Elf<'_, S>, table: &[u8]) -> Option<u64> {
    let by_header = PclnTable::header_text_start(table);
    if by_header != 0 {
        return Some(by_header);
    }
    let mut by_symbol = None;
    elf.for_each_symbol(|symbol| {
        if symbol.name == b"runtime.text" {
            by_symbol = Some(symbol.vaddr);
        }
        by_symbol.is_none()
    });
    by_symbol
}

/// `moduledata.gofunc` moved with Go's versions: takes the candidate whose inline trees fit.
fn choose_inline_trees<'s, S: ByteSource + ?Sized>(elf: &Elf<'s, S>, found: &mut Found<'s>) {
    let mut best: Option<(u32, Cow<'s, [u8]>)> = None;
    for vaddr in &found.inline_trees_at {
        // In executables the line table follows in the same segment, and is far larger.
        let bytes = match found.table_vaddr.checked_sub(*vaddr) {
            Some(length) => elf.bytes_at(*vaddr, length).or_else(|| elf.bytes_from(*vaddr)),
            None => elf.bytes_from(*vaddr),
        };
        let Some(bytes) = bytes else { continue };
        found.table.set_inline_trees(bytes);
        let (right, wrong) = found.table.check_inline_trees();
        let bytes = found.table.take_inline_trees();
        if wrong == 0 && best.as_ref().is_none_or(|(most, _)| right > *most) {
            best = bytes.map(|bytes| (right, bytes));
        }
    }
    found.table.set_inline_trees(best.map_or(Cow::Borrowed(&[]), |(_, bytes)| bytes));
}
