//! What the walk itself costs, against the kernel's own walk by frame pointers.
//!
//! One probe, at the entry of malloc: an empty program, then memtrace's walk and nothing else, then
//! `bpf_get_stackid`. The kernel's walk needs frame pointers, so it is measured on a build that has
//! them; memtrace's on that and on one without, as distributions build.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::pairs::{Site, TRACED_PAIRS, arm, sites_of};
use super::small_program::SmallProgram;
use super::subject::{Recording, Subject};
use super::{Bench, median};
use crate::shell::{self, Owned};

/// What memtrace's walk may cost at 12 frames, times the kernel's.
const TARGET: (u32, f64) = (12, 1.2);

/// CPU ns of one walk: what a pair costs more than with an empty program at the same site.
pub struct Walks {
    kernel: Vec<f64>,
    with_frame_pointers: Vec<f64>,
    without: Vec<f64>,
}

impl Walks {
    pub fn tell(&self, depth: u32) {
        println!("\nCPU ns per walk, {depth} frames deep (medians; the trap is not in it):");
        let kernel = median(self.kernel.clone());
        println!("  the kernel's, frame pointers      {kernel:>8.1}");
        for (what, walks) in [
            ("memtrace's, the same program    ", &self.with_frame_pointers),
            ("memtrace's, no frame pointers   ", &self.without),
        ] {
            let ratios: Vec<_> = walks.iter().zip(&self.kernel).map(|(a, b)| a / b).collect();
            let smallest = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let largest = ratios.iter().copied().fold(0.0, f64::max);
            let ratio = median(ratios);
            let target = match TARGET {
                (at, target) if at == depth && ratio <= target => format!("; target {target}: met"),
                (at, target) if at == depth => format!("; target {target}: MISSED"),
                _ => String::new(),
            };
            println!(
                "  {what}  {:>8.1}   {ratio:.2} x the kernel's, {smallest:.2} to {largest:.2}{target}",
                median(walks.clone()),
            );
        }
    }
}

impl Bench {
    pub fn walks(&self, depth: u32, rounds: u32) -> Result<Walks> {
        shell::step(&format!("{rounds} rounds of walks at {depth} frames"));
        let mut with = self.walked(&self.pairs_with_frame_pointers, depth)?;
        let mut without = self.walked(&self.pairs, depth)?;
        let empty = SmallProgram::empty()?;
        let kernel = SmallProgram::kernel_walk()?;
        let mut walks = Walks { kernel: vec![], with_frame_pointers: vec![], without: vec![] };
        for round in 1..=rounds {
            let floor = with.under(&empty)?;
            walks.kernel.push(with.under(&kernel)? - floor);
            walks.with_frame_pointers.push(with.under_memtrace(&self.walk_only)? - floor);
            let floor = without.under(&empty)?;
            walks.without.push(without.under_memtrace(&self.walk_only)? - floor);
            eprintln!("round {round} of {rounds}");
        }
        Ok(walks)
    }

    fn walked(&self, program: &Path, depth: u32) -> Result<Walked> {
        let subject = Subject::start(Command::new(program).arg(depth.to_string()))?;
        let pid = subject.pid();
        let recorded = Recording::attach(&self.memtrace, pid, &self.json, &[])?.end()?;
        let mut sites = sites_of(&recorded, pid)?;
        sites.retain(|site| site.function == "malloc" && !site.on_return);
        Ok(Walked { subject, site: sites.pop().context("malloc is not probed")? })
    }
}

/// The program whose stacks are walked.
struct Walked {
    subject: Subject,
    site: Site,
}

impl Walked {
    fn under(&mut self, program: &SmallProgram) -> Result<f64> {
        let _probes = arm(program, self.subject.pid(), [&self.site])?;
        self.subject.measure(TRACED_PAIRS)
    }

    fn under_memtrace(&mut self, walk_only: &Path) -> Result<f64> {
        let walker = Walker::start(walk_only, self.subject.pid())?;
        let ns = self.subject.measure(TRACED_PAIRS)?;
        walker.end()?;
        Ok(ns)
    }
}

/// The example `walk_only`, armed.
struct Walker {
    owned: Owned,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Walker {
    fn start(walk_only: &Path, pid: u32) -> Result<Self> {
        let mut command = Command::new(walk_only);
        command.arg(pid.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut owned = Owned::spawn(&mut command)?;
        let stdin = owned.child.stdin.take().context("the walker has no input")?;
        let stdout = owned.child.stdout.take().context("the walker has no output")?;
        let mut walker = Self { owned, stdin, stdout: BufReader::new(stdout) };
        let mut line = String::new();
        walker.stdout.read_line(&mut line).context("read what the walker says")?;
        match line.trim_end() {
            "armed" => Ok(walker),
            _ => bail!("`{}` did not arm its probe", shell::line(&command)),
        }
    }

    /// Every walk must have been one, up to the end of the stack: a figure of others is too good.
    fn end(self) -> Result<()> {
        let Self { mut owned, stdin, mut stdout } = self;
        drop(stdin);
        let mut text = String::new();
        stdout.read_to_string(&mut text).context("read what the walker says")?;
        owned.wait()?;
        let told: Value = serde_json::from_str(&text).context("read the walker's JSON")?;
        let (complete, truncated) = (told["complete"].as_u64(), told["truncated"].as_u64());
        match (complete, truncated) {
            (Some(complete), Some(0)) if complete >= TRACED_PAIRS => Ok(()),
            _ => bail!("not every one of {TRACED_PAIRS} walks was complete: {told}"),
        }
    }
}
