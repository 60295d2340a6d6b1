//! ns per pair of malloc and free: untraced, with empty probes on the same sites (the floor of the
//! method), under `memtrace record`, and under heaptrack.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::small_program::{Probe, SmallProgram};
use super::subject::{Recording, Subject};
use super::{Bench, median};
use crate::shell;

/// Pairs per measurement: about a second each where one pair costs a few µs.
pub const TRACED_PAIRS: u64 = 200_000;
const UNTRACED_PAIRS: u64 = 20_000_000;
const HEAPTRACK_PAIRS: u64 = 1_000_000;

/// What `record` may cost at a depth, times the floor.
fn target(depth: u32) -> Option<f64> {
    match depth {
        4 => Some(1.8),
        12 => Some(2.2),
        _ => None,
    }
}

pub struct Medians {
    untraced: f64,
    floor: f64,
    record: f64,
    heaptrack: Option<f64>,
    /// The ratio of each round: `record` and its floor were measured one after the other.
    ratios: Vec<f64>,
}

impl Medians {
    /// Of `record` to the floor: the median of the rounds' ratios.
    pub fn ratio(&self) -> f64 {
        median(self.ratios.clone())
    }

    pub fn tell(&self, depth: u32) {
        println!("\nCPU ns per pair of malloc and free, {depth} frames deep (medians):");
        for (what, ns) in [
            ("untraced", Some(self.untraced)),
            ("empty probes, same sites", Some(self.floor)),
            ("memtrace record", Some(self.record)),
            ("heaptrack", self.heaptrack),
        ] {
            if let Some(ns) = ns {
                println!("  {what:<26}{ns:>10.1}   {:>5.2} x floor", ns / self.floor);
            }
        }
        let target = match target(depth) {
            Some(target) if self.ratio() <= target => format!("; target {target}: met"),
            Some(target) => format!("; target {target}: MISSED"),
            None => String::new(),
        };
        let smallest = self.ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = self.ratios.iter().copied().fold(0.0, f64::max);
        println!(
            "  record / floor, round by round: median {:.2}, {smallest:.2} to {largest:.2}{target}",
            self.ratio()
        );
    }
}

impl Bench {
    pub fn depth(&self, depth: u32, rounds: u32) -> Result<Medians> {
        shell::step(&format!("{rounds} rounds at {depth} frames"));
        let mut plain = Subject::start(Command::new(&self.pairs).arg(depth.to_string()))?;
        let mut heaptracked = match &self.heaptrack {
            None => None,
            Some(output) => Some(Subject::start(
                Command::new("heaptrack")
                    .args(["--raw", "-o"])
                    .arg(output)
                    .arg(&self.pairs)
                    .arg(depth.to_string()),
            )?),
        };
        // The sites are those that memtrace itself chose.
        let recorded = Recording::attach(&self.memtrace, plain.pid(), &self.json, &[])?.end()?;
        let sites = sites_of(&recorded, plain.pid())?;
        let empty = SmallProgram::empty()?;
        let [mut untraced, mut floor, mut record, mut heaptrack]: [Vec<f64>; 4] =
            Default::default();
        for round in 1..=rounds {
            untraced.push(plain.measure(UNTRACED_PAIRS)?);
            let probes = arm(&empty, plain.pid(), &sites)?;
            floor.push(plain.measure(TRACED_PAIRS)?);
            drop(probes);
            let recording = Recording::attach(&self.memtrace, plain.pid(), &self.json, &[])?;
            record.push(plain.measure(TRACED_PAIRS)?);
            without_losses(&recording.end()?)?;
            if let Some(program) = &mut heaptracked {
                heaptrack.push(program.measure(HEAPTRACK_PAIRS)?);
            }
            eprintln!("round {round} of {rounds}");
        }
        let ratios = record.iter().zip(&floor).map(|(record, floor)| record / floor).collect();
        Ok(Medians {
            untraced: median(untraced),
            floor: median(floor),
            record: median(record),
            heaptrack: heaptracked.map(|_| median(heaptrack)),
            ratios,
        })
    }
}

/// Where one of memtrace's own probes stands.
pub struct Site {
    pub function: String,
    file: String,
    offset: u64,
    pub on_return: bool,
}

/// Those of malloc, an entry and a return, and of free, an entry.
pub fn sites_of(recorded: &Value, pid: u32) -> Result<Vec<Site>> {
    let attached = recorded["probes"]["attached"].as_array().context("the JSON has no probes")?;
    let mut sites = Vec::new();
    for probe in attached {
        let Some(function @ ("malloc" | "free")) = probe["function"].as_str() else { continue };
        let number = |key: &str| probe[key].as_u64().with_context(|| format!("no `{key}`"));
        let object = probe["object"].as_str().context("a probe has no object")?;
        let start = number("function_file_offset")?;
        let site = |at: u64, on_return: bool| Site {
            function: function.to_owned(),
            file: format!("/proc/{pid}/root{object}"),
            offset: start + at,
            on_return,
        };
        sites.push(site(number("entry_site")?, false));
        sites.extend(probe["return_site"].as_u64().map(|at| site(at, true)));
    }
    if sites.len() < 3 {
        bail!("memtrace probed no malloc and free with a return: {}", recorded["probes"]);
    }
    Ok(sites)
}

/// The program at all of these sites.
pub fn arm<'a>(
    program: &SmallProgram,
    pid: u32,
    sites: impl IntoIterator<Item = &'a Site>,
) -> Result<Vec<Probe>> {
    let arm = |site: &Site| program.attach(pid, &site.file, site.offset, site.on_return);
    sites.into_iter().map(arm).collect()
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
