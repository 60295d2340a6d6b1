//! What an ELF file says of itself: build id, segments, functions by name, Go or not.
//!
//! The file is hostile: every read is bounded, every figure checked, nothing panics. Limits: x86-64
//! only; symbols need section headers (files without them have no symbols for memtrace); symbols
//! inside `.gnu_debugdata` are not read.

mod bounded;
mod debug_file;
mod go;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use object::elf;
use object::read::ReadRef;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Rela, SectionHeader, Sym};
use object::{LittleEndian, pod};

use bounded::{Bounded, Contents};
pub use debug_file::DebugFiles;
pub use go::GoFacts;

type Header = elf::FileHeader64<LittleEndian>;
type Section = elf::SectionHeader64<LittleEndian>;
type Symbol = elf::Sym64<LittleEndian>;

const LE: LittleEndian = LittleEndian;
/// Most code bytes kept of one function.
const MAX_CODE: u64 = 64 * 1024;
/// Code bytes kept of a function whose symbol has no size.
const CODE_WITHOUT_SIZE: u64 = 256;
/// Most names from `DT_NEEDED`.
const MAX_NEEDED: usize = 1024;
/// Most functions kept: many times what the catalogue names.
const MAX_FUNCTIONS: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    #[error("failed to read the file")]
    Read(#[from] io::Error),
    #[error("not an x86-64 ELF file: {0}")]
    NotElf(String),
    #[error("a damaged ELF file: {0}")]
    Damaged(String),
}

impl From<object::Error> for ElfError {
    fn from(error: object::Error) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// One `PT_LOAD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub address: u64,
    pub memory_size: u64,
    pub file_offset: u64,
    pub file_size: u64,
    pub executable: bool,
    pub writable: bool,
}

/// Where a symbol was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SymbolSource {
    Dynsym,
    Symtab,
    DebugFile,
}

/// A defined function of a wanted name. One per address, with all its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionSymbol {
    /// Without symbol versions, sorted.
    pub names: Vec<String>,
    pub address: u64,
    pub file_offset: u64,
    /// As the symbol says; 0 where it says nothing.
    pub size: u64,
    /// Its first bytes: the whole function up to 64 KiB.
    pub code: Vec<u8>,
    /// `STT_GNU_IFUNC`: this is the resolver, the function is chosen when the program starts.
    pub indirect: bool,
    /// Every one of its symbols is local to the object.
    pub local: bool,
    pub source: SymbolSource,
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ElfFacts {
    /// Lower-case hex.
    pub build_id: Option<String>,
    /// `ET_DYN`: addresses are relative to where it is loaded.
    pub position_independent: bool,
    pub entry: u64,
    /// `PT_INTERP`.
    pub interpreter: Option<String>,
    pub soname: Option<String>,
    pub needed: Vec<String>,
    pub loads: Vec<Load>,
    pub go: Option<GoFacts>,
    /// Functions of wanted names, by address.
    pub functions: Vec<FunctionSymbol>,
    /// Every wanted name the object defines, functions and data, sorted.
    pub defined: Vec<String>,
    /// Stubs of the procedure linkage table and the wanted function each leads to.
    pub plt: BTreeMap<u64, String>,
    /// The slots those stubs jump through, by address.
    pub slots: BTreeMap<u64, String>,
    /// Its own `.symtab`, or that of a separate debug file, was read.
    pub has_full_symbols: bool,
    /// Where the separate debug file was found.
    pub debug_file: Option<String>,
    /// Symbols, or the table they were in, that made no sense and were left out.
    pub damaged_symbols: u64,
}

impl ElfFacts {
    /// The file offset of a virtual address, where the file has it.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let load = self.loads.iter().find(|load| load.holds(address))?;
        load.file_offset.checked_add(address - load.address)
    }
}

impl Load {
    fn holds(&self, address: u64) -> bool {
        address >= self.address && address - self.address < self.file_size
    }
}

/// Reads a file's facts. `wanted` says which symbol names matter; `debug_files` finds the symbols
/// of files that were stripped of theirs.
pub fn read(
    file: &File,
    wanted: &dyn Fn(&str) -> bool,
    debug_files: &DebugFiles<'_>,
) -> Result<ElfFacts, ElfError> {
    let contents = Contents::of(file)?;
    let object = Object::parse(contents.bounded())?;
    let mut facts = object.basic_facts()?;
    let mut found = Found::default();
    object.collect_symbols(elf::SHT_DYNSYM, SymbolSource::Dynsym, wanted, &mut found);
    facts.has_full_symbols =
        object.collect_symbols(elf::SHT_SYMTAB, SymbolSource::Symtab, wanted, &mut found);
    facts.slots = object.slots(wanted);
    facts.plt = object.plt(&facts.slots);
    if !facts.has_full_symbols {
        let link = object.debug_link();
        if let Some(debug) = debug_files.find(facts.build_id.as_deref(), link.as_ref()) {
            let contents = Contents::of(&debug.file)?;
            // A debug file that makes no sense is as good as none.
            if let Ok(separate) = Object::parse(contents.bounded()) {
                let source = SymbolSource::DebugFile;
                facts.has_full_symbols =
                    separate.collect_symbols(elf::SHT_SYMTAB, source, wanted, &mut found);
                facts.debug_file = Some(debug.path);
            }
        }
    }
    facts.damaged_symbols = found.damaged;
    facts.go = object.go_facts(&facts, &found);
    facts.defined = found.defined.into_keys().collect();
    facts.functions = object.functions(&facts, found.functions);
    Ok(facts)
}

