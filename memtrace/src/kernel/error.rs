//! What can go wrong at the kernel edge, and what to try.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use thiserror::Error;

use super::features;
use crate::tracee::capabilities::Capabilities;

/// Why the kernel side cannot be loaded, attached or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    #[error(
        "failed to read the BPF object `{path}` named by MEMTRACE_BPF_OBJECT: name a readable \
         object file, or unset the variable to use the built-in one"
    )]
    ReadObject { path: PathBuf, source: io::Error },

    #[error("the BPF object has no {kind} `{name}`: rebuild it with `cargo xtask bpf`")]
    Incomplete { kind: &'static str, name: &'static str },

    #[error(
        "this kernel lacks what memtrace needs:\n{missing}\nuse Linux {} or newer (Debian 12 and \
         Ubuntu 24.04 have one); `memtrace doctor` shows what else is there",
        features::OLDEST_KERNEL
    )]
    Lacks { missing: String },

    // The causes of these two are in their advice: as a `source` they would be told twice.
    #[error("failed to load the BPF object: {advice}")]
    Load { advice: String, cause: Box<EbpfError> },

    #[error("failed to load BPF program `{program}`: {advice}")]
    LoadProgram { program: &'static str, advice: String, denied: bool },

    #[error("failed to attach BPF program `{program}` to tracepoint `{tracepoint}`: {advice}")]
    AttachTracepoint {
        program: &'static str,
        tracepoint: &'static str,
        advice: String,
        denied: bool,
    },

    #[error("failed to {action} BPF map `{map}`")]
    Map { action: &'static str, map: &'static str, source: io::Error },

    #[error("failed to open BPF map `{map}`")]
    OpenMap { map: &'static str, source: Box<MapError> },

    #[error(
        "{wanted} more unwind rows do not fit: {used} of {capacity} are used; raise \
         --max-unwind-rows"
    )]
    RowsFull { wanted: usize, used: usize, capacity: usize },

    #[error("the mappings of process {tgid} cannot be set: {reason}")]
    BadMappings { tgid: u32, reason: String },

    #[error("failed to open the kernel side's log: {reason}")]
    Log { reason: String },
}

/// Most of a verifier log that is worth showing: its end says what was wrong.
const LOG_LINES: usize = 12;

impl KernelError {
    pub(super) fn load(source: EbpfError) -> Self {
        let advice = match &source {
            EbpfError::MapError(MapError::CreateError { name, io_error }) => {
                format!("map `{name}`: {}", advice(io_error))
            }
            EbpfError::ProgramError(ProgramError::LoadError { io_error, .. }) => advice(io_error),
            _ => format!(
                "{}: this kernel may lack what memtrace needs: see `memtrace doctor`",
                chain(&source)
            ),
        };
        Self::Load { advice, cause: Box::new(source) }
    }

    pub(super) fn load_program(program: &'static str, error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = shortened(&verifier_log.to_string());
                let denied = log.is_empty()
                    && matches!(io_error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
                // Once the verifier has spoken, its EACCES is about the program, not about us.
                let advice = match log.as_str() {
                    "" => advice(&io_error),
                    log => format!(
                        "{io_error}: this kernel's verifier refuses it: use another kernel (see \
                         `memtrace doctor`), and report this with the kernel's release; it says:\n{log}"
                    ),
                };
                Self::LoadProgram { program, advice, denied }
            }
            other => Self::LoadProgram {
                program,
                advice: format!("{}: see `memtrace doctor`", chain(&other)),
                denied: false,
            },
        }
    }

    /// After a failed load: if something that memtrace requires is missing here, that is what to
    /// tell, and not at which instruction the verifier noticed. Tries each feature, half a second.
    pub(super) fn explained(self) -> Self {
        if self.is_permission() {
            return self;
        }
        let missing: Vec<String> = features::missing_required(&features::probe())
            .map(|(name, reason)| format!("  {name}: {reason}"))
            .collect();
        if missing.is_empty() {
            return self;
        }
        log::debug!("{self}");
        Self::Lacks { missing: missing.join("\n") }
    }

    pub(super) fn attach_tracepoint(
        program: &'static str,
        tracepoint: &'static str,
        error: &ProgramError,
    ) -> Self {
        let (advice, denied) = match error {
            ProgramError::SyscallError(failed) => {
                let errno = failed.io_error.raw_os_error();
                let denied = matches!(errno, Some(libc::EPERM | libc::EACCES));
                (format!("{}: {}", failed.call, advice(&failed.io_error)), denied)
            }
            other => (chain(other), false),
        };
        Self::AttachTracepoint { program, tracepoint, advice, denied }
    }

    pub(super) fn open_map(map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::OpenMap { map, source: Box::new(source) }
    }

    /// The kernel refused because of missing privileges, not because it cannot.
    pub fn is_permission(&self) -> bool {
        let refused =
            |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
        match self {
            Self::Load { cause, .. } => match &**cause {
                EbpfError::MapError(MapError::CreateError { io_error, .. })
                | EbpfError::ProgramError(ProgramError::LoadError { io_error, .. }) => {
                    refused(io_error)
                }
                _ => false,
            },
            Self::LoadProgram { denied, .. } => *denied,
            Self::Map { source, .. } => refused(source),
            Self::AttachTracepoint { denied, .. } => *denied,
            _ => false,
        }
    }

    pub(super) fn map(action: &'static str, map: &'static str, source: io::Error) -> Self {
        Self::Map { action, map, source }
    }
}

