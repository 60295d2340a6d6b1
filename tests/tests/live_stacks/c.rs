//! C's own difficulties: signals, generated code, nested allocators, other C libraries, objects
//! with other unwind information or none.

use anyhow::{Result, ensure};
use memtrace_tests::recorded::Stack;
use memtrace_tests::truth;

use super::build;
use super::run::{
    NO_ARGUMENTS, Traced, assert_frames, folded_stacks, names, trace, trace_with_truth,
};

const LEVELS: [&str; 5] = ["malloc", "level_d", "level_c", "level_b", "leak_a"];
const START: [&str; 4] = ["main", "__libc_start_call_main", "__libc_start_main_impl", "_start"];

fn list(parts: &[&[&str]]) -> Vec<String> {
    parts.concat().into_iter().map(str::to_owned).collect()
}

fn assert_leaks(traced: &Traced, expected: &[(u64, &str, &[&[&str]])]) -> Result<()> {
    for (size, what, parts) in expected {
        assert_frames(what, traced.leak(*size)?, &list(parts))?;
    }
    Ok(())
}

const SIGNALS: &[&str] = &["-fcf-protection=none", "-Wl,-z,lazy"];

#[test]
fn a_stack_leads_from_a_signal_handler_to_what_was_interrupted_and_on_to_main() -> Result<()> {
    let program = build::program("gcc", "signals", &["signals.c"], SIGNALS)?;
    let traced = trace(&program, NO_ARGUMENTS, &[])?;
    let raise = ["__restore_rt", "__pthread_kill_implementation", "raise"];
    let leak = ["malloc", "leak_in_handler"];
    assert_leaks(
        &traced,
        &[
            (1111, "raised", &[&leak, &["on_raise"], &raise, &["interrupted"], &START]),
            (
                2221,
                "a fault at the first byte of a function",
                &[
                    &leak,
                    &["on_illegal", "__restore_rt", "faults_at_once", "calls_what_faults"],
                    &START,
                ],
            ),
            (
                3331,
                "on the other stack",
                &[&leak, &["on_other_stack"], &raise, &["interrupted_to_other_stack"], &START],
            ),
        ],
    )
}

/// At each instruction of a call through the PLT, the loader's resolver, libc and the vDSO.
#[test]
fn a_stack_is_whole_from_every_instruction_that_a_signal_can_interrupt() -> Result<()> {
    let program = build::program("gcc", "signals", &["signals.c"], SIGNALS)?;
    let (traced, truth) = trace_with_truth(&program, NO_ARGUMENTS, &[])?;
    let native = &traced.last()?.native;
    truth::assert_told(&truth, native)?;
    let of = |function: &str| -> Vec<&Stack> {
        native.stacks.iter().filter(|stack| stack.contains(function)).collect()
    };
    let tail = list(&[&["stepped"], &START]);
    let resolver = |name: &String| name.starts_with("_dl_runtime_resolve");
    let (mut whole, mut in_resolver, mut blocks) = (0, 0, 0);
    for stack in ["leak_at_vdso", "leak_at_plt", "leak_at_another_place"].into_iter().flat_map(of) {
        let names = names(stack);
        blocks += stack.blocks;
        if names.ends_with(&tail) && stack.complete {
            whole += stack.blocks;
        } else {
            // Its CFA hangs on RBX, which the walk does not follow: it stops, and says so.
            let end: Vec<&String> = names.iter().rev().take(2).collect();
            ensure!(
                end[0].starts_with("[truncated: no unwind table for ld-linux-x86-64.so.2+0x")
                    && resolver(end[1])
                    && !names.iter().any(|name| *name == "stepped"),
                "not whole: {names:#?}"
            );
            in_resolver += stack.blocks;
        }
    }
    println!("{blocks} instructions: {whole} stacks whole, {in_resolver} end in the resolver");
    let vdso: u64 = of("leak_at_vdso").iter().map(|stack| stack.blocks).sum();
    let plt: u64 = of("leak_at_plt").iter().map(|stack| stack.blocks).sum();
    ensure!(vdso > 20 && plt >= 6, "{vdso} instructions of the vDSO, {plt} of the PLT");
    ensure!(of("leak_at_vdso").iter().all(|stack| stack.complete), "the vDSO is unwound");
    ensure!(of("leak_at_plt").iter().all(|stack| stack.complete), "the PLT is unwound");
    ensure!(whole > 500, "only {whole} of {blocks} are whole");
    Ok(())
}

const GENERATED: &str = "[generated code: its callers are a guess]";

