//! `memtrace check`: a recording against limits; exit code 8 where one does not hold.

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::exit::SessionError;
use super::outputs::{Sink, is_coloured};
use super::{load, to_stdout};
use crate::cli::CheckArgs;
use crate::report::check::{json, junit, text};
use crate::verdict::check::{Asked, check};
use crate::verdict::suppress::Suppressions;

/// Suppression files are lists made by people.
const SUPPRESSIONS_BYTES: u64 = 1 << 20;

pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let on_stdout = [&args.json, &args.junit].into_iter().flatten();
    let on_stdout = on_stdout.filter(|path| path.as_os_str() == "-").count();
    if on_stdout > 1 {
        return Err(SessionError::TwoOnStdout.into());
    }
    let mut known = String::new();
    for path in &args.suppressions {
        use std::io::Read;
        std::fs::File::open(path)
            .and_then(|file| file.take(SUPPRESSIONS_BYTES).read_to_string(&mut known))
            .with_context(|| format!("failed to read the suppressions in `{}`", path.display()))?;
        known.push('\n');
    }
    let known = Suppressions::parse(&known).context("failed to read the suppressions")?;
    let (recording, torn) = load(&args.file)?;
    let baseline = args.baseline.as_deref().map(load).transpose()?.map(|(recording, _)| recording);
    let asked = Asked {
        max_native_growth: args.max_native_growth,
        max_outstanding: args.max_outstanding,
        no_leak_candidates: args.no_leak_candidates,
        baseline: baseline.as_ref(),
    };
    let mut outcome = check(&recording, &asked, &known);
    outcome.doubts.extend(torn.map(|torn| format!("the recording is {torn}")));
    if let Some(path) = &args.json {
        Sink::open(path)?.deliver(&json(&outcome)?)?;
    }
    if let Some(path) = &args.junit {
        Sink::open(path)?.deliver(junit(&outcome).as_bytes())?;
    }
    if on_stdout == 0 {
        let colour = is_coloured(args.color);
        to_stdout(text(&outcome, colour).as_bytes())?;
    }
    Ok(if outcome.holds() { ExitCode::SUCCESS } else { ExitCode::from(8) })
}
