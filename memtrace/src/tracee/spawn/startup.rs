//! Takes a command from fork over exec to its stop point.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::command::Command;
use super::loader::{self, Image, Rendezvous, Reports};
use super::trace::{Stop, Tracee};
use super::{SpawnError, StopPoint, child};

/// How long exec, and then the loader, may take.
const START_LIMIT: Duration = Duration::from_secs(60);

/// More reports than this from a loader are not a start any more. An ordinary one makes two.
const REPORT_LIMIT: usize = 1000;

/// `int3`
const BREAKPOINT: u64 = 0xcc;

const ELF_CLASS_64: u8 = 2;
const ELF_MACHINE_X86_64: u16 = 62;

/// Forks and executes; returns at the exec stop, with nothing of the new image run.
pub(super) fn execute(command: &Command, held: &mut Vec<i32>) -> Result<Tracee, SpawnError> {
    let prepare =
        |action| move |source| SpawnError::Prepare { action, command: command.name(), source };
    let child::Waiting { mut tracee, mut line } = child::fork(command).map_err(prepare("fork"))?;
    let pid = tracee.pid();
    tracee.seize().map_err(ptrace_error("seize the new process", pid))?;
    // A child that was killed while it waited shows below, with its status.
    let _ = line.write_all(&[1]);
    let mut run = Run::new(&mut tracee, held);
    let ended = loop {
        match run.next_stop()? {
            Stop::Exec => return Ok(tracee),
            Stop::Signal(signal) => run.pass(signal, Tracee::cont)?,
            Stop::Event => run.pass(0, Tracee::cont)?,
            Stop::Ended(status) => break status,
        }
    };
    Err(match child::read_exec_error(&line) {
        Some(source) if source.raw_os_error() == Some(libc::EACCES) => {
            SpawnError::NotExecutable { path: command.path.clone() }
        }
        Some(source) => SpawnError::Exec { path: command.path.clone(), source },
        None => SpawnError::EndedBeforeStart { pid, status: ended },
    })
}

/// Refuses images that memtrace cannot trace; returns the program's path.
pub(super) fn check_machine(tracee: &Tracee) -> Result<PathBuf, SpawnError> {
    let exe = tracee.proc("exe");
    let facts = |source| SpawnError::Facts { path: exe.clone(), source };
    let mut header = [0; 20];
    File::open(&exe).and_then(|mut file| file.read_exact(&mut header)).map_err(facts)?;
    let program = std::fs::read_link(&exe).map_err(facts)?;
    let machine = u16::from_le_bytes([header[18], header[19]]);
    match (header[4], machine) {
        (ELF_CLASS_64, ELF_MACHINE_X86_64) => Ok(program),
        (class, machine) => Err(SpawnError::WrongMachine {
            path: program,
            found: format!(
                "{}-bit, ELF machine {machine}",
                if class == ELF_CLASS_64 { 64 } else { 32 }
            ),
        }),
    }
}

/// From the exec stop to where the program's libraries are mapped and nothing of them ran.
pub(super) fn run_to_stop_point(
    tracee: &mut Tracee,
    held: &mut Vec<i32>,
) -> Result<StopPoint, SpawnError> {
    let image = Image::read(tracee)
        .map_err(|source| SpawnError::Facts { path: tracee.proc("auxv"), source })?;
    match (loader::find_rendezvous(tracee, &image), image.base) {
        // At its exec stop a program without interpreter stands at its entry.
        (None, 0) => Ok(StopPoint::StaticEntry),
        (rendezvous, base) => {
            // `ld.so PROGRAM` stands at the entry already; it is the program's that counts.
            let entry = (base != 0).then_some(image.entry);
            Run::new(tracee, held).until_loader_is_done(rendezvous, entry)
        }
    }
}

/// One stretch of start-up under ptrace.
struct Run<'a> {
    tracee: &'a mut Tracee,
    held: &'a mut Vec<i32>,
    deadline: Instant,
}

/// A breakpoint in place, with the word it replaced.
struct Breakpoint {
    address: u64,
    word: u64,
}

impl Breakpoint {
    /// `None` where an `int3` stands already, such as a uprobe's: ours would not be told from it.
    fn insert(tracee: &Tracee, address: u64) -> io::Result<Option<Breakpoint>> {
        let word = tracee.peek(address)?;
        if word & 0xff == BREAKPOINT {
            return Ok(None);
        }
        let breakpoint = Breakpoint { address, word };
        breakpoint.put(tracee)?;
        Ok(Some(breakpoint))
    }

    fn put(&self, tracee: &Tracee) -> io::Result<()> {
        tracee.poke(self.address, self.word & !0xff | BREAKPOINT)
    }

    fn remove(&self, tracee: &Tracee) -> io::Result<()> {
        tracee.poke(self.address, self.word)
    }
}