#[test]
fn generated_code_is_stepped_through_and_marked_as_a_guess() -> Result<()> {
    let program = build::program("gcc", "generated", &["generated.c"], &[])?;
    let traced = trace(&program, NO_ARGUMENTS, &[])?;
    let leak: &[&str] = &["malloc", "leak", GENERATED];
    let whole: &[&[&str]] = &[leak, &["calls_generated"], &START];
    assert_leaks(&traced, &[(1111, "mapped before", whole), (2223, "mapped while traced", whole)])?;
    // The first call through code that is not known yet.
    let first = traced.leak(2221)?;
    ensure!(!first.complete, "{first}");
    let seen = names(first);
    ensure!(seen[..3] == list(&[leak]) && seen[3].starts_with("[truncated: unknown mapping"));
    let text = folded_stacks(&traced.folded);
    ensure!(text.iter().any(|stack| stack.contains(GENERATED)), "not in the folded stacks");
    Ok(())
}

/// A frame pointer of 0 is an end of the stack only where one is kept; another value that is none
/// leads nowhere.
#[test]
fn a_stack_through_generated_code_without_frame_pointers_is_not_whole() -> Result<()> {
    let program = build::program("gcc", "generated", &["generated.c"], &[])?;
    let traced = trace(&program, NO_ARGUMENTS, &[])?;
    let reasons = [(3331, "no unwind table for 0x"), (4441, "broken frame above 0x")];
    for (size, reason) in reasons {
        let stack = traced.leak(size)?;
        let seen = names(stack);
        ensure!(!stack.complete && seen.len() == 4, "{stack}");
        ensure!(seen[..3] == list(&[&["malloc", "leak", GENERATED]]), "{stack}");
        ensure!(seen[3].starts_with(&format!("[truncated: {reason}")), "{stack}");
    }
    Ok(())
}

#[test]
fn allocators_that_call_others_have_whole_stacks_with_their_mappings() -> Result<()> {
    let program = build::program("gcc", "nested", &["nested.c"], &[])?;
    let (traced, truth) = trace_with_truth(&program, NO_ARGUMENTS, &[])?;
    let native = &traced.last()?.native;
    truth::assert_told(&truth, native)?;
    traced.assert_all_complete()?;
    let roots = list(&[&["all"], &START]);
    for stack in &native.stacks {
        ensure!(names(stack).ends_with(&roots), "{:#?}", names(stack));
    }
    // Each large block was mapped inside the allocator call, whose stack the mapping takes.
    let internal: Vec<_> =
        native.ranges.stacks.iter().filter(|range| range.owner == "allocator_internal").collect();
    ensure!(internal.len() >= 6, "only {} mappings of the allocator", internal.len());
    for range in native.ranges.stacks.iter() {
        let stack = Stack { frames: range.frames.clone(), ..Stack::default() };
        ensure!(names(&stack).ends_with(&roots), "{:#?}", names(&stack));
    }
    Ok(())
}

/// The kernel has put its trampoline in the place of a return address on the way.
#[test]
fn a_stack_leads_through_a_call_whose_return_is_probed() -> Result<()> {
    let program = build::program("gcc", "own-mmap", &["own_mmap.c"], &[])?;
    let (traced, truth) = trace_with_truth(&program, NO_ARGUMENTS, &[])?;
    let native = &traced.last()?.native;
    truth::assert_told(&truth, native)?;
    let frames: &[&[&str]] = &[&["malloc", "leak_inside", "mmap", "maps"], &START];
    assert_leaks(&traced, &[(1111, "malloc inside mmap", frames)])?;
    let own = native.ranges.stacks.iter().find(|range| range.owner == "native");
    let module = own.and_then(|range| range.frames[0].module.as_deref());
    ensure!(module.is_some_and(|path| path.ends_with("/own-mmap")), "whose mmap? {module:?}");
    traced.assert_all_complete()
}

fn assert_levels(traced: &Traced, object: &str) -> Result<()> {
    let main: &[&str] = &["from_main"];
    assert_leaks(
        traced,
        &[
            (1111, object, &[&LEVELS, main, &START]),
            (2221, object, &[&LEVELS, &["thread_body", "start_thread", "clone3"]]),
        ],
    )?;
    let from_qsort = names(traced.leak(3331)?);
    ensure!(from_qsort.ends_with(&list(&[&["from_qsort"], &START])), "{from_qsort:#?}");
    traced.assert_all_complete()
}

const LEVELS_MAIN: &[&str] = &["levels_main.c", "levels.c"];

