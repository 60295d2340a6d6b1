//! What `cargo xtask vm` runs inside an emulated guest, over the same harness as the live tests.
//!
//! `vm-guest programs short|full|ledger` runs on the host: compiles the programs that the guest will
//! trace, and prints where they lie. `vm-guest FILE` runs in the guest: does the task of the file
//! and tells what happened, an event of JSON on a line. It never powers the guest off.

mod cases;
mod check;
mod container;
mod event;
mod lacks;
mod run;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use memtrace_tests::compile::{self, Kind};
use serde::Deserialize;

/// What the guest was booted for.
#[derive(Deserialize)]
#[serde(tag = "task", rename_all = "snake_case", deny_unknown_fields)]
enum Task {
    /// A kernel on which memtrace works: prove it.
    Check { short: bool, only: Option<String> },
    /// A kernel on which it cannot work: prove that it says so.
    Lacks,
    /// A command line, for whoever needs a guest.
    Run { command: Vec<String>, memory_max_bytes: Option<u64> },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["programs", "short"] => programs(true),
        ["programs", "full"] => programs(false),
        ["programs", "ledger"] => compile_all(&cases::LEDGER),
        [file] => guest(file),
        _ => bail!(
            "this is for `cargo xtask vm`: `vm-guest programs short|full|ledger`, or a task file"
        ),
    }
}

/// Compiles what the guest needs, and says where it lies and where it belongs.
fn programs(short: bool) -> Result<()> {
    compile_all(&cases::programs(short))
}

fn compile_all(programs: &[(&str, Kind)]) -> Result<()> {
    let mut list = Vec::new();
    for &(name, kind) in programs {
        let path = compile::program(name, kind).with_context(|| format!("compile `{name}`"))?;
        list.push(serde_json::json!({ "path": path, "place": kind.place(name) }));
    }
    println!("{}", serde_json::Value::from(list));
    Ok(())
}

fn guest(file: &str) -> Result<()> {
    let text = std::fs::read(file).with_context(|| format!("read `{file}`"))?;
    let task = serde_json::from_slice(&text).with_context(|| format!("read `{file}`"))?;
    event::booted()?;
    match task {
        Task::Check { short, only } => check::all(short, only.as_deref()),
        Task::Lacks => lacks::all(),
        Task::Run { command, memory_max_bytes } => run::run(&command, memory_max_bytes)?,
    }
    event::done();
    Ok(())
}
