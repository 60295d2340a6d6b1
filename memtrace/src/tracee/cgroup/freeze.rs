//! Stops every process of a cgroup for a moment, and lets them go on whatever happens to memtrace.
//!
//! A guard is started before anything is frozen: a child that holds the end of a pipe and the open
//! file to write to. When the pipe ends without the word that all is done (memtrace was killed), or
//! after [`LONGEST`], it writes the thaw itself. It allocates nothing and calls only `poll`,
//! `read`, `write` and `_exit`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use crate::snapshot::facts::FreezeFacts;
use crate::tracee::container::cgroup::{
    containers_in, parse_cgroup_mounts, parse_memberships, read_bounded, read_cgroup_file,
};

/// The guard thaws after this, whatever memtrace is doing.
pub const LONGEST: Duration = Duration::from_secs(20);
/// How long the kernel may take to stop everyone.
const SETTLE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error(
        "no cgroup of process {pid} can be frozen here: neither `cgroup.freeze` (v2) nor the v1 freezer is there for it"
    )]
    NoFreezer { pid: u32 },
    #[error(
        "memtrace itself is in the cgroup `{path}`: freezing it would stop memtrace, too; run it elsewhere"
    )]
    Oneself { path: String },
    #[error("failed to write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to start the guard that thaws when memtrace is killed")]
    Guard(#[source] io::Error),
    #[error("`{}` did not become frozen within 5 s; it was thawed again", path.display())]
    NotFrozen { path: PathBuf },
}

impl FreezeError {
    pub fn is_permission(&self) -> bool {
        let Self::Write { source, .. } = self else { return false };
        matches!(source.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
    }
}

/// What is written where, and how one sees that it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Freezer {
    file: PathBuf,
    freeze: &'static [u8],
    thaw: &'static [u8],
    /// Read until it has the line that says so.
    state: PathBuf,
    frozen_line: &'static str,
    path: String,
}

/// A cgroup that stands still; thawed when dropped.
#[derive(Debug)]
pub struct Frozen {
    freezer: Freezer,
    since: Instant,
    guard: Option<Guard>,
}

#[derive(Debug)]
struct Guard {
    pid: Pid,
    pipe: File,
}

