//! Go's own line table, `gopclntab`: names, files, lines and inlined calls of Go text, also in
//! stripped binaries, where nothing else names Go functions.
//!
//! Pure over bytes that the tracee wrote: every offset is checked, every loop bounded; a lie gives
//! a wrong or a missing name, never a panic. Read are the layouts of Go 1.16–1.17, 1.18–1.19 and
//! 1.20 to (at least) 1.27, by their magic number; inlined calls from Go 1.20 on.
//!
//! Layouts: `src/runtime/symtab.go` (`pcHeader`, `_func`), `src/runtime/symtabinl.go`
//! (`inlinedCall`) and `src/internal/abi/symtab.go` of the Go source tree.

use std::borrow::Cow;

use super::elf::{string_at, u32_at, u64_at};

/// Most steps of one pc-value table; the largest functions of generated code have some 10⁵.
const MAX_STEPS: usize = 1 << 20;
/// Deepest inlining followed.
const MAX_INLINED: usize = 64;
/// Longest function or file name kept.
const MAX_NAME_BYTES: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Go 1.16 and 1.17: absolute addresses.
    Go116,
    /// Go 1.18 and 1.19: addresses relative to the start of the text.
    Go118,
    /// Go 1.20 and later.
    Go120,
}

impl Version {
    pub fn of_magic(magic: u32) -> Option<Self> {
        match magic {
            0xffff_fffa => Some(Self::Go116),
            0xffff_fff0 => Some(Self::Go118),
            0xffff_fff1 => Some(Self::Go120),
            _ => None,
        }
    }
}

/// The name, file and line of one logical frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoFrame {
    /// Package path and function, e.g. `main.(*server).handle`.
    pub function: String,
    pub file: Option<String>,
    pub line: Option<u32>,
    /// Inlined into the next frame of the answer.
    pub inlined: bool,
}

/// One function of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoFunction {
    /// Virtual addresses in the object.
    pub start: u64,
    pub end: u64,
    /// Offset of its `_func` in the function table.
    at: usize,
    /// The runtime's own mark of functions at which every stack ends (`goexit`, `mstart` …).
    pub is_top_frame: bool,
}

#[derive(Debug)]
pub struct PclnTable<'d> {
    data: Cow<'d, [u8]>,
    version: Version,
    minimum_step: u64,
    /// Virtual address that entries are relative to; 0 for Go 1.16.
    text: u64,
    functions: usize,
    names: usize,
    compile_units: usize,
    files: usize,
    values: usize,
    table: usize,
    /// The bytes from `moduledata.gofunc` on, where the inline trees are.
    inline_trees: Option<Cow<'d, [u8]>>,
}

impl<'d> PclnTable<'d> {
    /// `text` is `moduledata.text`; needed from Go 1.18 on. `None` when this is no table.
    pub fn parse(data: Cow<'d, [u8]>, text: u64) -> Option<Self> {
        let version = Version::of_magic(u32_at(&data, 0))?;
        let minimum_step = *data.get(6)?;
        if data.get(4..6)? != [0, 0] || ![1, 2, 4].contains(&minimum_step) || *data.get(7)? != 8 {
            return None;
        }
        let word = |index: usize| usize::try_from(u64_at(&data, 8 + 8 * index)).ok();
        let first_offset = if version == Version::Go116 { 2 } else { 3 };
        let offset = |index: usize| word(first_offset + index).filter(|at| *at < data.len());
        let table = Self {
            version,
            minimum_step: u64::from(minimum_step),
            text: if version == Version::Go116 { 0 } else { text },
            functions: word(0)?,
            names: offset(0)?,
            compile_units: offset(1)?,
            files: offset(2)?,
            values: offset(3)?,
            table: offset(4)?,
            inline_trees: None,
            data,
        };
        // The table is closed by the end address of the last function.
        let room = (table.data.len() - table.table).checked_sub(table.entry_size() / 2)?;
        (0 < table.functions && table.functions <= room / table.entry_size()).then_some(table)
    }

