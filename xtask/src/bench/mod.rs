//! What tracing costs: ns per pair of malloc and free, and what a snapshot takes. All in one run,
//! interleaved, with medians: only the ratios mean something on another machine.
//!
//! All costs are CPU time of the program's thread, in user and kernel mode: a busy machine changes
//! them little. Only the longest stall is also told by the wall clock.

mod pairs;
mod small_program;
mod snapshot;
mod subject;
mod walk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{interrupt, paths, setup, shell};

#[derive(Args)]
pub struct Options {
    /// How often each is measured; the medians are told
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Stacks of these depths
    #[arg(long, value_delimiter = ',', default_values_t = [4, 12, 52], value_parser = clap::value_parser!(u32).range(4..100))]
    depths: Vec<u32>,
    /// Only what the walk costs, against the kernel's own by frame pointers
    #[arg(long)]
    walk: bool,
    /// Fails when `record` costs more than this, times the floor, at the first depth
    #[arg(long, value_name = "RATIO")]
    limit: Option<f64>,
    /// For CI on machines that others use as well: 3 rounds, 4 frames, the debug build, without
    /// heaptrack; fails only on gross regressions (3 times the floor, 2 s of CPU for a snapshot)
    #[arg(long, conflicts_with_all = ["rounds", "depths", "walk"])]
    short: bool,
}

/// What no noise explains any more.
const GROSS_RATIO: f64 = 3.0;
const GROSS_SNAPSHOT_CPU_SECONDS: f64 = 2.0;

pub fn run(options: &Options) -> Result<()> {
    shell::require_root("bench")?;
    interrupt::watch()?;
    setup::bench(!options.short)?;
    let directory = paths::target().join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("create `{}`", directory.display()))?;
    let mut build = Command::new(paths::cargo());
    build.args(["build", "--package", "memtrace", "--bin", "memtrace", "--example", "walk_only"]);
    // What each call costs is spent in the BPF object, the same in every build: a CI that has built
    // for its tests need not build again.
    let profile = if options.short { "debug" } else { "release" };
    if !options.short {
        build.arg("--release");
    }
    shell::run(&mut build)?;
    let bench = Bench {
        memtrace: paths::target().join(profile).join("memtrace"),
        walk_only: paths::target().join(profile).join("examples/walk_only"),
        pairs: compile("pairs", "pairs", &[], &directory)?,
        pairs_with_frame_pointers: compile(
            "pairs",
            "pairs-with-frame-pointers",
            &["-fno-omit-frame-pointer"],
            &directory,
        )?,
        stalls: compile("stalls", "stalls", &[], &directory)?,
        json: directory.join("bench.json"),
        heaptrack: (!options.short).then(|| directory.join("heaptrack")),
    };
    let (rounds, depths) =
        if options.short { (3, &[4][..]) } else { (options.rounds, options.depths.as_slice()) };
    if !options.short {
        for &depth in depths {
            bench.walks(depth, rounds)?.tell(depth);
        }
    }
    if options.walk {
        return Ok(());
    }
    let mut first_ratio = None;
    for &depth in depths {
        let medians = bench.depth(depth, rounds)?;
        first_ratio.get_or_insert(medians.ratio());
        medians.tell(depth);
    }
    let snapshot = bench.snapshot()?;
    snapshot.tell();
    let limit = options.limit.or(options.short.then_some(GROSS_RATIO));
    if let (Some(limit), Some(ratio)) = (limit, first_ratio)
        && ratio > limit
    {
        bail!("`record` costs {ratio:.2} times the floor, more than {limit}");
    }
    let seconds = snapshot.own_cpu_seconds();
    if options.short && seconds > GROSS_SNAPSHOT_CPU_SECONDS {
        bail!("a snapshot took {seconds:.1} s of CPU, more than {GROSS_SNAPSHOT_CPU_SECONDS} s");
    }
    Ok(())
}

fn compile(name: &str, output: &str, flags: &[&str], directory: &Path) -> Result<PathBuf> {
    let output = directory.join(output);
    shell::run(
        Command::new("cc")
            .args(["-std=gnu11", "-g", "-O2", "-Wno-unused-result", "-pthread"])
            .args(flags)
            .arg("-o")
            .arg(&output)
            .arg(paths::workspace().join(format!("tests/programs/c/{name}.c"))),
    )?;
    Ok(output)
}

struct Bench {
    memtrace: PathBuf,
    /// memtrace's walk and nothing else.
    walk_only: PathBuf,
    pairs: PathBuf,
    pairs_with_frame_pointers: PathBuf,
    stalls: PathBuf,
    /// Where memtrace writes what it saw.
    json: PathBuf,
    /// Where heaptrack writes, if it is measured.
    heaptrack: Option<PathBuf>,
}

/// In the middle, or halfway between the two in the middle.
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
