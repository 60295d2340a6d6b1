//! The order of the stages: the only caller of everything.

mod diagnostics;
mod exit;
mod explain;
mod outputs;
mod probes;
mod progress;
mod range_events;
mod record;
mod recorder;
mod say;
mod selftest;
mod signals;
mod space;
mod target;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::{Cli, Command, DoctorArgs, ReportArgs};
use crate::doctor;
use crate::snapshot::file::{Completeness, read_recording_file};
use outputs::Outputs;

pub use exit::exit_code;
pub use say::warn;

/// Runs one command line to its end.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Record(args) => {
            diagnostics::install(args.verbose);
            runtime()?.block_on(record::run(args))
        }
        Command::Explain(args) => {
            diagnostics::install(false);
            runtime()?.block_on(explain::run(args))
        }
        Command::Report(args) => report(&args),
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
    let (recording, completeness) = read_recording_file(&args.file)
        .with_context(|| format!("failed to read the recording `{}`", args.file.display()))?;
    let torn = match completeness {
        Completeness::Complete { .. } => None,
        Completeness::Torn(torn) => {
            warn(format_args!("`{}` is {torn}", args.file.display()));
            Some(torn.to_string())
        }
    };
    let mut outputs = Outputs::open(&args.formats, None, Some(&args.file))?;
    outputs.render(&recording, &args.formats, torn)?;
    Ok(ExitCode::SUCCESS)
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
