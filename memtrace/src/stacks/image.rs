//! A private copy of what names an object: its symbols and its debug information, nothing else.
//!
//! The symbolizer maps the files that it reads and follows the links in them. A file of the tracee
//! may be truncated meanwhile (SIGBUS), link to a FIFO or to a file outside its root, or inflate
//! to any size. So it gets an ELF object of our own in a `memfd` instead: sections copied with
//! `pread`, inflated within a limit, links left out, symbols and debug information of a separate
//! debug file put in the place of the object's. Costs the size of these sections in memory, until
//! dropped.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::elf::{ByteSource, Elf, SHT_DYNSYM, SHT_SYMTAB, Section};

const SHT_PROGBITS: u32 = 1;
const SHT_STRTAB: u32 = 3;
/// Sections of debug information that names and lines are read from.
const DEBUG_SECTIONS: [&str; 11] = [
    ".debug_info",
    ".debug_abbrev",
    ".debug_line",
    ".debug_line_str",
    ".debug_str",
    ".debug_str_offsets",
    ".debug_addr",
    ".debug_aranges",
    ".debug_ranges",
    ".debug_rnglists",
    ".debug_types",
];

/// The copy. Its path stays valid as long as it lives, in this process.
#[derive(Debug)]
pub(crate) struct SymbolImage {
    file: File,
    pub(crate) has_debug_info: bool,
    /// Bytes of debug information left out because they are more than the limit.
    pub(crate) debug_bytes_left_out: u64,
    pub(crate) size_bytes: u64,
}

impl SymbolImage {
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Copies from `object`, and from its separate debug file where there is one.
    pub(crate) fn build<S: ByteSource + ?Sized>(
        object: &Elf<'_, S>,
        debug: Option<&Elf<'_, S>>,
        max_debug_bytes: u64,
    ) -> io::Result<Self> {
        let mut sections: Vec<(&str, u32, Cow<'_, [u8]>)> = Vec::new();
        let mut take = |elf: &Elf<'_, S>, kind: u32, table: &'static str, names: &'static str| {
            let section = elf.sections.iter().find(|s| s.kind == kind)?;
            let strings = elf.sections.get(section.link as usize)?;
            let bytes = elf.section_bytes(section)?.into_owned();
            let strings = elf.section_bytes(strings)?.into_owned();
            sections.push((table, kind, Cow::Owned(bytes)));
            sections.push((names, SHT_STRTAB, Cow::Owned(strings)));
            Some(())
        };
        debug
            .and_then(|debug| take(debug, SHT_SYMTAB, ".symtab", ".strtab"))
            .or_else(|| take(object, SHT_SYMTAB, ".symtab", ".strtab"));
        take(object, SHT_DYNSYM, ".dynsym", ".dynstr");

        let with_info = [debug, Some(object)]
            .into_iter()
            .flatten()
            .find(|elf| elf.section(".debug_info").is_some());
        let mut debug_bytes_left_out = 0;
        let mut has_debug_info = false;
        if let Some(elf) = with_info {
            let wanted: Vec<&Section> =
                DEBUG_SECTIONS.iter().filter_map(|name| elf.section(name)).collect();
            let sizes = wanted.iter().map(|section| elf.contents_size(section));
            let total = sizes.fold(0, u64::saturating_add);
            if total > max_debug_bytes {
                debug_bytes_left_out = total;
            } else {
                for section in wanted {
                    if let Some(bytes) = elf.section_contents(section) {
                        has_debug_info |= section.name == ".debug_info";
                        let name = DEBUG_SECTIONS.iter().find(|name| **name == section.name);
                        sections.push((name.unwrap_or(&""), SHT_PROGBITS, bytes));
                    }
                }
            }
        }
        let mut file = File::from(memfd_create(c"memtrace-symbols", MFdFlags::MFD_CLOEXEC)?);
        let size_bytes = write_elf(object, &sections, &mut file)?;
        Ok(Self { file, has_debug_info, debug_bytes_left_out, size_bytes })
    }
}

/// Writes an ELF object with these sections and the program headers of `object`.
///
/// A symbol table's names must follow it.
fn write_elf<S: ByteSource + ?Sized>(
    object: &Elf<'_, S>,
    sections: &[(&str, u32, Cow<'_, [u8]>)],
    file: &mut File,
) -> io::Result<u64> {
    const ALIGNMENT: usize = 16;
    let pad = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);

    let mut names = vec![0u8];
    let mut name_offsets = Vec::new();
    for name in sections.iter().map(|(name, ..)| *name).chain([".shstrtab"]) {
        name_offsets.push(names.len() as u32);
        names.extend(name.as_bytes());
        names.push(0);
    }
    let names = (".shstrtab", SHT_STRTAB, Cow::Owned(names));
    let sections: Vec<_> = sections.iter().chain([&names]).zip(name_offsets).collect();

    let mut front = vec![0u8; 64];
    for load in &object.segments.loads {
        let flags: u32 = if load.executable { 5 } else { 4 };
        front.extend(1u32.to_le_bytes());
        front.extend(flags.to_le_bytes());
        let words = [load.offset, load.vaddr, load.vaddr, load.file_size, load.memory_size, 4096];
        front.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    pad(&mut front);

    let mut headers = vec![0u8; 64];
    let mut at = front.len() as u64;
    for (index, ((_, kind, bytes), name_offset)) in (1u32..).zip(&sections) {
        let is_symbols = *kind == SHT_SYMTAB || *kind == SHT_DYNSYM;
        headers.extend(name_offset.to_le_bytes());
        headers.extend(kind.to_le_bytes());
        headers.extend([0, 0, at, bytes.len() as u64].iter().flat_map(|w: &u64| w.to_le_bytes()));
        headers.extend(if is_symbols { index + 1 } else { 0 }.to_le_bytes());
        headers.extend(0u32.to_le_bytes());
        headers.extend((ALIGNMENT as u64).to_le_bytes());
        headers.extend(if is_symbols { 24u64 } else { 0 }.to_le_bytes());
        at += bytes.len().next_multiple_of(ALIGNMENT) as u64;
    }

    let kind: u16 = if object.is_dynamic { 3 } else { 2 };
    front[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    front[16..18].copy_from_slice(&kind.to_le_bytes());
    front[18..20].copy_from_slice(&62u16.to_le_bytes());
    front[20..24].copy_from_slice(&1u32.to_le_bytes());
    front[24..32].copy_from_slice(&object.entry.to_le_bytes());
    front[32..40].copy_from_slice(&64u64.to_le_bytes());
    front[40..48].copy_from_slice(&at.to_le_bytes());
    let halves = [64, 56, object.segments.loads.len(), 64, sections.len() + 1, sections.len()];
    for (half, place) in halves.iter().zip(front[52..64].chunks_exact_mut(2)) {
        place.copy_from_slice(&(*half as u16).to_le_bytes());
    }
    file.write_all(&front)?;
    for ((_, _, bytes), _) in &sections {
        file.write_all(bytes)?;
        file.write_all(&[0; ALIGNMENT][..bytes.len().wrapping_neg() % ALIGNMENT])?;
    }
    file.write_all(&headers)?;
    Ok(at + headers.len() as u64)
}