/// The build id of a file, and nothing else.
pub fn read_build_id(file: &File) -> Result<Option<String>, ElfError> {
    let contents = Contents::of(file)?;
    Ok(Object::parse(contents.bounded())?.build_id())
}

/// The segments of a file, and the addresses of these symbols of it, functions or data.
pub fn addresses(
    file: &File,
    names: &[&str],
    debug_files: &DebugFiles<'_>,
) -> Result<(Vec<Load>, BTreeMap<String, u64>), ElfError> {
    let contents = Contents::of(file)?;
    let object = Object::parse(contents.bounded())?;
    let facts = object.basic_facts()?;
    let wanted = |name: &str| names.contains(&name);
    let mut found = Found::default();
    object.collect_symbols(elf::SHT_DYNSYM, SymbolSource::Dynsym, &wanted, &mut found);
    if !object.collect_symbols(elf::SHT_SYMTAB, SymbolSource::Symtab, &wanted, &mut found)
        && let Some(debug) =
            debug_files.find(facts.build_id.as_deref(), object.debug_link().as_ref())
        && let Ok(separate) = Object::parse(Contents::of(&debug.file)?.bounded())
    {
        let source = SymbolSource::DebugFile;
        separate.collect_symbols(elf::SHT_SYMTAB, source, &wanted, &mut found);
    }
    Ok((facts.loads, found.defined))
}

/// Symbols on their way to becoming [`FunctionSymbol`]s.
#[derive(Default)]
struct Found {
    functions: BTreeMap<u64, FunctionSymbol>,
    /// Name to address, functions and data.
    defined: BTreeMap<String, u64>,
    damaged: u64,
}

/// A parsed header with its tables.
struct Object<'a, 'f> {
    data: Bounded<'a, 'f>,
    header: &'a Header,
    segments: &'a [elf::ProgramHeader64<LittleEndian>],
    sections: Vec<(&'a Section, &'a [u8])>,
}

impl<'a, 'f> Object<'a, 'f> {
    fn parse(data: Bounded<'a, 'f>) -> Result<Self, ElfError> {
        let header = Header::parse(data).map_err(|error| ElfError::NotElf(error.to_string()))?;
        if !header.is_little_endian() || header.e_machine(LE) != elf::EM_X86_64 {
            return Err(ElfError::NotElf(format!("machine {}", header.e_machine(LE))));
        }
        let segments = header.program_headers(LE, data)?;
        // Section headers are optional for a program that runs; broken ones count as none.
        let sections = header.sections(LE, data).map(|table| {
            let named =
                |section: &'a Section| (section, table.section_name(LE, section).unwrap_or(b""));
            table.iter().map(named).collect()
        });
        Ok(Self { data, header, segments, sections: sections.unwrap_or_default() })
    }

