//! Every frame, in order, over every boundary between Go and C.

use anyhow::{Context, Result, ensure};

use super::build::{self, Go, Linked};
use super::expected::cases;
use super::run::{Traced, assert_frames, trace};

fn traced(go: Go, linked: Linked, memtrace: &[&str]) -> Result<Traced> {
    let executable = build::boundary(go, linked)?;
    trace(&executable, &[] as &[&str], memtrace).with_context(|| format!("{go:?} {linked:?}"))
}

/// Every case of one build: its frames in JSON, and in the folded stacks without the runtime's.
fn check(go: Go, linked: Linked) -> Result<()> {
    let traced = traced(go, linked, &[])?;
    let all = cases(go, linked);
    for case in &all {
        let what = format!("{go:?} {linked:?}: {}", case.what);
        let stack = traced.leak(case.size)?;
        assert_frames(&what, stack, &case.names(linked, true))?;
        assert_folded(&what, &traced, case.size, &case.names(linked, false))?;
    }
    traced.assert_all_complete().with_context(|| format!("{go:?} {linked:?}"))?;
    ensure!(traced.tally("walk_complete")? >= all.len() as u64);
    Ok(())
}

/// `outermost;…;leaf BYTES`, without the mark of inlined functions.
fn assert_folded(what: &str, traced: &Traced, size: u64, expected: &[String]) -> Result<()> {
    let line = traced.folded.lines().find_map(|line| line.strip_suffix(&format!(" {size}")));
    let line = line.with_context(|| format!("{what}: not among the folded stacks"))?;
    let seen: Vec<&str> = line.split(';').rev().collect();
    // Frames without a name have their offset here, which differs from build to build.
    let matches = |seen: &&str, expected: &String| {
        let expected = expected.trim_end_matches(" (inlined)").replace(';', ":");
        match expected.strip_suffix("+?") {
            Some(module) => seen.starts_with(&format!("{module}+0x")),
            None => hashless(seen) == expected,
        }
    };
    let equal = seen.len() == expected.len()
        && seen.iter().zip(expected).all(|(seen, expected)| matches(seen, expected));
    ensure!(equal, "{what}: folded as {seen:#?}, expected {expected:#?}");
    Ok(())
}

fn hashless(name: &str) -> String {
    let hash = |part: &&str| part.len() == 12 && part.bytes().all(|b| b.is_ascii_hexdigit());
    match name.split('_').find(hash) {
        Some(hash) => name.replace(hash, "HASH"),
        None => name.to_owned(),
    }
}

#[test]
fn the_frames_of_gos_runtime_are_folded_unless_asked_for() -> Result<()> {
    let (go, linked) = (Go::V1_27, Linked::Plain);
    let traced = traced(go, linked, &["--show-runtime-frames"])?;
    for case in cases(go, linked) {
        assert_folded(case.what, &traced, case.size, &case.names(linked, true))?;
    }
    Ok(())
}

macro_rules! builds {
    ($($name:ident: $go:ident $linked:ident;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            check(Go::$go, Linked::$linked)
        })*
    };
}

builds! {
    go_1_21_stacks_are_whole: V1_21 Plain;
    go_1_21_stacks_are_whole_without_symbols: V1_21 WithoutSymbols;
    go_1_21_stacks_are_whole_when_stripped: V1_21 Stripped;
    go_1_21_stacks_are_whole_in_a_pie: V1_21 Pie;
    go_1_21_stacks_are_whole_in_a_stripped_pie: V1_21 PieStripped;
    go_1_21_stacks_are_whole_in_a_library_of_a_c_program: V1_21 Shared;
    go_1_21_stacks_are_whole_in_a_stripped_library_of_a_c_program: V1_21 SharedStripped;
    go_1_24_stacks_are_whole: V1_24 Plain;
    go_1_24_stacks_are_whole_without_symbols: V1_24 WithoutSymbols;
    go_1_24_stacks_are_whole_when_stripped: V1_24 Stripped;
    go_1_24_stacks_are_whole_in_a_pie: V1_24 Pie;
    go_1_24_stacks_are_whole_in_a_stripped_pie: V1_24 PieStripped;
    go_1_24_stacks_are_whole_in_a_library_of_a_c_program: V1_24 Shared;
    go_1_24_stacks_are_whole_in_a_stripped_library_of_a_c_program: V1_24 SharedStripped;
    go_1_27_stacks_are_whole: V1_27 Plain;
    go_1_27_stacks_are_whole_without_symbols: V1_27 WithoutSymbols;
    go_1_27_stacks_are_whole_when_stripped: V1_27 Stripped;
    go_1_27_stacks_are_whole_in_a_pie: V1_27 Pie;
    go_1_27_stacks_are_whole_in_a_stripped_pie: V1_27 PieStripped;
    go_1_27_stacks_are_whole_in_a_library_of_a_c_program: V1_27 Shared;
    go_1_27_stacks_are_whole_in_a_stripped_library_of_a_c_program: V1_27 SharedStripped;
}
