//! WHAT is traced: processes, containers, mappings, ELF facts, allocators found, Go facts.
//!
//! A process is (pid, start time). Facts are never inferred here. Everything read is hostile:
//! bounded, checked, opened through `map_files` or `/proc/PID/root` and never canonicalized.

pub mod allocators;
pub mod capabilities;
pub mod cgroup;
pub mod container;
pub mod elf;
pub mod heap;
pub mod mappings;
mod overlay;
pub mod ports;
pub mod process;
pub mod root;
pub mod spawn;
mod vdso;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::snapshot::ObjectMapping;

/// A mapped object with its file held open, so that names and unwind tables can be read from what
/// is mapped: also when the path was replaced, and after the process has exited.
#[derive(Clone, Debug)]
pub struct MappedFile {
    /// Path inside the tracee's mount namespace, without ` (deleted)`.
    pub path: String,
    /// What was opened: `/proc/PID/map_files/START-END` where that is allowed, otherwise
    /// `/proc/PID/root/PATH`.
    pub open_path: PathBuf,
    pub file: Arc<File>,
    /// The path was unlinked or replaced since it was mapped.
    pub deleted: bool,
    /// Device (major, minor) and inode as `/proc/PID/maps` tells them.
    pub device: (u32, u32),
    pub inode: u64,
    /// Executable mappings, sorted by address.
    pub mappings: Vec<ObjectMapping>,
}