#[test]
fn c_of_an_executable_is_unwound_and_static_glibc_as_well() -> Result<()> {
    let program = build::program("gcc", "levels-glibc", LEVELS_MAIN, &[])?;
    assert_levels(&trace(&program, NO_ARGUMENTS, &[])?, "glibc")?;
    let program = build::program("gcc", "levels-glibc-static", LEVELS_MAIN, &["-static"])?;
    assert_levels(&trace(&program, NO_ARGUMENTS, &[])?, "static glibc")
}

/// musl's own code cannot be unwound: stacks are whole above the outermost allocator entry, end
/// where musl calls the program, and are cut short, with the reason, only where the program is
/// called back from within musl.
#[test]
fn musl_stacks_are_whole_above_the_allocator() -> Result<()> {
    let check = |what: &str, traced: &Traced, end: [&str; 2]| -> Result<()> {
        assert_leaks(
            traced,
            &[
                (1111, what, &[&LEVELS, &["from_main", "main", end[0]]]),
                (2221, what, &[&LEVELS, &["thread_body", end[1]]]),
            ],
        )?;
        ensure!(traced.leak(1111)?.complete && traced.leak(2221)?.complete, "{what}");
        let called_back = traced.leak(3331)?;
        let seen = names(called_back);
        ensure!(!called_back.complete && seen[..6] == list(&[&LEVELS, &["leaks"]]), "{seen:#?}");
        ensure!(seen[7].starts_with("[truncated: no unwind table for "), "{seen:#?}");
        Ok(())
    };
    let program = build::program("musl-gcc", "levels-musl", LEVELS_MAIN, &[])?;
    check("musl", &trace(&program, NO_ARGUMENTS, &[])?, ["libc.so+?", "libc.so+?"])?;
    let program = build::program("musl-gcc", "levels-musl-static", LEVELS_MAIN, &["-static"])?;
    let names = ["libc_start_main_stage2", "start"];
    check("static musl", &trace(&program, NO_ARGUMENTS, &[])?, names)
}

/// Without names there are no lists of names: the stacks are as long, and whole.
#[test]
fn stacks_of_a_stripped_static_musl_program_are_whole_in_threads_as_well() -> Result<()> {
    let program = build::static_musl_stripped()?;
    let traced = trace(&program, NO_ARGUMENTS, &[])?;
    let frames = |size| -> Result<usize> {
        let stack = traced.leak(size)?;
        ensure!(stack.complete, "{stack}");
        Ok(stack.frames.len())
    };
    // The levels, and from_main, main and what calls it; thread_body and what calls that.
    ensure!(frames(1111)? == LEVELS.len() + 3, "{}", traced.leak(1111)?);
    ensure!(frames(2221)? == LEVELS.len() + 2, "{}", traced.leak(2221)?);
    Ok(())
}

/// The startup files and the linker's PLT have unwind information of their own.
const WITHOUT_EH_FRAME: &[&str] = &[
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-nostartfiles",
    "-Wl,--no-eh-frame-hdr,--no-ld-generated-unwind-info",
];

/// One leak through a library that is there before the trace.
fn trace_library(name: &str, flags: &[&str], debug_frame: bool) -> Result<Traced> {
    let library = build::library("gcc", name, "levels.c", &[WITHOUT_EH_FRAME, flags].concat())?;
    ensure!(!build::has_section(&library, ".eh_frame")?, "it must not have .eh_frame");
    ensure!(build::has_section(&library, ".debug_frame")? == debug_frame);
    let program = build::program("gcc", "loaded", &["loaded.c"], &["-ldl"])?;
    trace(&program, &["before", &library.display().to_string(), "1"], &[])
}

#[test]
fn a_library_without_unwind_information_ends_the_stack_with_its_name() -> Result<()> {
    let traced = trace_library("without-table/libfoo.so", &["-DWITHOUT_CFI", "-g0"], false)?;
    let stack = traced.leak(5001)?;
    let seen = names(stack);
    ensure!(!stack.complete && seen.len() == 3 && seen[0] == "malloc", "{seen:#?}");
    let note = seen[2].strip_prefix("[truncated: no unwind table for libfoo.so+0x");
    let offset = note.and_then(|rest| rest.strip_suffix(']'));
    ensure!(offset.is_some_and(|at| u64::from_str_radix(at, 16).is_ok()), "{seen:#?}");
    ensure!(traced.folded.contains("[truncated: no unwind table for libfoo.so+0x"));
    ensure!(traced.tally("walk_truncated")? == 1, "one walk was cut short");
    Ok(())
}

#[test]
fn a_library_with_debug_frame_alone_is_unwound() -> Result<()> {
    let traced = trace_library("debug-frame/liblevels.so", &[], true)?;
    assert_leaks(&traced, &[(5001, ".debug_frame alone", &[&LEVELS, &["call"], &START])])?;
    traced.assert_all_complete()
}
