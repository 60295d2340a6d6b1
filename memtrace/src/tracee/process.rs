//! A process is (pid, start time), held by a pidfd: its pid cannot become another process unseen.
//!
//! Limits: a thread's id is refused (trace its process); the process must be of 64 bits.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::capabilities::missing_for;
use crate::snapshot::{ProcessId, ProcessMemory};

/// `PF_KTHREAD` of the kernel's `sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;
/// Most bytes kept of a command line.
const MAX_COMMAND_LINE: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error(
        "no process has pid {pid}: look for the pid with `ps` or `docker top`, as the host sees it"
    )]
    NoSuchProcess { pid: u32 },
    #[error("{thread} is a thread of process {process}: trace the process")]
    IsThread { thread: u32, process: u32 },
    #[error(
        "process {pid} (`{comm}`) is a kernel thread: it has no memory of its own to trace; name a process"
    )]
    KernelThread { pid: u32, comm: String },
    #[error(
        "process {pid} (`{comm}`) has ended and only waits for its parent to collect it (zombie)"
    )]
    Zombie { pid: u32, comm: String },
    #[error(
        "process {pid} runs a program that is not of 64-bit x86 (`{executable}`): only x86-64 can be traced"
    )]
    NotX86_64 { pid: u32, executable: String },
    #[error(
        "not permitted to read `{path}` of process {pid}; missing capability: {missing} (run memtrace as root)"
    )]
    NotPermitted { pid: u32, path: String, missing: String },
    #[error("failed to read `{path}`")]
    Read { path: String, source: io::Error },
    #[error("failed to understand `{path}`: {reason}")]
    Malformed { path: String, reason: String },
    #[error("failed to hold process {pid} by a pidfd")]
    Pidfd { pid: u32, source: io::Error },
}

/// A live process, and what it said of itself when it was opened.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
    pub comm: String,
    /// Target of `/proc/PID/exe` as the kernel tells it; not a path to open.
    pub executable: String,
    /// Lossy UTF-8, cut at 64 KiB.
    pub command_line: Vec<String>,
    /// The pid inside its own (innermost) pid namespace.
    pub namespace_pid: u32,
}

impl Process {
    pub fn open(pid: u32) -> Result<Self, ProcessError> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = match raw.map(|raw| pidfd_open(raw, PidfdFlags::empty())) {
            None => return Err(ProcessError::NoSuchProcess { pid }),
            Some(Ok(fd)) => fd,
            Some(Err(errno)) => return Err(why_no_pidfd(pid, errno.into())),
        };
        // A dying process reads as half of one: every failure below is explained by its state.
        let stat = read_stat(pid)?;
        let comm = stat.comm.clone();
        if stat.flags & PF_KTHREAD != 0 {
            return Err(ProcessError::KernelThread { pid, comm });
        }
        if matches!(stat.state, 'Z' | 'X') {
            return Err(ProcessError::Zombie { pid, comm });
        }
        let status = Status::read(pid)?;
        if status.tgid != pid {
            return Err(ProcessError::IsThread { thread: pid, process: status.tgid });
        }
        let executable = read_link(pid, "exe")?;
        let process = Self {
            id: ProcessId { pid, start_time_ticks: stat.starttime },
            pidfd,
            comm,
            command_line: read_command_line(pid)?,
            namespace_pid: status.namespace_pid,
            executable: executable.to_string_lossy().into_owned(),
        };
        process.check_class()?;
        // The facts above are of the process behind the pidfd only if that still runs.
        if process.has_exited() {
            return Err(ProcessError::NoSuchProcess { pid });
        }
        Ok(process)
    }

    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// `executable` without the ` (deleted)` that the kernel appends.
    pub fn executable_path(&self) -> &str {
        self.executable.strip_suffix(" (deleted)").unwrap_or(&self.executable)
    }

    pub fn pid(&self) -> u32 {
        self.id.pid
    }

    /// Readable once the process has exited: for an event loop.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has exited (a zombie has).
    pub fn has_exited(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
    }

    /// Whether the pid still names this process. Its image may be another one after an `exec`.
    pub fn is_same(&self) -> bool {
        !self.has_exited()
            && read_stat(self.pid()).is_ok_and(|stat| stat.starttime == self.id.start_time_ticks)
    }

    /// When it was started, of `CLOCK_BOOTTIME`, which is `CLOCK_MONOTONIC` but for suspended time.
    pub fn started_ns(&self) -> u64 {
        // Linux counts these in hundredths of a second (USER_HZ), whatever its own tick is.
        self.id.start_time_ticks.saturating_mul(10_000_000)
    }

    /// Ids of its threads, as `/proc` numbers them.
    pub fn threads(&self) -> Result<Vec<u32>, ProcessError> {
        let path = format!("/proc/{}/task", self.pid());
        let entries =
            fs::read_dir(&path).map_err(|source| read_error(self.pid(), &path, source))?;
        Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
    }

    /// `/proc/PID/status`: what is resident now.
    pub fn memory(&self) -> Result<ProcessMemory, ProcessError> {
        Ok(Status::read(self.pid())?.memory)
    }

    fn check_class(&self) -> Result<(), ProcessError> {
        let path = format!("/proc/{}/exe", self.pid());
        let mut header = [0u8; 20];
        let read = fs::File::open(&path).and_then(|mut file| file.read_exact(&mut header));
        match read {
            Ok(()) if header.starts_with(b"\x7fELF") => {
                let machine = u16::from_le_bytes([header[18], header[19]]);
                // ELFCLASS64, EM_X86_64
                if header[4] == 2 && machine == 62 {
                    return Ok(());
                }
                let executable = self.executable.clone();
                Err(ProcessError::NotX86_64 { pid: self.pid(), executable })
            }
            Ok(()) => Err(ProcessError::Malformed { path, reason: "not an ELF file".into() }),
            Err(source) => Err(read_error(self.pid(), &path, source)),
        }
    }
}

