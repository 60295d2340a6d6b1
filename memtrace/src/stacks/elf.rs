//! Just enough of ELF to find unwind tables, symbols and Go's tables in an object of the tracee.
//!
//! The bytes are hostile: every offset is checked, every count bounded, nothing is trusted to be
//! sorted, and a missing or lying section header table only costs what it described. Only 64-bit
//! little-endian x86-64 objects are read. Files are read with `pread`, never mapped: a file that
//! the tracee truncates meanwhile is an error here, not a SIGBUS.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use crate::snapshot::ObjectMapping;

/// Most program or section headers read.
const MAX_HEADERS: u64 = 16_384;
/// Most bytes of one symbol table, string table or section.
pub const MAX_SECTION_BYTES: u64 = 1 << 30;
/// Most bytes that a compressed section may inflate to.
const MAX_INFLATED_BYTES: u64 = 256 << 20;

const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const SHT_NOBITS: u32 = 8;
pub const SHT_SYMTAB: u32 = 2;
pub const SHT_RELA: u32 = 4;
pub const SHT_DYNSYM: u32 = 11;
pub const SHF_COMPRESSED: u64 = 0x800;
const ELFCOMPRESS_ZLIB: u32 = 1;
const ELFCOMPRESS_ZSTD: u32 = 2;

/// Why an object could not be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    #[error("failed to read the ELF header: the object is shorter than 64 bytes")]
    TooShort,
    #[error("not an ELF object: it does not start with the ELF magic")]
    NotElf,
    #[error("unsupported ELF object: only 64-bit little-endian x86-64 is read")]
    Unsupported,
    #[error("the ELF object has no loadable segment")]
    NoSegments,
}

/// Where the bytes of an object come from: a slice, or a file read piece by piece.
pub trait ByteSource {
    fn length(&self) -> u64;
    /// `None` when any part of the range lies outside, or could not be read.
    fn read(&self, offset: u64, length: u64) -> Option<Cow<'_, [u8]>>;
}

impl ByteSource for [u8] {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, length: u64) -> Option<Cow<'_, [u8]>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.get(start..end).map(Cow::Borrowed)
    }
}

/// An object read from an open file.
pub struct FileSource<'f> {
    file: &'f File,
    length: u64,
}

impl<'f> FileSource<'f> {
    /// Fails when the file is not a regular one: reading a FIFO would wait for the tracee.
    pub fn new(file: &'f File) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(Self { file, length: meta.len() })
    }
}

impl ByteSource for FileSource<'_> {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&self, offset: u64, length: u64) -> Option<Cow<'_, [u8]>> {
        if offset.checked_add(length)? > self.length || length > MAX_SECTION_BYTES {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(Cow::Owned(bytes))
    }
}

/// One `PT_LOAD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub vaddr: u64,
    pub offset: u64,
    pub file_size: u64,
    pub memory_size: u64,
    pub executable: bool,
    pub writable: bool,
}

/// The loadable segments of an object: all that is needed to place it in an address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElfSegments {
    pub loads: Vec<Segment>,
}

impl ElfSegments {
    /// The lowest `PT_LOAD` virtual address: row-pc 0.
    pub fn base_vaddr(&self) -> u64 {
        self.loads.iter().map(|load| load.vaddr).min().unwrap_or(0)
    }

    /// The difference between a runtime address and the object's own virtual address, modulo 2⁶⁴.
    ///
    /// From the segment that covers the mapping's file offset, not from the first mapping: an
    /// object's first mapping need not be there any more, and may not start at its first segment.
    pub fn load_bias(&self, mapping: &ObjectMapping) -> Option<u64> {
        let page = 4095;
        let covers = |load: &&Segment| {
            let start = load.offset & !page;
            let end = load.offset.saturating_add(load.file_size).saturating_add(page) & !page;
            (start..end).contains(&mapping.file_offset)
        };
        let load = self
            .loads
            .iter()
            .filter(|load| load.executable)
            .find(covers)
            .or_else(|| self.loads.iter().find(covers))?;
        let vaddr = load.vaddr.wrapping_sub(load.offset).wrapping_add(mapping.file_offset);
        Some(mapping.start.wrapping_sub(vaddr))
    }

