//! What a snapshot of a million outstanding blocks takes, and the longest that a call of the traced
//! program lasts meanwhile.
//!
//! The program times each pair of malloc and free, second by second: with a snapshot every second,
//! and with none. A wait for memtrace would be CPU time, too (locks in the kernel spin).

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::subject::{Recording, Subject, timed};
use super::{Bench, median};
use crate::shell;

const BLOCKS: u64 = 1_000_000;
const WINDOWS: u32 = 7;
/// As long as the time between two snapshots.
const WINDOW_MILLISECONDS: u32 = 1000;

pub struct Figures {
    /// Each snapshot that held all the blocks.
    reads: Vec<Duration>,
    /// memtrace's CPU time from one of them to the next, ns.
    own_cpu: Vec<f64>,
    with_snapshots: Windows,
    without: Windows,
    /// From Ctrl-C to the end of memtrace.
    to_end: Duration,
}

/// The longest pair of each window, ns.
#[derive(Default)]
struct Windows {
    wall: Vec<f64>,
    cpu: Vec<f64>,
    pairs: Vec<f64>,
}

impl Bench {
    pub fn snapshot(&self) -> Result<Figures> {
        shell::step(&format!("{BLOCKS} outstanding blocks"));
        let mut program = Subject::start(Command::new(&self.stalls).arg(BLOCKS.to_string()))?;
        let recording =
            Recording::attach(&self.memtrace, program.pid(), &self.json, &["--interval", "1s"])?;
        program.tell("")?;
        if program.line()? != "filled" {
            bail!("the program did not fill its books");
        }
        let with_snapshots = Windows::of(&mut program)?;
        let (recorded, to_end) = timed(|| recording.end())?;
        let mut reads = Vec::new();
        let mut cpu_ns = Vec::new();
        for snapshot in recorded["snapshots"].as_array().context("the JSON has no snapshots")? {
            let blocks =
                snapshot["native"]["outstanding"]["blocks"].as_u64().context("no blocks")?;
            let ns = snapshot["read_ns"].as_u64().context("no `read_ns`")?;
            if blocks >= BLOCKS {
                reads.push(Duration::from_nanos(ns));
                cpu_ns.push(snapshot["self"]["user_cpu_ns"].as_f64().context("no CPU time")?);
            }
        }
        if reads.len() < 3 {
            bail!("only {} snapshots hold all {BLOCKS} blocks", reads.len());
        }
        let own_cpu = cpu_ns.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let recording = Recording::attach(&self.memtrace, program.pid(), &self.json, &[])?;
        let without = Windows::of(&mut program)?;
        recording.end()?;
        Ok(Figures { reads, own_cpu, with_snapshots, without, to_end })
    }
}

impl Windows {
    fn of(program: &mut Subject) -> Result<Self> {
        let mut windows = Self::default();
        for _ in 0..WINDOWS {
            program.tell(&WINDOW_MILLISECONDS.to_string())?;
            let line = program.line()?;
            let figures: Vec<f64> = line
                .split(' ')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .context("read figures")?;
            let [wall, cpu, pairs] = figures[..] else { bail!("the program said `{line}`") };
            windows.wall.push(wall);
            windows.cpu.push(cpu);
            windows.pairs.push(pairs);
        }
        Ok(windows)
    }

    fn tell(&self, what: &str) {
        let largest = |figures: &[f64]| figures.iter().copied().fold(0.0, f64::max);
        println!(
            "  longest pair in a second, {what}: {:.0} µs of CPU (of {WINDOWS} seconds the worst \
             {:.0} µs), {:.1} ms by the wall clock (worst {:.1} ms); {:.0} pairs/s",
            median(self.cpu.clone()) / 1e3,
            largest(&self.cpu) / 1e3,
            median(self.wall.clone()) / 1e6,
            largest(&self.wall) / 1e6,
            median(self.pairs.clone()),
        );
    }
}

impl Figures {
    /// memtrace's CPU time for a snapshot, the median.
    pub fn own_cpu_seconds(&self) -> f64 {
        median(self.own_cpu.clone()) / 1e9
    }

    pub fn tell(&self) {
        let seconds = median(self.reads.iter().map(Duration::as_secs_f64).collect());
        let verdict = if seconds < 1.0 { "met" } else { "MISSED" };
        println!(
            "\nsnapshots of {BLOCKS} outstanding blocks, read while the program runs, wall clock: \
             median {:.0} ms, longest {:.0} ms of {}; target 1 s: {verdict}",
            seconds * 1e3,
            self.reads.iter().copied().max().unwrap_or_default().as_secs_f64() * 1e3,
            self.reads.len(),
        );
        println!("  memtrace's own CPU time per snapshot: {:.0} ms", self.own_cpu_seconds() * 1e3);
        self.with_snapshots.tell("a snapshot in each");
        self.without.tell("no snapshot       ");
        println!("  from Ctrl-C to the end of memtrace: {:.1} s", self.to_end.as_secs_f64());
    }
}