/// `pidfd_open` says EINVAL (ENOENT since 6.9) for a thread that leads no process.
fn why_no_pidfd(pid: u32, source: io::Error) -> ProcessError {
    match Status::read(pid) {
        Ok(status) if status.tgid != pid => {
            ProcessError::IsThread { thread: pid, process: status.tgid }
        }
        Err(_) => ProcessError::NoSuchProcess { pid },
        Ok(_) if source.raw_os_error() == Some(libc::ESRCH) => ProcessError::NoSuchProcess { pid },
        Ok(_) => ProcessError::Pidfd { pid, source },
    }
}

/// An unreadable file of `/proc/PID`, explained.
pub(crate) fn read_error(pid: u32, path: &str, source: io::Error) -> ProcessError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => ProcessError::NoSuchProcess { pid },
        Some(libc::EACCES | libc::EPERM) => ProcessError::NotPermitted {
            pid,
            path: path.to_owned(),
            missing: missing_for(&["CAP_SYS_PTRACE"]),
        },
        _ => ProcessError::Read { path: path.to_owned(), source },
    }
}

fn read_link(pid: u32, name: &str) -> Result<PathBuf, ProcessError> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_link(&path).map_err(|source| read_error(pid, &path, source))
}

fn read_command_line(pid: u32) -> Result<Vec<String>, ProcessError> {
    let path = format!("/proc/{pid}/cmdline");
    let mut bytes = Vec::new();
    fs::File::open(&path)
        .and_then(|file| file.take(MAX_COMMAND_LINE).read_to_end(&mut bytes))
        .map_err(|source| read_error(pid, &path, source))?;
    let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes).split(|byte| *byte == 0);
    Ok(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

fn read_stat(pid: u32) -> Result<procfs::process::Stat, ProcessError> {
    let path = format!("/proc/{pid}/stat");
    let mut bytes = Vec::new();
    fs::File::open(&path)
        .and_then(|file| file.take(16 * 1024).read_to_end(&mut bytes))
        .map_err(|source| read_error(pid, &path, source))?;
    procfs::FromRead::from_read(bytes.as_slice())
        .map_err(|error| ProcessError::Malformed { path, reason: format!("{error}") })
}

/// The fields of `/proc/PID/status` that memtrace uses.
#[derive(Debug, Default, PartialEq)]
struct Status {
    tgid: u32,
    namespace_pid: u32,
    memory: ProcessMemory,
}

impl Status {
    fn read(pid: u32) -> Result<Self, ProcessError> {
        let path = format!("/proc/{pid}/status");
        let mut bytes = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(256 * 1024).read_to_end(&mut bytes))
            .map_err(|source| read_error(pid, &path, source))?;
        Self::parse(&String::from_utf8_lossy(&bytes))
            .ok_or(ProcessError::Malformed { path, reason: "it has no `Tgid`".into() })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut status = Self::default();
        let mut tgid = None;
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let first = || value.split_whitespace().next();
            let number = || first().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            let bytes = || number().saturating_mul(1024);
            match name {
                "Tgid" => tgid = first().and_then(|word| word.parse().ok()),
                "NSpid" => {
                    let innermost = value.split_whitespace().last();
                    status.namespace_pid = innermost.and_then(|w| w.parse().ok()).unwrap_or(0);
                }
                "VmRSS" => status.memory.rss = bytes(),
                "RssAnon" => status.memory.rss_anon = bytes(),
                "RssFile" => status.memory.rss_file = bytes(),
                "RssShmem" => status.memory.rss_shmem = bytes(),
                "VmHWM" => status.memory.rss_peak = bytes(),
                "VmSwap" => status.memory.swap = bytes(),
                "Threads" => status.memory.threads = u32::try_from(number()).unwrap_or(u32::MAX),
                _ => {}
            }
        }
        status.tgid = tgid?;
        Some(status)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "Name:\tVmRSS: 7 kB\nTgid:\t42\nNSpid:\t42\t7\t1\nVmHWM:\t   12 kB\nVmRSS:\t   10 kB\n\
                    RssAnon:\t    6 kB\nRssFile:\t    4 kB\nRssShmem:\t    0 kB\nVmSwap:\t    1 kB\nThreads:\t9\n";
        let status = Status::parse(text).unwrap();
        assert_eq!((status.tgid, status.namespace_pid), (42, 1));
        let expected = ProcessMemory {
            rss: 10240,
            rss_anon: 6144,
            rss_file: 4096,
            rss_shmem: 0,
            rss_peak: 12288,
            swap: 1024,
            threads: 9,
        };
        assert_eq!(status.memory, expected);
        assert_eq!(Status::parse("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_opens_and_knows_its_threads() {
        let process = Process::open(std::process::id()).unwrap();
        assert!(!process.has_exited() && process.is_same());
        assert!(process.threads().unwrap().contains(&process.pid()));
        let memory = process.memory().unwrap();
        assert_eq!(memory.rss, memory.rss_anon + memory.rss_file + memory.rss_shmem);
        assert!(memory.threads >= 1);
    }

    #[test]
    fn an_exit_is_noticed_and_a_zombie_is_said_to_be_one() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        // spawn returns in the midst of the exec.
        let process = loop {
            match Process::open(child.id()) {
                Ok(process) if process.command_line == ["sleep", "60"] => break process,
                other => assert!(start.elapsed() < Duration::from_secs(20), "{other:?}"),
            }
        };
        child.kill().unwrap();
        while !process.has_exited() {
            assert!(start.elapsed() < Duration::from_secs(20), "the exit was not noticed");
            std::thread::sleep(Duration::from_millis(5));
        }
        let zombie = Process::open(child.id());
        assert!(matches!(zombie, Err(ProcessError::Zombie { .. })), "{zombie:?}");
        child.wait().unwrap();
        assert!(!process.is_same());
        let gone = Process::open(child.id());
        assert!(matches!(gone, Err(ProcessError::NoSuchProcess { .. })), "{gone:?}");
    }

    #[test]
    fn a_kernel_thread_is_refused() {
        let refused = Process::open(2);
        assert!(matches!(refused, Err(ProcessError::KernelThread { .. })), "{refused:?}");
    }

    #[test]
    fn a_thread_is_refused_with_its_process() {
        let (send, receive) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            let _ = stopped.recv();
        });
        let tid = receive.recv().unwrap();
        let refused = Process::open(tid);
        drop(stop);
        thread.join().unwrap();
        match refused {
            Err(ProcessError::IsThread { thread, process }) => {
                assert_eq!((thread, process), (tid, std::process::id()));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pids_that_cannot_exist_are_no_process() {
        for pid in [0, u32::MAX, 0x7fff_ffff] {
            let refused = Process::open(pid);
            assert!(matches!(refused, Err(ProcessError::NoSuchProcess { .. })), "{refused:?}");
        }
    }
}
