//! The tracee's address space as the session knows it: mapped objects in the order in which they
//! were first seen, and the unwind tables that the kernel side has been told. Grows when libraries
//! arrive.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use memtrace_common::unwind::UnwindMapping;

use crate::kernel::{AttachOutcome, ImageNumber, Kernel};
use crate::snapshot::{NotProbed, Object};
use crate::stacks::link_map::{Needs, Teller, find_teller, that_stay};
use crate::stacks::space::{GENERATED_CODE, NoTable};
use crate::stacks::symbolize::{NamedRegion, Options};
use crate::stacks::{ProcessSpace, Symbolizer, TableStore};
use crate::tracee::MappedFile;
use crate::tracee::elf::read_build_id;
use crate::tracee::mappings::{Mappings, read_maps};
use crate::tracee::process::Process;
use crate::tracee::root::Root;

/// The unwind tables of all objects of all processes, and how many rows the kernel side has.
#[derive(Default)]
pub struct Tables {
    pub store: TableStore,
    rows_told: usize,
}

impl Tables {
    /// Tells the kernel side the rows that it lacks.
    fn publish(&mut self, kernel: &mut Kernel) -> Result<()> {
        let rows = self.store.rows();
        kernel
            .append_unwind_rows(&rows[self.rows_told..])
            .context("failed to hand the unwind tables to the kernel side")?;
        self.rows_told = rows.len();
        Ok(())
    }

    /// Objects through which no walk leads, and why.
    pub fn failures(&self) -> Vec<NotProbed> {
        let reason = |failure: &NoTable| NotProbed {
            object: failure.path.clone(),
            function: None,
            reason: format!("stacks end here: {}", failure.reason),
        };
        self.store.failures().iter().map(reason).collect()
    }
}

pub struct AddressSpace {
    pub mappings: Mappings,
    /// One for each of `mappings.files`, and another one for each that came back at another
    /// address: the symbolizer counts them the same way.
    pub objects: Vec<Object>,
    /// Executable memory without a file: generated code.
    anonymous_code: Vec<(u64, u64)>,
    /// What the kernel side was told last.
    told: Vec<UnwindMapping>,
    /// One for each of `mappings.files`.
    needs: Vec<Needs>,
    /// Of `mappings.files`, those that stay mapped for as long as the process.
    staying: BTreeSet<usize>,
    /// Whose: of [`Object::image`].
    image: ImageNumber,
    pub symbolizer: Symbolizer,
    /// Where `[heap]` ends, where there is one: the program break, rounded up to a page.
    pub heap_end: Option<u64>,
}

impl AddressSpace {
    pub fn of(process: &Process, image: ImageNumber, tables: &mut Tables) -> Result<Self> {
        // Held open: the debug files of the tracee's image are found after its exit, too.
        let root = Root::of_process(process.pid()).ok();
        let mut space = Self {
            mappings: Mappings::default(),
            objects: Vec::new(),
            anonymous_code: Vec::new(),
            told: Vec::new(),
            needs: Vec::new(),
            staying: BTreeSet::new(),
            image,
            symbolizer: Symbolizer::new(Options { root, ..Options::default() }),
            heap_end: None,
        };
        space.refresh(process, tables)?;
        Ok(space)
    }

