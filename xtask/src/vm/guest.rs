//! One emulated machine, from its start to its end: qemu without KVM, the kernel's console into a
//! file, the results over a second serial line. It never outlives this process, nor its time.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::event::{Event, Told};
use crate::interrupt;
use crate::shell::{self, Owned};

/// Emulated memory, MiB: an initramfs of some tens, and the programs of the suite.
const MEMORY_MIB: u32 = 2048;
/// Of the console, when something went wrong.
const CONSOLE_LINES: usize = 40;

pub struct Guest<'a> {
    pub vmlinuz: &'a Path,
    pub initramfs: &'a Path,
    /// Where the kernel's console goes.
    pub console: PathBuf,
    /// More of the kernel's command line.
    pub parameters: &'a str,
    /// The guest is ended when it takes longer.
    pub limit: Duration,
}

/// What came of a guest: what it told, and why it is not all there.
pub struct Ended {
    pub told: Told,
    pub wall: Duration,
    /// Hung, crashed, or ended without having said that it is done.
    pub broken: Option<String>,
}

impl Guest<'_> {
    /// Boots it and hands every event to `each`, until the machine ends.
    pub fn run(&self, mut each: impl FnMut(&Event)) -> Result<Ended> {
        let start = Instant::now();
        let mut command = self.command();
        eprintln!("$ {}", shell::line(&command));
        let mut qemu = Owned::spawn(&mut command)?;
        let stdout = qemu.child.stdout.take().context("qemu has no output")?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut told = Told::default();
        let broken = loop {
            interrupt::check()?;
            if start.elapsed() > self.limit {
                break Some(self.hung(&told));
            }
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => match serde_json::from_slice(&line) {
                    Ok(event) => {
                        each(&event);
                        told.take(event);
                    }
                    Err(error) => {
                        let line = String::from_utf8_lossy(&line);
                        break Some(format!("the guest told what is no event: {error}: `{line}`"));
                    }
                },
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if told.done => break None,
                Err(RecvTimeoutError::Disconnected) => break Some(self.crashed(&told)),
            }
        };
        Ok(Ended { told, wall: start.elapsed(), broken })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        // Two CPUs, emulated in turns by one thread: with a thread each, qemu lets a CPU run into
        // breakpoints that another has just patched out of the kernel (seen: `Oops: int3` in
        // `__schedule`, Linux 6.12, qemu 7.2).
        command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2"]);
        command.args(["-m", &MEMORY_MIB.to_string()]);
        command.arg("-kernel").arg(self.vmlinuz).arg("-initrd").arg(self.initramfs);
        command.args(["-append", &format!("console=ttyS0 panic=-1 {}", self.parameters)]);
        command.args(["-no-reboot", "-display", "none", "-monitor", "none", "-nic", "none"]);
        command.arg("-serial").arg(format!("file:{}", self.console.display()));
        command.args(["-serial", "stdio"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // SAFETY: the child only makes one system call, which takes no memory.
        unsafe {
            command.pre_exec(|| {
                // Not even SIGKILL of this process leaves the guest behind.
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        command
    }

    fn hung(&self, told: &Told) -> String {
        format!(
            "ended after {} s, its limit, {}; its console said last:\n{}",
            self.limit.as_secs(),
            during(told),
            self.last_of_console()
        )
    }

    fn crashed(&self, told: &Told) -> String {
        format!(
            "the machine ended {}; its console said last:\n{}",
            during(told),
            self.last_of_console()
        )
    }

    fn last_of_console(&self) -> String {
        match std::fs::read(&self.console) {
            Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes)),
            Err(error) => format!("  `{}` cannot be read: {error}", self.console.display()),
        }
    }
}

fn during(told: &Told) -> String {
    match (&told.running, &told.release) {
        (Some(name), _) => format!("in `{name}`"),
        (None, Some(_)) => "between two checks".to_owned(),
        (None, None) => "before it had booted".to_owned(),
    }
}

fn last_lines(console: &str) -> String {
    let lines: Vec<&str> =
        console.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let skipped = lines.len().saturating_sub(CONSOLE_LINES);
    let shown = lines[skipped..].iter().map(|line| {
        let line: String = line.chars().filter(|c| !c.is_control()).collect();
        format!("  | {line}")
    });
    shown.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_console_is_shown_without_what_a_terminal_acts_on() {
        let console: String =
            (0..100).map(|line| format!("\x1b[2J[  {line}.0] line {line}\r\n\r\n")).collect();
        let shown = last_lines(&console);
        assert_eq!(shown.lines().count(), CONSOLE_LINES);
        assert!(shown.ends_with("] line 99"));
        assert!(!shown.contains('\x1b'));
    }

    #[test]
    fn a_broken_guest_says_how_far_it_came() {
        let mut told = Told::default();
        assert_eq!(during(&told), "before it had booted");
        told.release = Some("6.1".to_owned());
        assert_eq!(during(&told), "between two checks");
        told.running = Some("c/malloc".to_owned());
        assert_eq!(during(&told), "in `c/malloc`");
    }
}
