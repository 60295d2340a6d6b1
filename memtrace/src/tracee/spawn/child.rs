//! The fork, and the few steps of the child between fork and exec.
//!
//! Between the two only async-signal-safe functions are called: another thread of memtrace may hold
//! any lock at the time of the fork.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, SigmaskHow};

use super::command::Command;
use super::trace::Tracee;

/// A forked child that waits to be seized, and memtrace's end of the line to it.
///
/// When memtrace dies before the go-ahead, the child reads the end of the line and exits.
pub(super) struct Waiting {
    pub(super) tracee: Tracee,
    pub(super) line: UnixStream,
}

pub(super) fn fork(command: &Command) -> io::Result<Waiting> {
    let (ours, theirs) = UnixStream::pair()?;
    let highest_signal = libc::SIGRTMAX();
    // With every signal blocked, no handler of memtrace can run in the child.
    let old_mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: the child branch calls async-signal-safe functions only, and never returns.
    let pid = unsafe { libc::fork() };
    let error = io::Error::last_os_error();
    if pid == 0 {
        run(command, ours.as_raw_fd(), theirs.as_raw_fd(), highest_signal)
    }
    // The mask came from the kernel: setting it back cannot fail.
    let _ = old_mask.thread_set_mask();
    if pid < 0 {
        return Err(error);
    }
    Ok(Waiting { tracee: Tracee::new(pid), line: ours })
}

/// The error with which the child's exec failed, or `None` when it did not get to say one.
pub(super) fn read_exec_error(mut line: &UnixStream) -> Option<io::Error> {
    let mut errno = [0; size_of::<i32>()];
    line.read_exact(&mut errno).ok()?;
    Some(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
}

fn run(command: &Command, parents_end: i32, line: i32, highest_signal: i32) -> ! {
    // SAFETY: everything called here is async-signal-safe, the descriptors are this process's own
    // copies, `go` and `errno` are live for the length given, and the argument vector was built
    // null-terminated before the fork. `execvp` gets a path with a slash, so that it does not read
    // PATH; it is used because it hands a script without `#!` line to the shell.
    unsafe {
        // Closed first, or the end of the line would never show.
        libc::close(parents_end);
        let mut go = 0u8;
        loop {
            let got = libc::read(line, (&raw mut go).cast(), 1);
            if got == 1 {
                break;
            }
            if got == 0 || *libc::__errno_location() != libc::EINTR {
                libc::_exit(127);
            }
        }
        reset_signals(highest_signal);
        libc::execvp(command.file.as_ptr(), command.argv());
        let errno = *libc::__errno_location();
        libc::write(line, (&raw const errno).cast(), size_of::<i32>());
        libc::_exit(127)
    }
}

/// Default handlers, then an empty mask: what is ignored stays so (`nohup`), but for SIGPIPE, which
/// Rust's runtime ignores in memtrace.
///
/// # Safety
/// To be called in a forked child before exec only.
unsafe fn reset_signals(highest_signal: i32) {
    for signal in 1..=highest_signal {
        // SAFETY: an all-zero `sigaction` is valid (SIG_DFL, no flags, empty mask), both pointers
        // are live, and the call fails harmlessly for the signals that cannot be changed.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &mut old) != 0
                || (old.sa_sigaction == libc::SIG_IGN && signal != libc::SIGPIPE)
            {
                continue;
            }
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &default, std::ptr::null_mut());
        }
    }
    // SAFETY: `none` is initialised by `sigemptyset` before use.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}