    /// Reads the mappings again and builds the tables of what is new; the indices of new files.
    pub fn refresh(&mut self, process: &Process, tables: &mut Tables) -> Result<Vec<usize>> {
        let new = self.mappings.rescan(process)?;
        let unknown = self.mappings.files.iter().skip(self.needs.len());
        self.needs.extend(unknown.map(Needs::of));
        let is_program = |file: &MappedFile| file.path == process.executable_path();
        let program = self.mappings.files.iter().position(is_program);
        self.staying = that_stay(program, &self.needs);
        for &index in new.iter().chain(&self.mappings.moved) {
            let file = &self.mappings.files[index];
            let object = Object {
                path: file.path.clone(),
                // An object whose build id cannot be read is listed without one.
                build_id: read_build_id(&file.file).ok().flatten(),
                mappings: file.mappings.clone(),
                image: self.image.number,
            };
            match self.objects.iter().position(|known| *known == object) {
                Some(known) => self.symbolizer.map_again(known),
                None => {
                    self.objects.push(object);
                    self.symbolizer.add_objects(std::slice::from_ref(file));
                }
            }
        }
        tables.store.add(&self.mappings.files);
        let (lines, _) = read_maps(process)?;
        self.heap_end = lines.iter().find(|line| line.path == b"[heap]").map(|line| line.end);
        let code = lines.iter().filter(|line| line.executable && line.inode == 0);
        let files = self.mappings.files.iter().flat_map(|file| &file.mappings);
        let mut mapped: Vec<_> = files.map(|mapping| mapping.start..mapping.end).collect();
        self.anonymous_code.clear();
        for line in code {
            let (start, end) = (line.start, line.end);
            let name = if line.path.starts_with(b"[") && !line.path.starts_with(b"[anon") {
                String::from_utf8_lossy(&line.path).into_owned()
            } else {
                self.anonymous_code.push((start, end));
                GENERATED_CODE.to_owned()
            };
            mapped.push(start..end);
            if name != "[vdso]" {
                self.symbolizer.add_region(NamedRegion { start, end, name });
            }
        }
        self.symbolizer.keep_only(&mapped);
        Ok(new)
    }

    /// The mappings as the walk knows them.
    pub fn current(&self, tables: &mut Tables) -> ProcessSpace {
        let mut space = tables.store.space_of(&self.mappings.files, &self.anonymous_code);
        let stays = |start: u64, (at, file): (usize, &MappedFile)| {
            let holds = file.mappings.iter().any(|mapping| mapping.start == start);
            holds && (self.staying.contains(&at) || file.path == "[vdso]")
        };
        for mapping in &mut space.mappings {
            mapping.owner = self.symbolizer.owner_at(mapping.start);
            let mut files = self.mappings.files.iter().enumerate();
            mapping.may_go = u8::from(!files.any(|file| stays(mapping.start, file)));
        }
        space
    }

    /// Follows what the process maps, and tells the kernel side: the files that were mapped since
    /// the last look, which have their tables now. `None`: all is as it was.
    pub fn follow(
        &mut self,
        process: &Process,
        kernel: &mut Kernel,
        tables: &mut Tables,
    ) -> Result<Option<Vec<MappedFile>>> {
        let pid = process.pid();
        let before = kernel.note_changes(pid)?;
        let has_changed = self.mappings.changed(process)?;
        if !has_changed && !before.is_behind {
            return Ok(None);
        }
        self.symbolizer.look_again();
        let new = if has_changed { self.refresh(process, tables)? } else { Vec::new() };
        if before.is_settled && kernel.changes_since(pid, &before)? == 0 {
            self.symbolizer.settle(before.count as u16);
        }
        // A walk in progress does not outlive a new row of its process: what is mapped beside code, as
        // the first breakpoint's own page is, must not cut one short.
        if before.is_behind || self.current(tables).mappings != self.told {
            self.publish(kernel, pid, tables)?;
        }
        Ok(Some(new.iter().map(|&at| self.mappings.files[at].clone()).collect()))
    }

    /// Has the loader tell the kernel side when it unloads. Why it does not, where it should: a
    /// program without one loads nothing.
    pub fn watch_loader(&self, kernel: &mut Kernel, pid: u32) -> Result<Option<NotProbed>> {
        let Some(teller) = find_teller(&self.mappings.files) else { return Ok(None) };
        let Teller { object, open_path, file_offset, state } = teller;
        let outcome = kernel.attach_link_map(pid, &open_path, file_offset, state)?;
        let AttachOutcome::Failed { reason, .. } = outcome else { return Ok(None) };
        let reason = format!(
            "where a library is replaced by another, stacks may be wrong for up to a second: {reason}"
        );
        Ok(Some(NotProbed { object, function: Some("_dl_debug_state".to_owned()), reason }))
    }

    /// Tells the kernel side the mappings as they are now, and the rows that it lacks.
    pub fn publish(&mut self, kernel: &mut Kernel, pid: u32, tables: &mut Tables) -> Result<()> {
        let space = self.current(tables);
        tables.publish(kernel)?;
        self.symbolizer.set_signal_returns(tables.store.signal_returns(&space));
        kernel
            .set_process(pid, self.image, &space.mappings)
            .context("failed to hand the mappings to the kernel side")?;
        self.told = space.mappings;
        Ok(())
    }
}
