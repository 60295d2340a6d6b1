//! memtrace on other kernels, for real: Debian's kernel images boot in emulated machines, and in
//! each the tests' harness traces programs that know their own truth.
//!
//! Needs neither KVM nor root. What it cannot show is speed: emulation makes a probe cost tens of
//! microseconds. Only x86-64, as memtrace itself.

mod archive;
mod command;
mod console;
mod cpio;
mod docker;
mod event;
mod guest;
mod initramfs;
mod kernels;
mod libraries;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use archive::Image;
use event::Event;
use guest::Guest;
use initramfs::Builder;
use kernels::{Expectation, Kernel};
use table::Row;

use crate::{go, interrupt, paths, setup, shell};

#[derive(Args)]
pub struct Options {
    /// Only this kernel: a series of Debian's kernels such as 6.1, or `newest`; may be repeated
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,
    /// For CI: the oldest kernel that must work with a few programs, and the one that lacks what is needed
    #[arg(long)]
    short: bool,
    /// Only says which kernels there are to try, and which are here already
    #[arg(long)]
    list: bool,
    /// Fetches the newest images again
    #[arg(long)]
    refresh: bool,
    /// Only the checks with this in their name, e.g. `go/` or `c/malloc`
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// More of the kernel's command line, e.g. `preempt=full`
    #[arg(long = "append", value_name = "PARAMETERS", default_value = "")]
    parameters: String,
    /// A guest is ended when it takes longer
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    limit: u64,
    /// Runs COMMAND in one guest instead (by default 6.1), with memtrace on its PATH and cgroup v2
    /// mounted, and ends with its exit code
    #[arg(long, requires = "command", conflicts_with_all = ["short", "list"])]
    run: bool,
    /// Copies a file or a directory into the guest, programs with their libraries
    #[arg(long = "file", value_name = "HERE[:THERE]", requires = "run")]
    files: Vec<String>,
    /// Puts the command into a cgroup (v2) with this memory limit, as a container engine would
    #[arg(long, value_name = "MIB", requires = "run")]
    memory_max: Option<u64>,
    /// Runs the live tests of `memtrace explain` in one guest (by default 6.12) with docker and
    /// cgroup v2; with --short three of them, with COMMAND the tests of these names
    #[arg(long, conflicts_with_all = ["run", "list", "only"])]
    docker: bool,
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What the verb keeps: images, consoles, what memtrace wrote.
fn directory() -> PathBuf {
    paths::target().join("vm")
}

pub fn run(options: &Options) -> Result<ExitCode> {
    interrupt::watch()?;
    if options.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    setup::vm()?;
    fs::create_dir_all(directory())
        .with_context(|| format!("create `{}`", directory().display()))?;
    if options.run {
        return command::run(options);
    }
    if options.docker {
        return docker::run(options);
    }
    if !options.command.is_empty() {
        bail!("a COMMAND is for --run, or for --docker");
    }
    let plan = Plan {
        short: options.short,
        only: options.only.as_deref(),
        parameters: &options.parameters,
        limit: Duration::from_secs(options.limit),
    };
    guests(&chosen(options), options.refresh, &plan)?;
    Ok(ExitCode::SUCCESS)
}

/// For `cargo xtask ci`.
pub fn short() -> Result<()> {
    setup::vm()?;
    fs::create_dir_all(directory())
        .with_context(|| format!("create `{}`", directory().display()))?;
    let plan = Plan { short: true, only: None, parameters: "", limit: Duration::from_secs(240) };
    guests(&kernels::short(), false, &plan)
}

fn chosen(options: &Options) -> Vec<Kernel> {
    match options.kernels.as_slice() {
        [] if options.short => kernels::short(),
        [] => kernels::matrix(),
        series => series.iter().map(|series| kernels::of_series(series)).collect(),
    }
}

fn list() {
    println!("The matrix, and what is in `{}`:", directory().display());
    for kernel in kernels::matrix() {
        let what = match kernel.expectation {
            Expectation::Works => "memtrace must work",
            Expectation::Lacks => "memtrace must refuse with exit code 6",
        };
        let package = archive::cached(&kernel.series).map(|image| image.package);
        println!(
            "  {:7} {what}; {}",
            kernel.series,
            package.as_deref().unwrap_or("not fetched yet")
        );
    }
    println!("Any other series of {} can be named with --kernel.", kernels::SUITES.join(", "));
}

/// What is done in every guest.
struct Plan<'a> {
    short: bool,
    /// Of the checks.
    only: Option<&'a str>,
    /// Of the kernel.
    parameters: &'a str,
    limit: Duration,
}

