//! One mapped Go object: its version, its line table, where its data lies, and what its functions
//! refer to. All addresses are those of the running process.
//!
//! The file is read once, when the object is opened, through the descriptor of what is mapped;
//! its module data is read from the process, where it is relocated.

use std::collections::HashMap;

use super::access::Memory;
use super::build_info::BuildInfo;
use super::layout::{Layout, layout_for};
use super::naming::NamedText;
use super::references::{Reference, references};
use crate::stacks::elf::{ByteSource, Elf, FileSource, SHT_SYMTAB, string_at, u32_at, u64_at};
use crate::stacks::go_object::find_go_module;
use crate::tracee::MappedFile;

/// Variables looked for by name.
const SYMBOLS: [&str; 7] = [
    "runtime.memstats",
    "runtime.gcController",
    "runtime.mheap_",
    "runtime.mbuckets",
    "runtime.mProfCycle",
    "runtime.MemProfileRate",
    "_cgo_mmap",
];
/// Functions whose references are looked at.
const FUNCTIONS: [&str; 8] = [
    "runtime.readmemstats_m",
    "runtime.mProf_FlushLocked",
    "runtime.mProf_NextCycle",
    "runtime.mProf_Flush",
    "runtime/pprof.writeHeapInternal",
    "runtime.nextSample",
    "runtime.profilealloc",
    "runtime.mmap",
];
/// Longest function decoded.
const MAX_CODE: u64 = 64 << 10;
/// Most bytes between the start and the end of one part of the data.
const MAX_DATA: u64 = 4 << 30;

/// Why a Go object's books cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    #[error("not a Go object")]
    NotGo,
    #[error("it carries no build info that tells its Go version")]
    NoVersion,
    #[error("{0}")]
    Layout(String),
    #[error("its line table (gopclntab) or its module data was not found")]
    NoTables,
    #[error("its module data is not where it should be: {0}")]
    Module(&'static str),
}

impl ObjectError {
    /// Whether the file alone decides it, so that another attempt gives the same.
    pub fn is_for_good(&self) -> bool {
        !matches!(self, Self::Module(_))
    }
}

#[derive(Debug)]
pub struct GoObject {
    pub path: String,
    pub version: String,
    pub minor: u32,
    pub layout: Layout,
    /// The layout was made for an older release.
    pub on_trial: bool,
    symbols: HashMap<&'static str, u64>,
    references: HashMap<&'static str, Vec<Reference>>,
    /// Disjoint, sorted.
    data: Vec<(u64, u64)>,
}

impl GoObject {
    /// The object, and what names its text.
    pub fn open(
        file: &MappedFile,
        memory: &dyn Memory,
        forced: Option<&Layout>,
    ) -> Result<(Self, NamedText), ObjectError> {
        let source = FileSource::new(&file.file).map_err(|_| ObjectError::NotGo)?;
        let elf = Elf::parse(&source).map_err(|_| ObjectError::NotGo)?;
        // Before anything is searched: most objects are none.
        if !elf.is_go() {
            return Err(ObjectError::NotGo);
        }
        let info = BuildInfo::of(&elf).ok_or(ObjectError::NoVersion)?;
        let (layout, on_trial) = match forced {
            Some(layout) => (*layout, false),
            None => layout_for(info.minor)
                .map(|(layout, on_trial)| (*layout, on_trial))
                .map_err(ObjectError::Layout)?,
        };
        let module = find_go_module(&elf).ok_or(ObjectError::NoTables)?;
        let bias = file
            .mappings
            .iter()
            .find_map(|mapping| elf.segments.load_bias(mapping))
            .ok_or(ObjectError::Module("the object is not mapped as its file says"))?;
        let data = data_ranges(memory, module.vaddr.wrapping_add(bias), &layout, &elf, bias)?;
        let mut references_of = HashMap::new();
        for function in module.table.functions() {
            let name = module.table.name_bytes(&function);
            let Some(wanted) = FUNCTIONS.iter().find(|wanted| wanted.as_bytes() == name) else {
                continue;
            };
            let length = function.end.saturating_sub(function.start).min(MAX_CODE);
            if let Some(code) = elf.bytes_at(function.start, length) {
                let found = references(&code, function.start.wrapping_add(bias));
                references_of.entry(*wanted).or_insert(found);
            }
        }
        let object = Self {
            path: file.path.clone(),
            version: info.version,
            minor: info.minor,
            layout,
            on_trial,
            symbols: symbols(&elf, bias),
            references: references_of,
            data,
        };
        Ok((object, NamedText { table: module.table, bias }))
    }

    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.symbols.get(name).copied().filter(|address| self.is_data(*address))
    }

    pub fn references_of(&self, function: &str) -> Option<&[Reference]> {
        self.references.get(function).map(Vec::as_slice)
    }

    pub fn data_ranges(&self) -> &[(u64, u64)] {
        &self.data
    }

    pub fn is_data(&self, address: u64) -> bool {
        self.data.iter().any(|(start, end)| (*start..*end).contains(&address))
    }
}

/// The four parts of a module's data, those that touch joined.
fn data_ranges<S: ByteSource + ?Sized>(
    memory: &dyn Memory,
    module: u64,
    layout: &Layout,
    elf: &Elf<'_, S>,
    bias: u64,
) -> Result<Vec<(u64, u64)>, ObjectError> {
    let m = &layout.module;
    let mut bytes = vec![0; m.enoptrbss + 8];
    memory.read(module, &mut bytes).map_err(|_| ObjectError::Module("it cannot be read"))?;
    let writable = |address: u64| {
        let vaddr = address.wrapping_sub(bias);
        elf.segments
            .loads
            .iter()
            .any(|load| load.writable && vaddr.wrapping_sub(load.vaddr) <= load.memory_size)
    };
    let text = (u64_at(&bytes, m.text), u64_at(&bytes, m.etext));
    if text.0 >= text.1 || !elf.segments.is_executable(text.0.wrapping_sub(bias)) {
        return Err(ObjectError::Module("its text is not executable"));
    }
    let mut ranges = Vec::new();
    let parts = [
        (m.noptrdata, m.enoptrdata),
        (m.data, m.edata),
        (m.bss, m.ebss),
        (m.noptrbss, m.enoptrbss),
    ];
    for (start, end) in parts {
        let (start, end) = (u64_at(&bytes, start), u64_at(&bytes, end));
        if start > end || end - start > MAX_DATA || !writable(start) || !writable(end) {
            return Err(ObjectError::Module("its data lies outside of the object"));
        }
        if start < end {
            // Variables are aligned to 8 bytes, the parts' starts are, too.
            ranges.push((start.next_multiple_of(8), end));
        }
    }
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start <= last.1.next_multiple_of(64) => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    Ok(joined)
}

fn symbols<S: ByteSource + ?Sized>(elf: &Elf<'_, S>, bias: u64) -> HashMap<&'static str, u64> {
    let mut found = HashMap::new();
    for section in elf.sections.iter().filter(|section| section.kind == SHT_SYMTAB) {
        let names = elf.sections.get(section.link as usize);
        let (Some(table), Some(names)) =
            (elf.section_bytes(section), names.and_then(|names| elf.section_bytes(names)))
        else {
            continue;
        };
        for entry in table.chunks_exact(24) {
            let name = string_at(&names, u32_at(entry, 0), 64);
            if let Some(wanted) = SYMBOLS.iter().find(|wanted| wanted.as_bytes() == name) {
                found.entry(*wanted).or_insert(u64_at(entry, 8).wrapping_add(bias));
            }
        }
    }
    found
}
