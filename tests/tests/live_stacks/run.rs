//! One program, traced to the end of its work, and its stacks as a list of names.

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::program::Program;
use memtrace_tests::recorded::{Frame, Recorded, Snapshot, Stack};
use memtrace_tests::serial;
use memtrace_tests::truth::Truth;
use nix::sys::signal::Signal;

/// What memtrace told.
pub struct Traced {
    pub recorded: Recorded,
    /// Folded stacks, by default without the frames of Go's runtime.
    pub folded: String,
}

pub const NO_ARGUMENTS: &[&str] = &[];

/// Traces the program from `ready` until it has told the end of its work.
pub fn trace(
    executable: &Path,
    arguments: &[impl AsRef<OsStr>],
    memtrace: &[&str],
) -> Result<Traced> {
    Ok(trace_with_truth(executable, arguments, memtrace)?.0)
}

/// The same with what the program says of itself.
pub fn trace_with_truth(
    executable: &Path,
    arguments: &[impl AsRef<OsStr>],
    memtrace: &[&str],
) -> Result<(Traced, Truth)> {
    let _turn = serial::turn()?;
    trace_started(Program::start(executable, arguments, &[])?, memtrace)
}

/// The same for one that is already `ready`.
pub fn trace_started(mut program: Program, memtrace: &[&str]) -> Result<(Traced, Truth)> {
    let directory = tempfile::tempdir().context("create a directory for the folded stacks")?;
    let folded = directory.path().join("folded").display().to_string();
    let mut arguments = vec!["--folded", &folded];
    arguments.extend(memtrace);
    let recording = Recording::attach(program.pid(), &arguments)?;
    program.go()?;
    let truth = program.truth(Duration::from_secs(120))?;
    recording.signal(Signal::SIGINT)?;
    let recorded = recording.finish()?.recorded()?;
    program.finish()?;
    let folded = std::fs::read_to_string(&folded).context("read the folded stacks")?;
    Ok((Traced { recorded, folded }, truth))
}

impl Traced {
    pub fn last(&self) -> Result<&Snapshot> {
        self.recorded.last()
    }

    /// The stack that leaked a block of this size. There must be one.
    pub fn leak(&self, size: u64) -> Result<&Stack> {
        let stacks = &self.last()?.native.stacks;
        let mut found = stacks.iter().filter(|stack| stack.bytes == size && stack.blocks == 1);
        match (found.next(), found.next()) {
            (Some(stack), None) => Ok(stack),
            (found, _) => bail!(
                "{} stacks leaked one block of {size} bytes; all:\n{}",
                if found.is_some() { "several" } else { "no" },
                stacks.iter().map(|stack| format!("{stack}\n")).collect::<String>()
            ),
        }
    }

    pub fn tally(&self, label: &str) -> Result<u64> {
        let tallies = &self.last()?.native.tallies;
        tallies.get(label).copied().with_context(|| format!("no tally `{label}`"))
    }

    /// Every walk reached the end of its stack, every stack and mapping is whole, nothing is lost.
    pub fn assert_all_complete(&self) -> Result<()> {
        let native = &self.last()?.native;
        let (complete, truncated) = (self.tally("walk_complete")?, self.tally("walk_truncated")?);
        ensure!(complete > 0 && truncated == 0, "{truncated} of {complete} walks were cut short");
        for stack in &native.stacks {
            ensure!(stack.complete, "not complete: {}", names(stack).join(" < "));
        }
        for stack in &native.ranges.stacks {
            ensure!(!stack.frames.iter().any(|frame| frame.kind == "note"), "not whole: {stack:?}");
        }
        let lost: Vec<_> = native.losses.iter().filter(|(_, count)| **count > 0).collect();
        ensure!(lost.is_empty(), "losses: {lost:?}");
        Ok(())
    }
}

/// The stacks of a folded file, each as one text.
pub fn folded_stacks(folded: &str) -> Vec<&str> {
    folded.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect()
}

/// The frames as the lists of this test name them, leaf first.
pub fn names(stack: &Stack) -> Vec<String> {
    stack.frames.iter().map(name).collect()
}

/// `function`, `function (inlined)`, `module+?` where nothing names it, cgo's hash as `HASH`.
fn name(frame: &Frame) -> String {
    let function = frame.function.as_deref().unwrap_or("?");
    let module = frame.module.as_deref().and_then(|path| path.rsplit('/').next());
    let mut name = match module.and_then(|module| function.strip_prefix(module)) {
        Some(rest) if rest.starts_with("+0x") => format!("{}+?", module.unwrap_or("?")),
        _ => without_hash(function),
    };
    if frame.inlined {
        name.push_str(" (inlined)");
    }
    name
}

/// `_cgo_1a2b3c4d5e6f_Cfunc_f` → `_cgo_HASH_Cfunc_f`
fn without_hash(function: &str) -> String {
    let mut parts: Vec<&str> = function.split('_').collect();
    let is_hash = |part: &str| part.len() == 12 && part.bytes().all(|b| b.is_ascii_hexdigit());
    if function.starts_with("_cgo")
        && let Some(part) = parts.get_mut(2).filter(|part| is_hash(part))
    {
        *part = "HASH";
    }
    parts.join("_")
}

/// Compares with the expected list, and shows both side by side where they differ.
pub fn assert_frames(what: &str, stack: &Stack, expected: &[String]) -> Result<()> {
    let seen = names(stack);
    if seen == expected {
        return Ok(());
    }
    let mut table = String::new();
    for at in 0..seen.len().max(expected.len()) {
        let of = |list: &[String]| list.get(at).cloned().unwrap_or_default();
        let (expected, seen) = (of(expected), of(&seen));
        let mark = if expected == seen { ' ' } else { '!' };
        writeln!(table, "{mark} {expected:<50} {seen}")?;
    }
    bail!("{what}: expected on the left, seen on the right\n{table}")
}
