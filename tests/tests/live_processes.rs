//! Several processes as one target: each has its books, what comes is traced, what ends is kept.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::ledger;
use memtrace_tests::memtrace::Recording;
use memtrace_tests::program::Program;
use memtrace_tests::recorded::{Process, Recorded};
use memtrace_tests::serial;
use memtrace_tests::truth::{Truth, assert_told};

const LIMIT: Duration = Duration::from_secs(60);
/// What comes is traced within a second, and what ended is closed within another one; a machine with
/// forty others at work took five.
const A_WHILE: Duration = Duration::from_secs(8);

fn start(name: &str) -> Result<Program> {
    Program::start(&compile::program(name, Kind::C)?, &[] as &[&str], &[])
}

/// The program's next `ready`.
fn ready(program: &mut Program) -> Result<()> {
    program.line("`ready`", LIMIT, |line| line == "ready").map(drop)
}

fn laws_hold(recorded: &Recorded) -> Result<()> {
    for snapshot in &recorded.snapshots {
        let broken: Vec<_> = snapshot.checks.iter().filter(|check| !check.holds).collect();
        ensure!(broken.is_empty(), "{broken:?}");
    }
    Ok(())
}

#[test]
fn the_program_that_exec_brings_has_books_of_its_own() -> Result<()> {
    let _turn = serial::turn()?;
    let mut program = start("exec_on")?;
    let recording = Recording::attach(program.pid(), &[] as &[&str])?;
    program.go()?;
    ready(&mut program)?;
    std::thread::sleep(A_WHILE);
    program.go()?;
    let truth = program.truth(LIMIT)?;
    let recorded = recording.interrupt()?.recorded()?;
    program.finish()?;
    let last = recorded.last()?;
    assert_told(&truth, &last.native)?;
    laws_hold(&recorded)?;
    let [first, second] = &recorded.processes[..] else {
        anyhow::bail!("{:#?}", recorded.processes)
    };
    ensure!(first.pid == second.pid && second.came == "executed", "{second:?}");
    ensure!(second.came_from == Some(first.process), "{second:?}");
    let unseen = Duration::from_nanos(second.unseen_ns.context("how long it was not seen")?);
    println!("the new program was traced after {unseen:?}");
    ensure!(unseen < A_WHILE, "it was not seen for {unseen:?}");
    let closed = first.closed.as_ref().context("the old program's books are closed")?;
    ensure!(closed.how == "executed");
    let held: u64 = closed.stacks.iter().map(|stack| stack.blocks).sum();
    ensure!(held == 71 && closed.stacks.iter().all(|stack| stack.contains("held_by_first")));
    ensure!(first.totals.context("totals")?.outstanding.blocks == 71);
    Ok(())
}

/// Parent and workers are traced from outside; the workers' calls are in their own books.
#[test]
fn forked_workers_have_books_of_their_own_and_a_total() -> Result<()> {
    let _turn = serial::turn()?;
    let mut program = start("workers")?;
    let recording = Recording::attach(program.pid(), &["--follow-forks"])?;
    program.go()?;
    ready(&mut program)?;
    std::thread::sleep(A_WHILE);
    program.go()?;
    ready(&mut program)?;
    program.go()?;
    let truth = program.truth(LIMIT)?;
    std::thread::sleep(A_WHILE);
    let recorded = recording.interrupt()?.recorded()?;
    program.finish()?;
    judge_workers(&truth, &recorded)
}

