//! Unharmed: however memtrace ends, the tracee works on, and no breakpoint, program or map remains.

use anyhow::{Context, Result};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::program::Program;
use memtrace_tests::serial;
use memtrace_tests::tracks::Text;
use memtrace_tests::unharmed::ended_once;
use nix::sys::signal::Signal;

/// How often each signal ends memtrace.
const TIMES: usize = 20;
/// How many threads of the tracee allocate without end meanwhile.
const THREADS: &str = "8";

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
        let took = ended_once(signal, &mut program, &untouched)
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