    pub fn is_executable(&self, vaddr: u64) -> bool {
        self.loads
            .iter()
            .any(|load| load.executable && vaddr.wrapping_sub(load.vaddr) < load.memory_size)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub name: String,
    pub kind: u32,
    pub flags: u64,
    pub vaddr: u64,
    pub offset: u64,
    pub size: u64,
    pub link: u32,
}

impl Section {
    pub fn has_bytes(&self) -> bool {
        self.kind != SHT_NOBITS && self.size > 0
    }
}

/// One defined function symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'n> {
    pub name: &'n [u8],
    pub vaddr: u64,
    pub size: u64,
}

/// A parsed object: headers only, contents are read on demand.
pub struct Elf<'s, S: ByteSource + ?Sized> {
    source: &'s S,
    pub segments: ElfSegments,
    pub sections: Vec<Section>,
    pub entry: u64,
    /// Shared object or position-independent executable: pointers in it are relocations.
    pub is_dynamic: bool,
    /// `PT_GNU_EH_FRAME`: virtual address and size of `.eh_frame_hdr`.
    pub eh_frame_hdr: Option<(u64, u64)>,
    notes: Vec<(u64, u64)>,
    dynamic: Option<(u64, u64)>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let Some(end) = at.checked_add(4) else { return 0 };
    bytes.get(at..end).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let Some(end) = at.checked_add(8) else { return 0 };
    bytes.get(at..end).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl<'s, S: ByteSource + ?Sized> Elf<'s, S> {
    pub fn parse(source: &'s S) -> Result<Self, ElfError> {
        let header = source.read(0, 64).ok_or(ElfError::TooShort)?;
        if !header.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        let little_64 = header[4] == 2 && header[5] == 1;
        if !little_64 || u16_at(&header, 18) != EM_X86_64 {
            return Err(ElfError::Unsupported);
        }
        let mut elf = Self {
            source,
            segments: ElfSegments { loads: Vec::new() },
            sections: Vec::new(),
            entry: u64_at(&header, 24),
            is_dynamic: u16_at(&header, 16) == ET_DYN,
            eh_frame_hdr: None,
            notes: Vec::new(),
            dynamic: None,
        };
        elf.read_program_headers(u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
        if elf.segments.loads.is_empty() {
            return Err(ElfError::NoSegments);
        }
        // A stripped-of-sections or lying table leaves `sections` empty.
        elf.sections = elf
            .read_section_headers(u64_at(&header, 40), u16_at(&header, 60), u16_at(&header, 62))
            .unwrap_or_default();
        Ok(elf)
    }

    fn read_program_headers(&mut self, offset: u64, entry_size: u16, count: u16) {
        let count = u64::from(count).min(MAX_HEADERS);
        if entry_size != 56 {
            return;
        }
        let Some(table) = self.source.read(offset, count * 56) else { return };
        for header in table.chunks_exact(56) {
            let (vaddr, file_size) = (u64_at(header, 16), u64_at(header, 32));
            match u32_at(header, 0) {
                PT_LOAD => self.segments.loads.push(Segment {
                    vaddr,
                    offset: u64_at(header, 8),
                    file_size,
                    memory_size: u64_at(header, 40),
                    executable: u32_at(header, 4) & PF_X != 0,
                    writable: u32_at(header, 4) & PF_W != 0,
                }),
                PT_GNU_EH_FRAME => self.eh_frame_hdr = Some((vaddr, file_size)),
                PT_DYNAMIC => self.dynamic = Some((u64_at(header, 8), file_size)),
                PT_NOTE => self.notes.push((u64_at(header, 8), file_size)),
                _ => {}
            }
        }
    }

    fn read_section_headers(&self, offset: u64, count: u16, names: u16) -> Option<Vec<Section>> {
        if offset == 0 {
            return None;
        }
        let count = u64::from(count).min(MAX_HEADERS);
        let table = self.source.read(offset, count * 64)?;
        let names_at = usize::from(names).checked_mul(64)?;
        let names_header = table.get(names_at..names_at.checked_add(64)?)?;
        let names_size = u64_at(names_header, 32).min(MAX_HEADERS * 256);
        let names = self.source.read(u64_at(names_header, 24), names_size)?;
        Some(
            table
                .chunks_exact(64)
                .map(|header| Section {
                    name: String::from_utf8_lossy(string_at(&names, u32_at(header, 0), 255))
                        .into_owned(),
                    kind: u32_at(header, 4),
                    flags: u64_at(header, 8),
                    vaddr: u64_at(header, 16),
                    offset: u64_at(header, 24),
                    size: u64_at(header, 32),
                    link: u32_at(header, 40),
                })
                .collect(),
        )
    }

    pub fn source(&self) -> &'s S {
        self.source
    }

    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name && section.has_bytes())
    }

    /// The section's bytes in the file, compressed where it is compressed.
    pub fn section_bytes(&self, section: &Section) -> Option<Cow<'s, [u8]>> {
        if !section.has_bytes() || section.size > MAX_SECTION_BYTES {
            return None;
        }
        self.source.read(section.offset, section.size)
    }

    /// The section's bytes, inflated (at most 256 MiB) where the section is compressed.
    pub fn section_contents(&self, section: &Section) -> Option<Cow<'s, [u8]>> {
        let bytes = self.section_bytes(section)?;
        if section.flags & SHF_COMPRESSED == 0 {
            return Some(bytes);
        }
        let (kind, size) = (u32_at(&bytes, 0), u64_at(&bytes, 8));
        let packed = bytes.get(24..)?;
        if size > MAX_INFLATED_BYTES {
            return None;
        }
        let mut inflated = Vec::new();
        let read = match kind {
            ELFCOMPRESS_ZLIB => {
                flate2::read::ZlibDecoder::new(packed).take(size).read_to_end(&mut inflated)
            }
            ELFCOMPRESS_ZSTD => zstd::stream::read::Decoder::new(packed)
                .and_then(|decoder| decoder.take(size).read_to_end(&mut inflated)),
            _ => return None,
        };
        (read.ok()? as u64 == size).then_some(Cow::Owned(inflated))
    }

    /// How many bytes [`Self::section_contents`] will give, as the section tells it.
    pub fn contents_size(&self, section: &Section) -> u64 {
        if section.flags & SHF_COMPRESSED == 0 {
            return section.size;
        }
        self.source.read(section.offset, 24).map_or(0, |header| u64_at(&header, 8))
    }

    /// File bytes at a virtual address.
    pub fn bytes_at(&self, vaddr: u64, length: u64) -> Option<Cow<'s, [u8]>> {
        let (load, inside) = self.segment_at(vaddr)?;
        if length > load.file_size - inside || length > MAX_SECTION_BYTES {
            return None;
        }
        self.source.read(load.offset.checked_add(inside)?, length)
    }

    /// File bytes from a virtual address to the end of its segment.
    pub fn bytes_from(&self, vaddr: u64) -> Option<Cow<'s, [u8]>> {
        let (load, inside) = self.segment_at(vaddr)?;
        self.bytes_at(vaddr, load.file_size - inside)
    }

    fn segment_at(&self, vaddr: u64) -> Option<(&Segment, u64)> {
        self.segments.loads.iter().find_map(|load| {
            let inside = vaddr.checked_sub(load.vaddr)?;
            (inside < load.file_size).then_some((load, inside))
        })
    }

    /// Calls `visit` with each defined symbol of `.symtab` and `.dynsym` that has an address in
    /// executable memory; stops when it returns false. Both tables may be absent.
    pub fn for_each_symbol(&self, mut visit: impl FnMut(Symbol<'_>) -> bool) {
        for section in &self.sections {
            if section.kind != SHT_SYMTAB && section.kind != SHT_DYNSYM {
                continue;
            }
            let names = self.sections.get(section.link as usize);
            let (Some(table), Some(names)) =
                (self.section_bytes(section), names.and_then(|s| self.section_bytes(s)))
            else {
                continue;
            };
            for entry in table.chunks_exact(24) {
                let (info, shndx, vaddr) = (entry[4], u16_at(entry, 6), u64_at(entry, 8));
                let kind = info & 15;
                if shndx == 0 || kind > 2 && kind != 10 || !self.segments.is_executable(vaddr) {
                    continue;
                }
                let name = string_at(&names, u32_at(entry, 0), 4096);
                if !visit(Symbol { name, vaddr, size: u64_at(entry, 16) }) {
                    return;
                }
            }
        }
    }

    /// The virtual address of a defined symbol of `.dynsym`, function or data.
    pub fn dynamic_symbol(&self, name: &[u8]) -> Option<u64> {
        let section = self.sections.iter().find(|section| section.kind == SHT_DYNSYM)?;
        let names = self.section_bytes(self.sections.get(section.link as usize)?)?;
        let table = self.section_bytes(section)?;
        let is_it = |entry: &&[u8]| {
            u16_at(entry, 6) != 0 && string_at(&names, u32_at(entry, 0), 4096) == name
        };
        table.chunks_exact(24).find(is_it).map(|entry| u64_at(entry, 8))
    }

    /// Where in the file the byte of a virtual address is.
    pub fn file_offset(&self, vaddr: u64) -> Option<u64> {
        let (load, inside) = self.segment_at(vaddr)?;
        load.offset.checked_add(inside)
    }

    /// The dynamic section: tags and values, up to its end.
    fn dynamic_entries(&self) -> Vec<(u64, u64)> {
        const DT_NULL: u64 = 0;
        let Some((offset, size)) = self.dynamic else { return Vec::new() };
        let Some(table) = self.source.read(offset, size.min(MAX_HEADERS * 16)) else {
            return Vec::new();
        };
        let entries = table.chunks_exact(16).map(|entry| (u64_at(entry, 0), u64_at(entry, 8)));
        entries.take_while(|(tag, _)| *tag != DT_NULL).collect()
    }

    /// The object's own name, and the names of the libraries that it needs.
    pub fn soname_and_needed(&self) -> (Option<String>, Vec<String>) {
        const DT_NEEDED: u64 = 1;
        const DT_STRTAB: u64 = 5;
        const DT_STRSZ: u64 = 10;
        const DT_SONAME: u64 = 14;
        const MAX_NAME_BYTES: usize = 4096;
        let entries = self.dynamic_entries();
        let value = |wanted| entries.iter().find(|(tag, _)| *tag == wanted).map(|entry| entry.1);
        let names = value(DT_STRTAB)
            .zip(value(DT_STRSZ))
            .and_then(|(vaddr, size)| self.bytes_at(vaddr, size.min(16 << 20)));
        let Some(names) = names else { return (None, Vec::new()) };
        let name = |at: u64| {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            String::from_utf8_lossy(string_at(&names, at, MAX_NAME_BYTES)).into_owned()
        };
        let needed = entries.iter().filter(|(tag, _)| *tag == DT_NEEDED);
        (value(DT_SONAME).map(name), needed.map(|entry| name(entry.1)).collect())
    }

    /// File offset and size of `DT_RELA`, for objects without section headers.
    pub fn dynamic_relocations(&self) -> Vec<(u64, u64)> {
        const DT_RELA: u64 = 7;
        const DT_RELASZ: u64 = 8;
        let table = self.dynamic_entries();
        let value = |wanted: u64| table.iter().find(|(tag, _)| *tag == wanted).map(|e| e.1);
        let (Some(vaddr), Some(size)) = (value(DT_RELA), value(DT_RELASZ)) else {
            return Vec::new();
        };
        self.segment_at(vaddr)
            .map(|(load, inside)| (load.offset.saturating_add(inside), size))
            .into_iter()
            .collect()
    }

    /// The build id note, lower-case hex, at most 64 bytes of it.
    pub fn build_id(&self) -> Option<String> {
        const NT_GNU_BUILD_ID: u32 = 3;
        self.find_note(b"GNU\0", NT_GNU_BUILD_ID)
            .map(|id| id.iter().take(64).map(|byte| format!("{byte:02x}")).collect())
    }

    /// The description of the first note of that owner and type.
    pub fn find_note(&self, owner: &[u8], kind: u32) -> Option<Vec<u8>> {
        const SHT_NOTE: u32 = 7;
        let sections = self.sections.iter().filter(|s| s.kind == SHT_NOTE);
        let places = self.notes.iter().copied().chain(sections.map(|s| (s.offset, s.size)));
        for (offset, size) in places {
            let Some(bytes) = self.source.read(offset, size.min(1 << 20)) else { continue };
            let mut rest = &bytes[..];
            while rest.len() >= 12 {
                let name_size = u32_at(rest, 0) as usize;
                let desc_size = u32_at(rest, 4) as usize;
                let name_end = 12usize.saturating_add(name_size);
                let desc_start = name_end.saturating_add(3) & !3;
                let desc_end = desc_start.saturating_add(desc_size);
                let (Some(name), Some(desc)) =
                    (rest.get(12..name_end), rest.get(desc_start..desc_end))
                else {
                    break;
                };
                if name == owner && u32_at(rest, 8) == kind {
                    return Some(desc.to_vec());
                }
                rest = rest.get(desc_end.saturating_add(3) & !3..).unwrap_or_default();
            }
        }
        None
    }

    /// Whether the Go toolchain linked it: text without unwind information then keeps frame
    /// pointers.
    pub fn is_go(&self) -> bool {
        const MARKS: [&str; 6] = [
            ".gopclntab",
            ".data.rel.ro.gopclntab",
            ".note.go.buildid",
            ".go.buildinfo",
            ".go.module",
            ".go.pclntab",
        ];
        const NT_GO_BUILD_ID: u32 = 4;
        self.sections.iter().any(|s| MARKS.contains(&s.name.as_str()))
            || self.find_note(b"Go\0\0", NT_GO_BUILD_ID).is_some()
            || (self.sections.is_empty() && self.data_holds_go_build_info())
    }

    /// The build info blob stands at the start of the data segment, 16-byte aligned.
    fn data_holds_go_build_info(&self) -> bool {
        self.segments.loads.iter().filter(|load| !load.executable).any(|load| {
            let length = load.file_size.min(1 << 20);
            self.source.read(load.offset, length).is_some_and(|bytes| {
                bytes.chunks_exact(16).any(|chunk| chunk.starts_with(b"\xff Go buildinf:"))
            })
        })
    }
}

