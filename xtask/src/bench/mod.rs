//! What tracing costs per pair of malloc and free: untraced, with empty probes on the same sites
//! (the floor of the method), under `memtrace record`, and under heaptrack. All in one run,
//! interleaved, with medians: only the ratios mean something on another machine.

mod empty_probe;
mod subject;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{interrupt, paths, setup, shell};
use empty_probe::{EmptyProbe, EmptyProgram};
use subject::{Recording, Subject, timed};

#[derive(Args)]
pub struct Options {
    /// How often each is measured; the medians are told
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Stacks of these depths
    #[arg(long, value_delimiter = ',', default_values_t = [4, 12], value_parser = clap::value_parser!(u32).range(4..100))]
    depths: Vec<u32>,
    /// Fails when `record` costs more than this, times the floor, at the first depth
    #[arg(long, value_name = "RATIO")]
    limit: Option<f64>,
}

/// Pairs per measurement: about a second each where one pair costs a few µs.
const TRACED_PAIRS: u64 = 200_000;
const UNTRACED_PAIRS: u64 = 20_000_000;
const HEAPTRACK_PAIRS: u64 = 1_000_000;

pub fn run(options: &Options) -> Result<()> {
    shell::require_root("bench")?;
    interrupt::watch()?;
    setup::bench()?;
    let directory = paths::target().join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("create `{}`", directory.display()))?;
    shell::run(Command::new(paths::cargo()).args(["build", "--release", "--package", "memtrace"]))?;
    let bench = Bench {
        memtrace: paths::target().join("release/memtrace"),
        pairs: compile("pairs", &directory)?,
        many_blocks: compile("many_blocks", &directory)?,
        json: directory.join("bench.json"),
        directory,
    };
    let mut first_ratio = None;
    for &depth in &options.depths {
        let medians = bench.depth(depth, options.rounds)?;
        first_ratio.get_or_insert(medians.record / medians.floor);
        medians.tell(depth);
    }
    bench.snapshot()?;
    if let (Some(limit), Some(ratio)) = (options.limit, first_ratio)
        && ratio > limit
    {
        bail!("`record` costs {ratio:.2} times the floor, more than {limit}");
    }
    Ok(())
}

fn compile(name: &str, directory: &Path) -> Result<PathBuf> {
    let output = directory.join(name);
    shell::run(
        Command::new("cc")
            .args(["-std=gnu11", "-g", "-O2", "-Wno-unused-result", "-pthread", "-o"])
            .arg(&output)
            .arg(paths::workspace().join(format!("tests/programs/c/{name}.c"))),
    )?;
    Ok(output)
}

struct Bench {
    memtrace: PathBuf,
    pairs: PathBuf,
    many_blocks: PathBuf,
    json: PathBuf,
    directory: PathBuf,
}

struct Medians {
    untraced: f64,
    floor: f64,
    record: f64,
    heaptrack: f64,
}

impl Medians {
    fn tell(&self, depth: u32) {
        println!("\nns per pair of malloc and free, {depth} frames deep (medians):");
        for (what, ns) in [
            ("untraced", self.untraced),
            ("empty probes, same sites", self.floor),
            ("memtrace record", self.record),
            ("heaptrack", self.heaptrack),
        ] {
            println!("  {what:<26}{ns:>10.1}   {:>5.2} x floor", ns / self.floor);
        }
    }
}

impl Bench {
    fn depth(&self, depth: u32, rounds: u32) -> Result<Medians> {
        shell::step(&format!("{rounds} rounds at {depth} frames"));
        let mut plain = Subject::start(Command::new(&self.pairs).arg(depth.to_string()))?;
        let mut heaptracked = Subject::start(
            Command::new("heaptrack")
                .args(["--raw", "-o"])
                .arg(self.directory.join("heaptrack"))
                .arg(&self.pairs)
                .arg(depth.to_string()),
        )?;
        // The sites are those that memtrace itself chose.
        let sites = Recording::attach(&self.memtrace, plain.pid(), &self.json)?.end()?;
        let mut figures: [Vec<f64>; 4] = Default::default();
        for _ in 0..rounds {
            figures[0].push(plain.measure(UNTRACED_PAIRS)?);
            let probes = empty_probes(&sites, plain.pid())?;
            figures[1].push(plain.measure(TRACED_PAIRS)?);
            drop(probes);
            let recording = Recording::attach(&self.memtrace, plain.pid(), &self.json)?;
            figures[2].push(plain.measure(TRACED_PAIRS)?);
            without_losses(&recording.end()?)?;
            figures[3].push(heaptracked.measure(HEAPTRACK_PAIRS)?);
        }
        let [untraced, floor, record, heaptrack] = figures.map(median);
        Ok(Medians { untraced, floor, record, heaptrack })
    }

    /// How long it takes to read a million outstanding blocks.
    fn snapshot(&self) -> Result<()> {
        let mut program = Subject::start(Command::new(&self.many_blocks).arg("1000000"))?;
        let recording = Recording::attach(&self.memtrace, program.pid(), &self.json)?;
        program.tell("go")?;
        program.line()?;
        let (recorded, whole) = timed(|| recording.end())?;
        let snapshot = recorded["snapshots"]
            .as_array()
            .and_then(|snapshots| snapshots.last())
            .context("the JSON has no snapshot")?;
        let blocks = snapshot["native"]["outstanding"]["blocks"].as_u64().unwrap_or_default();
        let read = Duration::from_nanos(snapshot["read_ns"].as_u64().context("no `read_ns`")?);
        println!("\na snapshot of {blocks} outstanding blocks: read in {read:.3?}");
        println!("from Ctrl-C to the end of memtrace: {whole:.3?}");
        Ok(())
    }
}

/// Empty programs where memtrace's own stand: for malloc an entry and a return, for free an entry.
fn empty_probes(recorded: &Value, pid: u32) -> Result<Vec<EmptyProbe>> {
    let program = EmptyProgram::load()?;
    let attached = recorded["probes"]["attached"].as_array().context("the JSON has no probes")?;
    let mut probes = Vec::new();
    for probe in attached {
        if !matches!(probe["function"].as_str(), Some("malloc" | "free")) {
            continue;
        }
        let number = |key: &str| probe[key].as_u64().with_context(|| format!("no `{key}`"));
        let object = probe["object"].as_str().context("a probe has no object")?;
        let file = format!("/proc/{pid}/root{object}");
        let function = number("function_file_offset")?;
        probes.push(program.attach(pid, &file, function + number("entry_site")?, false)?);
        if let Some(site) = probe["return_site"].as_u64() {
            probes.push(program.attach(pid, &file, function + site, true)?);
        }
    }
    if probes.len() < 3 {
        bail!("memtrace probed no malloc and free with a return: {}", recorded["probes"]);
    }
    Ok(probes)
}

fn without_losses(recorded: &Value) -> Result<()> {
    let losses = recorded["snapshots"]
        .as_array()
        .and_then(|snapshots| snapshots.last())
        .and_then(|snapshot| snapshot["native"]["losses"].as_object())
        .context("the JSON has no losses")?;
    match losses.iter().find(|(_, count)| count.as_u64() != Some(0)) {
        Some((label, count)) => bail!("the figure would be too good: `{label}` lost {count}"),
        None => Ok(()),
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() % 2 {
        _ if figures.is_empty() => f64::NAN,
        0 => f64::midpoint(figures[middle - 1], figures[middle]),
        _ => figures[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_in_the_middle() {
        assert!((median(vec![3.0, 1.0, 200.0]) - 3.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 200.0]) - 3.0).abs() < f64::EPSILON);
    }
}
