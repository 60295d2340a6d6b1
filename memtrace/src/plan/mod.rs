//! WHICH probes: from facts to a [`ProbePlan`]. Pure: nothing here reads a file or names aya.
//!
//! Invariant: every allocator entry point found is either probed or listed with a reason.

use std::path::PathBuf;

pub use memtrace_common::calls::Signature;

pub mod catalogue;
pub mod decide;
pub mod host;
pub mod site;
pub mod system_calls;

pub use decide::decide;

/// One function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedProbe {
    pub signature: Signature,
    /// What to open for attaching, e.g. `/proc/PID/map_files/START-END`: never canonicalized.
    pub attach_path: PathBuf,
    /// The object's path as the tracee sees it.
    pub object: String,
    pub allocator: String,
    pub function: String,
    pub function_file_offset: u64,
    /// File offset = `function_file_offset + entry_site`.
    pub entry_site: u64,
    pub entry_instruction: String,
    pub entry_is_emulated: bool,
    /// `Some` where the function needs a return probe (all but the `Free` kind); proved to stand
    /// where RSP still points at the return address.
    pub return_site: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbePlan {
    pub probes: Vec<PlannedProbe>,
    /// The mmap family is seen where it enters the kernel, by tracepoints, not in libc.
    pub system_calls: bool,
    pub not_probed: Vec<crate::snapshot::NotProbed>,
}
