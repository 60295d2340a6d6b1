//! A kernel on which memtrace works: the doctor says so, the verifier takes every program, the
//! books are exact, every stack is whole, and SIGKILL leaves nothing behind.

use anyhow::{Context, Result, bail, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::conformance::Case;
use memtrace_tests::memtrace::{self, Recording};
use memtrace_tests::program::Program;
use memtrace_tests::recorded::Recorded;
use memtrace_tests::tracks::Text;
use memtrace_tests::unharmed::ended_once;
use nix::sys::signal::Signal;

use crate::{cases, container, event};

/// Everything, or what has `only` in its name.
pub fn all(short: bool, only: Option<&str>) {
    let check = |name: &str, body: &dyn Fn() -> Result<()>| {
        if only.is_none_or(|only| name.contains(only)) {
            event::check(name, body);
        }
    };
    check("doctor", &doctor);
    check("load", &load);
    if !short {
        check("load, chained", &load_chained);
    }
    for case in cases::cases(short) {
        check(&name(&case), &|| exact(&case));
    }
    check("after SIGKILL nothing remains", &sigkill);
    check("a container by its cgroup (v2)", &container::by_cgroup);
}

fn name(case: &Case) -> String {
    let place = case.kind.place(case.name);
    let chained = if case.memtrace_environment.is_empty() { "" } else { ", chained" };
    format!("{}{chained}", place.display())
}

/// `memtrace doctor` ends with 0.
fn doctor() -> Result<()> {
    let output = memtrace::run(&["doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    event::text("doctor", &text);
    ensure!(
        output.status.success(),
        "`memtrace doctor` ended with {}:\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Loads the kernel side, and tells what it was for the verifier.
fn load() -> Result<()> {
    let (name, kind) = cases::MALLOC;
    let (milliseconds, programs) = loaded(&Case::new(name, kind))?;
    event::loaded(milliseconds, &programs);
    Ok(())
}

/// Loads the programs that walk stacks without `bpf_loop`, and tells the same of them.
fn load_chained() -> Result<()> {
    let (name, kind) = cases::MALLOC;
    let (milliseconds, programs) = loaded(&Case::new(name, kind).chained())?;
    event::loaded(milliseconds, &programs);
    Ok(())
}

fn loaded(case: &Case) -> Result<(u64, Vec<(String, u64)>)> {
    let program = Program::start(&compile::program(case.name, case.kind)?, &[] as &[&str], &[])?;
    let arguments = ["--verbose", "--go-profile", "off"];
    let recording = Recording::attach_in(case.memtrace_environment, program.pid(), &arguments)?;
    let finished = recording.interrupt()?;
    let told = told(&finished.stderr);
    finished.recorded()?;
    program.finish()?;
    told
}

/// From what `record --verbose` says: milliseconds of loading, verified instructions by program,
/// where the kernel counts them.
fn told(lines: &[String]) -> Result<(u64, Vec<(String, u64)>)> {
    let mut programs = Vec::new();
    let mut uncounted = 0;
    let mut milliseconds = None;
    for line in lines {
        let Some(line) = line.strip_prefix("memtrace: ") else { continue };
        let is_uncounted = line.contains("loaded; this kernel does not count (Linux 5.16 does)");
        uncounted += usize::from(is_uncounted);
        if let Some((program, count)) = line
            .strip_prefix("program `")
            .and_then(|rest| rest.strip_suffix(" instructions verified")?.split_once("`: "))
        {
            programs.push((program.to_owned(), count.parse().with_context(|| line.to_owned())?));
        }
        if let Some(count) =
            line.strip_prefix("kernel side loaded in ").and_then(|rest| rest.strip_suffix(" ms"))
        {
            milliseconds = Some(count.parse().with_context(|| line.to_owned())?);
        }
    }
    match milliseconds {
        Some(milliseconds) if !programs.is_empty() || uncounted > 0 => Ok((milliseconds, programs)),
        _ => bail!("`record --verbose` does not tell what was verified: {lines:#?}"),
    }
}

/// Zero bytes and blocks of difference, zero losses, and no stack cut short; but musl has no unwind
/// information for its own start of a program, below which nothing of interest lies.
fn exact(case: &Case) -> Result<()> {
    let (truth, recorded) = case.trace()?;
    case.judge(&truth, &recorded)?;
    if case.kind == Kind::CMusl { Ok(()) } else { whole_stacks(&recorded) }
}

pub fn whole_stacks(recorded: &Recorded) -> Result<()> {
    let tallies = &recorded.last()?.native.tallies;
    let walks = |label: &str| {
        tallies.get(label).copied().with_context(|| format!("there is no tally `{label}`"))
    };
    let (complete, truncated) = (walks("walk_complete")?, walks("walk_truncated")?);
    ensure!(
        truncated == 0,
        "{truncated} of {} walks ended before the stack did",
        complete + truncated
    );
    Ok(())
}

/// A few times, under the load of two threads: the kernel takes seconds for each.
fn sigkill() -> Result<()> {
    let (name, kind) = cases::BUSY;
    let mut program = Program::start(&compile::program(name, kind)?, &["2"], &[])?;
    let untouched = Text::of(program.pid())?;
    for time in 1..=3 {
        ended_once(Signal::SIGKILL, &mut program, &untouched)
            .with_context(|| format!("the {time}th end by SIGKILL"))?;
    }
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_verified_is_read_from_the_verbose_lines() {
        let lines = [
            "memtrace: program `call_entry`: 12345 instructions verified",
            "memtrace: program `exec`: 77 instructions verified",
            "memtrace: kernel side loaded in 812 ms",
            "tracing PID 7 (malloc) (23 probes armed)",
        ];
        let (milliseconds, programs) = told(&lines.map(str::to_owned)).unwrap();
        assert_eq!(milliseconds, 812);
        assert_eq!(programs, [("call_entry".to_owned(), 12_345), ("exec".to_owned(), 77)]);
    }

    #[test]
    fn silence_about_the_verifier_is_an_error() {
        assert!(told(&["memtrace: kernel side loaded in 812 ms".to_owned()]).is_err());
    }
}
