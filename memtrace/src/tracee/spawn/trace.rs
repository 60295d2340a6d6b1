//! ptrace and waitpid for one process, nothing more.
//!
//! Signals are plain numbers here: nix's `Signal` has no real-time signals, and its `waitpid` loses
//! the status of a process that one of them ended.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

const EVENT_STOP: i32 = 128;

/// What a seized process stopped for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// A signal is about to be delivered. SIGTRAP may be a breakpoint or a single step.
    Signal(i32),
    /// `execve` succeeded: the new image is mapped and nothing of it ran.
    Exec,
    /// Another ptrace event, to be passed over.
    Event,
    /// Not a stop: it is gone, and reaped.
    Ended(ExitStatus),
}

/// Our own child, not reaped yet: its pid is its own until then. Dropped, it is killed and reaped.
#[derive(Debug)]
pub(super) struct Tracee {
    pid: libc::pid_t,
    ended: Option<ExitStatus>,
    released: bool,
}

impl Tracee {
    /// `pid`: a child of this process that no one else waits for.
    pub(super) fn new(pid: libc::pid_t) -> Tracee {
        Tracee { pid, ended: None, released: false }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    pub(super) fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// Makes this thread the tracer, without stopping the process. From here on it dies with us.
    pub(super) fn seize(&self) -> io::Result<()> {
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEEXEC;
        self.request(libc::PTRACE_SEIZE as _, 0, options as u64)
    }

    pub(super) fn cont(&self, signal: i32) -> io::Result<()> {
        self.request(libc::PTRACE_CONT as _, 0, signal as u64)
    }

    pub(super) fn step(&self, signal: i32) -> io::Result<()> {
        self.request(libc::PTRACE_SINGLESTEP as _, 0, signal as u64)
    }

    /// Lets the stopped process run, untraced.
    pub(super) fn detach(&self) -> io::Result<()> {
        self.request(libc::PTRACE_DETACH as _, 0, 0)
    }

    /// The word at `address`, through page protections.
    pub(super) fn peek(&self, address: u64) -> io::Result<u64> {
        let mut word = 0u64;
        // The system call stores the word; it is glibc's wrapper that returns it instead.
        // SAFETY: `word` outlives the call and is the eight bytes that the kernel writes.
        let result = unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                libc::PTRACE_PEEKTEXT as libc::c_long,
                libc::c_long::from(self.pid),
                address,
                &raw mut word,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(word)
    }

    /// Writes the word at `address`, also into read-only text: the page becomes the process's own.
    pub(super) fn poke(&self, address: u64, word: u64) -> io::Result<()> {
        self.request(libc::PTRACE_POKETEXT as _, address, word)
    }

    pub(super) fn registers(&self) -> io::Result<libc::user_regs_struct> {
        // SAFETY: the struct is plain integers, for which zero is valid.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let pointer = &raw mut registers;
        self.request(libc::PTRACE_GETREGS as _, 0, pointer as u64)?;
        Ok(registers)
    }

    pub(super) fn set_registers(&self, registers: &libc::user_regs_struct) -> io::Result<()> {
        let pointer = std::ptr::from_ref(registers);
        self.request(libc::PTRACE_SETREGS as _, 0, pointer as u64)
    }

    /// A request whose `data` is an integer, or a pointer to a live struct of the request's type.
    fn request(&self, request: libc::c_long, address: u64, data: u64) -> io::Result<()> {
        // SAFETY: the callers above pass pointers for GETREGS and SETREGS only, to a live
        // `user_regs_struct`; for all others the kernel touches no memory of ours.
        let result = unsafe {
            libc::syscall(libc::SYS_ptrace, request, libc::c_long::from(self.pid), address, data)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The next stop, or `None` when `deadline` passes first.
    ///
    /// Polls, with pauses from 20 µs to 1 ms: a process that stops does not wake its pidfd.
    pub(super) fn next_stop(&mut self, deadline: Instant) -> io::Result<Option<Stop>> {
        let mut pause = Duration::from_micros(20);
        loop {
            if let Some(status) = self.ended {
                return Ok(Some(Stop::Ended(status)));
            }
            if let Some(raw) = self.wait(libc::WNOHANG)? {
                return Ok(Some(self.read_stop(raw)));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    fn read_stop(&mut self, raw: i32) -> Stop {
        if !libc::WIFSTOPPED(raw) {
            let status = ExitStatus::from_raw(raw);
            self.ended = Some(status);
            return Stop::Ended(status);
        }
        match raw >> 16 {
            0 => Stop::Signal(libc::WSTOPSIG(raw)),
            libc::PTRACE_EVENT_EXEC => Stop::Exec,
            // A group stop (EVENT_STOP) too: stop signals are held back, so none lasts.
            EVENT_STOP => Stop::Event,
            _ => Stop::Event,
        }
    }

    /// One `waitpid`; `None` when nothing happened (with `WNOHANG`).
    fn wait(&self, flags: i32) -> io::Result<Option<i32>> {
        loop {
            let mut raw = 0;
            // SAFETY: `raw` is live for the call.
            match unsafe { libc::waitpid(self.pid, &mut raw, flags) } {
                0 => return Ok(None),
                pid if pid > 0 => return Ok(Some(raw)),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    pub(super) fn try_reap(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap_with(libc::WNOHANG)
    }

    pub(super) fn reap(&mut self) -> io::Result<ExitStatus> {
        self.reap_with(0)?.ok_or_else(|| io::Error::other("`waitpid` returned without a status"))
    }

    /// Passes over stops that are still reported: only the end counts.
    fn reap_with(&mut self, flags: i32) -> io::Result<Option<ExitStatus>> {
        while self.ended.is_none() {
            match self.wait(flags)? {
                None => return Ok(None),
                Some(raw) if libc::WIFSTOPPED(raw) => {}
                Some(raw) => self.ended = Some(ExitStatus::from_raw(raw)),
            }
        }
        Ok(self.ended)
    }

    /// Sends a signal; nothing to do when the process just ended.
    pub(super) fn send(&self, signal: i32) {
        if self.ended.is_none() {
            // SAFETY: `kill` touches no memory; the pid is our unreaped child's.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// From here on a drop leaves the process alone, but for reaping it if it ended.
    pub(super) fn release(&mut self) {
        self.released = true;
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if self.released {
            let _ = self.try_reap();
            return;
        }
        self.send(libc::SIGKILL);
        // Fails only when someone else reaped our child: then there is nothing left to do.
        let _ = self.reap();
    }
}
