//! Cuts DWARF out of a relocatable BPF object (the sections `.debug_*` and their relocations), and
//! the hash of the crate out of its symbols' names: cargo derives it from the directory.
//! Only for what bpf-linker writes: ELF64, little endian, section headers, no program headers,
//! one table for all names.

use anyhow::{Context, Result, ensure};

const HEADER_SIZE: usize = 64;
const SECTION_SIZE: usize = 64;
const SYMBOL_SIZE: usize = 24;
const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const SHT_NOBITS: u32 = 8;
const SHT_REL: u32 = 9;
const SHN_LORESERVE: u16 = 0xff00;

struct Section {
    header: [u8; SECTION_SIZE],
    content: Vec<u8>,
    /// Its number in the new object, if it stays.
    number: Option<u16>,
}

impl Section {
    fn kind(&self) -> Result<u32> {
        u32_at(&self.header, 4)
    }
}

/// The same object without DWARF and without what differs from directory to directory.
pub fn canonical(object: &[u8]) -> Result<Vec<u8>> {
    ensure!(object.starts_with(b"\x7fELF\x02\x01"), "not a little-endian ELF64 object");
    let sections_at = usize_at(object, 0x28)?;
    let count = usize::from(u16_at(object, 0x3c)?);
    let names = usize::from(u16_at(object, 0x3e)?);
    let mut sections = Vec::with_capacity(count);
    for number in 0..count {
        sections.push(read_section(object, sections_at + number * SECTION_SIZE)?);
    }
    let names = sections.get(names).context("no section names")?.content.clone();
    let mut kept = 0;
    for section in &mut sections {
        let name = name_at(&names, u32_at(&section.header, 0)? as usize)?;
        let is_dwarf = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
        if !is_dwarf {
            section.number = Some(kept);
            kept += 1;
        }
    }
    let numbers: Vec<Option<u16>> = sections.iter().map(|section| section.number).collect();
    let renumbered = |old: u32| numbers.get(old as usize).copied().flatten().unwrap_or(0);
    let mut new_names = Names::default();
    let names_number = usize::from(u16_at(object, 0x3e)?);
    let mut out = object.get(..HEADER_SIZE).context("no ELF header")?.to_vec();
    let mut headers = Vec::new();
    rename(&mut sections, names_number, &names, &mut new_names)?;
    for section in sections.iter_mut().filter(|section| section.number.is_some()) {
        let kind = section.kind()?;
        let link = renumbered(u32_at(&section.header, 0x28)?);
        put(&mut section.header, 0x28, &u32::from(link).to_le_bytes());
        if kind == SHT_REL || kind == SHT_RELA {
            let of = renumbered(u32_at(&section.header, 0x2c)?);
            put(&mut section.header, 0x2c, &u32::from(of).to_le_bytes());
        }
        if kind == SHT_SYMTAB {
            for symbol in section.content.chunks_exact_mut(SYMBOL_SIZE) {
                let of = u16_at(symbol, 6)?;
                if of < SHN_LORESERVE {
                    put(symbol, 6, &renumbered(of.into()).to_le_bytes());
                }
            }
        }
        let alignment = usize_at(&section.header, 0x30)?.max(1);
        out.resize(out.len().next_multiple_of(alignment), 0);
        put(&mut section.header, 0x18, &(out.len() as u64).to_le_bytes());
        out.extend_from_slice(&section.content);
        headers.extend_from_slice(&section.header);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let headers_at = out.len() as u64;
    let names = renumbered(names_number as u32);
    put(&mut out, 0x28, &headers_at.to_le_bytes());
    put(&mut out, 0x3c, &kept.to_le_bytes());
    put(&mut out, 0x3e, &names.to_le_bytes());
    out.extend_from_slice(&headers);
    Ok(out)
}

/// A table of names in the making; the empty one comes first.
struct Names(Vec<u8>);

impl Default for Names {
    fn default() -> Self {
        Self(vec![0])
    }
}

impl Names {
    fn add(&mut self, name: &[u8]) -> [u8; 4] {
        if name.is_empty() {
            return [0; 4];
        }
        let at = self.0.len() as u32;
        self.0.extend_from_slice(name);
        self.0.push(0);
        at.to_le_bytes()
    }
}

/// Gives the sections that stay, and all symbols, names in a table of their own.
fn rename(sections: &mut [Section], table: usize, old: &[u8], new: &mut Names) -> Result<()> {
    for section in sections.iter_mut().filter(|section| section.number.is_some()) {
        let name = new.add(name_at(old, u32_at(&section.header, 0)? as usize)?);
        put(&mut section.header, 0, &name);
        if section.kind()? == SHT_SYMTAB {
            ensure!(usize_of(&section.header, 0x28)? == table, "symbols have names of their own");
            for symbol in section.content.chunks_exact_mut(SYMBOL_SIZE) {
                let name = name_at(old, u32_at(symbol, 0)? as usize)?;
                let name = new.add(&without_crate_hash(name));
                put(symbol, 0, &name);
            }
        }
    }
    let table = sections.get_mut(table).context("no section names")?;
    table.content = std::mem::take(&mut new.0);
    put(&mut table.header, 0x20, &(table.content.len() as u64).to_le_bytes());
    Ok(())
}

/// `_RNvNtCs1a2B_13memtrace_ebpf6unwind4step` → `_RNvNtC13memtrace_ebpf6unwind4step`
fn without_crate_hash(name: &[u8]) -> Vec<u8> {
    let plain = || name.to_vec();
    if !name.starts_with(b"_R") {
        return plain();
    }
    let Some(start) = name.windows(2).position(|pair| pair == b"Cs") else { return plain() };
    let Some(end) = name[start..].iter().position(|byte| *byte == b'_') else { return plain() };
    [&name[..=start], &name[start + end + 1..]].concat()
}

fn read_section(object: &[u8], at: usize) -> Result<Section> {
    let header = object.get(at..at + SECTION_SIZE).context("a section header is cut off")?;
    let header: [u8; SECTION_SIZE] = header.try_into()?;
    let (start, size) = (usize_at(&header, 0x18)?, usize_at(&header, 0x20)?);
    let content = match u32_at(&header, 4)? {
        SHT_NOBITS => Vec::new(),
        _ => object.get(start..start + size).context("a section is cut off")?.to_vec(),
    };
    Ok(Section { header, content, number: None })
}

fn name_at(names: &[u8], at: usize) -> Result<&[u8]> {
    let name = names.get(at..).context("a section's name is out of range")?;
    Ok(name.split(|byte| *byte == 0).next().unwrap_or_default())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let field = bytes.get(at..at + 2).context("cut off")?;
    Ok(u16::from_le_bytes(field.try_into()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let field = bytes.get(at..at + 4).context("cut off")?;
    Ok(u32::from_le_bytes(field.try_into()?))
}

fn usize_of(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(u32_at(bytes, at)? as usize)
}

fn usize_at(bytes: &[u8], at: usize) -> Result<usize> {
    let field = bytes.get(at..at + 8).context("cut off")?;
    Ok(u64::from_le_bytes(field.try_into()?).try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(canonical(b"").is_err());
        assert!(canonical(b"\x7fELF\x02\x01").is_err());
    }

    #[test]
    fn a_symbol_keeps_its_name_without_the_crates_hash() {
        let mangled = b"_RNvNtCsd4AU81R31CI_13memtrace_ebpf6unwind4step";
        assert_eq!(without_crate_hash(mangled), b"_RNvNtC13memtrace_ebpf6unwind4step");
        assert_eq!(without_crate_hash(b"call_entry"), b"call_entry");
        assert_eq!(without_crate_hash(b"_RNvNtCs"), b"_RNvNtCs");
    }

    #[test]
    fn the_committed_object_has_no_dwarf_and_stays_as_it_is() {
        let object = include_bytes!("../../../memtrace/src/kernel/memtrace.bpf.o");
        assert_eq!(canonical(object).unwrap(), object);
    }
}
