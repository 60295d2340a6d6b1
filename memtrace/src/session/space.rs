//! The tracee's address space as the session knows it: mapped objects in the order in which they
//! were first seen, and the unwind tables that the kernel side has been told. Grows when libraries
//! arrive.

use std::collections::HashMap;

use anyhow::{Context, Result};

use crate::kernel::Kernel;
use crate::snapshot::{NotProbed, Object};
use crate::stacks::space::FileIdentity;
use crate::stacks::{Root, Symbolizer, TableStore, symbolize};
use crate::tracee::MappedFile;
use crate::tracee::elf::build_id_of;
use crate::tracee::mappings::{AnonymousCode, Mapped, read_mapped};

pub struct AddressSpace {
    pid: u32,
    /// As mapped now.
    files: Vec<MappedFile>,
    anonymous: Vec<AnonymousCode>,
    /// In the order in which they were first seen: the symbolizer counts them the same way.
    objects: Vec<Object>,
    index: HashMap<FileIdentity, usize>,
    pub tables: TableStore,
    rows_told: usize,
    pub symbolizer: Symbolizer,
}

impl AddressSpace {
    pub fn of(pid: u32) -> Self {
        // Held open: the debug files of the tracee's image are found after its exit, too.
        let options = symbolize::Options { root: Root::of_process(pid).ok(), ..Default::default() };
        Self {
            pid,
            files: Vec::new(),
            anonymous: Vec::new(),
            objects: Vec::new(),
            index: HashMap::new(),
            tables: TableStore::new(),
            rows_told: 0,
            symbolizer: Symbolizer::new(options),
        }
    }

    pub fn files(&self) -> &[MappedFile] {
        &self.files
    }

    /// All objects ever seen.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// Reads the mappings; `true` when they differ from what was known.
    pub fn refresh(&mut self) -> Result<bool> {
        let Mapped { files, anonymous_code } = read_mapped(self.pid)?;
        let mut changed = anonymous_code != self.anonymous || files.len() != self.files.len();
        for file in &files {
            let identity = FileIdentity::of(file)
                .with_context(|| format!("failed to look at `{}`", file.path))?;
            match self.index.get(&identity) {
                Some(&known) if self.objects[known].mappings == file.mappings => {}
                Some(&known) => {
                    changed = true;
                    self.objects[known].mappings.clone_from(&file.mappings);
                }
                None => {
                    changed = true;
                    self.index.insert(identity, self.objects.len());
                    self.objects.push(Object {
                        path: file.path.clone(),
                        build_id: build_id_of(&file.file),
                        mappings: file.mappings.clone(),
                    });
                    self.symbolizer.add_objects(std::slice::from_ref(file));
                }
            }
        }
        self.files = files;
        self.anonymous = anonymous_code;
        Ok(changed)
    }

    /// Builds what tables are missing and tells the kernel side the mappings as they are now.
    pub fn publish(&mut self, kernel: &mut Kernel) -> Result<()> {
        self.tables.add(&self.files);
        let space = self.tables.space_of(&self.files, &self.anonymous);
        let rows = self.tables.rows();
        kernel
            .append_unwind_rows(&rows[self.rows_told..])
            .context("failed to hand the unwind tables to the kernel side")?;
        self.rows_told = rows.len();
        kernel
            .set_process(self.pid, &space.mappings)
            .context("failed to hand the mappings to the kernel side")?;
        Ok(())
    }

    /// Objects through which no walk leads, and why.
    pub fn without_table(&self) -> Vec<NotProbed> {
        let reason = |failure: &crate::stacks::space::NoTable| NotProbed {
            object: failure.path.clone(),
            function: None,
            reason: format!("stacks end here: {}", failure.reason),
        };
        self.tables.failures().iter().map(reason).collect()
    }
}