impl Run<'_> {
    fn new<'a>(tracee: &'a mut Tracee, held: &'a mut Vec<i32>) -> Run<'a> {
        Run { tracee, held, deadline: Instant::now() + START_LIMIT }
    }

    fn next_stop(&mut self) -> Result<Stop, SpawnError> {
        let pid = self.tracee.pid();
        self.tracee
            .next_stop(self.deadline)
            .map_err(|source| SpawnError::Wait { pid, source })?
            .ok_or(SpawnError::Timeout { pid, seconds: START_LIMIT.as_secs() })
    }

    /// Goes on with `go_on`, delivering `signal` (0: none) unless it would stop the process.
    fn pass(
        &mut self,
        signal: i32,
        go_on: fn(&Tracee, i32) -> io::Result<()>,
    ) -> Result<(), SpawnError> {
        const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        let mut deliver = signal;
        if STOPS.contains(&signal) {
            if !self.held.contains(&signal) {
                self.held.push(signal);
            }
            deliver = 0;
        } else if signal == libc::SIGCONT {
            self.held.clear();
        }
        match go_on(self.tracee, deliver) {
            // Killed since it stopped: the next wait says how.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result.map_err(self.ptrace("continue the command")),
        }
    }

    fn until_loader_is_done(
        &mut self,
        rendezvous: Option<Rendezvous>,
        entry: Option<u64>,
    ) -> Result<StopPoint, SpawnError> {
        let mut reports = rendezvous.map(|found| Reports::new(found.r_debug));
        let report = match rendezvous {
            Some(found) => self.insert(found.function)?,
            None => None,
        };
        let entry = match entry {
            Some(address) => self.insert(address)?,
            None => None,
        };
        if report.is_none() && entry.is_none() {
            return Err(SpawnError::NoStopPoint { pid: self.tracee.pid() });
        }
        let mut reported = 0;
        let point = loop {
            self.pass(0, Tracee::cont)?;
            let at = self.next_breakpoint(&[&report, &entry])?;
            if entry.as_ref().is_some_and(|entry| entry.address == at) {
                break StopPoint::EntryAfterConstructors;
            }
            let Some((reports, report)) = reports.as_mut().zip(report.as_ref()) else {
                continue;
            };
            if reports
                .is_done(|address| self.tracee.peek(address))
                .map_err(self.ptrace("read the loader's state"))?
            {
                break StopPoint::LoaderDone;
            }
            let step_over = self.ptrace("step over a breakpoint in the command");
            report.remove(self.tracee).map_err(&step_over)?;
            self.step()?;
            reported += 1;
            // A loader that never comes to an end of it is left to the entry point.
            if reported < REPORT_LIMIT {
                report.put(self.tracee).map_err(&step_over)?;
            }
        };
        for breakpoint in [&report, &entry].into_iter().flatten() {
            breakpoint
                .remove(self.tracee)
                .map_err(self.ptrace("remove a breakpoint from the command"))?;
        }
        Ok(point)
    }

    fn insert(&self, address: u64) -> Result<Option<Breakpoint>, SpawnError> {
        Breakpoint::insert(self.tracee, address)
            .map_err(self.ptrace("set a breakpoint in the command"))
    }

    /// Waits until one of `breakpoints` is hit, and sets the instruction pointer back onto it.
    fn next_breakpoint(&mut self, breakpoints: &[&Option<Breakpoint>]) -> Result<u64, SpawnError> {
        loop {
            let signal = match self.next_stop()? {
                Stop::Ended(status) => return Err(self.ended(status)),
                Stop::Signal(signal) => signal,
                Stop::Event | Stop::Exec => 0,
            };
            if signal == libc::SIGTRAP {
                let registers = self.tracee.registers();
                let mut registers = registers.map_err(self.ptrace("read the registers"))?;
                // `int3` leaves the instruction pointer behind itself.
                let at = registers.rip.wrapping_sub(1);
                let mut ours = breakpoints.iter().copied().flatten();
                if ours.any(|breakpoint| breakpoint.address == at) {
                    registers.rip = at;
                    let set = self.tracee.set_registers(&registers);
                    set.map_err(self.ptrace("set the registers"))?;
                    return Ok(at);
                }
            }
            self.pass(signal, Tracee::cont)?;
        }
    }

    /// One instruction, however many signals come in between.
    fn step(&mut self) -> Result<(), SpawnError> {
        self.pass(0, Tracee::step)?;
        loop {
            match self.next_stop()? {
                Stop::Signal(libc::SIGTRAP) => return Ok(()),
                Stop::Signal(signal) => self.pass(signal, Tracee::step)?,
                Stop::Event | Stop::Exec => self.pass(0, Tracee::step)?,
                Stop::Ended(status) => return Err(self.ended(status)),
            }
        }
    }

    fn ended(&self, status: std::process::ExitStatus) -> SpawnError {
        SpawnError::EndedBeforeStart { pid: self.tracee.pid(), status }
    }

    fn ptrace(&self, action: &'static str) -> impl Fn(io::Error) -> SpawnError + use<> {
        ptrace_error(action, self.tracee.pid())
    }
}

fn ptrace_error(action: &'static str, pid: u32) -> impl Fn(io::Error) -> SpawnError {
    move |source| SpawnError::Ptrace { action, pid, source }
}