/// Boots each kernel in turn; fails when anything did not hold on one of them.
fn guests(kernels: &[Kernel], refresh: bool, plan: &Plan<'_>) -> Result<()> {
    let images = archive::images(kernels, refresh)?;
    if kernels.iter().any(|kernel| kernel.expectation == Expectation::Works) {
        go::ensure()?;
    }
    let programs = programs(plan.short)?;
    let mut rows = Vec::new();
    for (kernel, image) in kernels.iter().zip(&images) {
        rows.push(one(kernel, image, &programs, plan)?);
    }
    println!("\n{}", table::render(&rows));
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| !row.failures.is_empty())
        .map(|row| format!("{}: {}", row.package, row.failures.join("\n  ")))
        .collect();
    if !failed.is_empty() {
        bail!("not everything held on every kernel:\n{}", failed.join("\n"));
    }
    Ok(())
}

/// A program to trace: where it lies here, and where it belongs below `/programs`.
#[derive(Deserialize)]
struct Program {
    path: PathBuf,
    place: PathBuf,
}

/// Builds memtrace and the agent, which compiles the programs by the harness's own way.
fn programs(short: bool) -> Result<Vec<Program>> {
    shell::step("building memtrace and what the guests trace");
    build()?;
    let mut agent = Command::new(built("vm-guest"));
    agent.args(["programs", if short { "short" } else { "full" }]);
    let list = shell::ask(&mut agent)?;
    serde_json::from_str(&list).context("read the list of programs")
}

fn build() -> Result<()> {
    let mut cargo = Command::new(paths::cargo());
    cargo.args(["build", "--package", "memtrace", "--package", "memtrace-tests"]);
    shell::run(cargo.args(["--bin", "memtrace", "--bin", "vm-guest"]))
}

fn built(name: &str) -> PathBuf {
    paths::target().join("debug").join(name)
}

/// An initramfs with memtrace, the agent and its task; the caller adds what the task needs.
fn initramfs(task: &serde_json::Value) -> Result<Builder> {
    let mut builder = Builder::new(task)?;
    builder.stripped(&built("memtrace"), "/bin/memtrace")?;
    builder.stripped(&built("vm-guest"), "/bin/vm-guest")?;
    Ok(builder)
}

fn one(kernel: &Kernel, image: &Image, programs: &[Program], plan: &Plan<'_>) -> Result<Row> {
    shell::step(&format!("{} in an emulated machine", image.package));
    let task = match kernel.expectation {
        Expectation::Works => json!({ "task": "check", "short": plan.short, "only": plan.only }),
        Expectation::Lacks => json!({ "task": "lacks" }),
    };
    let mut builder = initramfs(&task)?;
    for program in programs {
        let place = format!("/programs/{}", program.place.display());
        builder.program(&program.path, &place)?;
    }
    let initramfs = builder.finish()?;
    let kept = directory().join(&kernel.series);
    fs::create_dir_all(&kept).with_context(|| format!("create `{}`", kept.display()))?;
    let guest = Guest {
        vmlinuz: &image.vmlinuz,
        initramfs: initramfs.path(),
        disk: None,
        console: kept.join("console.log"),
        parameters: plan.parameters,
        limit: plan.limit,
    };
    let ended = guest.run(tell)?;
    for (name, text) in &ended.told.texts {
        let path = kept.join(format!("{}.txt", name.replace([' ', '/'], "-")));
        fs::write(&path, text).with_context(|| format!("write `{}`", path.display()))?;
    }
    let mut failures: Vec<String> = ended
        .told
        .checks
        .iter()
        .filter_map(|check| Some(format!("{}: {}", check.name, check.error.as_ref()?)))
        .collect();
    for failure in [ended.broken, ended.complaint].into_iter().flatten() {
        eprintln!("  FAIL {failure}");
        failures.push(failure);
    }
    if ended.told.checks.is_empty() {
        failures.push("nothing was checked".to_owned());
    }
    Ok(Row {
        package: image.package.clone(),
        expectation: kernel.expectation,
        told: ended.told,
        wall_seconds: ended.wall.as_secs_f64(),
        failures,
    })
}

/// Progress, as it comes.
fn tell(event: &Event) {
    match event {
        Event::Booted { release, seconds } => eprintln!("  {release} runs after {seconds:.1} s"),
        Event::Checked { name, seconds, error: None } => {
            eprintln!("  ok   {name} ({seconds:.1} s)")
        }
        Event::Checked { name, seconds, error: Some(error) } => {
            eprintln!("  FAIL {name} ({seconds:.1} s): {error}");
        }
        Event::Loaded { milliseconds, programs } => {
            eprintln!("       kernel side loaded in {milliseconds} ms; verified instructions:");
            for (program, count) in programs {
                eprintln!("         {count:>8}  {program}");
            }
        }
        _ => {}
    }
}