/// A NUL-terminated string, cut at `limit` bytes.
pub(crate) fn string_at(table: &[u8], at: u32, limit: usize) -> &[u8] {
    let rest = table.get(at as usize..).unwrap_or_default();
    let rest = &rest[..rest.len().min(limit)];
    rest.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> ElfSegments {
        let load = |vaddr, offset, size, executable| Segment {
            vaddr,
            offset,
            file_size: size,
            memory_size: size,
            executable,
            writable: false,
        };
        ElfSegments {
            loads: vec![
                load(0x40_0000, 0, 0x1234, false),
                load(0x40_2240, 0x1240, 0x3000, true),
                load(0x40_6000, 0x5000, 0x100, false),
            ],
        }
    }

    #[test]
    fn load_bias_comes_from_the_segment_that_covers_the_file_offset() {
        let mapping =
            |start, file_offset| ObjectMapping { start, end: start + 0x1000, file_offset };
        // The text segment's page starts at file offset 0x1000, vaddr 0x402000.
        let bias = segments().load_bias(&mapping(0x7f00_0000_2000, 0x1000));
        assert_eq!(bias, Some(0x7f00_0000_2000 - 0x40_2000));
        // The middle of the text segment, as after mprotect split the mapping.
        assert_eq!(
            segments().load_bias(&mapping(0x40_4000, 0x3000)),
            Some(0),
            "a non-PIE executable has no bias"
        );
        assert_eq!(segments().load_bias(&mapping(0x1000, 0x9000)), None);
    }

    #[test]
    fn what_is_not_a_64_bit_x86_elf_is_refused_with_its_reason() {
        let refuse = |bytes: &[u8]| Elf::parse(bytes).err();
        assert_eq!(refuse(b"\x7fELF"), Some(ElfError::TooShort));
        assert_eq!(refuse(&[0; 64]), Some(ElfError::NotElf));
        let mut header = [0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x01\x01");
        assert_eq!(refuse(&header), Some(ElfError::Unsupported));
        header[4] = 2;
        header[18] = 62;
        assert_eq!(refuse(&header), Some(ElfError::NoSegments));
    }

    #[test]
    fn a_fifo_is_not_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(FileSource::new(&File::open(dir.path()).expect("a directory opens")).is_err());
    }
}
