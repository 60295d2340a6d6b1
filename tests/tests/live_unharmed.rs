//! Unharmed: however memtrace ends, the tracee works on, and no breakpoint, program or map remains.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::program::Program;
use memtrace_tests::tracks::{BpfObjects, Text};
use memtrace_tests::{serial, wait};
use nix::sys::signal::Signal;

/// How often each signal ends memtrace.
const TIMES: usize = 20;
/// How many threads of the tracee allocate without end meanwhile.
const THREADS: &str = "8";
/// After SIGKILL the kernel takes the probes away one after another, each with its grace periods.
const PROBES_GO: Duration = Duration::from_secs(60);

#[test]
fn after_sigint_nothing_remains() -> Result<()> {
    ended_by(Signal::SIGINT)
}

#[test]
fn after_sigterm_nothing_remains() -> Result<()> {
    ended_by(Signal::SIGTERM)
}

#[test]
fn after_sigkill_nothing_remains() -> Result<()> {
    ended_by(Signal::SIGKILL)
}

#[test]
fn a_signal_as_soon_as_it_says_that_it_traces_still_brings_the_report() -> Result<()> {
    let _turn = serial::turn()?;
    let program = Program::start(&compile::program("busy", Kind::C)?, &["1"], &[])?;
    for signal in [Signal::SIGINT, Signal::SIGTERM].repeat(3) {
        let recording = Recording::attach(program.pid(), &["--go-profile", "off"])?;
        recording.signal(signal)?;
        recording.finish()?.recorded().with_context(|| format!("after an early {signal}"))?;
    }
    program.finish()
}

fn ended_by(signal: Signal) -> Result<()> {
    let _turn = serial::turn()?;
    let mut program = Program::start(&compile::program("busy", Kind::C)?, &[THREADS], &[])?;
    let untouched = Text::of(program.pid())?;
    let mut ends = Vec::new();
    for time in 1..=TIMES {
        let took = once(signal, &mut program, &untouched)
            .with_context(|| format!("the {time}th end by {signal}"))?;
        ends.push(took);
    }
    ends.sort_unstable();
    println!(
        "from {signal} until nothing remained: median {:.1?}, longest {:.1?} of {TIMES}",
        ends[TIMES / 2],
        ends[TIMES - 1]
    );
    program.finish()
}

/// One memtrace, ended; how long it took until nothing of it remained.
fn once(signal: Signal, program: &mut Program, untouched: &Text) -> Result<Duration> {
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
