//! Where the mmap family is seen: in libc's functions, or where it enters the kernel. Pure.
//!
//! Never both: a call of libc's `mmap` is a system call, too, and would count twice. Probes on libc
//! cost only the traced process, and miss who makes the system call without libc. Tracepoints miss
//! nothing, and cost every system call of the whole host a little while memtrace runs
//! (docs/cost.md), so they are for programs that make such calls themselves.

use std::str::FromStr;

use super::ProbePlan;
use crate::snapshot::NotProbed;
use crate::tracee::allocators::{Family, ObjectFacts};

/// Where to look: the argument of `--mmap-source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MmapSource {
    /// The kernel for programs that are known to map memory without libc, else libc.
    #[default]
    Auto,
    Libc,
    Kernel,
}

impl FromStr for MmapSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "libc" => Ok(Self::Libc),
            "kernel" => Ok(Self::Kernel),
            _ => Err("expected `auto`, `libc` or `kernel`".to_owned()),
        }
    }
}

/// What the tracepoints are called among the probes.
pub const KERNEL: &str = "[kernel]";

/// Why one of these objects maps memory by system calls of its own.
pub fn raw_caller(objects: &[ObjectFacts]) -> Option<String> {
    objects.iter().find_map(|object| {
        let path = &object.file.path;
        let go = object.elf.go.as_ref();
        if go.is_some_and(|go| go.maps_memory) {
            return Some(format!("`{path}` has Go's mmap, which is a system call of its own"));
        }
        if !object.is_executable || object.elf.interpreter.is_some() {
            return None;
        }
        let is_libc = |family: &Family| matches!(family, Family::Glibc | Family::Musl);
        let has_libc = objects.iter().any(|other| other.families.iter().any(is_libc));
        (go.is_some() && !has_libc)
            .then(|| format!("`{path}` is Go without libc: it makes its system calls itself"))
    })
}

/// Puts the tracepoints in the place of libc's functions.
pub fn take_from_kernel(plan: &mut ProbePlan, why: &str) {
    plan.system_calls = true;
    let ranged = plan.probes.extract_if(.., |probe| probe.signature.is_range());
    plan.not_probed.extend(ranged.map(|probe| NotProbed {
        object: probe.object,
        function: Some(probe.function),
        reason: format!("each of its calls is seen where it enters the kernel: {why}"),
    }));
}

#[cfg(test)]
#[path = "system_calls_tests.rs"]
mod tests;