/// What a user can do about an errno of `bpf(2)` or `perf_event_open(2)`.
pub(super) fn advice(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => match Capabilities::of_self() {
            Some(own) => denied(error, own),
            None => denied(error, Capabilities::default()),
        },
        Some(libc::ENOMEM) => format!(
            "{error}: out of memory or locked memory: lower --max-blocks, or raise the limit of \
             locked memory (`ulimit -l unlimited`)"
        ),
        Some(libc::E2BIG) => format!("{error}: a limit is beyond what this kernel takes: lower it"),
        Some(libc::ENOSYS) => format!("{error}: this kernel has no bpf system call"),
        Some(libc::EINVAL) => format!(
            "{error}: this kernel lacks a feature that memtrace needs (Linux 5.15 or newer): see \
             `memtrace doctor`"
        ),
        _ => format!("{error}"),
    }
}

/// `CAP_SYS_ADMIN` stands for the others.
fn denied(error: &io::Error, own: Capabilities) -> String {
    let missing = match own.has("CAP_SYS_ADMIN") {
        true => Vec::new(),
        false => own.missing(&["CAP_BPF", "CAP_PERFMON"]),
    };
    if missing.is_empty() {
        return format!(
            "{error}: no capability is missing here; a seccomp profile (of a container), a user \
             namespace, a security module or the kernel's lockdown denies it: run memtrace on the \
             host"
        );
    }
    let missing = missing.join(", ");
    format!("{error}; missing capability: {missing} (run memtrace as root)")
}

/// An error and its causes, each once: aya's repeat what is below them.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(below) = cause {
        let text = below.to_string();
        if !out.ends_with(&text) {
            out = format!("{out}: {text}");
        }
        cause = below.source();
    }
    out
}

/// The last lines of a verifier log, without its statistics.
fn shortened(log: &str) -> String {
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| !line.trim().is_empty())
        .filter(|line| !line.starts_with("processed ") && !line.starts_with("verification time"))
        .filter(|line| !line.starts_with("stack depth"))
        .collect();
    let skipped = lines.len().saturating_sub(LOG_LINES);
    let mut out = String::new();
    if skipped > 0 {
        out.push_str(&format!("  [{skipped} lines before]\n"));
    }
    for line in &lines[skipped..] {
        out.push_str("  ");
        out.extend(line.chars().take(200));
        out.push('\n');
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_log_is_cut_to_its_last_lines() {
        let log: String = (0..500).map(|i| format!("{i}: r0 = 0\n")).collect::<String>()
            + "invalid mem access\nprocessed 500 insns (limit 1000000)\n";
        let short = shortened(&log);
        assert!(short.ends_with("invalid mem access"), "{short}");
        assert!(short.starts_with("  [489 lines before]"), "{short}");
        assert_eq!(short.lines().count(), LOG_LINES + 1);
    }

    #[test]
    fn a_denied_load_names_the_capabilities() {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        let text = denied(&refused, Capabilities(1 << 39));
        assert!(text.contains("CAP_PERFMON") && !text.contains("CAP_BPF"), "{text}");
        let text = denied(&refused, Capabilities(1 << 21));
        assert!(text.contains("seccomp") && !text.contains("missing capability:"), "{text}");
    }
}