    fn section(&self, name: &[u8]) -> Option<&'a Section> {
        self.sections.iter().find(|(_, other)| *other == name).map(|(section, _)| *section)
    }

    fn section_data(&self, section: &Section) -> Option<&'a [u8]> {
        section.data(LE, self.data).ok()
    }

    /// The bytes of a section by name.
    fn bytes_of(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.section_data(self.section(name)?)
    }

    fn basic_facts(&self) -> Result<ElfFacts, ElfError> {
        let mut facts = ElfFacts {
            build_id: self.build_id(),
            position_independent: self.header.e_type(LE) == elf::ET_DYN,
            entry: self.header.e_entry(LE),
            ..ElfFacts::default()
        };
        for segment in self.segments {
            match segment.p_type(LE) {
                elf::PT_LOAD => facts.loads.push(Load {
                    address: segment.p_vaddr(LE),
                    memory_size: segment.p_memsz(LE),
                    file_offset: segment.p_offset(LE),
                    file_size: segment.p_filesz(LE),
                    executable: segment.p_flags(LE) & elf::PF_X != 0,
                    writable: segment.p_flags(LE) & elf::PF_W != 0,
                }),
                elf::PT_INTERP => {
                    facts.interpreter =
                        self.read(segment.p_offset(LE), segment.p_filesz(LE).min(4096)).map(text);
                }
                _ => {}
            }
        }
        self.dynamic_facts(&mut facts);
        Ok(facts)
    }

    fn read(&self, offset: u64, size: u64) -> Option<&'a [u8]> {
        self.data.read_bytes_at(offset, size).ok()
    }

    /// Bytes at a virtual address, at most `size` of them.
    fn at(&self, loads: &[Load], address: u64, size: u64) -> Option<&'a [u8]> {
        let load = loads.iter().find(|load| load.holds(address))?;
        let into = address - load.address;
        self.read(load.file_offset.checked_add(into)?, size.min(load.file_size - into))
    }

    fn dynamic_facts(&self, facts: &mut ElfFacts) {
        let dynamic = self.segments.iter().find(|s| s.p_type(LE) == elf::PT_DYNAMIC);
        let Some(entries) = dynamic.and_then(|s| s.dynamic(LE, self.data).ok().flatten()) else {
            return;
        };
        let value = |tag| entries.iter().find(|e| e.tag(LE) == tag).map(|e| e.val(LE));
        let Some(strings) = value(elf::DT_STRTAB) else { return };
        let size = value(elf::DT_STRSZ).unwrap_or(0);
        let table = self.at(&facts.loads, strings, size).unwrap_or(&[]);
        let name = |offset: u64| {
            table.get(usize::try_from(offset).ok()?..).map(text).filter(|name| !name.is_empty())
        };
        for entry in entries {
            match entry.tag(LE) {
                elf::DT_NULL => break,
                elf::DT_SONAME => facts.soname = name(entry.val(LE)),
                elf::DT_NEEDED if facts.needed.len() < MAX_NEEDED => {
                    facts.needed.extend(name(entry.val(LE)));
                }
                _ => {}
            }
        }
    }

    fn build_id(&self) -> Option<String> {
        let id = self.gnu_note(elf::NT_GNU_BUILD_ID)?;
        (!id.is_empty() && id.len() <= 64)
            .then(|| id.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn gnu_note(&self, kind: u32) -> Option<&'a [u8]> {
        self.note(b"GNU", kind)
    }

    fn note(&self, name: &[u8], kind: u32) -> Option<&'a [u8]> {
        for segment in self.segments {
            let Ok(Some(mut notes)) = segment.notes(LE, self.data) else { continue };
            while let Ok(Some(note)) = notes.next() {
                if note.name() == name && note.n_type(LE) == kind {
                    return Some(note.desc());
                }
            }
        }
        None
    }

    /// Puts the wanted symbols of a table into `found`; false where there is no such table.
    fn collect_symbols(
        &self,
        kind: u32,
        source: SymbolSource,
        wanted: &dyn Fn(&str) -> bool,
        found: &mut Found,
    ) -> bool {
        let Some((table, _)) = self.sections.iter().find(|(s, _)| s.sh_type(LE) == kind) else {
            return false;
        };
        let Some((symbols, strings)) = self.symbol_table(table) else {
            found.damaged += 1;
            return false;
        };
        for symbol in symbols {
            let kind = symbol.st_type();
            if symbol.st_shndx(LE) == elf::SHN_UNDEF
                || matches!(kind, elf::STT_SECTION | elf::STT_FILE | elf::STT_TLS)
            {
                continue;
            }
            let Some(name) = symbol_name(strings, symbol.st_name(LE)) else {
                found.damaged += 1;
                continue;
            };
            if !wanted(name) && name != go::TEXT_START && name != go::TEXT_END {
                continue;
            }
            let address = symbol.st_value(LE);
            let local = symbol.st_bind() == elf::STB_LOCAL;
            if !local || !found.defined.contains_key(name) {
                found.defined.insert(name.to_owned(), address);
            }
            let indirect = kind == elf::STT_GNU_IFUNC;
            if kind != elf::STT_FUNC && !indirect {
                continue;
            }
            if found.functions.len() >= MAX_FUNCTIONS && !found.functions.contains_key(&address) {
                found.damaged += 1;
                continue;
            }
            let function = found.functions.entry(address).or_insert_with(|| FunctionSymbol {
                names: Vec::new(),
                address,
                file_offset: 0,
                size: 0,
                code: Vec::new(),
                indirect,
                local: true,
                source,
            });
            if !function.names.iter().any(|known| known == name) && function.names.len() < 64 {
                function.names.push(name.to_owned());
            }
            function.size = function.size.max(symbol.st_size(LE));
            function.local &= local;
        }
        true
    }

    fn symbol_table(&self, table: &Section) -> Option<(&'a [Symbol], &'a [u8])> {
        let (symbols, _) = {
            let bytes = self.section_data(table)?;
            let whole = bytes.len() / size_of::<Symbol>();
            pod::slice_from_bytes::<Symbol>(bytes, whole).ok()?
        };
        let (strings, _) = self.sections.get(usize::try_from(table.sh_link(LE)).ok()?)?;
        Some((symbols, self.section_data(strings)?))
    }

    /// Turns what was found into functions with file offsets and code. Addresses outside the
    /// executable part of the file are dropped: a debug file of another build, or a hostile table.
    fn functions(
        &self,
        facts: &ElfFacts,
        found: BTreeMap<u64, FunctionSymbol>,
    ) -> Vec<FunctionSymbol> {
        let mut functions = Vec::new();
        let starts: Vec<u64> = found.keys().copied().collect();
        for (index, mut function) in found.into_values().enumerate() {
            let executable: Vec<Load> =
                facts.loads.iter().copied().filter(|l| l.executable).collect();
            let Some(offset) = facts.file_offset(function.address) else { continue };
            let room = starts.get(index + 1).map_or(u64::MAX, |next| next - function.address);
            let size = match function.size {
                0 => CODE_WITHOUT_SIZE.min(room),
                size => size.min(MAX_CODE),
            };
            let Some(code) = self.at(&executable, function.address, size) else { continue };
            function.file_offset = offset;
            function.code = code.to_vec();
            function.names.sort();
            functions.push(function);
        }
        functions
    }

    /// Slots that a relocation binds to a wanted name.
    fn slots(&self, wanted: &dyn Fn(&str) -> bool) -> BTreeMap<u64, String> {
        let mut slots = BTreeMap::new();
        for (section, _) in &self.sections {
            if section.sh_type(LE) != elf::SHT_RELA {
                continue;
            }
            let Some((table, _)) =
                usize::try_from(section.sh_link(LE)).ok().and_then(|i| self.sections.get(i))
            else {
                continue;
            };
            let Some((symbols, strings)) = self.symbol_table(table) else { continue };
            let Some(bytes) = self.section_data(section) else { continue };
            for entry in relocations(bytes) {
                let kind = entry.r_type(LE, false);
                if kind != elf::R_X86_64_JUMP_SLOT && kind != elf::R_X86_64_GLOB_DAT {
                    continue;
                }
                let symbol =
                    usize::try_from(entry.r_sym(LE, false)).ok().and_then(|i| symbols.get(i));
                let name = symbol.and_then(|s| symbol_name(strings, s.st_name(LE)));
                if let Some(name) = name.filter(|name| wanted(name)) {
                    slots.insert(entry.r_offset(LE), name.to_owned());
                }
            }
        }
        slots
    }

    /// Stubs that jump through those slots.
    fn plt(&self, slots: &BTreeMap<u64, String>) -> BTreeMap<u64, String> {
        let mut stubs = BTreeMap::new();
        if slots.is_empty() {
            return stubs;
        }
        for (section, name) in &self.sections {
            if !matches!(*name, b".plt" | b".plt.sec" | b".plt.got") {
                continue;
            }
            let Some(code) = self.section_data(section) else { continue };
            let base = section.sh_addr(LE);
            for (at, window) in code.windows(6).enumerate() {
                // jmp *displacement(%rip)
                let [0xff, 0x25, displacement @ ..] = window else { continue };
                let Ok(displacement) = <[u8; 4]>::try_from(displacement) else { continue };
                let next = base.wrapping_add(at as u64 + 6);
                let slot = next.wrapping_add(i64::from(i32::from_le_bytes(displacement)) as u64);
                if let Some(name) = slots.get(&slot) {
                    // A stub starts at a multiple of 8; an endbr64 or a bnd prefix may come first.
                    stubs.insert(base.wrapping_add((at as u64) & !7), name.clone());
                }
            }
        }
        stubs
    }
}

/// A table of relocations; a partial entry at its end is left out.
fn relocations(bytes: &[u8]) -> &[elf::Rela64<LittleEndian>] {
    let count = bytes.len() / size_of::<elf::Rela64<LittleEndian>>();
    pod::slice_from_bytes(bytes, count).map_or(&[], |(entries, _)| entries)
}

/// The string at the start of `bytes`, lossy.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end.min(4096)]).into_owned()
}

/// A symbol's name without its version (`cfree@GLIBC_2.2.5`).
fn symbol_name(strings: &[u8], offset: u32) -> Option<&str> {
    let bytes = strings.get(usize::try_from(offset).ok()?..)?;
    let end = bytes.iter().take(64 * 1024).position(|byte| *byte == 0)?;
    // A name that is no UTF-8 is no allocator's, but it is no damage either.
    let name = str::from_utf8(&bytes[..end]).unwrap_or("");
    Some(name.split('@').next().unwrap_or(name))
}

#[cfg(test)]
mod tests;
