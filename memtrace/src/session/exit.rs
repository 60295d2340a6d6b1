//! Exit codes for scripts: what kind of thing went wrong.

use std::process::ExitCode;

use crate::kernel::KernelError;
use crate::tracee::container::ContainerError;
use crate::tracee::process::ProcessError;

/// A failure of the session's own, with its kind.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(
        "process {pid} (`{comm}`) has no allocator function that can be probed\n{reasons}\n\
         an allocator needs symbols: `.symtab`, `.dynsym` or separate debug information"
    )]
    NothingToProbe { pid: u32, comm: String, reasons: String },
    #[error("not one probe could be attached to process {pid}\n{reasons}")]
    NothingAttached { pid: u32, reasons: String },
    #[error("process {pid} exited before the probes were armed")]
    ExitedEarly { pid: u32 },
}

/// | code | meaning |
/// |---|---|
/// | 1 | any other failure |
/// | 2 | the command line (clap) |
/// | 3 | the target: not found, several, not running, not traceable |
/// | 4 | not permitted |
/// | 5 | nothing to probe |
/// | 6 | the kernel lacks something |
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
        if let Some(error) = cause.downcast_ref::<KernelError>() {
            return Some(if error.is_permission() { 4 } else { 6 });
        }
        match cause.downcast_ref::<SessionError>()? {
            SessionError::ExitedEarly { .. } => Some(3),
            SessionError::NothingToProbe { .. } | SessionError::NothingAttached { .. } => Some(5),
        }
    });
    ExitCode::from(code.unwrap_or(1))
}
