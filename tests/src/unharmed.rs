//! Unharmed: one memtrace, ended by a signal, and the proof that nothing of it remains.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::memtrace::Recording;
use crate::program::Program;
use crate::tracks::{BpfObjects, Text};
use crate::wait;

/// After SIGKILL the kernel takes the probes away one after another, each with its grace periods.
const PROBES_GO: Duration = Duration::from_secs(60);

/// Traces `program`, which is `busy`, and ends memtrace by the signal; how long it took until
/// nothing of it remained. `untouched` is the program's code as it was before any tracing.
pub fn ended_once(signal: Signal, program: &mut Program, untouched: &Text) -> Result<Duration> {
    let recording = Recording::attach(program.pid(), &["--go-profile", "off"])?;
    // That there is something to remain is part of the test.
    let changes = Text::of(program.pid())?.changes_since(untouched);
    ensure!(!changes.is_empty(), "no breakpoint was found while memtrace traced");
    let held = BpfObjects::held_by(recording.pid())?;
    ensure!(
        !held.programs.is_empty() && !held.maps.is_empty(),
        "memtrace held no programs or maps while it traced: {held:?}"
    );
    works_on(program)?;

    let start = Instant::now();
    recording.signal(signal)?;
    let finished = recording.finish()?;
    if signal != Signal::SIGKILL {
        finished.recorded().context("what it left after the signal")?;
    }

    wait::until("the programs and maps to go", PROBES_GO, || Ok(held.still_there()?.is_empty()))
        .with_context(|| format!("still there: {:?}", held.still_there()))?;
    let took = start.elapsed();
    // The last breakpoint goes with the last program, or a moment after.
    wait::until("the breakpoints to go", Duration::from_secs(5), || {
        Ok(Text::of(program.pid())?.changes_since(untouched).is_empty())
    })
    .with_context(|| match Text::of(program.pid()) {
        Ok(now) => format!("still there: {:#?}", now.changes_since(untouched)),
        Err(error) => format!("{error:#}"),
    })?;
    works_on(program)?;
    Ok(took)
}

/// The rounds it has done grow.
fn works_on(program: &mut Program) -> Result<()> {
    let before = rounds(program)?;
    wait::until("the tracee to go on", Duration::from_secs(10), || Ok(rounds(program)? > before))
}

fn rounds(program: &mut Program) -> Result<u64> {
    program.go()?;
    let line = program.line("its rounds", Duration::from_secs(10), |l| l.starts_with("rounds "))?;
    line.trim_start_matches("rounds ").parse().with_context(|| format!("read `{line}`"))
}