fn judge_workers(truth: &Truth, recorded: &Recorded) -> Result<()> {
    let last = recorded.last()?;
    assert_told(truth, &last.native)?;
    laws_hold(recorded)?;
    let forked: Vec<&Process> =
        recorded.processes.iter().filter(|process| process.came == "forked").collect();
    ensure!(forked.len() == 4 && recorded.processes.len() == 5, "{forked:#?}");
    ensure!(forked.iter().all(|process| process.came_from == Some(1)), "{forked:#?}");
    let mut closed = forked.iter().filter_map(|process| process.closed.as_ref());
    let killed = closed.next().context("the killed worker's last state")?;
    ensure!(closed.next().is_none(), "one worker was killed");
    ensure!(killed.how == "exited");
    // Its 31 blocks of 3571 + 10 to 3571 + 40.
    let held: u64 = killed.stacks.iter().map(|stack| stack.bytes).sum();
    ensure!(held == (10..41).map(|i| 3571 + i).sum::<u64>(), "{held}");
    for books in &last.processes {
        let allocated = books.totals.allocated.blocks;
        ensure!(allocated == 41, "process {} allocated {allocated} blocks", books.process);
    }
    ensure!(last.processes.len() == 4, "{:?}", last.processes);
    judge_ledger(recorded)
}

/// Each one's C heap goes on to what is outstanding in itself.
fn judge_ledger(recorded: &Recorded) -> Result<()> {
    let last = recorded.last()?;
    let ledgers = last.memory["processes"].as_array().context("the ledger's processes")?;
    for books in &last.processes {
        let process = recorded.processes.iter().find(|it| it.process == books.process);
        let pid = process.context("the process is defined")?.pid;
        let ledger = ledgers.iter().find(|it| it["pid"] == pid);
        let resident = &ledger.with_context(|| format!("no ledger of {pid}"))?["resident"];
        let bytes = |key| ledger::find(resident, key).and_then(|row| row["bytes"].as_u64());
        let held = books.totals.outstanding.bytes;
        ensure!(bytes("c_outstanding") == Some(held), "{pid} holds {held}: {resident:#}");
        let heap = bytes("c_heap").context("its C heap")?;
        ensure!(heap >= held && heap < held + (4 << 20), "{pid} holds {held} of {heap}");
    }
    ensure!(!last.processes.is_empty());
    Ok(())
}

/// A worker that nobody asked for is not slowed, and its frees are not its parent's.
#[test]
fn without_follow_forks_only_the_process_itself_is_in_the_books() -> Result<()> {
    let _turn = serial::turn()?;
    let mut program = start("workers")?;
    let recording = Recording::attach(program.pid(), &[] as &[&str])?;
    program.go()?;
    ready(&mut program)?;
    program.go()?;
    ready(&mut program)?;
    program.go()?;
    program.truth(LIMIT)?;
    let recorded = recording.interrupt()?.recorded()?;
    program.finish()?;
    let native = &recorded.last()?.native;
    ensure!(native.outstanding.blocks == 41, "{:?}", native.outstanding);
    ensure!(native.stacks.iter().all(|stack| stack.contains("held_by_parent")));
    ensure!(recorded.processes.len() == 1 && native.tallies.get("forks") == Some(&0));
    Ok(())
}

#[test]
fn a_storm_of_short_processes_is_counted_and_leaves_the_parents_books_exact() -> Result<()> {
    let _turn = serial::turn()?;
    let mut program = start("storm")?;
    let recording = Recording::attach(program.pid(), &["--follow-forks"])?;
    program.go()?;
    let truth = program.truth(Duration::from_secs(240))?;
    std::thread::sleep(A_WHILE);
    let recorded = recording.interrupt()?.recorded()?;
    program.finish()?;
    laws_hold(&recorded)?;
    let last = recorded.last()?;
    assert_told(&truth, &last.native)?;
    let traced = recorded.processes.len() as u64 - 1;
    let unseen = last.untraced.came_and_went;
    println!("of 2000 children {traced} were traced, {unseen} came and went");
    ensure!(traced + unseen == 2000, "{traced} were traced, {unseen} came and went");
    let memory = last.own["user_memory_bytes"].as_u64().context("memtrace's own memory")?;
    ensure!(memory < 400 << 20, "memtrace takes {memory} bytes");
    Ok(())
}
