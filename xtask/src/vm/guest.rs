//! One emulated machine, from its start to its end: qemu without KVM, the kernel's console into a
//! file, the results over a second serial line. It never outlives this process, nor its time.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::console;
use super::event::{Event, Told};
use crate::interrupt;
use crate::shell::{self, Owned};

/// Emulated memory, MiB: an initramfs of some tens, and the programs of the suite.
const MEMORY_MIB: u32 = 2048;

pub struct Guest<'a> {
    pub vmlinuz: &'a Path,
    pub initramfs: &'a Path,
    /// A disk, `/dev/vda` where the guest has the driver; what is written to it is lost.
    pub disk: Option<&'a Path>,
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
    /// What the kernel had to say about its own state.
    pub complaint: Option<String>,
}

impl Guest<'_> {
    /// Boots it and hands every event to `each`, until the machine ends.
    pub fn run(&self, mut each: impl FnMut(&Event)) -> Result<Ended> {
        let start = Instant::now();
        // Nothing of an earlier guest is taken for this one's.
        std::fs::write(&self.console, b"")
            .with_context(|| format!("write `{}`", self.console.display()))?;
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
        let complaint = console::complaint(&self.console()?);
        Ok(Ended { told, wall: start.elapsed(), broken, complaint })
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
        if let Some(disk) = self.disk {
            command
                .arg("-drive")
                .arg(format!("file={},if=virtio,format=raw,snapshot=on", disk.display()));
        }
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
        match self.console() {
            Ok(console) => console::last_lines(&console),
            Err(error) => format!("  {error:#}"),
        }
    }

    fn console(&self) -> Result<String> {
        let bytes = std::fs::read(&self.console)
            .with_context(|| format!("read `{}`", self.console.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn during(told: &Told) -> String {
    match (&told.running, &told.release) {
        (Some(name), _) => format!("in `{name}`"),
        (None, Some(_)) => "between two checks".to_owned(),
        (None, None) => "before it had booted".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