/// Freezes the container (by id) that process `pid` is in, or the process's own cgroup.
pub fn freeze(pid: u32, container: Option<&str>) -> Result<Frozen, FreezeError> {
    let proc = Path::new("/proc");
    let freezer = find(proc, pid, container).ok_or(FreezeError::NoFreezer { pid })?;
    if is_inside(proc, &freezer.path) {
        return Err(FreezeError::Oneself { path: freezer.path });
    }
    let since = Instant::now();
    if is_frozen(&freezer) {
        return Ok(Frozen { freezer, since, guard: None });
    }
    let written = |source| FreezeError::Write { path: freezer.file.clone(), source };
    let file = OpenOptions::new().write(true).open(&freezer.file).map_err(written)?;
    let guard = start_guard(&file, freezer.thaw).map_err(FreezeError::Guard)?;
    let frozen = Frozen { freezer, since, guard: Some(guard) };
    file.write_all_at(frozen.freezer.freeze, 0)
        .map_err(|source| FreezeError::Write { path: frozen.freezer.file.clone(), source })?;
    while !is_frozen(&frozen.freezer) {
        if since.elapsed() > SETTLE {
            return Err(FreezeError::NotFrozen { path: frozen.freezer.file.clone() });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(frozen)
}

impl Frozen {
    /// Lets everyone go on, and says what was done.
    pub fn thaw(mut self) -> FreezeFacts {
        let was_frozen = self.guard.is_none();
        let frozen_for = self.since.elapsed();
        self.release();
        FreezeFacts {
            file: self.freezer.file.display().to_string(),
            frozen_for_ns: u64::try_from(frozen_for.as_nanos()).unwrap_or(u64::MAX),
            was_frozen,
            too_long: !was_frozen && frozen_for >= LONGEST,
        }
    }

    fn release(&mut self) {
        let Some(mut guard) = self.guard.take() else { return };
        let thawed = OpenOptions::new()
            .write(true)
            .open(&self.freezer.file)
            .and_then(|file| file.write_all_at(self.freezer.thaw, 0));
        // Without the word, the guard thaws when the pipe ends.
        if thawed.is_ok() {
            let _ = guard.pipe.write_all(b"d");
        }
        drop(guard.pipe);
        // It ends at once; nothing can be done about a wait that fails.
        let _ = waitpid(guard.pid, None);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.release();
    }
}

fn is_frozen(freezer: &Freezer) -> bool {
    let text = read_bounded(&freezer.state, 4096);
    text.is_ok_and(|text| text.lines().any(|line| line.trim() == freezer.frozen_line))
}

/// The v1 freezer's cgroup where there is one: container runtimes use it on hybrid hosts.
fn find(proc: &Path, pid: u32, container: Option<&str>) -> Option<Freezer> {
    let text = read_cgroup_file(proc, pid).ok()?;
    let mounts = parse_cgroup_mounts(&read_bounded(&proc.join("self/mountinfo"), 64 << 20).ok()?);
    let memberships = parse_memberships(&text);
    let mut found = None;
    for line in &memberships {
        let is_v1 = line.controllers.split(',').any(|controller| controller == "freezer");
        if !is_v1 && !line.is_unified() {
            continue;
        }
        let path = container
            .and_then(|id| containers_in(line.path).into_iter().find(|named| named.id == id))
            .map_or_else(|| line.path.to_owned(), |named| named.path);
        let directories = mounts.iter().filter(|mount| mount.holds(line));
        for directory in directories.filter_map(|mount| mount.directory_of(&path)) {
            if is_v1 && directory.join("freezer.state").exists() {
                return Some(Freezer {
                    file: directory.join("freezer.state"),
                    freeze: b"FROZEN",
                    thaw: b"THAWED",
                    state: directory.join("freezer.state"),
                    frozen_line: "FROZEN",
                    path,
                });
            }
            if line.is_unified() && directory.join("cgroup.freeze").exists() {
                found = Some(Freezer {
                    file: directory.join("cgroup.freeze"),
                    freeze: b"1",
                    thaw: b"0",
                    state: directory.join("cgroup.events"),
                    frozen_line: "frozen 1",
                    path: path.clone(),
                });
            }
        }
    }
    found
}

fn is_inside(proc: &Path, path: &str) -> bool {
    let text = read_bounded(&proc.join("self/cgroup"), 256 << 10).unwrap_or_default();
    parse_memberships(&text).iter().any(|line| {
        line.path == path || line.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
    })
}

fn start_guard(file: &File, thaw: &'static [u8]) -> io::Result<Guard> {
    let (read_end, write_end): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the child calls only functions that are safe after a fork of a process with threads:
    // `setsid`, `close`, `poll`, `read`, `write` and `_exit`; it never returns.
    match unsafe { fork() }? {
        ForkResult::Child => {
            guard(read_end.as_raw_fd(), write_end.as_raw_fd(), file.as_raw_fd(), thaw)
        }
        ForkResult::Parent { child } => Ok(Guard { pid: child, pipe: File::from(write_end) }),
    }
}

/// The child: waits for the word, the end of the pipe, or [`LONGEST`].
fn guard(pipe: i32, own_write_end: i32, file: i32, thaw: &[u8]) -> ! {
    // SAFETY: system calls on descriptors that this process has, with buffers that outlive them.
    unsafe {
        // Signals to memtrace's group or terminal are not for the guard.
        libc::setsid();
        // As long as it holds the other end itself, the pipe never ends.
        libc::close(own_write_end);
        let mut waiting = libc::pollfd { fd: pipe, events: libc::POLLIN, revents: 0 };
        let limit = i32::try_from(LONGEST.as_millis()).unwrap_or(i32::MAX);
        let ready = libc::poll(&mut waiting, 1, limit);
        let mut word = 0u8;
        let told = ready > 0 && libc::read(pipe, (&raw mut word).cast(), 1) == 1 && word == b'd';
        if !told {
            libc::pwrite(file, thaw.as_ptr().cast(), thaw.len(), 0);
        }
        libc::_exit(0)
    }
}

#[cfg(test)]
#[path = "freeze_tests.rs"]
mod tests;
