//! The tracee's address space as the session knows it: mapped objects in the order in which they
//! were first seen, and the unwind tables that the kernel side has been told. Grows when libraries
//! arrive.

use anyhow::{Context, Result};

use crate::kernel::Kernel;
use crate::snapshot::{NotProbed, Object};
use crate::stacks::space::{GENERATED_CODE, NoTable};
use crate::stacks::symbolize::{NamedRegion, Options};
use crate::stacks::{ProcessSpace, Symbolizer, TableStore};
use crate::tracee::MappedFile;
use crate::tracee::elf::read_build_id;
use crate::tracee::mappings::{Mappings, read_maps};
use crate::tracee::process::Process;
use crate::tracee::root::Root;

pub struct AddressSpace {
    pub mappings: Mappings,
    /// One for each of `mappings.files`, and another one for each that came back at another
    /// address: the symbolizer counts them the same way.
    pub objects: Vec<Object>,
    /// Executable memory without a file: generated code.
    anonymous_code: Vec<(u64, u64)>,
    pub tables: TableStore,
    rows_told: usize,
    pub symbolizer: Symbolizer,
    /// Where `[heap]` ends, where there is one: the program break, rounded up to a page.
    pub heap_end: Option<u64>,
}

impl AddressSpace {
    pub fn of(process: &Process) -> Result<Self> {
        // Held open: the debug files of the tracee's image are found after its exit, too.
        let root = Root::of_process(process.pid()).ok();
        let mut space = Self {
            mappings: Mappings::default(),
            objects: Vec::new(),
            anonymous_code: Vec::new(),
            tables: TableStore::new(),
            rows_told: 0,
            symbolizer: Symbolizer::new(Options { root, ..Options::default() }),
            heap_end: None,
        };
        space.refresh(process)?;
        Ok(space)
    }

    /// Reads the mappings again and builds the tables of what is new; the indices of new files.
    pub fn refresh(&mut self, process: &Process) -> Result<Vec<usize>> {
        let new = self.mappings.rescan(process)?;
        for &index in new.iter().chain(&self.mappings.moved) {
            let file = &self.mappings.files[index];
            self.objects.push(Object {
                path: file.path.clone(),
                // An object whose build id cannot be read is listed without one.
                build_id: read_build_id(&file.file).ok().flatten(),
                mappings: file.mappings.clone(),
            });
            self.symbolizer.add_objects(std::slice::from_ref(file));
        }
        self.tables.add(&self.mappings.files);
        let (lines, _) = read_maps(process)?;
        self.heap_end = lines.iter().find(|line| line.path == b"[heap]").map(|line| line.end);
        let code = lines.iter().filter(|line| line.executable && line.inode == 0);
        self.anonymous_code.clear();
        for line in code {
            let (start, end) = (line.start, line.end);
            let name = if line.path.starts_with(b"[") && !line.path.starts_with(b"[anon") {
                String::from_utf8_lossy(&line.path).into_owned()
            } else {
                self.anonymous_code.push((start, end));
                GENERATED_CODE.to_owned()
            };
            if name != "[vdso]" {
                self.symbolizer.add_region(NamedRegion { start, end, name });
            }
        }
        Ok(new)
    }

    /// The mappings as the walk knows them.
    pub fn current(&mut self) -> ProcessSpace {
        self.tables.space_of(&self.mappings.files, &self.anonymous_code)
    }

    /// The files that were mapped since the last look, which have their tables now. `None`: the
    /// mappings are as they were.
    pub fn arrived(&mut self, process: &Process) -> Result<Option<Vec<MappedFile>>> {
        if !self.mappings.changed(process)? {
            return Ok(None);
        }
        let new = self.refresh(process)?;
        Ok(Some(new.iter().map(|&at| self.mappings.files[at].clone()).collect()))
    }

    /// Tells the kernel side the mappings as they are now, and the rows that it lacks.
    pub fn publish(&mut self, kernel: &mut Kernel, pid: u32) -> Result<()> {
        let space = self.current();
        let rows = self.tables.rows();
        kernel
            .append_unwind_rows(&rows[self.rows_told..])
            .context("failed to hand the unwind tables to the kernel side")?;
        self.rows_told = rows.len();
        self.symbolizer.set_signal_returns(self.tables.signal_returns(&space));
        kernel
            .set_process(pid, &space.mappings)
            .context("failed to hand the mappings to the kernel side")?;
        Ok(())
    }

    /// Objects through which no walk leads, and why.
    pub fn without_table(&self) -> Vec<NotProbed> {
        let reason = |failure: &NoTable| NotProbed {
            object: failure.path.clone(),
            function: None,
            reason: format!("stacks end here: {}", failure.reason),
        };
        self.tables.failures().iter().map(reason).collect()
    }
}
