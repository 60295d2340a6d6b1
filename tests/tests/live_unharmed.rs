//! Unharmed: however memtrace ends, the tracee works on, and no breakpoint, program or map remains.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::program::Program;
use memtrace_tests::tracks::{BpfObjects, Text};
use memtrace_tests::{serial, wait};
use nix::sys::signal::Signal;

/// How often each signal ends memtrace.
const TIMES: usize = 20;

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
    let mut program = Program::start(&compile::program("busy", Kind::C)?, &["2"], &[])?;
    let untouched = Text::of(program.pid())?;
    for time in 1..=TIMES {
        once(signal, &mut program, &untouched)
            .with_context(|| format!("the {time}th end by {signal}"))?;
    }
    program.finish()
}

fn once(signal: Signal, program: &mut Program, untouched: &Text) -> Result<()> {
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

    recording.signal(signal)?;
    let finished = recording.finish()?;
    if signal != Signal::SIGKILL {
        finished.recorded().context("what it left after the signal")?;
    }

    wait::until("the programs and maps to go", Duration::from_secs(10), || {
        Ok(held.still_there()?.is_empty())
    })
    .with_context(|| format!("still there: {:?}", held.still_there()))?;
    let changes = Text::of(program.pid())?.changes_since(untouched);
    ensure!(changes.is_empty(), "changed code remains in the tracee: {changes:#?}");
    works_on(program)
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
