//! One image that is traced: a program that a process of the target runs, with its address space,
//! its ranges and its end.

use anyhow::Result;

use super::space::{AddressSpace, Tables};
use crate::kernel::{ImageNumber, Kernel};
use crate::outstanding::ranges::RangeMap;
use crate::plan::host::HostFacts;
use crate::snapshot::{Came, Ended, Image};
use crate::tracee::MappedFile;
use crate::tracee::process::Process;

pub struct TracedImage {
    pub number: u32,
    /// It is what ran then, of `CLOCK_MONOTONIC`: what was executed later is another image.
    pub opened_ns: u64,
    pub process: Process,
    pub space: AddressSpace,
    pub ranges: RangeMap,
    pub came: Came,
    pub go_version: Option<String>,
    /// Since the probes were armed.
    pub armed_elapsed_ns: u64,
    pub unseen_ns: Option<u64>,
    /// How it ended, and when since the probes were armed. Its books are still open.
    pub ended: Option<(Ended, u64)>,
    /// Positions of its objects in the recording.
    pub objects_told: Vec<u32>,
    /// Its definition is in the recording.
    pub is_told: bool,
}

impl TracedImage {
    /// Reads the mappings and builds their tables. Attaches nothing.
    pub fn of(
        process: Process,
        number: ImageNumber,
        opened_ns: u64,
        came: Came,
        host: &HostFacts,
        tables: &mut Tables,
    ) -> Result<Self> {
        let space = AddressSpace::of(&process, number, tables)?;
        let mut ranges = RangeMap::new(host.page_size_bytes);
        if let Some(end) = space.heap_end {
            ranges.set_break(end);
        }
        Ok(Self {
            number: number.number,
            opened_ns,
            process,
            space,
            ranges,
            came,
            go_version: None,
            armed_elapsed_ns: 0,
            unseen_ns: None,
            ended: None,
            objects_told: Vec::new(),
            is_told: false,
        })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its process runs, and this program.
    pub fn is_running(&self) -> bool {
        self.ended.is_none() && !self.process.has_exited()
    }

    /// The files that were mapped since the last look; `None`: the mappings are as they were.
    pub fn arrived(
        &mut self,
        kernel: &mut Kernel,
        tables: &mut Tables,
    ) -> Result<Option<Vec<MappedFile>>> {
        self.space.follow(&self.process, kernel, tables)
    }

    pub fn definition(&self) -> Image {
        Image {
            number: self.number,
            id: self.process.id(),
            comm: self.process.comm.clone(),
            executable: self.process.executable.clone(),
            command_line: self.process.command_line.clone(),
            go_version: self.go_version.clone(),
            came: self.came,
            armed_elapsed_ns: self.armed_elapsed_ns,
            unseen_ns: self.unseen_ns,
        }
    }
}
