//! Libraries that come, go, and are replaced while a program is traced, or before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::program::Program;
use memtrace_tests::serial;

use super::build;
use super::run::{names, trace, trace_started};

const ABOVE: [&str; 4] = ["main", "__libc_start_call_main", "__libc_start_main_impl", "_start"];

fn whole(leaf: &[&str], caller: &str) -> Vec<String> {
    let frames = leaf.iter().chain([&caller]).chain(&ABOVE);
    frames.map(|frame| (*frame).to_owned()).collect()
}

const LEVELS: [&str; 5] = ["malloc", "level_d", "level_c", "level_b", "leak_a"];

#[test]
fn a_library_mapped_while_traced_has_its_table_within_a_second() -> Result<()> {
    let library = build::levels()?.display().to_string();
    let program = build::program("gcc", "loaded", &["loaded.c"], &["-ldl"])?;
    // Its own clock counts in the figure below.
    let _turn = serial::alone()?;
    const CALLS: u64 = 20;
    let program = Program::start(&program, &["after", &library, &CALLS.to_string()], &[])?;
    let (traced, _) = trace_started(program, &[])?;
    let expected = whole(&LEVELS, "call");
    // Calls that read the same are one row: of those in between each is cut short, and right as far
    // as it goes.
    let stacks = &traced.last()?.native.stacks;
    let of_library = stacks.iter().filter(|stack| stack.contains("level_d"));
    let (mut complete, mut truncated) = (0, 0);
    for stack in of_library {
        let names = names(stack);
        if stack.complete {
            ensure!(names == expected, "{names:#?}");
            complete += stack.blocks;
            continue;
        }
        let (note, frames) = names.split_last().context("a stack has frames")?;
        ensure!(expected.starts_with(frames), "{names:#?}");
        ensure!(note.starts_with("[truncated: unknown mapping above liblevels.so+0x"), "{note}");
        truncated += stack.blocks;
    }
    println!("{truncated} of {CALLS} calls, one each 100 ms, came before the table");
    ensure!(complete + truncated == CALLS, "{complete} whole, {truncated} cut short");
    ensure!(traced.tally("walk_truncated")? == truncated, "truncated walks are counted as such");
    ensure!((1..=10).contains(&truncated), "the table came after {truncated} calls");
    Ok(())
}

/// Another library at the address of one that was unloaded; and the first one again, elsewhere.
#[test]
fn a_library_at_the_address_of_another_is_unwound_and_named_as_itself() -> Result<()> {
    let library = build::levels()?.display().to_string();
    let other = build::library("gcc", "lib/libother.so", "other.c", &[])?.display().to_string();
    let program = build::program("gcc", "reloaded", &["reloaded.c"], &["-ldl"])?;
    // A snapshot before the change: its names are those of what was mapped then.
    let traced = trace(&program, &[&library, &other], &["--interval", "500ms"])?;
    let mut expected = whole(&LEVELS, "call");
    for (size, what) in [(1111, "the first library"), (3331, "the first library, back")] {
        ensure!(names(traced.leak(size)?) == expected, "{what}: {:#?}", names(traced.leak(size)?));
    }
    expected = whole(&["malloc", "other_inner", "other_middle", "leak_a"], "call");
    ensure!(names(traced.leak(2221)?) == expected, "{:#?}", names(traced.leak(2221)?));
    Ok(())
}