    /// Free of what it was read from.
    pub fn into_owned(self) -> PclnTable<'static> {
        PclnTable {
            data: Cow::Owned(self.data.into_owned()),
            inline_trees: self.inline_trees.map(|trees| Cow::Owned(trees.into_owned())),
            ..self
        }
    }

    pub fn set_inline_trees(&mut self, bytes: Cow<'d, [u8]>) {
        self.inline_trees = Some(bytes);
    }

    pub(crate) fn take_inline_trees(&mut self) -> Option<Cow<'d, [u8]>> {
        self.inline_trees.take()
    }

    /// `textStart` of the header: 0 from Go 1.26 on, and in position-independent executables.
    pub fn header_text_start(data: &[u8]) -> u64 {
        match Version::of_magic(u32_at(data, 0)) {
            Some(Version::Go118 | Version::Go120) => u64_at(data, 24),
            _ => 0,
        }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn function_count(&self) -> usize {
        self.functions
    }

    fn entry_size(&self) -> usize {
        if self.version == Version::Go116 { 16 } else { 8 }
    }

    /// Start address of the function at `index`; of the end of text for the index past the last.
    fn start_of(&self, index: usize) -> u64 {
        let at = self.table + index * self.entry_size();
        match self.version {
            Version::Go116 => u64_at(&self.data, at),
            _ => self.text.wrapping_add(u64::from(u32_at(&self.data, at))),
        }
    }

    /// The text that this table describes.
    pub fn text_range(&self) -> std::ops::Range<u64> {
        self.start_of(0)..self.start_of(self.functions)
    }

    pub fn function(&self, index: usize) -> Option<GoFunction> {
        if index >= self.functions {
            return None;
        }
        let entry = self.table + index * self.entry_size();
        let offset = match self.version {
            Version::Go116 => usize::try_from(u64_at(&self.data, entry + 8)).ok()?,
            _ => u32_at(&self.data, entry + 4) as usize,
        };
        let at = self.table.checked_add(offset).filter(|at| *at < self.data.len())?;
        let flag_at = match self.version {
            Version::Go116 => return Some(self.build(index, at, false)),
            Version::Go118 => at + 37,
            Version::Go120 => at + 41,
        };
        const TOP_FRAME: u8 = 1;
        let is_top_frame = self.data.get(flag_at).is_some_and(|flag| flag & TOP_FRAME != 0);
        Some(self.build(index, at, is_top_frame))
    }

    fn build(&self, index: usize, at: usize, is_top_frame: bool) -> GoFunction {
        GoFunction { start: self.start_of(index), end: self.start_of(index + 1), at, is_top_frame }
    }

    pub fn functions(&self) -> impl Iterator<Item = GoFunction> + '_ {
        (0..self.functions).filter_map(|index| self.function(index))
    }

    /// The function that covers a virtual address of the object.
    pub fn find(&self, vaddr: u64) -> Option<GoFunction> {
        if !self.text_range().contains(&vaddr) {
            return None;
        }
        let (mut low, mut high) = (0, self.functions);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.start_of(middle) <= vaddr { low = middle } else { high = middle }
        }
        self.function(low).filter(|f| (f.start..f.end).contains(&vaddr))
    }

    /// The `index`th 32-bit field after the function's entry address.
    fn field(&self, function: &GoFunction, index: usize) -> u32 {
        let entry_bytes = if self.version == Version::Go116 { 8 } else { 4 };
        u32_at(&self.data, function.at + entry_bytes + 4 * index)
    }

    fn fixed_size(&self) -> usize {
        match self.version {
            Version::Go118 => 40,
            Version::Go116 | Version::Go120 => 44,
        }
    }

    /// How far RSP stands below the return address at a virtual address of compiled Go, by the table
    /// that the runtime's own tracebacks go by. `None` in assembly, which may change stacks there or
    /// keep no frame, and where stacks end.
    ///
    /// For a return address pass the address − 1.
    pub fn frame_bytes(&self, vaddr: u64) -> Option<u64> {
        /// `funcFlag_TOPFRAME`, `funcFlag_SPWRITE`, `funcFlag_ASM`.
        const NOT_PLAIN: u8 = 1 | 2 | 4;
        const PCSP: usize = 3;
        let function = self.find(vaddr)?;
        let flag_at = match self.version {
            Version::Go116 => return None,
            Version::Go118 => function.at + 37,
            Version::Go120 => function.at + 41,
        };
        if self.data.get(flag_at)? & NOT_PLAIN != 0 {
            return None;
        }
        let bytes = self.value_at(&function, self.field(&function, PCSP), vaddr)?;
        // A frame that calls holds the caller's RBP at least.
        u64::try_from(bytes).ok().filter(|bytes| *bytes >= 8 && bytes % 8 == 0)
    }

    fn name_at(&self, offset: u32) -> Option<String> {
        let start = self.names.checked_add(offset as usize)?;
        let name = string_at(self.data.get(start..)?, 0, MAX_NAME_BYTES);
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }

    pub fn name(&self, function: &GoFunction) -> Option<String> {
        self.name_at(self.field(function, 0))
    }

    /// The raw bytes of the name: for comparing many without allocating.
    pub(crate) fn name_bytes(&self, function: &GoFunction) -> &[u8] {
        let start = self.names.saturating_add(self.field(function, 0) as usize);
        string_at(self.data.get(start..).unwrap_or_default(), 0, MAX_NAME_BYTES)
    }

    /// The value in force at `vaddr` in the pc-value table at `offset`; `None` without a table.
    fn value_at(&self, function: &GoFunction, offset: u32, vaddr: u64) -> Option<i64> {
        if offset == 0 {
            return None;
        }
        let mut rest = self.data.get(self.values.checked_add(offset as usize)?..)?;
        let (mut pc, mut value) = (function.start, -1i64);
        for step in 0..MAX_STEPS {
            let delta = uvarint(&mut rest)?;
            if delta == 0 && step > 0 {
                return None;
            }
            value = value.wrapping_add(i64::from((delta >> 1) as i32 ^ -((delta & 1) as i32)));
            pc = pc.wrapping_add(u64::from(uvarint(&mut rest)?).wrapping_mul(self.minimum_step));
            if vaddr < pc {
                return Some(value);
            }
        }
        None
    }

    fn file_at(&self, function: &GoFunction, vaddr: u64) -> Option<String> {
        let number = self.value_at(function, self.field(function, 4), vaddr)?;
        let unit = self.field(function, 7) as usize;
        let index = unit.checked_add(usize::try_from(number).ok()?)?;
        let offset = u32_at(&self.data, self.compile_units.checked_add(index.checked_mul(4)?)?);
        if offset == u32::MAX {
            return None;
        }
        let start = self.files.checked_add(offset as usize)?;
        let name = string_at(self.data.get(start..)?, 0, MAX_NAME_BYTES);
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }

    fn line_at(&self, function: &GoFunction, vaddr: u64) -> Option<u32> {
        let line = self.value_at(function, self.field(function, 5), vaddr)?;
        u32::try_from(line).ok().filter(|line| *line > 0)
    }

    /// Index into the function's inline tree at `vaddr`.
    fn inline_index(&self, function: &GoFunction, vaddr: u64) -> Option<u64> {
        const INLINE_TREE_INDEX: usize = 2;
        if self.version < Version::Go120 || self.field(function, 6) as usize <= INLINE_TREE_INDEX {
            return None;
        }
        let offset = u32_at(&self.data, function.at + self.fixed_size() + 4 * INLINE_TREE_INDEX);
        u64::try_from(self.value_at(function, offset, vaddr)?).ok()
    }

    /// (name offset, parent's pc) of one entry of the function's inline tree.
    fn inlined_call(&self, function: &GoFunction, index: u64) -> Option<(u32, u32)> {
        const INLINE_TREE: usize = 3;
        const ENTRY_BYTES: usize = 16;
        let counts = *self.data.get(function.at + self.fixed_size() - 1)? as usize;
        if counts <= INLINE_TREE {
            return None;
        }
        let pcdata_bytes = (self.field(function, 6) as usize).checked_mul(4)?;
        let funcdata = (function.at + self.fixed_size()).checked_add(pcdata_bytes)?;
        let tree = u32_at(&self.data, funcdata.checked_add(4 * INLINE_TREE)?);
        if tree == u32::MAX {
            return None;
        }
        let trees = self.inline_trees.as_ref()?;
        let entry = usize::try_from(index).ok()?.checked_mul(ENTRY_BYTES)?;
        let start = (tree as usize).checked_add(entry)?;
        let entry = trees.get(start..start.checked_add(ENTRY_BYTES)?)?;
        (entry[1..4] == [0, 0, 0]).then(|| (u32_at(entry, 4), u32_at(entry, 8)))
    }

    /// The logical frames at a virtual address, innermost first; empty when it is not Go text.
    ///
    /// For a return address pass the address − 1.
    pub fn frames(&self, vaddr: u64) -> Vec<GoFrame> {
        let mut frames = Vec::new();
        let Some(function) = self.find(vaddr) else { return frames };
        let mut at = vaddr;
        while frames.len() < MAX_INLINED
            && let Some(index) = self.inline_index(&function, at)
            && let Some((name, parent_pc)) = self.inlined_call(&function, index)
            && let Some(name) = self.name_at(name)
        {
            frames.push(GoFrame {
                function: name,
                file: self.file_at(&function, at),
                line: self.line_at(&function, at),
                inlined: true,
            });
            at = function.start.wrapping_add(u64::from(parent_pc));
        }
        if let Some(name) = self.name(&function) {
            frames.push(GoFrame {
                function: name,
                file: self.file_at(&function, at),
                line: self.line_at(&function, at),
                inlined: false,
            });
        } else {
            frames.clear();
        }
        frames
    }

    /// How many of the inline-tree entries of a sample of functions are well formed, and how many
    /// are not: tells whether `inline_trees` are the right bytes.
    pub(crate) fn check_inline_trees(&self) -> (u32, u32) {
        const SAMPLE: usize = 512;
        let (mut right, mut wrong) = (0, 0);
        for step in 0..SAMPLE.min(self.functions) {
            let index = step * (self.functions / SAMPLE.min(self.functions)).max(1);
            let Some(function) = self.function(index) else { continue };
            let size = function.end.saturating_sub(function.start);
            for quarter in 0..4 {
                let at = function.start.wrapping_add(size / 4 * quarter);
                let Some(index) = self.inline_index(&function, at) else { continue };
                match self.inlined_call(&function, index) {
                    // The first name of all stands at 0, but so does what is no tree at all.
                    Some((name, parent))
                        if u64::from(parent) < size
                            && (name, parent) != (0, 0)
                            && self.starts_name(name) =>
                    {
                        right += 1;
                    }
                    _ => wrong += 1,
                }
            }
        }
        (right, wrong)
    }

    /// Whether a name starts at this offset: at the start of the names, or where another ended.
    fn starts_name(&self, offset: u32) -> bool {
        let at = self.names.saturating_add(offset as usize);
        let follows = offset == 0 || self.data.get(at - 1) == Some(&0);
        follows && self.name_at(offset).is_some()
    }
}

/// A variable-length 32-bit number, as the Go linker writes it.
fn uvarint(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0u32;
    for shift in (0..35).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u32::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[path = "pclntab_tests.rs"]
mod tests;
