//! The order of the stages: the only caller of everything.

mod bundle;
mod check;
mod container_memory;
mod control;
mod diagnostics;
mod diff;
mod exit;
mod explain;
mod family;
mod image;
mod marks;
mod named_again;
mod outputs;
mod probes;
mod process_books;
mod progress;
mod range_events;
mod record;
mod recorder;
mod say;
mod selftest;
mod signals;
mod space;
mod spool;
mod target;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::{Cli, Command, DoctorArgs, MarkArgs, ReportArgs};
use crate::doctor;
use crate::snapshot::Recording;
use crate::snapshot::file::{Completeness, read_recording};
use outputs::Outputs;

pub use control::check_name as check_mark_name;
pub use exit::exit_code;
pub use say::warn;

/// Runs one command line to its end.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Record(args) => {
            diagnostics::install(args.verbose);
            runtime()?.block_on(record::run(*args))
        }
        Command::Explain(args) => {
            diagnostics::install(false);
            runtime()?.block_on(explain::run(args))
        }
        Command::Report(args) => report(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Bundle(args) => bundle::run(&args),
        Command::Mark(args) => mark(&args),
        Command::Selftest(args) => {
            diagnostics::install(false);
            runtime()?.block_on(selftest::run(args))
        }
        Command::Doctor(args) => doctor(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "memtrace", &mut script);
            to_stdout(&script)
        }
        Command::Man => to_stdout(&man_pages()?),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")
}

fn report(args: &ReportArgs) -> Result<ExitCode> {
    let mut finder = named_again::finder(&args.debug)?;
    let (mut recording, torn) = load(&args.file)?;
    let mut outputs = Outputs::open(&args.formats, None, Some(&args.file))?;
    let named_again = named_again::name(&mut recording, &mut finder);
    outputs.render(&recording, &args.formats, torn, named_again)?;
    Ok(ExitCode::SUCCESS)
}

/// A recording, and where it is cut if it is, which is told.
fn load(path: &Path) -> Result<(Recording, Option<String>)> {
    let failed = || format!("failed to read the recording `{}`", path.display());
    let (recording, completeness) =
        read_recording(bundle::open(path).with_context(failed)?).with_context(failed)?;
    let torn = match completeness {
        Completeness::Complete { .. } => None,
        Completeness::Torn(torn) => {
            warn(format_args!("`{}` is {torn}", path.display()));
            Some(torn.to_string())
        }
    };
    Ok((recording, torn))
}

fn mark(args: &MarkArgs) -> Result<ExitCode> {
    let answer = control::ask(&args.control, &format!("mark {}", args.name))?;
    to_stdout(format!("marked `{}`: {answer}\n", args.name).as_bytes())
}

fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let report = doctor::examine(&doctor::gather());
    let text = if args.json {
        report.render_json()
    } else {
        report.render_text(outputs::stdout_takes_color(), outputs::terminal_width())
    };
    to_stdout(text.as_bytes())?;
    Ok(if report.can_record() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The main page and one section per subcommand, as one roff text.
fn man_pages() -> Result<Vec<u8>> {
    let mut roff = Vec::new();
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut roff)?;
    for subcommand in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let name: &'static str = format!("memtrace-{}", subcommand.get_name()).leak();
        clap_mangen::Man::new(subcommand.clone().name(name)).render(&mut roff)?;
    }
    Ok(roff)
}

/// A reader that went away (`| head`) is no error.
fn to_stdout(bytes: &[u8]) -> Result<ExitCode> {
    let mut stdout = io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to write to standard output")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
