//! Starts a command and holds it before its first allocation, so that probes can be armed.
//!
//! Promise: when [`Spawned::start`] returns, every library that the program starts with is mapped
//! and relocated, and neither a constructor nor the program ran. The command is in memtrace's own
//! process group, with its stdin, stdout, stderr, environment and working directory, with an empty
//! signal mask and default signal handlers (a signal that memtrace was started with as ignored
//! stays ignored, as with `nohup`; SIGPIPE is always default). [`Spawned::resume`] lets it go and
//! leaves nothing of ptrace behind.
//!
//! Limits:
//! - Only the first image is held: what the command executes later (a shell's commands) is not.
//!   Of a script the interpreter is held.
//! - What the loader allocates for itself with its own allocator is not covered; glibc's loader
//!   switches to libc's `malloc` before the stop, but calls it zero times up to there
//!   (`the_loader_calls_libc_malloc_not_once_before_the_stop` counts). Code that runs earlier by
//!   design is missed: IFUNC resolvers and `LD_AUDIT` libraries with their private libc.
//! - `ld.so --audit LIBRARY PROGRAM` as the command itself is held too early, before the program's
//!   libraries are mapped (glibc 2.36): there the loader's state does not tell the audit library
//!   from the program's. With `LD_AUDIT` in the environment the stop is right.
//! - A loader without `_dl_debug_state` is run through to the program's entry point: see
//!   [`StopPoint`].
//! - x86-64 programs on x86-64 only.
//!
//! The breakpoint is a software one, written over the loader's text in the child's private memory
//! and restored before [`Spawned::start`] returns. It costs the child one private page (4 KiB) per
//! breakpoint, two at most. Debug registers would leave no trace, but they silently never fire in
//! some virtual machines (SEV-ES without debug swap) and may all be taken; a missed stop would let
//! the program run away.
//!
//! ptrace binds a tracee to the *thread* that seized it: [`Spawned`] is therefore neither `Send`
//! nor `Sync`. Until `resume`, the kernel kills the command when that thread dies
//! (`PTRACE_O_EXITKILL`): a killed memtrace leaves no stopped process behind.

mod child;
mod command;
mod loader;
mod startup;
mod trace;

use std::ffi::OsString;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use self::trace::Tracee;

/// Why a command could not be started, held, or let go.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("no command to start: give it after `--`, e.g. `memtrace record -- ls -l`")]
    EmptyCommand,
    #[error("failed to start `{command}`: no such command in PATH ({path}); give its full path")]
    NotInPath { command: String, path: String },
    #[error("failed to start `{}`: no such file", path.display())]
    NotFound { path: PathBuf },
    #[error("failed to start `{}`: it is a directory; name a program", path.display())]
    Directory { path: PathBuf },
    #[error(
        "failed to start `{}`: permission denied; is it executable (`chmod +x`), is its directory \
         searchable, is it on a mount with `noexec`?",
        path.display()
    )]
    NotExecutable { path: PathBuf },
    #[error("failed to start `{command}`: an argument or the name holds a NUL byte")]
    NulByte { command: String },
    #[error(
        "failed to execute `{}`; if the file is there, its interpreter (`#!` line or ELF loader) \
         may be missing or the file may not be a program for this machine",
        path.display()
    )]
    Exec { path: PathBuf, source: io::Error },
    #[error("failed to {action} while starting `{command}`")]
    Prepare { action: &'static str, command: String, source: io::Error },
    #[error(
        "failed to {action} (process {pid}) with ptrace; a seccomp profile or the Yama setting \
         `kernel.yama.ptrace_scope` = 3 forbids it: start the command yourself and use `--pid`"
    )]
    Ptrace { action: &'static str, pid: u32, source: io::Error },
    #[error("failed to read `{}` of the command just started", path.display())]
    Facts { path: PathBuf, source: io::Error },
    #[error(
        "`{}` is not an x86-64 program ({found}); memtrace cannot trace it",
        path.display()
    )]
    WrongMachine { path: PathBuf, found: String },
    #[error(
        "process {pid} ended before its first instruction could be traced ({status}); its loader \
         says on stderr what it missed, if it said anything"
    )]
    EndedBeforeStart { pid: u32, status: ExitStatus },
    #[error(
        "process {pid} did not reach its first instruction within {seconds} s; it was killed. Is a \
         library on a file system that does not answer?"
    )]
    Timeout { pid: u32, seconds: u64 },
    #[error(
        "found no place to hold process {pid} at: there are breakpoints already at its entry point \
         and in its loader; remove the uprobes of other tools"
    )]
    NoStopPoint { pid: u32 },
    #[error("process {pid} waits to be resumed: it cannot be waited for")]
    NotResumed { pid: u32 },
    #[error("failed to wait for process {pid}")]
    Wait { pid: u32, source: io::Error },
}

/// Where the command stands when [`Spawned::start`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPoint {
    /// Dynamic program: the loader is done, no constructor ran.
    LoaderDone,
    /// Static program (also static-pie, also Go): at its ELF entry, nothing ran at all.
    StaticEntry,
    /// Dynamic program whose loader does not tell when it is done: at the program's entry point.
    /// Constructors of libraries may have run, so that early allocations may be missed.
    EntryAfterConstructors,
}

/// The program's set-user-ID or set-group-ID bit had no effect: the kernel drops it when the tracer
/// lacks `CAP_SYS_PTRACE`, and on mounts with `nosuid`. The program runs with memtrace's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetIdIgnored {
    pub program: PathBuf,
    pub wanted: u32,
    pub got: u32,
    /// The group's bit rather than the user's.
    pub group: bool,
}

