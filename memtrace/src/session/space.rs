//! The tracee's address space as the session knows it: mapped objects, their unwind tables, and
//! which of them the kernel side has been told. Grows when libraries arrive.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use memtrace_common::unwind::UnwindMapping;

use crate::kernel::Kernel;
use crate::snapshot::Object;
use crate::stacks::table::{UnwindTable, build_table_of_file, unwind_mapping};
use crate::tracee::MappedFile;
use crate::tracee::elf::build_id_of;
use crate::tracee::mappings::read_mapped_files;

/// What tells two mapped objects apart: never the path alone.
type Identity = ((u32, u32), u64, String);

/// A table whose rows the kernel side has.
struct Placed {
    table: UnwindTable,
    first_row: u32,
}

#[derive(Default)]
pub struct AddressSpace {
    pub files: Vec<MappedFile>,
    /// In the order in which they were first seen; index = `AddressNames::object`.
    pub objects: Vec<Object>,
    index: HashMap<Identity, usize>,
    /// `None`: the object has no table (said once, at building).
    tables: HashMap<Identity, Option<Placed>>,
    pub unwind_rows: u64,
    pub unwind_build: Duration,
    /// Objects without a table, and why.
    pub without_table: Vec<(String, String)>,
}

impl AddressSpace {
    /// Reads the mappings; returns the files that were not there before.
    pub fn refresh(&mut self, pid: u32) -> Result<Vec<MappedFile>> {
        let files = read_mapped_files(pid)?;
        let mut new_files = Vec::new();
        for file in &files {
            let identity = identity(file);
            match self.index.get(&identity) {
                Some(&known) => self.objects[known].mappings.clone_from(&file.mappings),
                None => {
                    self.index.insert(identity, self.objects.len());
                    self.objects.push(Object {
                        path: file.path.clone(),
                        build_id: build_id_of(&file.file),
                        mappings: file.mappings.clone(),
                    });
                    new_files.push(file.clone());
                }
            }
        }
        self.files = files;
        Ok(new_files)
    }

    /// Index of the file's object.
    pub fn object_index(&self, file: &MappedFile) -> Option<u32> {
        self.index.get(&identity(file)).and_then(|&index| u32::try_from(index).ok())
    }

    /// Builds what tables are missing and tells the kernel side the mappings as they are now.
    pub fn publish(&mut self, kernel: &mut Kernel, pid: u32) -> Result<()> {
        let mut mappings: Vec<UnwindMapping> = Vec::new();
        let started = Instant::now();
        for file in &self.files {
            let identity = identity(file);
            if !self.tables.contains_key(&identity) {
                let placed = match build_table_of_file(&file.file) {
                    Ok(table) => {
                        let first_row = kernel
                            .append_unwind_rows(&table.rows)
                            .with_context(|| format!("no room for the unwind table of `{}`", file.path))?;
                        self.unwind_rows += table.rows.len() as u64;
                        Some(Placed { table, first_row })
                    }
                    Err(error) => {
                        self.without_table.push((file.path.clone(), error.to_string()));
                        None
                    }
                };
                self.tables.insert(identity.clone(), placed);
            }
            if let Some(Some(placed)) = self.tables.get(&identity) {
                mappings.extend(
                    file.mappings
                        .iter()
                        .filter_map(|m| unwind_mapping(&placed.table, m, placed.first_row)),
                );
            }
        }
        self.unwind_build += started.elapsed();
        mappings.sort_by_key(|mapping| mapping.start);
        kernel.set_process(pid, &mappings).context("failed to tell the kernel side the mappings")?;
        Ok(())
    }
}

fn identity(file: &MappedFile) -> Identity {
    (file.device, file.inode, file.path.clone())
}
