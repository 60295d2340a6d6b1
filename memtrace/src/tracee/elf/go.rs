//! Whether a file is a Go program, of which version, and where its Go code lies.
//!
//! Go code must never get a return probe: the runtime moves and scans its stacks.

use object::elf;
use object::read::elf::{Rela, SectionHeader};

use super::{ElfFacts, Found, LE, Load, Object, relocations};

/// `\xff Go buildinf:`
const BUILD_INFO_MAGIC: &[u8] = b"\xff Go buildinf:";
/// How far into the data the magic is searched where no section tells its place.
const SEARCH_BYTES: u64 = 1 << 20;
const MAX_VERSION_BYTES: u64 = 256;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoFacts {
    /// e.g. "go1.27.3".
    pub version: Option<String>,
    /// Go's machine code, virtual addresses `[start, end)`; `None`: it cannot be told from C code.
    pub text: Option<(u64, u64)>,
    /// It has a function that maps memory by a system call of its own, apart from the runtime's.
    pub maps_memory: bool,
}

/// Symbols that bound Go's text.
pub(super) const TEXT_START: &str = "runtime.text";
pub(super) const TEXT_END: &str = "runtime.etext";

impl<'a> Object<'a, '_> {
    pub(super) fn go_facts(&self, facts: &ElfFacts, found: &Found) -> Option<GoFacts> {
        let info = self.build_info(&facts.loads);
        let is_go = info.is_some()
            || self.note(b"Go", 4).is_some()
            || [&b".gopclntab"[..], b".data.rel.ro.gopclntab"]
                .iter()
                .any(|n| self.section(n).is_some());
        if !is_go {
            return None;
        }
        let from_symbols = || {
            let start = *found.defined.get(TEXT_START)?;
            let end = *found.defined.get(TEXT_END)?;
            (start < end).then_some((start, end))
        };
        let text = from_symbols()
            .or_else(|| self.text_of_module_data())
            .or_else(|| self.text_of_line_table())
            .filter(|(start, end)| {
                let inside = |load: &Load| {
                    load.executable
                        && *start >= load.address
                        && end - load.address <= load.file_size
                };
                facts.loads.iter().any(inside)
            });
        let version = info.and_then(|info| self.version(info, &facts.loads));
        Some(GoFacts { version, text, maps_memory: self.maps_memory(&facts.loads) })
    }

    /// By the names of its functions, which also stripped files keep: the linker leaves out those
    /// that nothing calls.
    fn maps_memory(&self, loads: &[Load]) -> bool {
        const MAPPERS: [&[u8]; 3] = [
            b"\0syscall.mmap\0",
            b"\0golang.org/x/sys/unix.mmap\0",
            b"\0internal/syscall/unix.Mmap\0",
        ];
        let holds =
            |bytes: &[u8]| MAPPERS.iter().any(|name| memchr::memmem::find(bytes, name).is_some());
        match self.bytes_of(b".gopclntab").or_else(|| self.bytes_of(b".data.rel.ro.gopclntab")) {
            Some(table) => holds(table),
            // It lies somewhere in the data.
            None => loads
                .iter()
                .filter(|load| !load.executable)
                .filter_map(|load| self.read(load.file_offset, load.file_size))
                .any(holds),
        }
    }

    /// The build info with its header, from its section or from the start of the data.
    fn build_info(&self, loads: &[Load]) -> Option<&'a [u8]> {
        if let Some(data) = self.bytes_of(b".go.buildinfo")
            && data.starts_with(BUILD_INFO_MAGIC)
        {
            return Some(data);
        }
        let data = loads
            .iter()
            .filter(|load| load.writable)
            .find_map(|load| self.read(load.file_offset, load.file_size.min(SEARCH_BYTES)))?;
        // The linker aligns it to 16 bytes.
        let at =
            (0..data.len()).step_by(16).find(|at| data[*at..].starts_with(BUILD_INFO_MAGIC))?;
        Some(&data[at..])
    }

    /// Two formats: inline strings since Go 1.18 (flag 2), pointers to Go strings before.
    fn version(&self, info: &'a [u8], loads: &[Load]) -> Option<String> {
        let (pointer_size, flags) = (*info.get(14)?, *info.get(15)?);
        let bytes = if flags & 2 != 0 {
            let (length, start) = read_varint(info.get(32..)?)?;
            info.get(32 + start..)?.get(..usize::try_from(length.min(MAX_VERSION_BYTES)).ok()?)?
        } else if pointer_size == 8 && flags & 1 == 0 {
            let word = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?));
            let string = self.at(loads, word(info.get(16..)?)?, 16)?;
            let (data, length) = (word(string)?, word(string.get(8..)?)?);
            self.at(loads, data, length.min(MAX_VERSION_BYTES))?
        } else {
            return None;
        };
        let version = str::from_utf8(bytes).ok()?;
        (version.starts_with("go") || version.starts_with("devel")).then(|| version.to_owned())
    }

    /// The module data has a section of its own since Go 1.26. Layout up to there unchanged since
    /// Go 1.16: `runtime/symtab.go` (`moduledata`): a pointer, six slices, findfunctab, minpc,
    /// maxpc, text, etext.
    fn text_of_module_data(&self) -> Option<(u64, u64)> {
        const MINPC: u64 = 160;
        let section = self.section(b".go.module")?;
        let data = self.section_data(section)?;
        let words = [MINPC, MINPC + 8, MINPC + 16, MINPC + 24];
        let mut values = [0; 4];
        for (value, offset) in values.iter_mut().zip(words) {
            let at = usize::try_from(offset).ok()?;
            *value = u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?);
        }
        if values == [0; 4] {
            // Position independent: the values are addends of relocations.
            let base = section.sh_addr(LE);
            let addends = self.relative_addends(&words.map(|offset| base.wrapping_add(offset)));
            for (value, addend) in values.iter_mut().zip(addends) {
                *value = addend?;
            }
        }
        let [min_pc, max_pc, start, end] = values;
        (start < end && start <= min_pc && min_pc < max_pc && max_pc <= end).then_some((start, end))
    }

    /// The addends of the `R_X86_64_RELATIVE` relocations of some places.
    fn relative_addends<const N: usize>(&self, places: &[u64; N]) -> [Option<u64>; N] {
        let mut addends = [None; N];
        let tables =
            self.sections.iter().filter(|(section, _)| section.sh_type(LE) == elf::SHT_RELA);
        for bytes in tables.filter_map(|(section, _)| self.section_data(section)) {
            for entry in relocations(bytes) {
                if entry.r_type(LE, false) != elf::R_X86_64_RELATIVE {
                    continue;
                }
                if let Some(index) = places.iter().position(|place| *place == entry.r_offset(LE)) {
                    addends[index] = u64::try_from(entry.r_addend(LE)).ok();
                }
            }
        }
        addends
    }

    /// The line table's header carries the start of the text from Go 1.18 on (0 in position
    /// independent files, and again since 1.26), its function table the offset of the end.
    /// Layout: `internal/abi` and `runtime/symtab.go` (`pcHeader`), magic 0xfffffff0 and -1.
    fn text_of_line_table(&self) -> Option<(u64, u64)> {
        let data =
            self.bytes_of(b".gopclntab").or_else(|| self.bytes_of(b".data.rel.ro.gopclntab"))?;
        let word = |at: usize| Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?));
        let magic = u32::from_le_bytes(data.get(..4)?.try_into().ok()?);
        if !matches!(magic, 0xffff_fff0 | 0xffff_fff1) || data.get(7) != Some(&8) {
            return None;
        }
        let functions = usize::try_from(word(8)?).ok()?;
        let start = word(24)?;
        let table = usize::try_from(word(64)?).ok()?;
        if start == 0 {
            return None;
        }
        // (entry offset, data offset) pairs of 32 bits, closed by the end's offset.
        let last = table.checked_add(functions.checked_mul(8)?)?;
        let end = u32::from_le_bytes(data.get(last..last.checked_add(4)?)?.try_into().ok()?);
        let end = start.checked_add(u64::from(end))?;
        (start < end).then_some((start, end))
    }
}

fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_is_read_or_refused() {
        assert_eq!(read_varint(&[8]), Some((8, 1)));
        assert_eq!(read_varint(&[0x80, 1]), Some((128, 2)));
        assert_eq!(read_varint(&[0xff; 12]), None);
        assert_eq!(read_varint(&[]), None);
    }
}