impl std::fmt::Display for SetIdIgnored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.group { "group" } else { "user" };
        write!(
            f,
            "the set-{what}-ID bit of `{}` has no effect: it runs as {what} {} instead of {}",
            self.program.display(),
            self.got,
            self.wanted
        )
    }
}

/// A command that memtrace started.
///
/// Dropped before [`resume`](Self::resume), the command is killed and reaped. Dropped after it, the
/// command goes on, unless it ended already: then it is reaped.
#[derive(Debug)]
pub struct Spawned {
    tracee: Tracee,
    resumed: bool,
    stop_point: StopPoint,
    set_id_ignored: Option<SetIdIgnored>,
    /// Signals that would have stopped the command while it was being started.
    held_signals: Vec<i32>,
    /// ptrace accepts calls from the seizing thread only.
    _this_thread_only: PhantomData<*const ()>,
}

impl Spawned {
    /// Starts `argv`, looked up in PATH as a shell does, and holds it before its first allocation.
    ///
    /// Blocks until the loader is done: about a millisecond for small programs, never more than
    /// 60 s. Signals that arrive meanwhile are delivered (Ctrl-C ends the command and with it this
    /// call), except those that stop a process: they are sent again on [`resume`](Self::resume).
    /// On every error the process is gone and reaped.
    pub fn start(argv: &[OsString]) -> Result<Spawned, SpawnError> {
        let command = command::Command::resolve(argv)?;
        let mut held_signals = Vec::new();
        let mut tracee = startup::execute(&command, &mut held_signals)?;
        let held = Spawned::hold(&mut tracee, &mut held_signals);
        let (stop_point, set_id_ignored) = held.map_err(|error| match tracee.try_reap() {
            // Killed in the middle of it, by whoever: then this is the reason.
            Ok(Some(status)) => SpawnError::EndedBeforeStart { pid: tracee.pid(), status },
            _ => error,
        })?;
        Ok(Spawned {
            tracee,
            resumed: false,
            stop_point,
            set_id_ignored,
            held_signals,
            _this_thread_only: PhantomData,
        })
    }

    /// From the exec stop to the stop point.
    fn hold(
        tracee: &mut Tracee,
        held_signals: &mut Vec<i32>,
    ) -> Result<(StopPoint, Option<SetIdIgnored>), SpawnError> {
        let program = startup::check_machine(tracee)?;
        let set_id_ignored = find_ignored_set_id(tracee, &program)?;
        let stop_point = startup::run_to_stop_point(tracee, held_signals)?;
        Ok((stop_point, set_id_ignored))
    }

    pub fn pid(&self) -> u32 {
        self.tracee.pid()
    }

    pub fn stop_point(&self) -> StopPoint {
        self.stop_point
    }

    /// Set when the program does not run with the identity that its file asks for.
    pub fn set_id_ignored(&self) -> Option<&SetIdIgnored> {
        self.set_id_ignored.as_ref()
    }

    /// Lets the command run and detaches from it. A second call does nothing.
    ///
    /// Fails with [`SpawnError::EndedBeforeStart`] when something killed the command while held.
    pub fn resume(&mut self) -> Result<(), SpawnError> {
        if self.resumed {
            return Ok(());
        }
        for signal in self.held_signals.drain(..) {
            self.tracee.send(signal);
        }
        match self.tracee.detach() {
            Ok(()) => {
                self.resumed = true;
                Ok(())
            }
            Err(source) => match self.tracee.try_reap() {
                Ok(Some(status)) => Err(SpawnError::EndedBeforeStart { pid: self.pid(), status }),
                _ => Err(SpawnError::Ptrace {
                    action: "resume the command",
                    pid: self.pid(),
                    source,
                }),
            },
        }
    }

    /// How the command ended, or `None` while it lives. Never blocks.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, SpawnError> {
        let pid = self.pid();
        self.tracee.try_reap().map_err(|source| SpawnError::Wait { pid, source })
    }

    /// Blocks until the command ends. Refused before [`resume`](Self::resume): it would never end.
    pub fn wait(&mut self) -> Result<ExitStatus, SpawnError> {
        let pid = self.pid();
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        if !self.resumed {
            return Err(SpawnError::NotResumed { pid });
        }
        self.tracee.reap().map_err(|source| SpawnError::Wait { pid, source })
    }
}

/// The new image's effective ids against those its file asks for.
fn find_ignored_set_id(
    tracee: &Tracee,
    program: &Path,
) -> Result<Option<SetIdIgnored>, SpawnError> {
    let exe = tracee.proc("exe");
    let metadata = match std::fs::metadata(&exe) {
        Ok(metadata) => metadata,
        Err(source) => return Err(SpawnError::Facts { path: exe, source }),
    };
    let status_path = tracee.proc("status");
    let status = match std::fs::read_to_string(&status_path) {
        Ok(status) => status,
        Err(source) => {
            return Err(SpawnError::Facts { path: status_path, source });
        }
    };
    let effective = |key: &str| -> Option<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let mode = metadata.mode();
    // The group bit without group execution marks mandatory locking, not an identity.
    let set_group = mode & libc::S_ISGID != 0 && mode & libc::S_IXGRP != 0;
    for (asked, key, wanted, group) in [
        (mode & libc::S_ISUID != 0, "Uid:", metadata.uid(), false),
        (set_group, "Gid:", metadata.gid(), true),
    ] {
        if let (true, Some(got)) = (asked, effective(key))
            && got != wanted
        {
            return Ok(Some(SetIdIgnored { program: program.to_path_buf(), wanted, got, group }));
        }
    }
    Ok(None)
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.resumed {
            self.tracee.release();
        }
        // Otherwise `Tracee` kills and reaps.
    }
}
