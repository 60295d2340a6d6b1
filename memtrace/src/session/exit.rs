//! Exit codes for scripts: what kind of thing went wrong.

use std::process::ExitCode;

use crate::kernel::KernelError;
use crate::tracee::cgroup::LocateError;
use crate::tracee::cgroup::freeze::FreezeError;
use crate::tracee::container::ContainerError;
use crate::tracee::process::ProcessError;
use crate::tracee::spawn::SpawnError;

/// A failure of the session's own, with its kind.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(
        "process {pid} (`{comm}`) has no allocator function that can be probed\n{reasons}\n\
         an allocator needs symbols: `.symtab`, `.dynsym` or separate debug information; what the \
         process maps can be traced without (--mmap-source kernel)"
    )]
    NothingToProbe { pid: u32, comm: String, reasons: String },
    #[error("not one probe could be attached to process {pid}\n{reasons}")]
    NothingAttached { pid: u32, reasons: String },
    #[error("no process is in `{asked}`: there is nothing to trace")]
    NoProcess { asked: String },
    #[error("process {pid} exited before the probes were armed: there is nothing to report")]
    ExitedEarly { pid: u32 },
    #[error("not permitted to attach a probe to process {pid}\n{reasons}")]
    AttachDenied { pid: u32, reasons: String },
    #[error(
        "process {pid} called no allocator that is probed until {ended}: no stack was compared; \
         put load on it, or raise --duration"
    )]
    NothingCompared { pid: u32, ended: String },
    #[error("only one output can be `-` (standard output); give the others a file")]
    TwoOnStdout,
    #[error(
        "{name} is named twice: each output needs a file of its own, other than the recording that \
         is read"
    )]
    SameFileTwice { name: String },
}

/// | code | meaning |
/// |---|---|
/// | 1 | any other failure |
/// | 2 | the command line |
/// | 3 | the target: not found, several, not running, not startable, not traceable |
/// | 4 | not permitted |
/// | 5 | nothing to probe |
/// | 6 | the kernel lacks something |
/// | 7 | `selftest`: contradictions were found (no error: [`super::selftest`]) |
/// | 8 | `check`: a limit does not hold (no error: [`super::check`]) |
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<ProcessError>() {
            return Some(match error {
                ProcessError::NotPermitted { .. } => 4,
                _ => 3,
            });
        }
        if let Some(error) = cause.downcast_ref::<ContainerError>() {
            return Some(match error {
                ContainerError::SocketDenied { .. } => 4,
                _ => 3,
            });
        }
        if cause.is::<LocateError>() {
            return Some(3);
        }
        if let Some(error) = cause.downcast_ref::<FreezeError>() {
            return Some(if error.is_permission() { 4 } else { 3 });
        }
        if let Some(error) = cause.downcast_ref::<SpawnError>() {
            return Some(match error {
                SpawnError::Ptrace { .. } => 4,
                _ => 3,
            });
        }
        if let Some(error) = cause.downcast_ref::<KernelError>() {
            return Some(match error {
                KernelError::ReadObject { .. } => 1,
                error if error.is_permission() => 4,
                _ => 6,
            });
        }
        match cause.downcast_ref::<SessionError>()? {
            SessionError::TwoOnStdout | SessionError::SameFileTwice { .. } => Some(2),
            SessionError::ExitedEarly { .. } | SessionError::NoProcess { .. } => Some(3),
            SessionError::AttachDenied { .. } => Some(4),
            SessionError::NothingCompared { .. } => Some(1),
            SessionError::NothingToProbe { .. } | SessionError::NothingAttached { .. } => Some(5),
        }
    });
    ExitCode::from(code.unwrap_or(1))
}