/// Libraries that take turns at one address, each called as fast as possible from its first moment:
/// each stack names the library that was there, or is cut short before it, with the reason.
#[test]
fn of_libraries_that_take_turns_at_an_address_no_stack_is_anothers() -> Result<()> {
    let library = build::levels()?.display().to_string();
    let other = build::library("gcc", "lib/libother.so", "other.c", &[])?.display().to_string();
    let program = build::program("gcc", "swapped", &["swapped.c"], &["-ldl"])?;
    const TURNS: u64 = 20;
    let arguments = [library.as_str(), &other, &TURNS.to_string()];
    let _turn = serial::alone()?;
    let program = Program::start(&program, &arguments, &[])?;
    let (traced, truth) = trace_started(program, &["--interval", "300ms"])?;
    let sites = [
        ("liblevels", 1001, whole(&LEVELS, "call")),
        ("libother", 2003, whole(&["malloc", "other_inner", "other_middle", "leak_a"], "call")),
    ];
    let stacks = &traced.last()?.native.stacks;
    let (mut told, mut complete, mut changed) = (0, [0, 0], 0);
    for stack in stacks {
        let names = names(stack);
        let is_of = |(_, size, _): &&(&str, u64, Vec<String>)| stack.bytes == size * stack.blocks;
        if stack.complete {
            // Of the loader's own, too.
            let Some(at) = sites.iter().position(|site| site.2 == names) else {
                ensure!(!names.contains(&"call".to_owned()), "neither's: {stack}");
                continue;
            };
            ensure!(is_of(&&sites[at]), "not the blocks of {}: {stack}", sites[at].0);
            complete[at] += stack.blocks;
        } else {
            let (note, frames) = names.split_last().context("a stack has frames")?;
            let unknown = note.starts_with("[truncated: unknown mapping above ");
            ensure!(unknown || note.starts_with("[truncated: mappings changed, "), "{stack}");
            // Calls of both that were cut short at the leaf are one row.
            let of: Vec<_> = sites.iter().filter(|site| site.2.starts_with(frames)).collect();
            let one = of.len() == 1 && is_of(&of[0]);
            let nameless = frames.len() == 1
                || frames[1].starts_with("[not known when it was called]") && frames.len() == 2;
            ensure!(one || nameless, "cut short, and wrong: {stack}");
            changed += stack.blocks;
        }
        told += stack.blocks;
    }
    let calls: u64 = truth.sites.iter().map(|site| site.blocks).sum();
    println!(
        "{calls} calls in {TURNS} turns: {} and {} whole, {changed} cut short",
        complete[0], complete[1]
    );
    ensure!(complete.iter().all(|whole| *whole > 0), "no table came in time: {complete:?}");
    ensure!(told >= calls && told - calls < 100, "{told} calls told of {calls}");
    Ok(())
}

#[test]
fn a_library_replaced_on_disk_is_unwound_and_named_from_what_is_mapped() -> Result<()> {
    let directory = tempfile::tempdir().context("create a directory for the libraries")?;
    let mapped = directory.path().join("libreplaced.so");
    let next = directory.path().join("next.so");
    std::fs::copy(build::levels()?, &mapped)?;
    std::fs::copy(build::library("gcc", "lib/libother.so", "other.c", &[])?, &next)?;
    let program = build::program("gcc", "loaded", &["loaded.c"], &["-ldl"])?;
    let _turn = serial::turn()?;
    let program = Program::start(&program, &["before", &mapped.display().to_string(), "1"], &[])?;
    std::fs::rename(&next, &mapped).context("replace the library")?;
    let (traced, _) = trace_started(program, &[])?;
    let stack = traced.leak(5001)?;
    ensure!(names(stack) == whole(&LEVELS, "call"), "{:#?}", names(stack));
    let modules = stack.frames.iter().filter_map(|frame| frame.module.as_deref());
    ensure!(modules.filter(|path| path.ends_with("/libreplaced.so")).count() == 4, "{stack}");
    traced.assert_all_complete()
}

/// The old program's books are closed as they were, and no frame of them is named by the new one.
#[test]
fn exec_closes_the_books_with_the_stacks_of_the_old_program() -> Result<()> {
    let program = memtrace_tests::compile::program("exec", memtrace_tests::compile::Kind::C)?;
    let _turn = serial::turn()?;
    let mut program = Program::start(&program, &[] as &[&str], &[])?;
    let recording = Recording::attach(program.pid(), &[] as &[&str])?;
    program.go()?;
    program.truth(Duration::from_secs(60))?;
    let recorded = recording.interrupt()?.recorded()?;
    program.finish()?;
    let native = recorded.until_exec()?;
    ensure!(native.stacks.iter().all(|stack| !stack.contains("allocated_after_exec")));
    let before: Vec<_> =
        native.stacks.iter().filter(|stack| stack.contains("held_before_exec")).collect();
    let expected = whole(&["malloc"], "held_before_exec");
    ensure!(
        !before.is_empty() && before.iter().all(|stack| names(stack) == expected),
        "{before:?}"
    );
    ensure!(native.tallies.get("walk_truncated") == Some(&0), "{:?}", native.tallies);
    Ok(())
}
