//! Inlined functions: each a frame of its own, innermost first, with the line of its call.
//!
//! Go's are among the boundary's cases.

use anyhow::{Context, Result, ensure};

use super::build;
use super::run::{NO_ARGUMENTS, trace};

/// The line of the source that ends with this comment.
fn line_of(source: &str, mark: &str) -> Result<u32> {
    let at = source.lines().position(|line| line.trim_end_matches(" */").ends_with(mark));
    let at = at.with_context(|| format!("no line is marked `{mark}`"))?;
    Ok(u32::try_from(at)? + 1)
}

/// `frames`: function, whether it is inlined, and the mark of its line.
fn check(file: &str, program: &std::path::Path, frames: &[(&str, bool, &str)]) -> Result<()> {
    let source = std::fs::read_to_string(build::sources().join(file)).context("read the source")?;
    let traced = trace(program, NO_ARGUMENTS, &[])?;
    traced.assert_all_complete()?;
    let stack = traced.leak(1111)?;
    for (at, (function, inlined, mark)) in frames.iter().enumerate() {
        let frame = stack.frames.get(at + 1).with_context(|| format!("no frame for {function}"))?;
        let seen = (frame.function.as_deref(), frame.inlined, frame.line);
        ensure!(seen == (Some(function), *inlined, Some(line_of(&source, mark)?)), "{frame:?}");
        ensure!(frame.file.as_deref().is_some_and(|path| path.ends_with(file)), "{frame:?}");
    }
    Ok(())
}

#[test]
fn inlined_c_functions_stand_in_order_with_their_lines() -> Result<()> {
    let program = build::program("gcc", "inlined-c", &["inlined.c"], &[])?;
    check(
        "inlined.c",
        &program,
        &[
            ("innermost", true, "in innermost"),
            ("middle", true, "in middle"),
            ("outer", false, "in outer"),
            ("main", false, "in main"),
        ],
    )
}

#[test]
fn inlined_rust_functions_stand_in_order_with_their_lines() -> Result<()> {
    let program = build::rust("inlined-rust", "inlined.rs")?;
    check(
        "inlined.rs",
        &program,
        &[
            ("inlined::chain::innermost", true, "in innermost"),
            ("inlined::chain::middle", true, "in middle"),
            ("inlined::chain::Outer::outer", false, "in outer"),
            ("inlined::main", false, "in main"),
        ],
    )
}
